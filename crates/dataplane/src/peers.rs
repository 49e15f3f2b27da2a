//! Who is at the other end of this core's tunnels, either way, for as long as the tunnel is up: a peer may be revoked
//! meanwhile. The table knows proofs and rings; closing the tunnel is its task's.
//!
//! An entry is made before anything goes through its tunnel and is looked at then, so that lists that came during the
//! handshake are not missed.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use hbone::{
    CertificateProblem,
    revocation::{Proof, Revocations},
};
use slab::Slab;

use crate::bell::Bell;

/// The table of one core. It has an entry per tunnel, so pods' limits on those bound it.
#[derive(Clone, Default)]
pub(crate) struct Peers(Rc<Table>);

#[derive(Default)]
struct Table {
    /// Without lists, now or later, nothing is kept.
    is_kept: bool,
    revocations: RefCell<Arc<Revocations>>,
    entries: RefCell<Slab<Entry>>,
}

struct Entry {
    proof: Proof,
    watch: Rc<Standing>,
}

#[derive(Default)]
struct Standing {
    revoked: Cell<bool>,
    bell: Bell,
}

/// A peer's place in the table; dropping it gives the place up.
pub(crate) struct Known {
    table: Peers,
    slot: Option<usize>,
    watch: Watch,
}

/// Tells when a peer is revoked. Clones watch the same one.
#[derive(Clone, Default)]
pub(crate) struct Watch(Option<Rc<Standing>>);

impl Peers {
    /// An empty table; nothing is entered in it when there are never to be lists.
    pub(crate) fn new(is_kept: bool) -> Self {
        Self(Rc::new(Table { is_kept, ..Table::default() }))
    }

    /// Enters a peer that has just proved itself.
    ///
    /// # Errors
    /// It is revoked by lists that came during its handshake.
    pub(crate) fn enter(&self, proof: Option<Proof>) -> Result<Known, CertificateProblem> {
        let Some(proof) = proof.filter(|_| self.0.is_kept) else {
            return Ok(Known { table: self.clone(), slot: None, watch: Watch::default() });
        };
        proof.check(&self.0.revocations.borrow())?;
        let watch = Rc::<Standing>::default();
        let slot = self.0.entries.borrow_mut().insert(Entry { proof, watch: watch.clone() });
        Ok(Known { table: self.clone(), slot: Some(slot), watch: Watch(Some(watch)) })
    }

    /// These lists are in force now. Who is in the table is to be looked at again.
    pub(crate) fn install(&self, revocations: Arc<Revocations>) {
        *self.0.revocations.borrow_mut() = revocations;
    }

    /// The places that are taken now, to be looked at in slices: who enters later was looked at then.
    pub(crate) fn slots(&self) -> Vec<usize> {
        self.0.entries.borrow().iter().map(|(slot, _)| slot).collect()
    }

    /// Looks at the peer in `slot` again, if there is one, and rings when it is revoked.
    pub(crate) fn recheck(&self, slot: usize) -> Recheck {
        let entries = self.0.entries.borrow();
        let Some(Entry { proof, watch }) = entries.get(slot) else { return Recheck::Fine };
        let Err(problem) = proof.check(&self.0.revocations.borrow()) else { return Recheck::Fine };
        watch.revoked.set(true);
        watch.bell.ring();
        Recheck::Revoked(problem)
    }
}

/// What came of looking at a peer again.
pub(crate) enum Recheck {
    /// It may stay, or is gone.
    Fine,
    /// It was told to go. This took cryptography.
    Revoked(CertificateProblem),
}

impl Known {
    /// For the connections that go through the tunnel.
    pub(crate) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Resolves when the peer is revoked.
    pub(crate) async fn revoked(&self) {
        self.watch.revoked().await;
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.table.0.entries.borrow_mut().remove(slot);
        }
    }
}

impl Watch {
    pub(crate) fn is_revoked(&self) -> bool {
        self.0.as_ref().is_some_and(|watch| watch.revoked.get())
    }

    /// Resolves when the peer is revoked; never for one that is not kept.
    pub(crate) async fn revoked(&self) {
        let Some(watch) = &self.0 else { return std::future::pending().await };
        loop {
            let seen = watch.bell.count();
            if watch.revoked.get() {
                return;
            }
            watch.bell.after(seen).await;
        }
    }
}
