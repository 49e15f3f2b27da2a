//! How the control thread stands, for readiness and metrics on the same thread. Clones see the same.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    time::{Duration, Instant},
};

use inpod::pod::PodUid;

use crate::{clocks::now, xds::Kind};

/// The state manager has not loaded the mesh yet.
pub(crate) const STATE_MANAGER: &str = "state manager";
/// The CNI agent has not named this node's pods yet.
pub(crate) const WORKLOAD_PROXY_MANAGER: &str = "workload proxy manager";

/// Bytes of a [`Trouble`]'s text: peers have a say in it.
const WHY_MAX: usize = 512;

/// Pending pods that are named. Whoever mends one sees the next.
const PENDING_TOLD_MAX: usize = 16;

/// How the control thread stands.
#[derive(Debug, Clone)]
pub struct Status(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    pending: RefCell<BTreeSet<&'static str>>,
    generation: Cell<u64>,
    pods_active: Cell<usize>,
    pods_pending: Cell<usize>,
    pending_pods: RefCell<Vec<PendingPod>>,
    started: Cell<u64>,
    stopped: Cell<u64>,
    xds: Cell<XdsStatus>,
    certificates_issued: Cell<u64>,
    certificates_failed: Cell<u64>,
    /// Of the last of each kind.
    xds_lost: RefCell<Option<Trouble>>,
    xds_refused: RefCell<Option<Trouble>>,
    certificate_failed: RefCell<Option<Trouble>>,
    zds_connected: Cell<bool>,
}

/// What went wrong last, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What and why, at most some hundred bytes.
    pub why: String,
    /// On the runtime's clock.
    pub at: Instant,
}

impl Trouble {
    fn now(why: String) -> Option<Self> {
        Some(Self { why: bounded(why), at: now() })
    }

    /// How long ago that was.
    pub fn ago(&self) -> Duration {
        now().saturating_duration_since(self.at)
    }
}

/// A pod that could not be captured and is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingPod {
    /// The CNI agent's name for it.
    pub uid: String,
    /// Why not, at most some hundred bytes.
    pub why: String,
}

fn bounded(mut why: String) -> String {
    why.truncate(why.floor_char_boundary(WHY_MAX));
    why
}

/// How the conversation with the control plane stands. Arrays are in the order of their kinds' `ALL`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdsStatus {
    /// There is a stream.
    pub connected: bool,
    /// Responses, by [`Kind`].
    pub messages: [u64; 2],
    /// Their bytes, by [`Kind`].
    pub message_bytes: [u64; 2],
    /// Resources held, by [`Kind`].
    pub held: [usize; 2],
    /// Resources that were refused, by [`Kind`].
    pub refused: [u64; 2],
    /// Ends of streams, by [`Termination`].
    pub terminations: [u64; 4],
}

/// How a stream, or an attempt at one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// There was none.
    ConnectionError,
    /// It was not meant to end.
    Error,
    /// As servers end them that want to be connected to again.
    Reconnect,
    /// In order.
    Complete,
}

impl Termination {
    /// All.
    pub const ALL: [Self; 4] = [Self::ConnectionError, Self::Error, Self::Reconnect, Self::Complete];

    /// The label's value in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

impl Default for Status {
    /// Nothing has happened yet, so everything is pending.
    fn default() -> Self {
        Self(Rc::new(Inner {
            pending: RefCell::new(BTreeSet::from([STATE_MANAGER, WORKLOAD_PROXY_MANAGER])),
            generation: Cell::new(0),
            pods_active: Cell::new(0),
            pods_pending: Cell::new(0),
            pending_pods: RefCell::default(),
            started: Cell::new(0),
            stopped: Cell::new(0),
            xds: Cell::default(),
            certificates_issued: Cell::new(0),
            certificates_failed: Cell::new(0),
            xds_lost: RefCell::default(),
            xds_refused: RefCell::default(),
            certificate_failed: RefCell::default(),
            zds_connected: Cell::new(false),
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

    /// The first of them by the CNI agent's names, and why each could not be.
    pub fn pending_pods(&self) -> Vec<PendingPod> {
        self.0.pending_pods.borrow().clone()
    }

    /// Pods ever captured.
    pub fn proxies_started(&self) -> u64 {
        self.0.started.get()
    }

    /// Pods ever stopped.
    pub fn proxies_stopped(&self) -> u64 {
        self.0.stopped.get()
    }

    /// The conversation with the control plane.
    pub fn xds(&self) -> XdsStatus {
        self.0.xds.get()
    }

    /// Certificates issued.
    pub fn certificates_issued(&self) -> u64 {
        self.0.certificates_issued.get()
    }

    /// Certificates that were asked for and not issued.
    pub fn certificates_failed(&self) -> u64 {
        self.0.certificates_failed.get()
    }

    /// Why there was no certificate the last time that there was none.
    pub fn certificate_failed(&self) -> Option<Trouble> {
        self.0.certificate_failed.borrow().clone()
    }

    /// Why the conversation with the control plane ended the last time, or did not begin.
    pub fn xds_lost(&self) -> Option<Trouble> {
        self.0.xds_lost.borrow().clone()
    }

    /// What was refused last of what the control plane sent, and why.
    pub fn xds_refused(&self) -> Option<Trouble> {
        self.0.xds_refused.borrow().clone()
    }

    /// Whether there is a connection to the CNI agent.
    pub fn zds_connected(&self) -> bool {
        self.0.zds_connected.get()
    }

    pub(crate) fn count_certificate(&self) {
        self.0.certificates_issued.set(self.0.certificates_issued.get() + 1);
    }

    pub(crate) fn count_certificate_failed(&self, why: String) {
        self.0.certificates_failed.set(self.0.certificates_failed.get() + 1);
        *self.0.certificate_failed.borrow_mut() = Trouble::now(why);
    }

    pub(crate) fn set_xds_connected(&self) {
        self.edit_xds(|xds| xds.connected = true);
    }

    pub(crate) fn set_xds_lost(&self, why: String) {
        self.edit_xds(|xds| xds.connected = false);
        *self.0.xds_lost.borrow_mut() = Trouble::now(why);
    }

    pub(crate) fn set_zds_connected(&self, connected: bool) {
        self.0.zds_connected.set(connected);
    }

    pub(crate) fn count_message(&self, kind: Kind, bytes: u64) {
        self.edit_xds(|xds| {
            xds.messages[kind as usize] += 1;
            xds.message_bytes[kind as usize] += bytes;
        });
    }

    pub(crate) fn count_refused(&self, kind: Kind, count: usize, why: &str) {
        self.edit_xds(|xds| xds.refused[kind as usize] += count as u64);
        *self.0.xds_refused.borrow_mut() = Trouble::now(why[..why.floor_char_boundary(WHY_MAX)].to_owned());
    }

    pub(crate) fn count_termination(&self, how: Termination) {
        self.edit_xds(|xds| xds.terminations[how as usize] += 1);
    }

    pub(crate) fn set_held(&self, held: [usize; 2]) {
        self.edit_xds(|xds| xds.held = held);
    }

    fn edit_xds(&self, edit: impl FnOnce(&mut XdsStatus)) {
        let mut xds = self.0.xds.get();
        edit(&mut xds);
        self.0.xds.set(xds);
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

    pub(crate) fn set_pods(&self, active: usize, mut pending: Vec<(PodUid, String)>) {
        self.0.pods_active.set(active);
        self.0.pods_pending.set(pending.len());
        pending.sort();
        pending.truncate(PENDING_TOLD_MAX);
        let told = pending.into_iter().map(|(uid, why)| PendingPod { uid: uid.to_string(), why: bounded(why) });
        *self.0.pending_pods.borrow_mut() = told.collect();
    }

    pub(crate) fn count_started(&self) {
        self.0.started.set(self.0.started.get() + 1);
    }

    pub(crate) fn count_stopped(&self) {
        self.0.stopped.set(self.0.stopped.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_said_last_is_kept_in_bounds() {
        let status = Status::default();
        for (said, kept) in [("x".repeat(600), WHY_MAX), ("\u{20ac}".repeat(300), 510), ("short".to_owned(), 5)] {
            status.set_xds_lost(said);
            let trouble = status.xds_lost().expect("just told");
            assert_eq!(trouble.why.len(), kept);
            assert!(trouble.ago() < Duration::from_secs(60));
        }
    }
}
