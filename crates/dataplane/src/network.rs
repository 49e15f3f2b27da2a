//! Where a pod's sockets come from: its network namespace in production, a simulated host in tests.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use inpod::{Netns, socket::SocketOptions};
use reactor::{Reactor, Runtime};

/// A listener's socket, and whether connections accepted from it may keep their source address further on.
pub struct PodListener<R: Runtime> {
    /// Bound and listening.
    pub socket: R::Socket,
    /// `IP_TRANSPARENT` could be set on it.
    pub transparent: bool,
}

/// An outgoing socket, not connected yet.
pub struct PodSocket<R: Runtime> {
    /// Ready for [`Runtime::connect`].
    pub socket: R::Socket,
    /// Why the asked-for source address could not be kept, when it could not.
    pub source_lost: Option<io::Error>,
}

/// Makes sockets inside one pod. Both calls are synchronous: they take microseconds and never wait for a peer.
pub trait PodNetwork<R: Runtime>: Send + 'static {
    /// Listens on `port` on every address of the pod.
    ///
    /// # Errors
    /// The port is taken, or the process lacks `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`.
    fn listener(&self, port: u16) -> io::Result<PodListener<R>>;

    /// A socket towards `target`, leaving from `source` if that is given and possible.
    ///
    /// # Errors
    /// Descriptors are exhausted, or the namespace cannot be entered.
    fn outgoing(&self, target: SocketAddr, source: Option<IpAddr>) -> io::Result<PodSocket<R>>;
}

/// A pod's real network namespace.
pub struct InPod {
    netns: Netns,
    options: Arc<SocketOptions>,
}

impl InPod {
    /// Sockets made in `netns` with `options` (mark, keepalive, port reuse).
    pub fn new(netns: Netns, options: Arc<SocketOptions>) -> Self {
        Self { netns, options }
    }
}

impl PodNetwork<Reactor> for InPod {
    fn listener(&self, port: u16) -> io::Result<PodListener<Reactor>> {
        let wildcard = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let made = inpod::socket::listener(&self.netns, wildcard, &self.options)?;
        for option in &made.refused {
            tracing::warn!(port, %option, "a listener of the pod lacks an option");
        }
        Ok(PodListener { socket: made.socket, transparent: made.transparent })
    }

    fn outgoing(&self, target: SocketAddr, source: Option<IpAddr>) -> io::Result<PodSocket<Reactor>> {
        let made = inpod::socket::outgoing(&self.netns, target, source, &self.options)?;
        Ok(PodSocket { socket: made.socket, source_lost: made.source_lost })
    }
}
