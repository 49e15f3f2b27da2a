//! Chooses where an outbound connection goes (behaviour §4). Pure: no I/O, no clock; the caller supplies the draw.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use crate::identity::Identity;
use crate::name::{Authority, Hop};
use crate::service::{Mode, Service};
use crate::snapshot::Snapshot;
use crate::wanted::{Knowledge, Sought};
use crate::workload::{GatewayAddress, Workload};

pub use crate::roster::GROUPS_MAX;
use balance::Purpose;
pub use balance::{Unavailable, endpoint};
pub(crate) use balance::{redraw, scale};
pub use error::{RouteError, Unreachable};
pub use reach::Lookup;
use reach::{Reach, Way, has_address};

mod balance;
mod error;
mod gateway;
mod reach;
mod reference;
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
    /// To a workload of which only DNS knows the address: ask it, then [`Lookup::found`] makes the route.
    Resolve(Lookup),
}

/// What a route reaches, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The workload: an endpoint, or the waypoint on the way to it.
    pub workload: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
}

/// Chooses where an outbound connection goes. The same snapshot, query and draw give the same route.
pub fn outbound(snapshot: &Snapshot, query: &Query<'_>, draw: u64) -> Result<Route, RouteError> {
    let target = SocketAddr::new(query.target.ip().to_canonical(), query.target.port());
    let query = &Query { target, ..*query };
    let Query { source, peer, .. } = *query;

    // An address may be both a workload's and a VIP. The workload decides here whether a service's waypoint counts, and
    // the service decides below who receives: the reference's order (§4.2), which control planes are built for.
    let workload = snapshot.workload_by_address(&source.network, target.ip());
    let service = snapshot.service_by_vip(&source.network, target.ip(), &source.namespace);
    let addressed = service.filter(|_| workload.is_none());
    if let Some(service) = addressed
        && let Some(reference) = waypoint::of_service(service, draw)
    {
        let of = format_args!("service {}/{}", service.namespace, service.hostname);
        let (waypoint, wanted) = waypoint_at(snapshot, reference, &of, query, redraw(draw))?;
        if waypoint.workload.network != source.network {
            return gateway::through(snapshot, &waypoint, service, query, gateway_draw(draw));
        }
        return Reach::new(&waypoint, Way::Waypoint { target, service: Some(service.clone()) }).route(wanted, target);
    }

    let Some(upstream) = resolve_upstream(snapshot, source, target, workload, service, draw)? else {
        return Ok(Route::Passthrough { target });
    };
    let receiver = upstream.workload;
    if receiver.network != source.network {
        let Some(service) = addressed else { return Err(no_service(receiver, target)) };
        return gateway::through(snapshot, &upstream, service, query, gateway_draw(draw));
    }
    if addressed.is_none()
        && let Some(reference) = &receiver.waypoint
        && !is_from_waypoint(snapshot, reference, source, peer)
    {
        let of = format_args!("workload {}", receiver.uid);
        let (waypoint, wanted) = waypoint_at(snapshot, reference, &of, query, redraw(draw))?;
        // Through a gateway only a service can be asked for, and this is none. The reference connects to the waypoint's
        // address as if it were in this network, where it is nobody's or, worse, somebody else's.
        if waypoint.workload.network != source.network {
            return Err(no_service(waypoint.workload, target));
        }
        return Reach::new(&waypoint, Way::Waypoint { target, service: None }).route(wanted, target);
    }
    Reach::new(&upstream, Way::Receiver).route(target.ip(), target)
}

/// What has to be asked of a control plane that sends only what it is asked for, before a route may be relied on: who is at
/// the target, then what a waypoint or gateway reference leads to. One at a time, since the next follows from the answer.
pub fn lacking(snapshot: &Snapshot, query: &Query<'_>, route: &Result<Route, RouteError>) -> Option<Sought> {
    let target = Sought::Address { network: query.source.network.clone(), address: query.target.ip().to_canonical() };
    let reference = match route {
        Err(
            RouteError::UnknownWaypoint { waypoint: reference, .. }
            | RouteError::UnknownNetworkGateway { gateway: reference, .. },
        ) => Some(Sought::referred(&reference.destination)),
        _ => None,
    };
    [Some(target), reference].into_iter().flatten().find(|sought| snapshot.knowledge(sought) == Knowledge::NotAsked)
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
    has_address(source, peer) && waypoint::refers_to(snapshot, reference, source)
}

fn waypoint_at<'s>(
    snapshot: &'s Snapshot,
    reference: &GatewayAddress,
    of: &dyn fmt::Display,
    query: &Query<'_>,
    draw: u64,
) -> Result<(Upstream<'s>, IpAddr), RouteError> {
    reference::resolve(snapshot, reference, Purpose::Waypoint, query.source, query.target, draw)?
        .ok_or_else(|| RouteError::UnknownWaypoint { waypoint: reference.clone(), of: of.to_string() })
}

fn no_service(workload: &Workload, target: SocketAddr) -> RouteError {
    RouteError::NoService { workload: workload.uid.clone(), network: workload.network.clone(), target }
}

/// For the choice of a gateway's replica, which must not follow those of the endpoint and of the waypoint.
fn gateway_draw(draw: u64) -> u64 {
    redraw(redraw(draw))
}
