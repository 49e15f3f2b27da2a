//! The access log: one line per connection, with the reference's fields in the reference's order.
//!
//! Lines go through `tracing` under the target `access`, so that the log's filter and format apply to them.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

/// Which way a connection goes, seen from the local pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the pod's application.
    Outbound,
    /// To the pod's application.
    Inbound,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Direction {
    fn text(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One end of a connection. What is `None` is left out of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Its L4 address; behind a tunnel that of the tunnel's end.
    pub addr: SocketAddr,
    /// The pod's name, else the canonical service's.
    pub workload: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its identity, when TLS proved one.
    pub identity: Option<Arc<str>>,
    /// Its cluster.
    pub cluster: Option<Arc<str>>,
}

impl Side {
    /// An address of which nothing more is known.
    pub fn at(addr: SocketAddr) -> Self {
        Self { addr, workload: None, namespace: None, identity: None, cluster: None }
    }
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessEntry {
    /// The client.
    pub source: Side,
    /// The server.
    pub destination: Side,
    /// The CONNECT's authority, when there is a tunnel.
    pub hbone_addr: Option<Arc<str>>,
    /// The service's hostname, when one was addressed.
    pub service: Option<Arc<str>>,
    /// Which way.
    pub direction: Direction,
}

/// Emits one event with the fields of an entry. The level belongs to the call site, so the fields cannot be said once
/// for all events in a function. Access lines belong to no span (`parent: None`).
macro_rules! emit {
    ($level:ident, $entry:expr, $message:literal $(, $field:ident = $value:expr)*) => {{
        let AccessEntry { source, destination, hbone_addr, service, direction } = $entry;
        tracing::$level!(
            target: "access",
            parent: None,
            {
                src.addr = %source.addr,
                src.workload = source.workload.as_deref(),
                src.namespace = source.namespace.as_deref(),
                src.identity = source.identity.as_deref(),
                src.cluster = source.cluster.as_deref(),
                dst.addr = %destination.addr,
                dst.hbone_addr = hbone_addr.as_ref().map(tracing::field::display),
                dst.service = service.as_deref(),
                dst.workload = destination.workload.as_deref(),
                dst.namespace = destination.namespace.as_deref(),
                dst.identity = destination.identity.as_deref(),
                dst.cluster = destination.cluster.as_deref(),
                direction = direction.text()
                $(, $field = $value)*
            },
            $message
        )
    }};
}

impl AccessEntry {
    /// The connection was accepted and it is known where it goes.
    pub fn opened(&self) {
        emit!(debug, self, "connection opened");
    }

    /// It is over. `received` and `sent` are bytes from client to server and back; the line shows them from the local
    /// pod's side.
    pub fn complete(&self, received: u64, sent: u64, duration: Duration, failure: Option<&dyn fmt::Display>) {
        let (bytes_sent, bytes_recv) = match self.direction {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        let duration = format!("{}ms", duration.as_millis());
        let duration = duration.as_str();
        match failure {
            None => emit!(
                info,
                self,
                "connection complete",
                bytes_sent = bytes_sent,
                bytes_recv = bytes_recv,
                duration = duration
            ),
            Some(failure) => emit!(
                error,
                self,
                "connection complete",
                bytes_sent = bytes_sent,
                bytes_recv = bytes_recv,
                duration = duration,
                error = failure.to_string()
            ),
        }
    }
}

/// A connection was refused before it was known where it goes.
pub fn refused_early(direction: Direction, source: SocketAddr, destination: SocketAddr, failure: &dyn fmt::Display) {
    tracing::warn!(
        target: "access",
        parent: None,
        {
            src.addr = %source,
            dst.addr = %destination,
            direction = direction.text(),
            error = failure.to_string()
        },
        "connection failed"
    );
}
