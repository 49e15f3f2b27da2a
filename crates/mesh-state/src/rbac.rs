//! Whether policy allows a connection (behaviour §7). Knows nothing of tunnels: it is asked about a peer and a target.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::identity::Identity;
use crate::name::PolicyKey;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// A connection, as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Whom it is for.
    pub workload: &'a Workload,
    /// Who it is from, as proved by TLS; `None` for plaintext.
    pub identity: Option<&'a Identity>,
    /// Where it is from.
    pub peer: IpAddr,
    /// Where the application is reached: never a tunnel's address.
    pub target: SocketAddr,
}

/// What policy says of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What holds.
    pub decision: Result<Allowance, Denial>,
    /// What dry-run policies would have added.
    pub dry_run: Vec<DryRun>,
}

/// Why a connection is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// No allow policy is for this workload, so whatever is not denied is allowed.
    NoAllowPolicies,
    /// An allow policy matches.
    Matched(Deciding),
}

/// The policy that decided, and which of its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deciding {
    /// The policy.
    pub policy: PolicyKey,
    /// The position of the rule in the policy.
    pub rule: usize,
}

/// Why a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// A deny policy matches.
    #[error("explicitly denied by: {}", .0.policy)]
    Explicit(Deciding),
    /// Allow policies are for this workload, and none matches.
    #[error("allow policies exist, but none allowed")]
    NoneAllowed,
    /// A policy is attached to the workload that nobody has sent, or that could not be read.
    #[error(
        "unknown policy attached to the workload: {0}; the control plane has not sent it, or it was rejected as invalid"
    )]
    UnknownPolicy(PolicyKey),
}

/// What a dry-run policy would have done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DryRun {
    /// A deny policy would have denied.
    #[error("dry-run: would be explicitly denied by: {}", .0.policy)]
    Denied(Deciding),
    /// An allow policy would have allowed.
    #[error("dry-run: would be allowed by: {}", .0.policy)]
    Allowed(Deciding),
    /// The only allow policies are dry-run ones, and none matches.
    #[error("dry-run: no allow policies match")]
    NoneAllowed,
}

/// Decides a connection.
pub fn evaluate(_snapshot: &Snapshot, _query: &Query<'_>) -> Verdict {
    Verdict {
        decision: Err(Denial::NoneAllowed),
        dry_run: Vec::new(),
    }
}
