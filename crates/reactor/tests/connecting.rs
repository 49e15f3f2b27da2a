//! Connecting sockets that were made elsewhere: success, refusal, silence, and giving up.

mod on_core;

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use on_core::{PATIENCE, config, listen, listening, on_core, on_each_engine, silent, unconnected, until};
use reactor::{Listener, Runtime, Stream};
use socket2::{Domain, Protocol, Socket, Type};

#[test]
fn a_connection_comes_about_from_a_bound_source_with_its_options() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (listener, address) = listen(&reactor);
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 5], 0)).into()).unwrap();
            socket.set_keepalive(true).unwrap();
            let stream = reactor.connect(OwnedFd::from(socket), address, PATIENCE).await.unwrap();
            let accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.peer_addr().unwrap().ip(), std::net::IpAddr::from([127, 0, 0, 5]));
            assert!(socket2::SockRef::from(&stream).keepalive().unwrap());
        });
    });
}

#[test]
fn a_refusal_is_told_as_one() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (closed, address) = listening();
            drop(closed);
            let error = reactor.connect(unconnected(), address, PATIENCE).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn silence_ends_with_the_timeout() {
    on_each_engine(|| {
        let (address, _held) = silent();
        on_core(config(), move |reactor| async move {
            let timeout = Duration::from_millis(50);
            let began = Instant::now();
            let error = reactor.connect(unconnected(), address, timeout).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert!(began.elapsed() >= timeout, "not early");
            assert_eq!(error.to_string(), format!("no answer from {address} within 50ms"));
            until(&reactor, "the attempt is over", || reactor.counts().ops == 0).await;
            assert_eq!(reactor.counts().timers, 0);
        });
    });
}

#[test]
fn an_abandoned_attempt_leaves_nothing_behind() {
    on_each_engine(|| {
        let (address, _held) = silent();
        on_core(config(), move |reactor| async move {
            for _ in 0..20 {
                let mut connecting = Box::pin(reactor.connect(unconnected(), address, PATIENCE));
                assert!(connecting.as_mut().now_or_never().is_none());
                assert_eq!((reactor.counts().ops, reactor.counts().timers), (1, 1));
                drop(connecting);
                until(&reactor, "the attempt is over", || reactor.counts().ops == 0).await;
                assert_eq!(reactor.counts().timers, 0);
            }
        });
    });
}

#[test]
fn a_socket_that_cannot_connect_says_why() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let target = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 9));
            let error = reactor.connect(unconnected(), target, PATIENCE).await.err().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT), "an IPv4 socket and an IPv6 address: {error}");
            let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let error = reactor.connect(file, target, PATIENCE).await.err().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK), "{error}");
        });
    });
}
