//! The way to a workload of another network: through that network's gateway, in a tunnel in a tunnel (behaviour §4.7).

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::name::Authority;
use crate::service::Service;
use crate::snapshot::Snapshot;

use super::balance::Purpose;
use super::error::Unreachable;
use super::reach::{Reach, Way};
use super::{Destination, Query, Route, RouteError, Upstream, reference};

/// The route to `upstream`, which is on another network: an endpoint of `service`, which was addressed, or its waypoint.
pub(super) fn through<'s>(
    snapshot: &'s Snapshot,
    upstream: &Upstream<'s>,
    service: &Arc<Service>,
    query: &Query<'_>,
    draw: u64,
) -> Result<Route, RouteError> {
    let Query { source, target, .. } = *query;
    let Upstream { workload, service: chosen_from, .. } = *upstream;
    let Some(gateway) = &workload.network_gateway else {
        let why = Unreachable::NoGateway(workload.network.clone());
        return Err(RouteError::NoValidDestination { workload: workload.uid.clone(), target, why });
    };
    // The end of the inner tunnel is whichever endpoint the gateway picks, so not this workload's own identity but those its
    // service may have. Without any, each connection would pay two handshakes to be refused: say so at once.
    let inner_expected = chosen_from.map_or_else(Vec::new, |service| service.subject_alt_names.clone());
    if inner_expected.is_empty() {
        let service = chosen_from.unwrap_or(service).key();
        return Err(RouteError::NoExpectedIdentity { service, network: workload.network.clone() });
    }
    // Where the gateway is does not matter: it must be reachable from here, or nothing of its network is.
    let resolved = reference::resolve(snapshot, gateway, Purpose::Destination, source, target, draw)?;
    let Some((gateway, wanted)) = resolved else {
        return Err(RouteError::UnknownNetworkGateway {
            gateway: gateway.clone(),
            workload: workload.uid.clone(),
            network: workload.network.clone(),
        });
    };
    let way = Way::Gateway {
        // The service's own name and port, even when a waypoint was chosen: the gateway knows what is behind it.
        authority: Authority::Host { host: service.hostname.clone(), port: target.port() },
        inner_expected,
        destination: Destination { workload: Some(workload.clone()), service: Some(service.clone()) },
    };
    Reach::new(&gateway, way).route(wanted, target)
}
