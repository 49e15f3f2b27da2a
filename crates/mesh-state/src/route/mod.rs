//! Chooses where an outbound connection goes (behaviour §4). Pure: no I/O, no clock; the caller supplies the draw.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::identity::Identity;
use crate::name::{Authority, Hop, NamespacedHostname, NetworkId, Uid};
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, Workload};

/// An outbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Who makes it; its network is the one in which the target is looked up.
    pub source: &'a Workload,
    /// Where it comes from.
    pub peer: IpAddr,
    /// Where the application wanted to go.
    pub target: SocketAddr,
}

/// Where an outbound connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out of the mesh, to where the application wanted.
    Passthrough {
        /// The address.
        target: SocketAddr,
    },
    /// To a destination in the mesh that speaks plain TCP.
    Direct {
        /// The destination's address.
        target: SocketAddr,
        /// What it is.
        destination: Destination,
    },
    /// Through a tunnel.
    Hbone {
        /// Where the tunnel goes.
        hop: Hop,
        /// What is asked for in it.
        authority: Authority,
        /// The identities the hop may have, any one of them.
        expected: Vec<Identity>,
        /// What is reached.
        destination: Destination,
    },
    /// Through a tunnel in a tunnel, by way of a gateway to another network.
    DoubleHbone {
        /// Where the outer tunnel goes.
        hop: Hop,
        /// What is asked for in both.
        authority: Authority,
        /// The identities the gateway may have, any one of them.
        expected: Vec<Identity>,
        /// The identities the end of the inner tunnel may have, any one of them.
        inner_expected: Vec<Identity>,
        /// What is reached.
        destination: Destination,
    },
}

/// What a route reaches, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The workload: an endpoint, or the waypoint on the way to it.
    pub workload: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
}

/// Why an outbound connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    /// A service has no endpoint to offer.
    #[error("no healthy upstream for {target}: service {service} {why}")]
    NoHealthyUpstream {
        /// Where the application wanted to go.
        target: SocketAddr,
        /// The service there.
        service: NamespacedHostname,
        /// What stands in the way.
        why: Unavailable,
    },
    /// A waypoint reference leads nowhere.
    #[error("unknown waypoint {waypoint} of {of}: is the Gateway deployed and has it an address?")]
    UnknownWaypoint {
        /// The reference.
        waypoint: GatewayAddress,
        /// Whose waypoint it is.
        of: alloc::string::String,
    },
    /// A workload that has no address.
    #[error(
        "no valid destination: workload {workload} has no address that can be used for {target}"
    )]
    NoValidDestination {
        /// The workload.
        workload: Uid,
        /// Where the application wanted to go.
        target: SocketAddr,
    },
    /// A workload of another network addressed without a service.
    #[error(
        "no service for {target}: workload {workload} is on network {network:?} and can only be reached through a service"
    )]
    NoService {
        /// The workload.
        workload: Uid,
        /// Its network.
        network: NetworkId,
        /// Where the application wanted to go.
        target: SocketAddr,
    },
    /// Something not supported yet stands in the way. Never answered by going around it.
    #[error("{target} needs {feature}, which is not supported yet ({because})")]
    Unsupported {
        /// Where the application wanted to go.
        target: SocketAddr,
        /// What is not supported.
        feature: Feature,
        /// What needs it.
        because: alloc::string::String,
    },
}

/// Something not supported yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Feature {
    /// A gateway to another network, by a tunnel in a tunnel.
    #[error("a network gateway (double HBONE)")]
    NetworkGateway,
    /// A workload known only by a hostname.
    #[error("on-demand DNS of a workload's hostname")]
    HostnameWorkload,
}

/// Why a service has no endpoint to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Unavailable {
    /// It has no such port.
    #[error("has no port {0}: see its ports")]
    NoSuchPort(u16),
    /// No workload is its endpoint.
    #[error("has no endpoints: does its selector match running pods?")]
    NoEndpoints,
}

/// Chooses where an outbound connection goes. The same snapshot, query and draw give the same route.
pub fn outbound(_snapshot: &Snapshot, query: &Query<'_>, _draw: u64) -> Result<Route, RouteError> {
    Err(RouteError::NoValidDestination {
        workload: query.source.uid.clone(),
        target: query.target,
    })
}
