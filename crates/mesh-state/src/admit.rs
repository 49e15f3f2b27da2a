//! Whether an inbound connection is taken in, and where the application is reached (behaviour §6.2 to §6.4, §6.6). Not how.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::iter;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::identity::Identity;
use crate::name::{Authority, NamespacedHostname, NetworkId, Uid};
use crate::rbac::{self, Allowance, Deciding, Denial, DryRun, Verdict};
use crate::route::waypoint;
use crate::service::{self, PortMapping, Service};
use crate::snapshot::Snapshot;
use crate::wanted::{Knowledge, Sought};
use crate::workload::{ApplicationProtocol, ApplicationTunnel, GatewayAddress, Workload};

pub use proxy_header::ProxyHeader;

mod proxy_header;

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
    /// Whether an application that wants a PROXY header is reached on loopback (ztunnel's `LOCALHOST_APP_TUNNEL`).
    pub localhost_tunnel: bool,
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
    /// Whether the application sees the peer's address as that of the connection. On loopback it cannot.
    pub keeps_source: bool,
    /// What the application is told before all else.
    pub proxy_header: Option<ProxyHeader>,
    /// The allow policy that matched, and its rule; `None` when no allow policy is for the workload.
    pub decided_by: Option<Deciding>,
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
    #[error("attempted recursive call to ourselves: {target} is a port of the proxy, not of the application")]
    RecursiveCall {
        /// The target.
        target: SocketAddr,
    },
    /// Policy denies it.
    #[error("connection closed due to policy rejection: {denied}")]
    Policy {
        /// Why.
        denied: Denial,
        /// What dry-run policies would have added: one that would have allowed it, say.
        dry_run: Vec<DryRun>,
    },
}

/// Why the application cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unresolvable {
    /// No service by this name that the workload may see.
    #[error("no service or workload for hostname: {host}; is it defined, and visible to namespace {namespace}?")]
    Host {
        /// The name.
        host: Arc<str>,
        /// Whose view was taken.
        namespace: Arc<str>,
    },
    /// The service does not say which port of the workload is behind its port.
    #[error("requested service {host}:{port} found, but cannot resolve port: see the service's ports and targetPort")]
    Port {
        /// The service's name.
        host: Arc<str>,
        /// Its port.
        port: u16,
    },
    /// The application wants to know what address a service was asked for at, and it has none.
    #[error(
        "requested service {host} found, but has no IP addresses: workload {workload} wants one in its PROXY header; is the \
         service headless?"
    )]
    NoVip {
        /// The service's name.
        host: Arc<str>,
        /// The workload.
        workload: Uid,
    },
}

/// Decides an inbound connection. For a live one, ask again with the stored facts and the workload as a later snapshot has
/// it; the reference keeps the workload it first saw, and so never notices a policy attached later (STRICT arrives so).
pub fn inbound(snapshot: &Snapshot, query: &Query<'_>) -> Result<Admission, Refusal> {
    match query.request {
        Request::Tunnel(authority) => admit_tunnel(snapshot, query, authority),
        Request::Plaintext(original) => admit_plaintext(snapshot, query, original),
    }
}

/// What has to be asked of a control plane that sends only what it is asked for, before a refusal may be relied on: who is at
/// the address that a tunnel asks for, then the waypoint that is named there; or the service that it asks for by name.
/// One at a time, since the next follows from the answer.
pub fn lacking(snapshot: &Snapshot, query: &Query<'_>, verdict: &Result<Admission, Refusal>) -> Option<Sought> {
    let not_asked = |sought: &Sought| snapshot.knowledge(sought) == Knowledge::NotAsked;
    let Query { workload, .. } = query;
    match verdict {
        Err(Refusal::Address { requested, .. }) => {
            let network = &workload.network;
            let behind = snapshot.workload_by_address(network, *requested);
            let block = snapshot.service_by_vip(network, *requested, &workload.namespace);
            let services = snapshot.services_by_vip(network, *requested).iter().chain(block);
            let references = services.flat_map(waypoint::all_of);
            let references = behind.and_then(|behind| behind.waypoint.as_ref()).into_iter().chain(references);
            let address = Sought::Address { network: network.clone(), address: *requested };
            iter::once(address)
                .chain(references.map(|reference| Sought::referred(&reference.destination)))
                .find(not_asked)
        }
        Err(Refusal::Unresolvable(Unresolvable::Host { host, .. })) => {
            // Of services that the workload does not name, those of its own namespace are looked for only.
            let named = workload.services.iter().map(|(name, _)| name.clone()).filter(|name| name.hostname == *host);
            let own = NamespacedHostname { namespace: workload.namespace.clone(), hostname: host.clone() };
            named.chain([own]).map(Sought::Hostname).find(not_asked)
        }
        _ => None,
    }
}

/// The service meant by an inbound connection to a workload, for telemetry (§6.5), whatever the verdict: the one of the
/// workload's that the sender named in `Forwarded: host=`; else the one that the request is for by name; else the first with
/// a port behind which that of the application is.
pub fn attribute<'s>(
    snapshot: &'s Snapshot,
    workload: &Workload,
    request: Request<'_>,
    forwarded_host: Option<&str>,
) -> Option<&'s Arc<Service>> {
    let services = || workload.services.iter().filter_map(|(name, ports)| Some((snapshot.service(name)?, ports)));
    let named = services().find(|(service, _)| forwarded_host == Some(&*service.hostname));
    if let Some((service, _)) = named {
        return Some(service);
    }
    let port = match request {
        Request::Tunnel(Authority::Host { host, .. }) => {
            return snapshot.service_by_hostname(host, &workload.namespace);
        }
        Request::Tunnel(Authority::Address(asked)) => {
            workload.application_tunnel.and_then(|tunnel| tunnel.port).unwrap_or(asked.port())
        }
        Request::Plaintext(original) => original.port(),
    };
    let serves_port = |(service, own): &(&Arc<Service>, &Vec<PortMapping>)| {
        service.ports.iter().any(|mapping| {
            let target = service::target_port(own, mapping.service_port);
            target.unwrap_or(mapping.target_port) == port
        })
    };
    services().find(serves_port).map(|(service, _)| service)
}

fn admit_plaintext(snapshot: &Snapshot, query: &Query<'_>, original: SocketAddr) -> Result<Admission, Refusal> {
    let target = SocketAddr::new(original.ip().to_canonical(), original.port());
    refuse_own_port(query, target)?;
    let (decided_by, dry_run) = authorize(snapshot, query, None, target)?;
    Ok(Admission { target, keeps_source: true, proxy_header: None, decided_by, dry_run })
}

fn admit_tunnel(snapshot: &Snapshot, query: &Query<'_>, authority: &Authority) -> Result<Admission, Refusal> {
    let workload = query.workload;
    let local = query.local.to_canonical();
    let (port, asked) = match authority {
        Authority::Address(requested) => {
            let requested_ip = requested.ip().to_canonical();
            if requested_ip != local
                && workload.application_tunnel.is_none()
                && !is_waypoint_of(snapshot, workload, requested_ip)
            {
                return Err(Refusal::Address { requested: requested_ip, local, workload: workload.uid.clone() });
            }
            (requested.port(), Asked::Address(*requested))
        }
        Authority::Host { host, port } => {
            let (service, target) = resolve_host(snapshot, workload, host, *port).map_err(Refusal::Unresolvable)?;
            (target, Asked::Service { service, port: *port })
        }
    };
    refuse_own_port(query, SocketAddr::new(local, port))?;
    let tunnel = workload.application_tunnel;
    let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    let proxy_header = match tunnel {
        None | Some(ApplicationTunnel { protocol: ApplicationProtocol::None, .. }) => None,
        Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, .. }) => {
            let destination = asked.address(workload).map_err(Refusal::Unresolvable)?;
            Some(ProxyHeader { source: query.peer, destination, identity: query.identity.cloned() })
        }
    };
    // Whatever address was asked for, only the pod itself is reached: a sender cannot use it to reach others.
    let application = SocketAddr::new(local, port);
    let (decided_by, dry_run) = authorize(snapshot, query, query.identity, application)?;
    let on_loopback = proxy_header.is_some() && query.localhost_tunnel;
    let target = match local {
        _ if !on_loopback => application,
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    };
    Ok(Admission { target, keeps_source: !on_loopback, proxy_header, decided_by, dry_run })
}

fn refuse_own_port(query: &Query<'_>, target: SocketAddr) -> Result<(), Refusal> {
    match query.proxy_ports.contains(&target.port()) {
        true => Err(Refusal::RecursiveCall { target }),
        false => Ok(()),
    }
}

/// Asks policy, of `application`: the pod's own address and the port behind it, by whatever way it is reached.
fn authorize(
    snapshot: &Snapshot,
    query: &Query<'_>,
    identity: Option<&Identity>,
    application: SocketAddr,
) -> Result<(Option<Deciding>, Vec<DryRun>), Refusal> {
    let peer = query.peer.ip().to_canonical();
    let question = rbac::Query { workload: query.workload, identity, peer, target: application };
    let Verdict { decision, dry_run } = rbac::evaluate(snapshot, &question);
    match decision {
        Ok(Allowance::NoAllowPolicies) => Ok((None, dry_run)),
        Ok(Allowance::Matched(deciding)) => Ok((Some(deciding), dry_run)),
        Err(denied) => Err(Refusal::Policy { denied, dry_run }),
    }
}

/// Whether traffic for `address` is meant to pass `workload` as its waypoint: a waypoint that is itself captured gets its
/// tunnels here, with the address of whatever is behind it (§6.3).
fn is_waypoint_of(snapshot: &Snapshot, workload: &Workload, address: IpAddr) -> bool {
    let refers_here = |reference: &GatewayAddress| waypoint::refers_to(snapshot, reference, workload);
    let service_refers_here = |service: &Arc<Service>| waypoint::all_of(service).any(refers_here);
    let network = &workload.network;
    let behind = snapshot.workload_by_address(network, address);
    behind.and_then(|behind| behind.waypoint.as_ref()).is_some_and(refers_here)
        || snapshot.services_by_vip(network, address).iter().any(service_refers_here)
        || snapshot.service_by_vip(network, address, &workload.namespace).is_some_and(service_refers_here)
}

/// The service meant by a hostname, and the port of `workload` behind one of its ports (§6.4).
fn resolve_host<'s>(
    snapshot: &'s Snapshot,
    workload: &Workload,
    host: &Arc<str>,
    port: u16,
) -> Result<(&'s Arc<Service>, u16), Unresolvable> {
    let Some(service) = snapshot.service_by_hostname(host, &workload.namespace) else {
        return Err(Unresolvable::Host { host: host.clone(), namespace: workload.namespace.clone() });
    };
    let own = workload
        .services
        .iter()
        .find(|(name, _)| name.hostname == service.hostname && name.namespace == service.namespace);
    let target = own
        .and_then(|(_, ports)| service::target_port(ports, port))
        .or_else(|| service::target_port(&service.ports, port));
    match target {
        Some(target) => Ok((service, target)),
        None => Err(Unresolvable::Port { host: host.clone(), port }),
    }
}

/// What a tunnel asks for.
enum Asked<'s> {
    Address(SocketAddr),
    Service { service: &'s Arc<Service>, port: u16 },
}

impl Asked<'_> {
    /// As an address, for an application that wants to be told: of a service its virtual address, of the workload's own
    /// network if there is one, and rather IPv4.
    fn address(&self, workload: &Workload) -> Result<SocketAddr, Unresolvable> {
        let (service, port) = match self {
            Self::Address(address) => return Ok(*address),
            Self::Service { service, port } => (service, *port),
        };
        let addresses = service.vips.iter().filter_map(|vip| Some((&vip.network, vip.single()?)));
        let preference = |(network, address): &(&NetworkId, IpAddr)| (**network != workload.network, address.is_ipv6());
        match addresses.min_by_key(preference) {
            Some((_, address)) => Ok(SocketAddr::new(address, port)),
            None => Err(Unresolvable::NoVip { host: service.hostname.clone(), workload: workload.uid.clone() }),
        }
    }
}
