//! What the control plane was asked for and has not: with on-demand discovery, not being in the mesh known so far says
//! nothing until somebody has asked.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use hashbrown::DefaultHashBuilder;

use crate::intern::tag;
use crate::trie::Trie;
use crate::wanted::Sought;

/// Absences remembered. An application can ask for as many addresses as there are, so the oldest answers are forgotten, and
/// asked for again should they be needed. Worst case 65,536 x ~120 bytes, 8 MiB.
pub const ABSENT_MAX: usize = 65_536;

/// What is known not to be there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Absences {
    held: Trie<Arc<Sought>>,
    hasher: DefaultHashBuilder,
}

impl Absences {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn has(&self, sought: &Sought) -> bool {
        self.held.find(tag(&self.hasher, sought), |held| **held == *sought).is_some()
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sought> {
        self.held.iter().map(|held| &**held)
    }

    /// It is there after all.
    pub(crate) fn remove(&mut self, sought: &Sought) {
        self.held.remove(tag(&self.hasher, sought), |held| **held == *sought);
    }
}

/// The order in which absences are forgotten; the builder's.
#[derive(Debug, Default)]
pub(crate) struct Forgetting {
    /// Some may have been removed since; they keep their place, so that removing one need not look for it.
    oldest_first: VecDeque<Arc<Sought>>,
}

impl Forgetting {
    pub(crate) fn add(&mut self, absences: &mut Absences, sought: Sought) {
        if absences.has(&sought) {
            return;
        }
        let sought = Arc::new(sought);
        absences.held.insert(tag(&absences.hasher, &*sought), sought.clone(), |_| true);
        self.oldest_first.push_back(sought);
        if self.oldest_first.len() > ABSENT_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            absences.held.remove(tag(&absences.hasher, &*oldest), |held| Arc::ptr_eq(held, &oldest));
        }
    }
}
