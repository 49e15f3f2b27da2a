//! Chooses where an outbound connection goes (behaviour §4). Pure: no I/O, no clock; the caller supplies the draw.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::identity::Identity;
use crate::name::{Authority, Hop, NamespacedHostname, NetworkId, Uid};
use crate::service::{IpFamilies, Mode, Service};
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, TunnelProtocol, Workload};

use balance::Purpose;
pub use balance::{Unavailable, endpoint};
use waypoint::Waypoint;

mod balance;
pub(crate) mod waypoint;

/// The port at which every captured workload takes tunnels. Waypoints and gateways name theirs.
pub const HBONE_PORT: u16 = 15008;

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
        of: String,
    },
    /// A workload that has no address.
    #[error("no valid destination: workload {workload} has no address that can be used for {target}")]
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
        because: String,
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

/// Chooses where an outbound connection goes. The same snapshot, query and draw give the same route.
pub fn outbound(snapshot: &Snapshot, query: &Query<'_>, draw: u64) -> Result<Route, RouteError> {
    let Query { source, peer, .. } = *query;
    let target = SocketAddr::new(query.target.ip().to_canonical(), query.target.port());

    // An address may be both a workload's and a VIP. The workload decides here whether a service's waypoint counts, and
    // the service decides below who receives: the reference's order (§4.2), which control planes are built for.
    let workload = snapshot.workload_by_address(&source.network, target.ip());
    let service = snapshot.service_by_vip(&source.network, target.ip(), &source.namespace);
    let addressed = service.filter(|_| workload.is_none());
    if let Some(service) = addressed
        && let Some(reference) = waypoint::of_service(service, draw)
    {
        let of = format_args!("service {}/{}", service.namespace, service.hostname);
        let waypoint = waypoint::resolve(snapshot, reference, &of, source, target, balance::redraw(draw))?;
        return Ok(to_waypoint(waypoint, target, Some(service)));
    }

    let Some(upstream) = resolve_upstream(snapshot, source, target, workload, service, draw)? else {
        return Ok(Route::Passthrough { target });
    };
    let receiver = upstream.workload;
    if receiver.network != source.network {
        return Err(unreachable_network(addressed, receiver, target));
    }
    if addressed.is_none()
        && let Some(reference) = &receiver.waypoint
        && !is_from_waypoint(snapshot, reference, source, peer)
    {
        let of = format_args!("workload {}", receiver.uid);
        let waypoint = waypoint::resolve(snapshot, reference, &of, source, target, balance::redraw(draw))?;
        return Ok(to_waypoint(waypoint, target, None));
    }
    to_receiver(upstream, target)
}

/// A workload chosen to receive a connection, and where.
struct Upstream<'s> {
    workload: &'s Arc<Workload>,
    /// The service it was chosen from.
    service: Option<&'s Arc<Service>>,
    port: u16,
}

/// The workload that receives a connection (§4.3): an endpoint of the service at the address, else the workload there;
/// `None` when the address is nobody's, or a service wants its traffic left alone.
fn resolve_upstream<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    target: SocketAddr,
    workload: Option<&'s Arc<Workload>>,
    service: Option<&'s Arc<Service>>,
    draw: u64,
) -> Result<Option<Upstream<'s>>, RouteError> {
    // Also what is left when a service at a workload's own address has nobody to offer. The reference then sends plain
    // TCP to an address that it knows to be in the mesh; here it gets the tunnel it would have had without the service.
    let at_address = workload.map(|workload| Upstream { workload, service: None, port: target.port() });
    let Some(service) = service else {
        return Ok(at_address);
    };
    if service.load_balancing.mode == Mode::Passthrough {
        return Ok(at_address);
    }
    match balance::choose(snapshot, service, source, target.port(), Purpose::Destination, draw) {
        Ok(upstream) => Ok(Some(upstream)),
        Err(_) if at_address.is_some() => Ok(at_address),
        Err(why) => Err(RouteError::NoHealthyUpstream { target, service: service.key(), why }),
    }
}

/// Whether a connection comes out of the waypoint it would otherwise be sent to.
fn is_from_waypoint(snapshot: &Snapshot, reference: &GatewayAddress, source: &Workload, peer: IpAddr) -> bool {
    waypoint::has_address(source, peer) && waypoint::refers_to(snapshot, reference, source)
}

/// A waypoint gets the address as the application gave it, VIP or not, and always through a tunnel (§4.2).
fn to_waypoint(waypoint: Waypoint<'_>, target: SocketAddr, service: Option<&Arc<Service>>) -> Route {
    let Waypoint { upstream, address } = waypoint;
    Route::Hbone {
        hop: Hop(address),
        authority: Authority::Address(target),
        expected: expected(&upstream),
        destination: Destination { workload: Some(upstream.workload.clone()), service: service.cloned() },
    }
}

fn to_receiver(upstream: Upstream<'_>, target: SocketAddr) -> Result<Route, RouteError> {
    let workload = upstream.workload;
    let Some(ip) = choose_address(workload, upstream.service, target.ip()) else {
        if workload.hostname.is_empty() {
            return Err(RouteError::NoValidDestination { workload: workload.uid.clone(), target });
        }
        let because = alloc::format!("workload {} has only hostname {}", workload.uid, workload.hostname);
        return Err(RouteError::Unsupported { target, feature: Feature::HostnameWorkload, because });
    };
    let address = SocketAddr::new(ip, upstream.port);
    let destination = Destination { workload: Some(workload.clone()), service: upstream.service.cloned() };
    Ok(match workload.protocol {
        TunnelProtocol::None => Route::Direct { target: address, destination },
        TunnelProtocol::Hbone => Route::Hbone {
            hop: Hop(SocketAddr::new(ip, HBONE_PORT)),
            authority: Authority::Address(address),
            expected: expected(&upstream),
            destination,
        },
    })
}

/// Which address of a workload is used (§4.6): the one asked for if it has it; else, of those its service allows, the first
/// of the same family, else the first.
fn choose_address(workload: &Workload, service: Option<&Arc<Service>>, wanted: IpAddr) -> Option<IpAddr> {
    let wanted = wanted.to_canonical();
    if waypoint::has_address(workload, wanted) {
        return Some(wanted);
    }
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    let allowed = || {
        workload.addresses.iter().map(IpAddr::to_canonical).filter(move |address| match families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::Ipv4Only => address.is_ipv4(),
            IpFamilies::Ipv6Only => address.is_ipv6(),
        })
    };
    allowed().find(|address| address.is_ipv4() == wanted.is_ipv4()).or_else(|| allowed().next())
}

/// Whoever is chosen may be itself, or what its service says it may be (§4.2).
fn expected(upstream: &Upstream<'_>) -> Vec<Identity> {
    let own = &upstream.workload.identity;
    let mut expected: Vec<Identity> =
        upstream.service.map_or_else(Vec::new, |service| service.subject_alt_names.clone());
    // Once: the list is part of what tunnels are pooled by.
    if !expected.contains(own) {
        expected.push(own.clone());
    }
    expected
}

fn unreachable_network(addressed: Option<&Arc<Service>>, receiver: &Workload, target: SocketAddr) -> RouteError {
    let workload = receiver.uid.clone();
    if addressed.is_none() {
        return RouteError::NoService { workload, network: receiver.network.clone(), target };
    }
    if receiver.network_gateway.is_none() {
        return RouteError::NoValidDestination { workload, target };
    }
    let because = alloc::format!("workload {workload} is on network {:?}", receiver.network.as_str());
    RouteError::Unsupported { target, feature: Feature::NetworkGateway, because }
}
