//! The TCP sockets of a pod: made in its network namespace, with what every one of them needs. Reading, writing and
//! connecting them is the reactor's; a socket belongs to the namespace it was made in, wherever its thread is later.
#![expect(unsafe_code, reason = "IP_BIND_ADDRESS_NO_PORT has no safe wrapper in socket2 or rustix")]

use std::{
    io,
    mem::size_of_val,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::netns::{Netns, NetnsId};

/// What the redirect rules of the CNI agent know the proxy's own packets by; without it they would be captured again.
pub const PROXY_MARK: u32 = 1337;

/// Connections that wait to be accepted, per listener. A pod's core may be busy for a slice per tenant, and a queue
/// that overflows costs its client a second (the SYN's retransmission), so it holds a burst of 1000 connections and
/// not the 128 that are customary. Worst case 2.5 KiB each, 2.5 MiB per listener; `net.core.somaxconn` of the pod's
/// namespace (4096 unless changed) is the kernel's own limit to it.
pub const BACKLOG: i32 = 1024;

/// What all sockets of a pod have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_MARK`, which accepted sockets inherit. `None` where nothing captures, as outside of pods.
    pub mark: Option<u32>,
    /// `SO_REUSEPORT` on listeners: the old and the new daemon listen side by side while one replaces the other.
    pub reuse_port: bool,
    /// TCP keepalive, on outgoing and on accepted connections.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT` on outgoing connections: how long sent data may stay unacknowledged. `None` is the kernel's
    /// 15 minutes or so.
    pub user_timeout: Option<Duration>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { mark: Some(PROXY_MARK), reuse_port: true, keepalive: Some(Keepalive::default()), user_timeout: None }
    }
}

/// When a silent peer is asked whether it still is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection is given up.
    pub probes_max: u32,
}

impl Default for Keepalive {
    /// Gone peers are noticed after 30 minutes: 180 s, then 9 probes 180 s apart.
    fn default() -> Self {
        Self { idle: Duration::from_secs(180), interval: Duration::from_secs(180), probes_max: 9 }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listening {
    /// Non-blocking and close-on-exec.
    pub socket: OwnedFd,
    /// Where it listens: the port it was given if 0 was asked for, and `0.0.0.0` where there is no IPv6.
    pub address: SocketAddr,
    /// `IP_TRANSPARENT` could be set, so connections on from here may keep their client's address.
    pub transparent: bool,
    /// What the kernel refused but a listener can do without, for the caller to log.
    pub refused: Vec<SocketError>,
}

/// A socket that is ready to connect.
#[derive(Debug)]
pub struct Outgoing {
    /// Non-blocking and close-on-exec.
    pub socket: OwnedFd,
    /// Why the asked-for source address could not be kept, when it could not: then the pod's own is used. Its inner
    /// error is a [`SocketError`].
    pub source_lost: Option<io::Error>,
}

/// Listens at `address` in `netns`. `[::]` takes IPv4 as well, and becomes `0.0.0.0` where the kernel has no IPv6 for
/// that namespace; any other address is taken as it is.
///
/// `TCP_NODELAY` and keepalive are set here because accepted sockets inherit them, which saves two system calls on each
/// connection.
///
/// # Errors
/// The port is taken, a right is missing, or descriptors ran out; the text says which.
pub fn listener(netns: &Netns, address: SocketAddr, options: &SocketOptions) -> Result<Listening, SocketError> {
    match listen_at(netns, address, options) {
        Err(error) if address.ip() == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) && error.is_for_want_of_ipv6() => {
            listen_at(netns, SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())), options)
        }
        outcome => outcome,
    }
}

/// A socket towards `target` in `netns`, leaving from `source` if that is given and possible. Nothing is bound if the
/// pod calls itself (`source` is `target`'s address): the kernel chooses that address anyway.
///
/// Addresses are canonical: IPv4-mapped ones were unwrapped where they came in.
///
/// # Errors
/// A right is missing, the namespace cannot be entered, or descriptors ran out; the text says which.
pub fn outgoing(
    netns: &Netns,
    target: SocketAddr,
    source: Option<IpAddr>,
    options: &SocketOptions,
) -> Result<Outgoing, SocketError> {
    let Some(source) = source.filter(|source| *source != target.ip()) else {
        return Ok(Outgoing { socket: plain(netns, target, options)?.into(), source_lost: None });
    };
    let socket = plain(netns, target, options)?;
    match spoof(&socket, netns.id(), target, source) {
        Ok(()) => Ok(Outgoing { socket: socket.into(), source_lost: None }),
        Err(lost) => {
            // A new one: the half-prepared socket is transparent, and routed as such.
            drop(socket);
            Ok(Outgoing { socket: plain(netns, target, options)?.into(), source_lost: Some(lost.into()) })
        }
    }
}

/// What could not be done to a socket of a pod.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The namespace cannot be entered.
    #[error("cannot enter {netns} to make a socket for {address}: {source}{}", likely(Step::Enter, source))]
    Enter {
        /// Which namespace.
        netns: NetnsId,
        /// What the socket was for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No socket to be had.
    #[error("cannot make a TCP socket for {address} in {netns}: {source}{}", likely(Step::Create, source))]
    Create {
        /// Which namespace.
        netns: NetnsId,
        /// What the socket was for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket option was refused.
    #[error("cannot set {option} on the socket for {address} in {netns}: {source}{}", likely(Step::Option, source))]
    Option {
        /// Its name in C.
        option: &'static str,
        /// Which namespace.
        netns: NetnsId,
        /// What the socket is for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address or port is not to be had.
    #[error("cannot bind {address} in {netns}: {source}{}", likely(Step::Bind, source))]
    Bind {
        /// Which namespace.
        netns: NetnsId,
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Bound, but not listening.
    #[error("cannot listen on {address} in {netns}: {source}{}", likely(Step::Bind, source))]
    Listen {
        /// Which namespace.
        netns: NetnsId,
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A connection has one address family.
    #[error("a connection to {target} cannot leave from {wanted}: one is IPv4 and the other IPv6")]
    SourceFamily {
        /// Where to.
        target: SocketAddr,
        /// The source that was asked for.
        wanted: IpAddr,
    },
}

impl SocketError {
    /// What the kernel said, if it was asked.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Enter { source, .. }
            | Self::Create { source, .. }
            | Self::Option { source, .. }
            | Self::Bind { source, .. }
            | Self::Listen { source, .. } => source.raw_os_error(),
            Self::SourceFamily { .. } => None,
        }
    }

    /// `EAFNOSUPPORT` from a kernel without IPv6 (`ipv6.disable=1`), `EADDRNOTAVAIL` from one that has it switched off.
    fn is_for_want_of_ipv6(&self) -> bool {
        match self {
            Self::Create { source, .. } => source.raw_os_error() == Some(libc::EAFNOSUPPORT),
            Self::Bind { source, .. } => source.raw_os_error() == Some(libc::EADDRNOTAVAIL),
            Self::Enter { .. } | Self::Option { .. } | Self::Listen { .. } | Self::SourceFamily { .. } => false,
        }
    }
}

impl From<SocketError> for io::Error {
    /// Keeps the kind, and the [`SocketError`] inside.
    fn from(error: SocketError) -> Self {
        let kind = match error.errno() {
            Some(errno) => io::Error::from_raw_os_error(errno).kind(),
            None => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

fn listen_at(netns: &Netns, address: SocketAddr, options: &SocketOptions) -> Result<Listening, SocketError> {
    let id = netns.id();
    let refusal = |option| move |source| SocketError::Option { option, netns: id, address, source };
    let bind = |source| SocketError::Bind { netns: id, address, source };
    let socket = create(netns, address)?;
    let mut refused = Vec::new();

    if address.is_ipv6() {
        // Said, not left to net.ipv6.bindv6only, which belongs to the pod.
        socket.set_only_v6(false).map_err(refusal("IPV6_V6ONLY"))?;
    }
    common(&socket, id, address, options)?;
    // Else a restarted daemon waits a minute for connections in TIME_WAIT.
    socket.set_reuse_address(true).map_err(refusal("SO_REUSEADDR"))?;
    if options.reuse_port {
        refused.extend(socket.set_reuse_port(true).map_err(refusal("SO_REUSEPORT")).err());
    }
    // The option of IPv4 on either kind of socket: the kernel keeps one flag, and this name of it needs no IPv6.
    let transparent = socket.set_ip_transparent_v4(true).map_err(refusal("IP_TRANSPARENT"));
    let transparent = transparent.map_err(|error| refused.push(error)).is_ok();

    socket.bind(&address.into()).map_err(bind)?;
    socket.listen(BACKLOG).map_err(|source| SocketError::Listen { netns: id, address, source })?;
    let address = socket.local_addr().map_err(bind)?.as_socket().unwrap_or(address);
    Ok(Listening { socket: socket.into(), address, transparent, refused })
}

fn plain(netns: &Netns, target: SocketAddr, options: &SocketOptions) -> Result<Socket, SocketError> {
    let socket = create(netns, target)?;
    common(&socket, netns.id(), target, options)?;
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout)).map_err(|source| SocketError::Option {
            option: "TCP_USER_TIMEOUT",
            netns: netns.id(),
            address: target,
            source,
        })?;
    }
    Ok(socket)
}

/// Only this happens inside: a socket remembers its namespace, and options and addresses are judged by that.
fn create(netns: &Netns, address: SocketAddr) -> Result<Socket, SocketError> {
    // socket2 adds SOCK_CLOEXEC.
    let (domain, kind) = (Domain::for_address(address), Type::STREAM.nonblocking());
    netns
        .enter(|| Socket::new(domain, kind, Some(Protocol::TCP)))
        .map_err(|source| SocketError::Enter { netns: netns.id(), address, source })?
        .map_err(|source| SocketError::Create { netns: netns.id(), address, source })
}

fn common(socket: &Socket, netns: NetnsId, address: SocketAddr, options: &SocketOptions) -> Result<(), SocketError> {
    let refusal = |option| move |source| SocketError::Option { option, netns, address, source };
    if let Some(mark) = options.mark {
        socket.set_mark(mark).map_err(refusal("SO_MARK"))?;
    }
    socket.set_tcp_nodelay(true).map_err(refusal("TCP_NODELAY"))?;
    if let Some(keepalive) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes_max);
        socket.set_tcp_keepalive(&keepalive).map_err(refusal("SO_KEEPALIVE"))?;
    }
    Ok(())
}

/// Lets a socket leave from an address that is not the pod's. The reply path is made by the redirect rules.
fn spoof(socket: &Socket, netns: NetnsId, target: SocketAddr, wanted: IpAddr) -> Result<(), SocketError> {
    let from = SocketAddr::new(wanted, 0);
    let refusal = |option| move |source| SocketError::Option { option, netns, address: from, source };
    match (target, wanted) {
        (SocketAddr::V4(_), IpAddr::V4(_)) => {
            socket.set_ip_transparent_v4(true).map_err(refusal("IP_TRANSPARENT"))?;
            socket.set_freebind_v4(true).map_err(refusal("IP_FREEBIND"))?;
        }
        (SocketAddr::V6(_), IpAddr::V6(_)) => {
            socket.set_ip_transparent_v6(true).map_err(refusal("IPV6_TRANSPARENT"))?;
            socket.set_freebind_v6(true).map_err(refusal("IPV6_FREEBIND"))?;
        }
        (SocketAddr::V4(_), IpAddr::V6(_)) | (SocketAddr::V6(_), IpAddr::V4(_)) => {
            return Err(SocketError::SourceFamily { target, wanted });
        }
    }
    // The port is then chosen at connect, by the pair of addresses: a client that makes many connections would else
    // use up its 28,000 ports towards all targets together.
    bind_address_no_port(socket).map_err(refusal("IP_BIND_ADDRESS_NO_PORT"))?;
    socket.bind(&SockAddr::from(from)).map_err(|source| SocketError::Bind { netns, address: from, source })
}

fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("an int is a few bytes long");
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel reads `length` bytes, the size
    // of `on`, which outlives the call. IPv6 sockets take this option at the level of IPv4 too.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            length,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[derive(Clone, Copy)]
enum Step {
    Enter,
    Create,
    Option,
    Bind,
}

/// The cause that an operator should look at first.
fn likely(step: Step, error: &io::Error) -> &'static str {
    match (step, error.raw_os_error()) {
        (_, Some(libc::EMFILE)) => " (out of descriptors: raise the nofile limit)",
        (_, Some(libc::ENFILE)) => " (the host is out of descriptors: raise fs.file-max)",
        (Step::Enter, Some(libc::EPERM)) => " (does the process lack CAP_SYS_ADMIN?)",
        (Step::Enter, Some(libc::EINVAL)) => " (the descriptor is not one of a network namespace)",
        (Step::Create, Some(libc::EAFNOSUPPORT)) => " (this kernel runs without that address family)",
        (Step::Option, Some(libc::EPERM)) => " (does the process lack CAP_NET_ADMIN?)",
        (Step::Bind, Some(libc::EADDRINUSE)) => " (another proxy, or the pod itself, listens there)",
        (Step::Bind, Some(libc::EACCES)) => " (a port below 1024 needs CAP_NET_BIND_SERVICE)",
        (Step::Bind, Some(libc::EADDRNOTAVAIL)) => " (the pod does not have that address)",
        (Step::Enter | Step::Create | Step::Option | Step::Bind, _) => "",
    }
}
