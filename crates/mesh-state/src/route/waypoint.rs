//! What a waypoint reference leads to (behaviour §4.5), and whether a workload is what it leads to.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};

use crate::route::balance::{self, Purpose};
use crate::route::{Feature, RouteError, Upstream, choose_address};
use crate::service::{Mode, Service};
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, GatewayDestination, Workload};

/// A waypoint chosen for one connection.
pub(super) struct Waypoint<'s> {
    pub(super) upstream: Upstream<'s>,
    pub(super) address: SocketAddr,
}

/// The waypoint of a service for one connection: by weight when it has weighted ones, unless none of them has any.
pub(super) fn of_service(service: &Service, draw: u64) -> Option<&GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let total: u64 = weighted.iter().map(|waypoint| u64::from(waypoint.weight)).sum();
    let mut left = balance::scale(draw, total);
    for waypoint in weighted {
        let weight = u64::from(waypoint.weight);
        if left < weight {
            return Some(&waypoint.destination);
        }
        left -= weight;
    }
    service.waypoint.as_ref()
}

/// Follows a reference to one workload and address. Always one on the source's own network: through a gateway is not
/// supported yet, and going there directly would not arrive.
pub(super) fn resolve<'s>(
    snapshot: &'s Snapshot,
    reference: &GatewayAddress,
    of: &dyn core::fmt::Display,
    source: &Workload,
    target: SocketAddr,
    draw: u64,
) -> Result<Waypoint<'s>, RouteError> {
    let port = reference.hbone_port;
    let (service, workload, wanted) = match &reference.destination {
        GatewayDestination::Address { network, address } => (
            snapshot.service_by_vip(network, *address, &source.namespace),
            snapshot.workload_by_address(network, *address),
            *address,
        ),
        // By its full name, so whoever may see it: whoever set the reference did.
        GatewayDestination::Hostname(name) => {
            (snapshot.service(name), snapshot.workload_by_hostname(name), target.ip())
        }
    };
    let upstream = match (service, workload) {
        (Some(service), _) if service.load_balancing.mode != Mode::Passthrough => {
            balance::choose(snapshot, service, source, port, Purpose::Waypoint, draw)
                .map_err(|why| RouteError::NoHealthyUpstream { target, service: service.key(), why })?
        }
        (None, Some(workload)) => Upstream { workload, service: None, port },
        _ => {
            return Err(RouteError::UnknownWaypoint { waypoint: reference.clone(), of: of.to_string() });
        }
    };
    let workload = upstream.workload;
    if workload.network != source.network {
        return Err(unsupported(target, Feature::NetworkGateway, reference, workload));
    }
    match choose_address(workload, upstream.service, wanted) {
        Some(ip) => Ok(Waypoint { address: SocketAddr::new(ip, upstream.port), upstream }),
        None if workload.hostname.is_empty() => {
            Err(RouteError::NoValidDestination { workload: workload.uid.clone(), target })
        }
        None => Err(unsupported(target, Feature::HostnameWorkload, reference, workload)),
    }
}

fn unsupported(target: SocketAddr, feature: Feature, reference: &GatewayAddress, workload: &Workload) -> RouteError {
    let because: String = alloc::format!("its waypoint {reference} is workload {}", workload.uid);
    RouteError::Unsupported { target, feature, because }
}

/// Whether `workload` is behind a reference: an endpoint of the service it names, or itself what it names. Asks about this
/// one workload instead of following the reference and comparing, which for a waypoint of several replicas would find
/// another one most of the time.
pub(crate) fn refers_to(snapshot: &Snapshot, reference: &GatewayAddress, workload: &Workload) -> bool {
    let serves = |service: &Arc<Service>| snapshot.endpoint(service, &workload.uid).is_some();
    match &reference.destination {
        GatewayDestination::Address { network, address } => {
            (*network == workload.network && has_address(workload, *address))
                || snapshot.services_by_vip(network, *address).iter().any(serves)
        }
        GatewayDestination::Hostname(name) => {
            (name.hostname == workload.hostname && name.namespace == workload.namespace)
                || snapshot.service(name).is_some_and(serves)
        }
    }
}

pub(super) fn has_address(workload: &Workload, address: IpAddr) -> bool {
    workload.addresses.iter().any(|own| own.to_canonical() == address.to_canonical())
}
