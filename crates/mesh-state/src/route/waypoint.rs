//! Which waypoint a service's connection passes, and whether a workload is one. What a reference leads to is
//! [`super::reference`]'s.

use alloc::sync::Arc;

use crate::route::balance;
use crate::route::reach::has_address;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, GatewayDestination, Workload};

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

/// All waypoints that a service's connections may pass.
pub(crate) fn all_of(service: &Arc<Service>) -> impl Iterator<Item = &GatewayAddress> {
    service.waypoint.iter().chain(service.weighted_waypoints.iter().map(|weighted| &weighted.destination))
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
