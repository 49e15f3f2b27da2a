//! What is written down about a connection: access log, metrics, and the flags and status codes of what went wrong.
//!
//! The only place that maps errors to response flags and HTTP status codes. It decides nothing else.

use std::{cell::Cell, net::SocketAddr, sync::Arc, time::Instant};

use hbone::{TlsError, baggage::Baggage};
use mesh_state::{
    admit::{Admission, Refusal},
    identity::Identity,
    name::Authority,
    route::Destination,
    service::Service,
    workload::Workload,
};
use reactor::Runtime;
use telemetry::{
    access_log::{self, AccessEntry, Side},
    connection::{ConnectionLabels, OpenConnection, Party, Reporter, ResponseFlag, SecurityPolicy},
};

pub(crate) use telemetry::access_log::Direction;

use crate::{
    connections::{InboundFacts, Stop},
    core::Core,
    error::Error,
    network::PodNetwork,
    relay::Meter,
};

/// The record of one connection, opened once it is known where it goes.
pub(crate) struct Record<R> {
    runtime: R,
    started: Instant,
    entry: AccessEntry,
    metrics: OpenConnection,
    received: Cell<u64>,
    sent: Cell<u64>,
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

impl<R: Runtime> Record<R> {
    /// Opens the record of a connection from `source` to `to`, an L4 address, through a tunnel when there is an
    /// authority.
    pub(crate) fn outbound<N: PodNetwork<R>>(
        core: &Core<R, N>,
        peer: SocketAddr,
        to: SocketAddr,
        source: &Workload,
        destination: &Destination,
        tunnel: Option<&Authority>,
    ) -> Self {
        let server = destination.workload.as_deref();
        let service = destination.service.as_deref();
        let labels = ConnectionLabels {
            reporter: Reporter::Source,
            source: Some(Party { principal: tunnel.and(Some(principal(&source.identity))), ..party(source) }),
            destination: server.map(|server| Party { principal: Some(principal(&server.identity)), ..party(server) }),
            service: service.map(service_labels),
            security: security(tunnel.is_some()),
        };
        let proven = |workload: &Workload| tunnel.is_some().then(|| principal(&workload.identity));
        let entry = AccessEntry {
            source: Side { identity: proven(source), ..side(peer, Some(source)) },
            destination: Side { identity: server.and_then(proven), ..side(to, server) },
            hbone_addr: tunnel.map(|authority| authority.to_string().into()),
            service: service.map(|service| service.hostname.clone()),
            direction: Direction::Outbound,
        };
        Self::open(core, labels, entry)
    }

    /// Opens the record of a connection to the local workload `destination`, through a tunnel when there is an
    /// authority.
    pub(crate) fn inbound<N: PodNetwork<R>>(
        core: &Core<R, N>,
        from: &InboundPeer<'_>,
        destination: &Workload,
        service: Option<&Service>,
        tunnel: Option<&Authority>,
    ) -> Self {
        let source = core.workload_at(from.peer.ip());
        let described = match (&source, from.baggage) {
            (Some(source), _) => Some(party(source)),
            (None, Some(baggage)) => Some(party_of(baggage)),
            (None, None) => None,
        };
        let principal_of_peer = from.identity.map(principal);
        let labels = ConnectionLabels {
            reporter: Reporter::Destination,
            source: match (described, &principal_of_peer) {
                (None, None) => None,
                (described, proven) => Some(Party { principal: proven.clone(), ..described.unwrap_or_default() }),
            },
            destination: Some(Party { principal: Some(principal(&destination.identity)), ..party(destination) }),
            service: service.map(service_labels),
            security: security(tunnel.is_some()),
        };
        let entry = AccessEntry {
            source: Side { identity: principal_of_peer, ..side(from.peer, source.as_deref()) },
            destination: Side {
                identity: tunnel.and(Some(principal(&destination.identity))),
                ..side(from.local, Some(destination))
            },
            hbone_addr: tunnel.map(|authority| authority.to_string().into()),
            service: service.map(|service| service.hostname.clone()),
            direction: Direction::Inbound,
        };
        Self::open(core, labels, entry)
    }

    fn open<N: PodNetwork<R>>(core: &Core<R, N>, labels: ConnectionLabels, entry: AccessEntry) -> Self {
        entry.opened();
        Self {
            runtime: core.runtime.clone(),
            started: core.runtime.now(),
            entry,
            metrics: core.metrics.open(labels),
            received: Cell::new(0),
            sent: Cell::new(0),
        }
    }

    /// The connection is over.
    pub(crate) fn finish(self, ended: Result<(), Error>) {
        let duration = self.runtime.now() - self.started;
        let (received, sent) = (self.received.get(), self.sent.get());
        match ended {
            Ok(()) => {
                self.metrics.close(ResponseFlag::None);
                self.entry.complete(received, sent, duration, None);
            }
            Err(error) => {
                self.metrics.close(flag(&error));
                self.entry.complete(received, sent, duration, Some(&error));
            }
        }
    }
}

impl<R> Meter for Record<R> {
    fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        self.metrics.received(bytes);
    }

    fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
        self.metrics.sent(bytes);
    }
}

/// A connection that was turned away before anything was known of where it goes: a line, no metric.
pub(crate) fn refused_early(direction: Direction, source: SocketAddr, destination: SocketAddr, error: &Error) {
    access_log::refused_early(direction, source, destination, error);
}

/// What policies on trial would have done: for those who try them out, at debug.
pub(crate) fn dry_runs(facts: &InboundFacts, verdict: &Result<Admission, Refusal>) {
    let (Ok(Admission { dry_run, .. }) | Err(Refusal::Policy { dry_run, .. })) = verdict else { return };
    for outcome in dry_run {
        tracing::debug!(target: "access", peer = %facts.peer, request = %facts.request, "policy on trial: {outcome}");
    }
}

/// Whether a refusal is policy's, which gets a full record; the others only say that the request makes no sense.
pub(crate) fn is_a_verdict(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Policy { .. } => true,
        Refusal::Address { .. } | Refusal::Unresolvable(_) | Refusal::RecursiveCall { .. } => false,
    }
}

/// The response flag of an error.
fn flag(error: &Error) -> ResponseFlag {
    match error {
        error if error.is_of_revocation() => ResponseFlag::CertRevoked,
        // A drain is nobody's failure.
        Error::Stopped(Stop::Drained | Stop::PodGone) => ResponseFlag::None,
        Error::Stopped(Stop::Revoked) => ResponseFlag::CertRevoked,
        Error::Stopped(Stop::Policy(_)) | Error::Refused(Refusal::Policy { .. }) => ResponseFlag::Deny,
        Error::HopTimedOut { .. } => ResponseFlag::NetworkPolicy,
        Error::CredentialLate { .. }
        | Error::CredentialRefused { .. }
        | Error::Tls(TlsError::Identity { .. } | TlsError::TrustDomain { .. } | TlsError::Certificate(_)) => {
            ResponseFlag::IdentityError
        }
        Error::Tls(TlsError::Io(_) | TlsError::Handshake { .. } | TlsError::Alpn) => ResponseFlag::TlsFailure,
        Error::H2Handshake(_) => ResponseFlag::H2HandshakeFailure,
        Error::RecursiveCall { .. }
        | Error::UnknownWorkload { .. }
        | Error::Unanswered { .. }
        | Error::TooManyParked { .. }
        | Error::TooManyConnections { .. }
        | Error::TooManyTunnels { .. }
        | Error::Route(_)
        | Error::Unsupported { .. }
        | Error::Socket { .. }
        | Error::Connect { .. }
        | Error::ConnectTimedOut { .. }
        | Error::HandshakeTimedOut { .. }
        | Error::Open(_)
        | Error::ResponseTimedOut { .. }
        | Error::Pool(_)
        | Error::PoolFull { .. }
        | Error::Method { .. }
        | Error::Authority(_)
        | Error::NoAuthority
        | Error::Refused(_)
        | Error::Broken(_) => ResponseFlag::Connect,
    }
}

/// The status that answers a CONNECT that failed with `error`.
pub(crate) fn status(error: &Error) -> u16 {
    match error {
        Error::Method { .. } | Error::Authority(_) | Error::NoAuthority | Error::Refused(Refusal::Address { .. }) => {
            400
        }
        Error::Refused(Refusal::Policy { .. }) | Error::Stopped(Stop::Policy(_)) => 401,
        Error::Refused(Refusal::Unresolvable(_) | Refusal::RecursiveCall { .. })
        | Error::RecursiveCall { .. }
        | Error::UnknownWorkload { .. }
        | Error::Unanswered { .. }
        | Error::TooManyParked { .. }
        | Error::TooManyConnections { .. }
        | Error::TooManyTunnels { .. }
        | Error::Route(_)
        | Error::Unsupported { .. }
        | Error::CredentialLate { .. }
        | Error::CredentialRefused { .. }
        | Error::Socket { .. }
        | Error::Connect { .. }
        | Error::ConnectTimedOut { .. }
        | Error::HopTimedOut { .. }
        | Error::HandshakeTimedOut { .. }
        | Error::Tls(_)
        | Error::H2Handshake(_)
        | Error::Open(_)
        | Error::ResponseTimedOut { .. }
        | Error::Pool(_)
        | Error::PoolFull { .. }
        | Error::Stopped(Stop::Drained | Stop::PodGone | Stop::Revoked)
        | Error::Broken(_) => 503,
    }
}

fn principal(identity: &Identity) -> Arc<str> {
    identity.as_str().into()
}

fn security(tunnelled: bool) -> SecurityPolicy {
    if tunnelled { SecurityPolicy::MutualTls } else { SecurityPolicy::Unknown }
}

fn service_labels(service: &Service) -> [Arc<str>; 3] {
    [service.hostname.clone(), service.namespace.clone(), service.name.clone()]
}

/// A workload's labels, without its principal.
fn party(workload: &Workload) -> Party {
    Party {
        workload: Some(workload.workload_name.clone()),
        canonical_service: Some(workload.canonical_name.clone()),
        canonical_revision: Some(workload.canonical_revision.clone()),
        namespace: Some(workload.namespace.clone()),
        principal: None,
        app: Some(workload.canonical_name.clone()),
        cluster: Some(workload.cluster_id.clone()),
        region: Some(workload.place.locality.region.clone()),
        zone: Some(workload.place.locality.zone.clone()),
    }
}

/// What a peer says of itself. Its app is its workload's name, as in the reference.
fn party_of(baggage: &Baggage) -> Party {
    let part = |text: &str| Some(Arc::from(text));
    Party {
        workload: part(&baggage.workload_name),
        canonical_service: part(&baggage.service_name),
        canonical_revision: part(&baggage.revision),
        namespace: part(&baggage.namespace),
        principal: None,
        app: part(&baggage.workload_name),
        cluster: part(&baggage.cluster),
        region: part(&baggage.region),
        zone: part(&baggage.zone),
    }
}

/// A workload's end in the access log, without its identity.
fn side(addr: SocketAddr, workload: Option<&Workload>) -> Side {
    let Some(workload) = workload else { return Side::at(addr) };
    let name = match workload.name() {
        "" => workload.canonical_name.clone(),
        name => name.into(),
    };
    Side {
        addr,
        workload: Some(name).filter(|name| !name.is_empty()),
        namespace: Some(workload.namespace.clone()),
        identity: None,
        cluster: Some(workload.cluster_id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, time::Duration};

    use hbone::CertificateProblem;
    use mesh_state::rbac::Denial;

    use super::*;

    #[test]
    fn each_error_has_its_flag_and_its_status() {
        let address = SocketAddr::from(([10, 0, 0, 2], 80));
        let denied = || Refusal::Policy { denied: Denial::NoneAllowed, dry_run: Vec::new() };
        let waited = Duration::from_secs(1);
        let revoked = CertificateProblem::Revoked { at: 0, serial: "01".into() };
        for (error, flags, code) in [
            (Error::Refused(denied()), ResponseFlag::Deny, 401),
            (Error::Stopped(Stop::Policy(Rc::new(denied()))), ResponseFlag::Deny, 401),
            (Error::Stopped(Stop::Drained), ResponseFlag::None, 503),
            (Error::Stopped(Stop::Revoked), ResponseFlag::CertRevoked, 503),
            (Error::Tls(TlsError::Certificate(revoked)), ResponseFlag::CertRevoked, 503),
            (Error::HopTimedOut { hop: address, waited }, ResponseFlag::NetworkPolicy, 503),
            (Error::ConnectTimedOut { target: address, waited }, ResponseFlag::Connect, 503),
            (Error::Tls(TlsError::Alpn), ResponseFlag::TlsFailure, 503),
            (Error::Tls(TlsError::Identity { expected: vec![], got: vec![] }), ResponseFlag::IdentityError, 503),
            (Error::NoAuthority, ResponseFlag::Connect, 400),
            (Error::Method { method: "GET".into() }, ResponseFlag::Connect, 400),
        ] {
            assert_eq!((flag(&error), status(&error)), (flags, code), "{error}");
        }
    }
}
