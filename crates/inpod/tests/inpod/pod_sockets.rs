//! The sockets of pods, made in real namespaces and used over their loopback.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use inpod::{
    Netns,
    socket::{self, Keepalive, SocketError, SocketOptions},
};
use rustix::thread::CapabilitySet;
use socket2::{SockRef, Socket};

use crate::{
    descriptors::none_left_open,
    namespace::{self, loopback_v4, on_own_thread},
};

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// A listener of `netns`, as std's for convenience.
fn listen(netns: &Netns, address: SocketAddr) -> (TcpListener, SocketAddr) {
    let made = socket::listener(netns, address, &SocketOptions::default()).unwrap();
    assert!(made.transparent && made.refused.is_empty(), "{:?}", made.refused);
    let listener = TcpListener::from(made.socket);
    listener.set_nonblocking(false).unwrap();
    (listener, made.address)
}

/// Connects a socket of [`socket::outgoing`], from outside its namespace.
fn connect(socket: std::os::fd::OwnedFd, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::from(socket);
    socket.set_nonblocking(false)?;
    socket.connect_timeout(&target.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

fn peer(listener: &TcpListener) -> IpAddr {
    listener.accept().unwrap().1.ip().to_canonical()
}

#[test]
fn a_listener_is_reached_inside_its_namespace_by_both_families_and_not_from_another() {
    none_left_open(|| {
        let (here, there) = (namespace::with_loopback(), namespace::with_loopback());
        let (listener, address) = listen(&here, ANY_PORT);
        assert_eq!(address.ip(), Ipv6Addr::UNSPECIFIED);
        for target in [loopback_v4(address), SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()))] {
            let from = |netns| {
                let made = socket::outgoing(netns, target, None, &SocketOptions::default()).unwrap();
                connect(made.socket, target)
            };
            let _inside = from(&here).unwrap();
            assert_eq!(peer(&listener), target.ip());
            let outside = from(&there).unwrap_err();
            assert_eq!(outside.kind(), io::ErrorKind::ConnectionRefused, "{target}: {outside}");
        }
    });
}

#[test]
fn a_socket_belongs_to_the_namespace_it_was_made_in_though_used_outside() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let inside = socket::listener(&netns, ANY_PORT, &SocketOptions::default()).unwrap().socket;
        let native = netns.enter(|| Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)).unwrap().unwrap();
        let outside = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        assert_eq!(netns_cookie(&Socket::from(inside)), netns_cookie(&native));
        assert_ne!(netns_cookie(&native), netns_cookie(&outside));
    });
}

#[test]
fn every_socket_carries_the_mark_and_accepted_ones_inherit_it_with_nodelay_and_keepalive() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let (listener, address) = listen(&netns, ANY_PORT);
        let target = loopback_v4(address);
        let options = SocketOptions { user_timeout: Some(Duration::from_secs(20)), ..SocketOptions::default() };
        let outgoing = socket::outgoing(&netns, target, None, &options).unwrap().socket;
        assert!(SockRef::from(&outgoing).nonblocking().unwrap());
        assert_eq!(SockRef::from(&outgoing).tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
        let outgoing = connect(outgoing, target).unwrap();
        let accepted = listener.accept().unwrap().0;
        let rows: [(&str, SockRef<'_>); 3] = [
            ("listener", SockRef::from(&listener)),
            ("outgoing", SockRef::from(&outgoing)),
            ("accepted", SockRef::from(&accepted)),
        ];
        for (row, socket) in rows {
            assert_eq!(socket.mark().unwrap(), 1337, "{row}");
            assert!(socket.tcp_nodelay().unwrap(), "{row}");
            assert!(socket.keepalive().unwrap(), "{row}");
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(180), "{row}");
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(180), "{row}");
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9, "{row}");
            assert!(rustix::io::fcntl_getfd(&*socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC), "{row}");
        }
    });
}

#[test]
fn what_is_switched_off_is_not_set() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let bare = SocketOptions { mark: None, reuse_port: false, keepalive: None, user_timeout: None };
        let listener = socket::listener(&netns, ANY_PORT, &bare).unwrap().socket;
        let listener = SockRef::from(&listener);
        assert_eq!(listener.mark().unwrap(), 0);
        assert!(!listener.reuse_port().unwrap());
        assert!(!listener.keepalive().unwrap());
        let brief = Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(2), probes_max: 3 };
        let options = SocketOptions { keepalive: Some(brief), ..bare };
        let outgoing = socket::outgoing(&netns, loopback_v4(ANY_PORT), None, &options).unwrap().socket;
        let outgoing = SockRef::from(&outgoing);
        assert_eq!(outgoing.tcp_keepalive_time().unwrap(), Duration::from_secs(5));
        assert_eq!(outgoing.tcp_keepalive_retries().unwrap(), 3);
    });
}

#[test]
fn two_daemons_listen_side_by_side_with_reuse_port_and_without_the_second_is_told_why_not() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let (_old, address) = listen(&netns, ANY_PORT);
        let (_new, _) = listen(&netns, address);
        let alone = SocketOptions { reuse_port: false, ..SocketOptions::default() };
        let error = socket::listener(&netns, address, &alone).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EADDRINUSE));
        let said = error.to_string();
        for part in [&format!("[::]:{}", address.port()), &netns.id().to_string(), "another proxy"] {
            assert!(said.contains(part), "{said}");
        }
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "what a `?` into io::Error makes of it");
        assert!(error.to_string().contains("another proxy"), "{error}");
    });
}

#[test]
fn a_burst_of_300_connections_waits_in_the_queue() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let (_never_accepts, address) = listen(&netns, ANY_PORT);
        let target = loopback_v4(address);
        let connect = |_| TcpStream::connect_timeout(&target, Duration::from_millis(500));
        let burst = netns.enter(|| (0..300).map(connect).collect::<io::Result<Vec<_>>>()).unwrap();
        assert_eq!(burst.expect("a queue of 128 drops the 130th SYN").len(), 300);
    });
}

#[test]
fn with_ipv6_switched_off_by_sysctl_ipv4_clients_are_served() {
    none_left_open(|| {
        let netns = namespace::empty();
        namespace::sysctl(&netns, "ipv6.conf.all.disable_ipv6", "1");
        namespace::sysctl(&netns, "ipv6.conf.default.disable_ipv6", "1");
        namespace::ip(&netns, "link set lo up");
        let (listener, address) = listen(&netns, ANY_PORT);
        let target = loopback_v4(address);
        let outgoing = socket::outgoing(&netns, target, None, &SocketOptions::default()).unwrap();
        let _client = connect(outgoing.socket, target).unwrap();
        assert_eq!(peer(&listener), Ipv4Addr::LOCALHOST);

        on_own_thread(|| {
            // A transparent socket may bind anything; this is for one that is not.
            namespace::give_up(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
            let unmarked = SocketOptions { mark: None, ..SocketOptions::default() };
            let meant = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
            let error = socket::listener(&netns, meant, &unmarked).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EADDRNOTAVAIL), "an address that was meant is not replaced");
            assert!(error.to_string().contains("does not have that address"), "{error}");
        });
    });
}

#[test]
fn with_a_kernel_without_ipv6_the_wildcard_is_that_of_ipv4() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        on_own_thread(|| {
            deny_ipv6_sockets();
            let (listener, address) = listen(&netns, ANY_PORT);
            assert_eq!(address.ip(), Ipv4Addr::UNSPECIFIED);
            let target = loopback_v4(address);
            let outgoing = socket::outgoing(&netns, target, None, &SocketOptions::default()).unwrap();
            let _client = connect(outgoing.socket, target).unwrap();
            assert_eq!(peer(&listener), Ipv4Addr::LOCALHOST);

            let target = SocketAddr::from((Ipv6Addr::LOCALHOST, 80));
            for error in [
                socket::outgoing(&netns, target, None, &SocketOptions::default()).map(drop).unwrap_err(),
                socket::listener(&netns, target, &SocketOptions::default()).map(drop).unwrap_err(),
            ] {
                assert!(matches!(error, SocketError::Create { .. }), "{error}");
                assert!(error.to_string().contains("without that address family"), "{error}");
            }
        });
    });
}

/// What the redirect rules give a pod: packets with the proxy's mark, and the answers to them, stay in it.
fn with_reply_path() -> Netns {
    let netns = namespace::with_loopback();
    namespace::sysctl(&netns, "ipv4.tcp_fwmark_accept", "1");
    namespace::ip(&netns, "rule add fwmark 1337 pref 32764 lookup 100");
    namespace::ip(&netns, "route add local 0.0.0.0/0 dev lo table 100");
    namespace::ip(&netns, "-6 rule add fwmark 1337 pref 32764 lookup 100");
    namespace::ip(&netns, "-6 route add local ::/0 dev lo table 100");
    netns
}

#[test]
fn the_peer_sees_the_source_that_was_asked_for_though_the_pod_does_not_have_it() {
    none_left_open(|| {
        let netns = with_reply_path();
        for (target, source) in [("127.0.0.1", "10.9.8.7"), ("::1", "fd00:9::7")] {
            let (target, source): (IpAddr, IpAddr) = (target.parse().unwrap(), source.parse().unwrap());
            let (listener, address) = listen(&netns, ANY_PORT);
            let target = SocketAddr::new(target, address.port());

            let made = socket::outgoing(&netns, target, Some(source), &SocketOptions::default()).unwrap();
            assert!(made.source_lost.is_none(), "{:?}", made.source_lost);
            let bound = SockRef::from(&made.socket).local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound, SocketAddr::new(source, 0), "the port is left for connect to choose");
            let option = SockRef::from(&made.socket);
            assert!(if source.is_ipv4() { option.freebind_v4() } else { option.freebind_v6() }.unwrap());
            let _spoofed = connect(made.socket, target).unwrap();
            assert_eq!(peer(&listener), source);

            let made = socket::outgoing(&netns, target, None, &SocketOptions::default()).unwrap();
            let _own = connect(made.socket, target).unwrap();
            assert_eq!(peer(&listener), target.ip(), "and its own when none was asked for");
        }
    });
}

#[test]
fn one_source_makes_more_connections_than_it_has_ports_left_towards_one_target() {
    none_left_open(|| {
        let netns = with_reply_path();
        // Two ports in all: bound early, the third socket would find none.
        namespace::sysctl(&netns, "ipv4.ip_local_port_range", "40000 40001");
        let source = Some(IpAddr::from([10, 9, 8, 7]));
        let mut open = Vec::new();
        for port in 15000..15004 {
            let (listener, _) = listen(&netns, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
            let target = SocketAddr::from(([127, 0, 0, 1], port));
            let made = socket::outgoing(&netns, target, source, &SocketOptions::default()).unwrap();
            assert!(made.source_lost.is_none(), "port {port}: {:?}", made.source_lost);
            open.push((connect(made.socket, target).unwrap(), listener));
        }
    });
}

#[test]
fn a_pod_that_calls_itself_is_not_bound() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let target = SocketAddr::from(([127, 0, 0, 1], 80));
        let made = socket::outgoing(&netns, target, Some(target.ip()), &SocketOptions::default()).unwrap();
        assert!(made.source_lost.is_none());
        let bound = SockRef::from(&made.socket).local_addr().unwrap().as_socket().unwrap();
        assert_eq!(bound.ip(), Ipv4Addr::UNSPECIFIED);
        assert!(!SockRef::from(&made.socket).ip_transparent_v4().unwrap());
    });
}

#[test]
fn a_source_of_the_other_family_is_lost_and_the_socket_still_connects() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let (listener, address) = listen(&netns, ANY_PORT);
        let target = loopback_v4(address);
        let source = Some("fd00:9::7".parse().unwrap());
        let made = socket::outgoing(&netns, target, source, &SocketOptions::default()).unwrap();
        let lost = made.source_lost.expect("cannot be kept").to_string();
        assert!(lost.contains("fd00:9::7") && lost.contains("one is IPv4"), "{lost}");
        let _client = connect(made.socket, target).unwrap();
        assert_eq!(peer(&listener), Ipv4Addr::LOCALHOST);
    });
}

#[test]
fn a_source_that_cannot_be_bound_is_lost_and_the_socket_is_a_plain_one() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        let (listener, address) = listen(&netns, ANY_PORT);
        let target = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
        // Transparent by then, but a link-local address means nothing without its interface.
        let source = Some("fe80::7".parse().unwrap());
        let made = socket::outgoing(&netns, target, source, &SocketOptions::default()).unwrap();
        let lost = made.source_lost.expect("cannot be kept");
        let inner = lost.get_ref().and_then(|inner| inner.downcast_ref::<SocketError>());
        assert!(matches!(inner, Some(SocketError::Bind { .. })), "{lost}");
        assert!(!SockRef::from(&made.socket).ip_transparent_v6().unwrap());
        let _client = connect(made.socket, target).unwrap();
        assert_eq!(peer(&listener), Ipv6Addr::LOCALHOST);
    });
}

#[test]
fn without_net_admin_the_mark_is_an_error_and_transparency_is_only_missed() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        on_own_thread(|| {
            namespace::give_up(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
            let target = SocketAddr::from(([127, 0, 0, 1], 80));

            let error = socket::listener(&netns, ANY_PORT, &SocketOptions::default()).unwrap_err().to_string();
            assert!(error.contains("SO_MARK") && error.contains("CAP_NET_ADMIN"), "{error}");

            let unmarked = SocketOptions { mark: None, ..SocketOptions::default() };
            let listening = socket::listener(&netns, ANY_PORT, &unmarked).unwrap();
            assert!(!listening.transparent);
            let refused: Vec<String> = listening.refused.iter().map(ToString::to_string).collect();
            assert!(refused.len() == 1 && refused[0].contains("IP_TRANSPARENT"), "{refused:?}");

            let source = Some(IpAddr::from([10, 9, 8, 7]));
            let made = socket::outgoing(&netns, target, source, &unmarked).unwrap();
            let lost = made.source_lost.expect("cannot be kept");
            assert_eq!(lost.kind(), io::ErrorKind::PermissionDenied);
            assert!(lost.to_string().contains("CAP_NET_ADMIN"), "{lost}");
            let bound = SockRef::from(&made.socket).local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound.ip(), Ipv4Addr::UNSPECIFIED, "unspoofed and not half prepared");
        });
    });
}

#[test]
fn a_namespace_that_cannot_be_entered_is_named() {
    none_left_open(|| {
        let netns = namespace::with_loopback();
        on_own_thread(|| {
            namespace::give_up(CapabilitySet::SYS_ADMIN);
            let error = socket::listener(&netns, ANY_PORT, &SocketOptions::default()).unwrap_err();
            assert!(matches!(error, SocketError::Enter { .. }));
            let said = error.to_string();
            assert!(said.contains(&netns.id().to_string()) && said.contains("CAP_SYS_ADMIN"), "{said}");
        });
    });
}

/// What the kernel calls the socket's namespace.
#[expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]
fn netns_cookie(socket: &Socket) -> u64 {
    let mut cookie = 0_u64;
    let mut length = 8;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`.
    let outcome = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
    cookie
}

/// For the rest of its life this thread lives as on a kernel booted with `ipv6.disable=1`: `socket(AF_INET6, ..)` gives
/// `EAFNOSUPPORT`.
#[expect(unsafe_code, reason = "a seccomp filter is the only way to have such a kernel without booting it")]
fn deny_ipv6_sockets() {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).expect("16 bits"), jt, jf, k };
    let (load, equal, end) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let number = u32::try_from(libc::SYS_socket).expect("small");
    // The system call's number is at offset 0 of seccomp_data, the low half of its first argument at 16.
    let mut filter = [
        step(load, 0, 0, 0),
        step(equal, 0, 3, number),
        step(load, 0, 0, 16),
        step(equal, 0, 1, libc::AF_INET6 as u32),
        step(end, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 6, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call returns. As root, no other prctl is needed.
    let outcome = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
}
