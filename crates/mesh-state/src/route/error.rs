//! Why an outbound connection goes nowhere (behaviour §4.9). Each says who, what, and what the user should look at.

use alloc::string::String;
use core::net::SocketAddr;

use thiserror::Error;

use crate::name::{NamespacedHostname, NetworkId, Uid};
use crate::workload::GatewayAddress;

use super::Unavailable;

/// Why an outbound connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    /// A service has no endpoint to offer.
    #[error("no healthy upstream for {target}: service {service} {why}")]
    NoHealthyUpstream {
        /// Where the application wanted to go.
        target: SocketAddr,
        /// The service there, or the waypoint's or gateway's on the way.
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
        of: String,
    },
    /// A reference to a network gateway leads nowhere.
    #[error(
        "unknown network gateway {gateway} of network {network:?}, where workload {workload} is: is the east-west gateway \
         deployed there, and has its service an address?"
    )]
    UnknownNetworkGateway {
        /// The reference.
        gateway: GatewayAddress,
        /// Whose gateway it is.
        workload: Uid,
        /// Its network.
        network: NetworkId,
    },
    /// The workload that should receive the connection cannot be reached.
    #[error("no valid destination for {target}: workload {workload} {why}")]
    NoValidDestination {
        /// The workload.
        workload: Uid,
        /// Where the application wanted to go.
        target: SocketAddr,
        /// What is missing.
        why: Unreachable,
    },
    /// A workload of another network addressed without a service.
    #[error(
        "no service for {target}: workload {workload} is on network {network:?} and can only be reached through a service; \
         address the service, not the pod"
    )]
    NoService {
        /// The workload, or the waypoint on the way to it.
        workload: Uid,
        /// Its network.
        network: NetworkId,
        /// Where the application wanted to go.
        target: SocketAddr,
    },
    /// Nobody behind a gateway could prove to be the service's (§4.7): the inner tunnel takes the service's names only.
    #[error(
        "no identity is expected of service {service} behind the gateway of network {network:?}: the control plane sent no \
         subject_alt_names for it; is istiod's multi-network support for ambient enabled?"
    )]
    NoExpectedIdentity {
        /// The service that was chosen from.
        service: NamespacedHostname,
        /// The network of its endpoint.
        network: NetworkId,
    },
    /// DNS did not answer for a workload that has a hostname only.
    #[error(
        "cannot resolve {hostname} of workload {workload}: {why}; does the name exist, and is the resolver reachable?"
    )]
    NotResolved {
        /// The name.
        hostname: String,
        /// Whose it is.
        workload: Uid,
        /// What the resolver said.
        why: String,
    },
    /// DNS knows the name of such a workload, and no address.
    #[error("{hostname} of workload {workload} has neither A nor AAAA records: see its WorkloadEntry or ServiceEntry")]
    ResolvedToNothing {
        /// The name.
        hostname: String,
        /// Whose it is.
        workload: Uid,
    },
}

/// Why a workload cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreachable {
    /// It has neither address nor hostname.
    #[error("has neither address nor hostname: does its pod have an IP yet?")]
    NoAddress,
    /// It has no address of those its service allows.
    #[error("has no address of a family that the service allows: see the service's ipFamilies, and the pod's IPs")]
    Family,
    /// It is on another network, and nothing says how to get there.
    #[error(
        "is on network {0:?}, which has no gateway: is a Gateway labelled with topology.istio.io/network deployed there?"
    )]
    NoGateway(NetworkId),
}
