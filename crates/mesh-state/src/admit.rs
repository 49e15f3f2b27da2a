//! Whether an inbound connection is taken in, and where the application is reached (behaviour §6.2 to §6.4, §6.6). Not how.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::identity::Identity;
use crate::name::{Authority, PolicyKey, Uid};
use crate::rbac::{Denial, DryRun};
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// An inbound connection. Holds nothing but facts that a live connection can keep, so that the same question can be asked
/// again of a later snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The local workload, as the snapshot asked has it: policies are attached to it, and may be so after a connection came.
    pub workload: &'a Workload,
    /// The other end of the TCP connection.
    pub peer: SocketAddr,
    /// Who the peer proved to be; ignored for plaintext.
    pub identity: Option<&'a Identity>,
    /// The address of the pod that the connection arrived at.
    pub local: IpAddr,
    /// What is asked for.
    pub request: Request<'a>,
    /// Ports on which this proxy itself listens in the pod.
    pub proxy_ports: &'a [u16],
}

/// What an inbound connection asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// A CONNECT in a tunnel.
    Tunnel(&'a Authority),
    /// A captured TCP connection, by its original destination.
    Plaintext(SocketAddr),
}

/// A connection that is taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Where the application is reached.
    pub target: SocketAddr,
    /// The service meant, as far as the target tells.
    pub service: Option<Arc<Service>>,
    /// The allow policy that matched; `None` when no allow policy is for the workload.
    pub decided_by: Option<PolicyKey>,
    /// What dry-run policies would have added.
    pub dry_run: Vec<DryRun>,
}

/// A connection that is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The tunnel asks for an address that is not this workload's.
    #[error(
        "ip mismatch: {requested} != {local}: the sender's view of {workload} may be stale, or it is no waypoint for {requested}"
    )]
    Address {
        /// What was asked for.
        requested: IpAddr,
        /// Where the tunnel arrived.
        local: IpAddr,
        /// The local workload.
        workload: Uid,
    },
    /// The tunnel asks for something of which no port of the application can be told.
    #[error("{0}")]
    Unresolvable(Unresolvable),
    /// The target is this proxy itself.
    #[error(
        "attempted recursive call to ourselves: {target} is a port of the proxy, not of the application"
    )]
    RecursiveCall {
        /// The target.
        target: SocketAddr,
    },
    /// Policy denies it.
    #[error("connection closed due to policy rejection: {denied}")]
    Policy {
        /// Why.
        denied: Denial,
    },
}

/// Why no port of the application can be told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unresolvable {
    /// No service by this name that the workload may see.
    #[error(
        "no service or workload for hostname: {host}; is it defined, and visible to namespace {namespace}?"
    )]
    Host {
        /// The name.
        host: String,
        /// Whose view was taken.
        namespace: String,
    },
}

/// Decides an inbound connection.
pub fn inbound(_snapshot: &Snapshot, query: &Query<'_>) -> Result<Admission, Refusal> {
    Err(Refusal::Address {
        requested: query.local,
        local: query.local,
        workload: query.workload.uid.clone(),
    })
}
