//! How the control thread stands, for readiness, metrics and whoever asks why not. Written by it, read by anyone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use inpod::pod::PodUid;
use mesh_state::identity::Identity;
use tokio::sync::watch;

/// Pending until the mesh is known.
pub const STATE_MANAGER: &str = "state manager";

/// Pending until the CNI agent is connected, has named every pod, and each of them is captured.
pub const WORKLOAD_PROXY_MANAGER: &str = "workload proxy manager";

/// A handle on the control thread's standing. Clones share it; it may be read on any thread.
#[derive(Clone, Debug)]
pub struct Status(Arc<watch::Sender<Report>>);

impl Status {
    /// Before the start: all is pending.
    pub fn new() -> Self {
        let pending = BTreeSet::from([STATE_MANAGER, WORKLOAD_PROXY_MANAGER]);
        Self(Arc::new(watch::Sender::new(Report { pending, ..Report::default() })))
    }

    /// How it stands now.
    pub fn report(&self) -> Report {
        self.0.borrow().clone()
    }

    /// For whoever waits for something to change.
    pub fn watch(&self) -> watch::Receiver<Report> {
        self.0.subscribe()
    }

    /// Not ready until [`Status::done`] is called for the same task.
    pub fn begin(&self, task: &'static str) {
        self.change(|report| {
            report.pending.insert(task);
        });
    }

    /// One thing less to wait for.
    pub fn done(&self, task: &'static str) {
        self.change(|report| {
            report.pending.remove(task);
        });
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Report)) {
        self.0.send_modify(change);
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

/// How the control thread stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What readiness waits for, by the names that its page shows.
    pub pending: BTreeSet<&'static str>,
    /// The generation of the newest snapshot.
    pub generation: u64,
    /// This node's pods.
    pub pods: Pods,
    /// The CNI agent is connected.
    pub agent_connected: bool,
    /// Identities with a valid credential.
    pub credentials: usize,
    /// Identities without one, each with the reason.
    pub credentials_missing: BTreeMap<Identity, String>,
    /// What went wrong last, by what it concerns; gone once it went right again.
    pub errors: BTreeMap<Concern, String>,
}

/// This node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Captured now.
    pub active: usize,
    /// Being captured now.
    pub starting: usize,
    /// Those that could not be captured and are tried again, each with the reason.
    pub pending: Vec<(PodUid, String)>,
    /// Ever captured.
    pub started: u64,
    /// Ever let go.
    pub stopped: u64,
}

/// What an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// The file that describes the mesh.
    MeshFile,
    /// The conversation with the CNI agent.
    Agent,
    /// Who issues certificates.
    Ca,
}
