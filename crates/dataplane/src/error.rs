//! Why a connection did not come about or did not end well: one enum for the whole data plane.
//!
//! Says who, what and the likely cause. Response flags and status codes are chosen in `record`, nowhere else.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hbone::{CertificateProblem, OpenError, TlsError, TunnelError, pool::PoolError};
use mesh_state::{admit::Refusal, identity::Identity, name::AuthorityError, route::RouteError};

use crate::{connections::Stop, pod::PodName, relay};

/// What went wrong with one connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("attempted recursive call to ourselves: {target} is a port of this proxy")]
    RecursiveCall { target: SocketAddr },
    #[error(
        "failed to fetch information about local workload: {pod} did not arrive from the control plane within {waited:?}; is it in the mesh config of this node?"
    )]
    UnknownWorkload { pod: PodName, waited: Duration },
    #[error(
        "{parked} connections of {pod} wait for their workload or certificate already; is the control plane reachable?"
    )]
    TooManyParked { pod: PodName, parked: usize },
    #[error("{pod} has {connections} connections already, its limit")]
    TooManyConnections { pod: PodName, connections: usize },
    #[error("{pod} has accepted {tunnels} tunnels already, its limit")]
    TooManyTunnels { pod: PodName, tunnels: usize },
    #[error(
        "the control plane has not said within {waited:?} who is meant; is it reachable? (on-demand discovery asked for {pod})"
    )]
    Unanswered { pod: PodName, waited: Duration },
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("{target} is reached {what}, which is not supported yet")]
    Unsupported { target: SocketAddr, what: Unsupported },
    #[error("no certificate for {identity} within {waited:?}; is the CA reachable?")]
    CredentialLate { identity: Identity, waited: Duration },
    #[error("no certificate for {identity}: {why}")]
    CredentialRefused { identity: Identity, why: Arc<str> },
    #[error("cannot make a socket towards {target} in the pod: {source}")]
    Socket { target: SocketAddr, source: io::Error },
    #[error("connect to {target} failed: {source}")]
    Connect { target: SocketAddr, source: io::Error },
    #[error("connect to {target} timed out after {waited:?}")]
    ConnectTimedOut { target: SocketAddr, waited: Duration },
    #[error(
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port {}: no answer from {hop} in {waited:?}",
        hop.port()
    )]
    HopTimedOut { hop: SocketAddr, waited: Duration },
    #[error("TLS or HTTP/2 handshake with {peer} not finished within {waited:?}")]
    HandshakeTimedOut { peer: SocketAddr, waited: Duration },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("HTTP/2 handshake: {0}")]
    H2Handshake(#[source] TunnelError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("no answer to CONNECT {authority} from {hop} within {waited:?}")]
    ResponseTimedOut { authority: String, hop: SocketAddr, waited: Duration },
    #[error("{0}")]
    Pool(#[from] PoolError),
    #[error("every place in the tunnel pool of {pod} is taken")]
    PoolFull { pod: PodName },
    #[error("expected method CONNECT, got {method}")]
    Method { method: String },
    #[error("no valid authority pseudo header: {0}")]
    Authority(#[from] AuthorityError),
    #[error("no valid authority pseudo header: it is missing")]
    NoAuthority,
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Stopped(Stop),
    #[error(transparent)]
    Broken(relay::Broken),
}

impl Error {
    /// Whether it is that a peer's certificate is revoked.
    pub(crate) fn is_of_revocation(&self) -> bool {
        matches!(
            self,
            Self::Tls(TlsError::Certificate(
                CertificateProblem::Revoked { .. } | CertificateProblem::RevocationUnsure { .. }
            )) | Self::Stopped(Stop::Revoked)
        )
    }
}

impl From<relay::Ended> for Error {
    fn from(ended: relay::Ended) -> Self {
        match ended {
            relay::Ended::Broken(broken) => Self::Broken(broken),
            relay::Ended::Stopped(stop) => Self::Stopped(stop),
        }
    }
}

/// A way that a route can be and that the data plane cannot go yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error("through the gateway of another network (double HBONE)")]
    DoubleHbone,
    #[error("by the hostname {0} of a workload without addresses (on-demand DNS)")]
    HostnameWorkload(Arc<str>),
}
