//! What is written down about a connection: access log, metrics, and the flags and status codes of what went wrong.
//!
//! The only place that maps errors to response flags and HTTP status codes. It decides nothing else.

use std::{net::SocketAddr, time::Instant};

use hbone::{OpenError, TlsError, baggage::Baggage};
use mesh_state::{
    admit::Refusal,
    identity::Identity,
    name::Authority,
    route::Destination,
    service::Service,
    workload::Workload,
};
use reactor::Runtime;
use telemetry::{
    access_log::{AccessEntry, Side},
    connection::{ConnectionLabels, OpenConnection, Party, Reporter, ResponseFlag, SecurityPolicy},
};

pub(crate) use telemetry::access_log::Direction;

use crate::{core::Core, error::Error, network::PodNetwork, relay::Meter};

/// The record of one connection, opened once it is known where it goes.
pub(crate) struct Record<R> {
    runtime: R,
    started: Instant,
    entry: AccessEntry,
    metrics: OpenConnection,
}

/// Who is at the other end of an inbound connection.
pub(crate) struct InboundPeer<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    /// From TLS; plain connections have none.
    pub(crate) identity: Option<&'a Identity>,
    /// What the peer says about itself.
    pub(crate) baggage: Option<&'a Baggage>,
}
