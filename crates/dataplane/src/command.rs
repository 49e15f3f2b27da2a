//! What the control thread tells a core, in order. Snapshots have a mailbox of their own, where the newest wins.

use std::{sync::Arc, time::Duration};

use hbone::{credential::Credential, revocation::Revocations};
use inpod::pod::{PodInfo, PodUid};
use mesh_state::identity::Identity;

/// Commands a core has not taken yet. A command is at most a few hundred bytes: 1 MiB per core.
pub(crate) const COMMANDS_MAX: usize = 4_096;

/// What there is for an identity: its certificate and key, or why there is none.
pub type Issued = Result<Arc<Credential>, Arc<str>>;

/// One command for a core; `N` is where the pods' sockets come from.
#[derive(Debug)]
pub enum Command<N> {
    /// A certificate was issued or renewed, or why there is none.
    Credential {
        /// Whose.
        identity: Identity,
        /// What pods of that identity use from now on.
        credential: Issued,
    },
    /// No pod of this node is of that identity any more; the next one waits for a new certificate.
    CredentialGone {
        /// Whose.
        identity: Identity,
    },
    /// Other certificates are revoked than before. Tunnels whose peer is revoked now are closed.
    Revocations {
        /// All that are.
        revocations: Arc<Revocations>,
    },
    /// Start capturing a pod here. A pod of the same uid in another network namespace replaces the old one.
    PodUp {
        /// The pod.
        pod: CapturedPod<N>,
        /// Told once its listeners are bound, or why not.
        receipt: async_channel::Sender<Result<(), PodError>>,
    },
    /// Stop a pod and reset its connections. Unknown uids are fine.
    PodDown {
        /// The pod.
        uid: PodUid,
        /// Told once it is gone.
        receipt: async_channel::Sender<Result<(), PodError>>,
    },
    /// Answer, to prove that this core schedules and tell how it stands.
    Ping {
        /// Gets that.
        answer: async_channel::Sender<CoreStanding>,
    },
    /// Close all listeners, send GOAWAY, let connections finish until the deadline, reset the rest, and end.
    Drain {
        /// How long connections may take.
        limit: Duration,
    },
}

/// How a core stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreStanding {
    /// Its index among the cores.
    pub core: usize,
    /// The generation it decides by.
    pub generation: u64,
    /// How long it has had that one.
    pub generation_age: Duration,
    /// Pods whose connections it captures.
    pub pods: usize,
    /// Captured connections that are alive, both ways.
    pub connections: usize,
}

/// A pod to capture.
#[derive(Debug)]
pub struct CapturedPod<N> {
    /// The CNI agent's name for it.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// The generation of the mesh that was published before it.
    pub generation: u64,
    /// Where its sockets come from.
    pub network: N,
}

/// Why a pod could not be captured, or a core not be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// A listener could not be bound.
    #[error("cannot listen on port {port} of pod {uid}: {cause}")]
    Listen {
        /// The pod.
        uid: PodUid,
        /// The listener's port.
        port: u16,
        /// What the kernel said.
        cause: String,
    },
    /// Source addresses must be kept and cannot be.
    #[error("pod {uid} cannot keep source addresses (IP_TRANSPARENT was refused: is CAP_NET_ADMIN missing?)")]
    NotTransparent {
        /// The pod.
        uid: PodUid,
    },
    /// The core's mailbox is full or its thread has ended.
    #[error("core {core} takes no commands: {cause}")]
    Core {
        /// Which.
        core: usize,
        /// `full` or `ended`.
        cause: &'static str,
    },
    /// The process drains and takes no new pods.
    #[error("the proxy is draining and takes no new pods")]
    Draining,
}
