//! Why the talk with the CNI agent ends. What is said and done about it is the session's.

use std::io;

use crate::{
    pod::PodUid,
    zds::{session::OUTSTANDING_MAX, wire::WireError},
};

/// Why a connection, or the process, ends.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Its bytes make no request.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The packet did not arrive whole; what did is lost.
    #[error("{0}")]
    Unreadable(String),
    /// An add that brings no network namespace.
    #[error("AddWorkload for pod {uid} came without a descriptor of its network namespace (no control message)")]
    NoDescriptor {
        /// Which pod.
        uid: PodUid,
    },
    /// An add that brings several.
    #[error("AddWorkload for pod {uid} came with {count} descriptors instead of one")]
    Descriptors {
        /// Which pod.
        uid: PodUid,
        /// How many came.
        count: usize,
    },
    /// Any other request that brings one.
    #[error("{request} came with {count} descriptors, but only AddWorkload carries one")]
    DescriptorUnexpected {
        /// What was asked.
        request: &'static str,
        /// How many came.
        count: usize,
    },
    /// The received descriptor could not be looked at.
    #[error("the descriptor received for pod {uid} cannot be examined: {source}")]
    Netns {
        /// Which pod.
        uid: PodUid,
        /// What `fstat` said.
        source: io::Error,
    },
    /// [`OUTSTANDING_MAX`] was reached.
    #[error("{OUTSTANDING_MAX} requests are unanswered and another one came: does the CNI agent not wait for answers?")]
    Outstanding,
    /// An add without `workload_info`. Fatal.
    #[error("AddWorkload for pod {uid} has no workload_info")]
    NoInfo {
        /// Which pod.
        uid: PodUid,
    },
    /// `KeepWorkload` has no meaning after the snapshot. Fatal.
    #[error("KeepWorkload for pod {uid} came after the snapshot")]
    KeepAfterSnapshot {
        /// Which pod.
        uid: PodUid,
    },
    /// One connection has one snapshot. Fatal.
    #[error("SnapshotSent came a second time on one connection")]
    SecondSnapshot,
}

impl SessionError {
    /// Whether a new connection cannot help, so that the process ends.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::NoInfo { .. } | Self::KeepAfterSnapshot { .. } | Self::SecondSnapshot => true,
            Self::Wire(_)
            | Self::Unreadable(_)
            | Self::NoDescriptor { .. }
            | Self::Descriptors { .. }
            | Self::DescriptorUnexpected { .. }
            | Self::Netns { .. }
            | Self::Outstanding => false,
        }
    }
}
