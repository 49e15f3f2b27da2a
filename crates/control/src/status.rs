//! How the control thread stands, for readiness and metrics on the same thread. Clones see the same.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
};

/// The state manager has not loaded the mesh yet.
pub(crate) const STATE_MANAGER: &str = "state manager";
/// The CNI agent has not named this node's pods yet.
pub(crate) const WORKLOAD_PROXY_MANAGER: &str = "workload proxy manager";

/// How the control thread stands.
#[derive(Debug, Clone)]
pub struct Status(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    pending: RefCell<BTreeSet<&'static str>>,
    generation: Cell<u64>,
    pods_active: Cell<usize>,
    pods_pending: Cell<usize>,
    started: Cell<u64>,
    stopped: Cell<u64>,
}

impl Default for Status {
    /// Nothing has happened yet, so everything is pending.
    fn default() -> Self {
        Self(Rc::new(Inner {
            pending: RefCell::new(BTreeSet::from([STATE_MANAGER, WORKLOAD_PROXY_MANAGER])),
            generation: Cell::new(0),
            pods_active: Cell::new(0),
            pods_pending: Cell::new(0),
            started: Cell::new(0),
            stopped: Cell::new(0),
        }))
    }
}

impl Status {
    /// What is not ready yet.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.pending.borrow().iter().copied().collect()
    }

    /// The generation published last.
    pub fn generation(&self) -> u64 {
        self.0.generation.get()
    }

    /// Pods captured now.
    pub fn pods_active(&self) -> usize {
        self.0.pods_active.get()
    }

    /// Pods that could not be captured and are tried again.
    pub fn pods_pending(&self) -> usize {
        self.0.pods_pending.get()
    }

    /// Pods ever captured.
    pub fn proxies_started(&self) -> u64 {
        self.0.started.get()
    }

    /// Pods ever stopped.
    pub fn proxies_stopped(&self) -> u64 {
        self.0.stopped.get()
    }

    pub(crate) fn set_pending(&self, task: &'static str, pending: bool) {
        let mut tasks = self.0.pending.borrow_mut();
        if pending {
            tasks.insert(task);
        } else {
            tasks.remove(task);
        }
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.0.generation.set(generation);
    }

    pub(crate) fn set_pods(&self, active: usize, pending: usize) {
        self.0.pods_active.set(active);
        self.0.pods_pending.set(pending);
    }

    pub(crate) fn count_started(&self) {
        self.0.started.set(self.0.started.get() + 1);
    }

    pub(crate) fn count_stopped(&self) {
        self.0.stopped.set(self.0.stopped.get() + 1);
    }
}
