//! A bounded number of things alive at once: a place each, given back on drop, and word when the last has gone.

use std::{cell::Cell, rc::Rc};

use crate::bell::Bell;

/// The things alive. Clones count the same.
#[derive(Clone)]
pub(crate) struct Crowd(Rc<Inner>);

struct Inner {
    members: Cell<usize>,
    members_max: usize,
    left: Bell,
}

impl Crowd {
    /// Nobody yet, and never more than `members_max`.
    pub(crate) fn of(members_max: usize) -> Self {
        Self(Rc::new(Inner { members: Cell::new(0), members_max, left: Bell::default() }))
    }

    /// A place, while there is one.
    pub(crate) fn join(&self) -> Option<Member> {
        if self.0.members.get() >= self.0.members_max {
            return None;
        }
        self.0.members.set(self.0.members.get() + 1);
        Some(Member(self.clone()))
    }

    /// The limit.
    pub(crate) fn members_max(&self) -> usize {
        self.0.members_max
    }

    /// Resolves when nobody is there.
    pub(crate) async fn empty(&self) {
        loop {
            let seen = self.0.left.count();
            if self.0.members.get() == 0 {
                return;
            }
            self.0.left.after(seen).await;
        }
    }
}

/// A place in a crowd; dropping it gives it up.
pub(crate) struct Member(Crowd);

impl Drop for Member {
    fn drop(&mut self) {
        let inner = &self.0.0;
        inner.members.set(inner.members.get() - 1);
        inner.left.ring();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_full_crowd_takes_nobody_until_somebody_leaves() {
        let crowd = Crowd::of(2);
        let (one, two) = (crowd.join(), crowd.join());
        assert!(one.is_some() && two.is_some() && crowd.join().is_none());
        drop(one);
        assert!(crowd.join().is_some());
        assert!(crowd.empty().now_or_never().is_none());
        drop(two);
        assert!(crowd.empty().now_or_never().is_some());
    }
}
