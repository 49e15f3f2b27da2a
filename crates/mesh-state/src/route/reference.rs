//! What a reference to a waypoint or network gateway leads to (behaviour §4.5).

use core::net::{IpAddr, SocketAddr};

use crate::service::Mode;
use crate::snapshot::Snapshot;
use crate::workload::{GatewayAddress, GatewayDestination, Workload};

use super::balance::{self, Purpose};
use super::{RouteError, Upstream};

/// Follows a reference to one workload and the address whose family is to be used; `None` when it leads nowhere.
pub(super) fn resolve<'s>(
    snapshot: &'s Snapshot,
    reference: &GatewayAddress,
    purpose: Purpose,
    source: &Workload,
    target: SocketAddr,
    draw: u64,
) -> Result<Option<(Upstream<'s>, IpAddr)>, RouteError> {
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
            balance::choose(snapshot, service, source, port, purpose, draw)
                .map_err(|why| RouteError::NoHealthyUpstream { target, service: service.key(), why })?
        }
        (None, Some(workload)) => Upstream { workload, service: None, port },
        _ => return Ok(None),
    };
    Ok(Some((upstream, wanted)))
}
