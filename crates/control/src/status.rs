//! How control stands, for readiness, metrics and whoever asks. Written by the control task, read on the same thread.

use std::{cell::RefCell, rc::Rc};

/// A handle on the standing of one control task; clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Status(Rc<RefCell<Facts>>);

#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The mesh was read once, or there is nothing to read.
    pub(crate) state_loaded: bool,
    /// The CNI agent has named all pods on the present connection, or there is no agent.
    pub(crate) pods_named: bool,
    pub(crate) pods_active: usize,
    /// Each pod that could not be started, with the reason.
    pub(crate) pods_pending: Vec<(String, String)>,
    pub(crate) proxies_started: u64,
    pub(crate) proxies_stopped: u64,
    pub(crate) generation: u64,
    pub(crate) last_error: Option<String>,
}

impl Status {
    /// Readiness tasks that are not done, by the names that operators know from ztunnel. Pods that wait for another try
    /// are not among them: one broken pod must not take the node out of service.
    pub fn pending(&self) -> Vec<&'static str> {
        let facts = self.0.borrow();
        let tasks = [("state manager", facts.state_loaded), ("workload proxy manager", facts.pods_named)];
        tasks.into_iter().filter(|(_, done)| !done).map(|(name, _)| name).collect()
    }

    /// Pods that are captured.
    pub fn pods_active(&self) -> usize {
        self.0.borrow().pods_active
    }

    /// Pods that could not be started and are tried again.
    pub fn pods_pending(&self) -> usize {
        self.0.borrow().pods_pending.len()
    }

    /// The uid of each pod that could not be started, with the reason.
    pub fn pods_pending_reasons(&self) -> Vec<(String, String)> {
        self.0.borrow().pods_pending.clone()
    }

    /// How many times a pod's proxy was started.
    pub fn proxies_started(&self) -> u64 {
        self.0.borrow().proxies_started
    }

    /// How many times a pod's proxy was stopped.
    pub fn proxies_stopped(&self) -> u64 {
        self.0.borrow().proxies_stopped
    }

    /// The generation of the snapshot published last; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.0.borrow().generation
    }

    /// What is wrong with the mesh's file, until it is right again.
    pub fn last_error(&self) -> Option<String> {
        self.0.borrow().last_error.clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.borrow_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_the_mesh_and_the_pods_but_not_for_pods_that_fail() {
        let status = Status::default();
        assert_eq!(status.pending(), ["state manager", "workload proxy manager"]);
        status.update(|facts| facts.state_loaded = true);
        assert_eq!(status.clone().pending(), ["workload proxy manager"]);
        status.update(|facts| {
            facts.pods_named = true;
            facts.pods_pending.push(("uid".to_owned(), "no".to_owned()));
        });
        assert!(status.pending().is_empty());
        assert_eq!(status.pods_pending(), 1);
    }
}
