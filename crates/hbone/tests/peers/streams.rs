//! Opening, answering, moving and limiting streams.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hbone::h2::client::{self, Tunnel};
use hbone::h2::server::{Incoming, Server};
use hbone::request::ConnectRequest;
use hbone::traceparent::Traceparent;
use hbone::{H2Config, OpenError, ResetCode, StreamError, TunnelError};
use mesh_state::name::Authority;
use tokio::io::duplex;
use tokio::task::{spawn_local, yield_now};
use tokio::time::timeout;

use super::fixture::{
    ALICE, BOB, Ca, Counted, Leaf, echo, identity, pattern, peers, peers_over, receive, request, run, send, serve,
};

/// Over when nothing in memory moves any more: the tests' clock stands still until then.
const A_WHILE: Duration = Duration::from_millis(50);

#[test]
fn a_request_arrives_as_it_was_meant_and_is_echoed() {
    run(async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let noted = seen.clone();
        let peers = peers(move |incoming: Incoming<Bytes>| {
            assert!(incoming.is_connect());
            let baggage = incoming.baggage().expect("baggage");
            noted.borrow_mut().push([
                incoming.method().to_owned(),
                incoming.authority().expect("authority").to_owned(),
                baggage.namespace,
                incoming.forwarded_host().expect("host").to_owned(),
                incoming.traceparent().expect("trace").to_owned(),
            ]);
            echo(incoming)
        })
        .await;
        let trace = Traceparent::from_draws([1, 2, 3]).to_string();
        for authority in ["10.0.0.1:8080", "[fd00::1]:8080", "cart.shop.svc.cluster.local:80"] {
            let request = ConnectRequest {
                authority: Authority::parse(authority).expect("authority"),
                baggage: Some("k8s.namespace.name=shop".into()),
                forwarded: Some("for=\"10.0.0.9:4000\";host=cart.shop".into()),
                traceparent: Some(trace.clone()),
            };
            let stream = peers.tunnel.open(request).await.expect("200");
            let (mut send_half, mut receive_half) = stream.split();
            send(&mut send_half, Bytes::from_static(b"hello")).await.expect("sent");
            send_half.finish().expect("finished");
            assert_eq!(receive(&mut receive_half).await.expect("a clean end"), b"hello");
            let row = ["CONNECT", authority, "shop", "cart.shop", &trace].map(str::to_owned);
            assert_eq!(seen.borrow_mut().pop(), Some(row));
        }
    });
}

#[test]
fn headers_that_are_not_there_are_none() {
    run(async {
        let peers = peers(|incoming: Incoming<Bytes>| async move {
            assert_eq!(incoming.baggage(), None);
            assert_eq!(incoming.forwarded_host(), None);
            assert_eq!(incoming.traceparent(), None);
            assert_eq!(incoming.forwarded_network(), None);
            let _kept = incoming.accept(Some("service.name=echo".into())).expect("client");
            std::future::pending::<()>().await;
        })
        .await;
        let stream = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200");
        assert_eq!(stream.baggage(), Some("service.name=echo"));
    });
}

#[test]
fn a_request_that_cannot_be_a_header_is_refused_here() {
    run(async {
        let peers = peers(echo).await;
        let request = ConnectRequest { baggage: Some("a\nb".into()), ..request("10.0.0.1:80") };
        let error = peers.tunnel.open(request).await.map(|_| ()).expect_err("a newline");
        assert!(matches!(&error, OpenError::Request(problem) if problem.contains("baggage")), "{error}");
    });
}

#[test]
fn refusals_arrive_as_their_status_and_leave_the_tunnel_whole() {
    run(async {
        let peers = peers(|incoming: Incoming<Bytes>| async move {
            match Authority::parse(incoming.authority().expect("authority")).expect("authority").port() {
                200 => echo(incoming).await,
                1 => drop(incoming),
                status => incoming.refuse(status),
            }
        })
        .await;
        for status in [400, 401, 503, 204, 404] {
            let answer = peers.tunnel.open(request(&format!("10.0.0.1:{status}"))).await;
            assert_eq!(answer.map(|_| ()).expect_err("refused"), OpenError::Status(status));
        }
        let answer = peers.tunnel.open(request("10.0.0.1:1")).await.map(|_| ());
        assert_eq!(answer.expect_err("dropped unanswered"), OpenError::Reset(ResetCode::CANCEL));
        peers.tunnel.open(request("10.0.0.1:200")).await.expect("the tunnel is whole");
    });
}

#[test]
fn many_streams_share_a_tunnel_and_do_not_mix() {
    run(async {
        let peers = peers(echo).await;
        let streams: Vec<_> = (0..200_u8)
            .map(|number| {
                let open = peers.tunnel.open(request("10.0.0.1:80"));
                spawn_local(async move {
                    let (mut send_half, mut receive_half) = open.await.expect("200").split();
                    let bytes = Bytes::from(vec![number; 10_000 + usize::from(number)]);
                    send(&mut send_half, bytes.clone()).await.expect("sent");
                    send_half.finish().expect("finished");
                    assert_eq!(receive(&mut receive_half).await.expect("clean"), bytes);
                })
            })
            .collect();
        for stream in streams {
            stream.await.expect("a stream's own bytes");
        }
    });
}

#[test]
fn a_stream_beyond_the_peers_limit_waits_for_another_to_end() {
    run(async {
        let config = H2Config { streams_max: 2, ..H2Config::default() };
        let (near, far) = duplex(256 << 10);
        let peers = peers_over(near, far, &config, echo).await;
        let first = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200");
        let second = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200");
        assert_eq!(peers.tunnel.streams_max(), 2, "as its SETTINGS said");
        let mut third = Box::pin(peers.tunnel.open(request("10.0.0.1:80")));
        timeout(A_WHILE, &mut third).await.map(|_| ()).expect_err("no room");
        drop(first);
        third.await.expect("room now");
        drop(second);
    });
}

#[test]
fn each_direction_closes_by_itself() {
    run(async {
        let peers = peers(|incoming: Incoming<Bytes>| async move {
            let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
            // The server speaks first, ends, and listens on.
            send(&mut send_half, Bytes::from_static(b"banner")).await.expect("sent");
            send_half.finish().expect("finished");
            assert_eq!(receive(&mut receive_half).await.expect("clean"), b"late");
        })
        .await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        assert_eq!(receive(&mut receive_half).await.expect("clean"), b"banner");
        timeout(A_WHILE, send_half.reset_by_peer()).await.expect_err("nothing is wrong with the stream");
        send(&mut send_half, Bytes::from_static(b"late")).await.expect("sent");
        send_half.finish().expect("finished");
        send_half.finish().expect("finishing twice is finishing once");
        drop((send_half, receive_half, peers.tunnel));
        peers.driver.await.expect("driver").expect("a good end");
        peers.server.await.expect("server").expect("a good end");
    });
}

#[test]
fn a_reader_that_stops_bounds_what_is_buffered() {
    run(async {
        let config = H2Config { stream_window: 64 << 10, connection_window: 256 << 10, ..H2Config::default() };
        let config = H2Config { send_buffer_client: 32 << 10, ..config };
        let stalled = Rc::new(RefCell::new(None));
        let kept = stalled.clone();
        let (near, far) = duplex(8 << 10);
        let peers = peers_over(near, far, &config, move |incoming: Incoming<Bytes>| {
            if incoming.authority() == Some("10.0.0.1:80") {
                *kept.borrow_mut() = Some(incoming.accept(None).expect("client"));
            } else {
                spawn_local(echo(incoming));
            }
            async {}
        })
        .await;
        let (mut send_half, _receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        let sent = Cell::new(0);
        let flood = async {
            loop {
                let room = send_half.capacity(1 << 20).await.expect("alive");
                send_half.deliver(vec![7; room].into()).expect("alive");
                sent.set(sent.get() + room);
            }
        };
        timeout(A_WHILE, flood).await.expect_err("it stalls");
        assert!(sent.get() >= 64 << 10, "the window is used: {}", sent.get());
        assert!(sent.get() <= (64 + 32) << 10, "a window and a send buffer at most: {}", sent.get());

        // Others in the tunnel go on meanwhile.
        let (mut other_send, mut other_receive) = peers.tunnel.open(request("10.0.0.1:81")).await.expect("200").split();
        let bytes = pattern(300 << 10);
        let sending = async {
            send(&mut other_send, bytes.clone()).await.expect("sent");
            other_send.finish().expect("finished");
        };
        let (_, echoed) = tokio::join!(sending, receive(&mut other_receive));
        assert_eq!(echoed.expect("clean"), bytes);

        // Credit lets it go on by as much.
        let before = sent.get();
        let (_send, mut reader) = stalled.borrow_mut().take().expect("accepted").split();
        let mut read = 0;
        while read < 40 << 10 {
            let bytes = reader.receive().await.expect("alive").expect("not at its end");
            read += bytes.len();
            reader.grant(bytes.len());
        }
        let mut more = 0;
        while let Ok(room) = timeout(A_WHILE, send_half.capacity(1 << 20)).await {
            let room = room.expect("alive");
            send_half.deliver(vec![7; room].into()).expect("alive");
            more += room;
        }
        assert!(more > 0 && before + more <= read + ((64 + 32) << 10), "{before} + {more}, read {read}");
    });
}

#[test]
fn capacity_nobody_uses_can_be_given_back() {
    run(async {
        let config = H2Config { stream_window: 64 << 10, connection_window: 64 << 10, ..H2Config::default() };
        let (near, far) = duplex(256 << 10);
        let peers = peers_over(near, far, &config, |incoming: Incoming<Bytes>| async {
            let _kept = incoming.accept(None).expect("client");
            std::future::pending::<()>().await;
        })
        .await;
        let open = || async { peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split().0 };
        let (mut greedy, mut modest) = (open().await, open().await);
        greedy.capacity(1 << 20).await.expect("all of the connection's");
        timeout(A_WHILE, modest.capacity(1)).await.map(|_| ()).expect_err("nothing left");
        greedy.release();
        assert_eq!(modest.capacity(1).await, Ok(1));
    });
}

#[test]
fn credit_beyond_what_came_is_ignored() {
    run(async {
        let peers = peers(echo).await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        send(&mut send_half, Bytes::from_static(b"ten bytes.")).await.expect("sent");
        assert_eq!(receive_half.receive().await, Ok(Some(Bytes::from_static(b"ten bytes."))));
        receive_half.grant(usize::MAX);
        receive_half.grant(1);
        send_half.finish().expect("finished");
        assert_eq!(receive_half.receive().await, Ok(None));
        receive_half.grant(1);
    });
}

/// A chunk that tells when it is gone.
struct Tracked {
    bytes: Bytes,
    alive: Rc<Cell<usize>>,
}

impl Tracked {
    fn new(bytes: usize, alive: &Rc<Cell<usize>>) -> Self {
        alive.set(alive.get() + 1);
        Self { bytes: vec![1; bytes].into(), alive: alive.clone() }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

impl Buf for Tracked {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[test]
fn an_aborted_stream_lets_go_of_the_callers_chunks_at_once() {
    run(async {
        let (near, far) = duplex(256 << 10);
        let config = H2Config { stream_window: 64 << 10, ..H2Config::default() };
        let (client, server) =
            tokio::join!(client::handshake::<_, Tracked>(near, &config), Server::<_, Bytes>::handshake(far, &config));
        let ((tunnel, driver), mut server) = (client.expect("client"), server.expect("server"));
        spawn_local(driver);
        spawn_local(async move {
            let mut kept = Vec::new();
            while let Some(Ok(incoming)) = server.accept().await {
                kept.push(incoming.accept(None));
            }
        });
        let alive = Rc::new(Cell::new(0));
        for abort in [true, false] {
            let (mut send_half, receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
            // More than the window takes: some stay queued here.
            while let Ok(room) = timeout(A_WHILE, send_half.capacity(32 << 10)).await {
                send_half.deliver(Tracked::new(room.expect("alive"), &alive)).expect("alive");
            }
            send_half.deliver(Tracked::new(1 << 10, &alive)).expect("h2 queues beyond the window too");
            assert!(alive.get() > 0);
            if abort {
                send_half.reset(ResetCode::CONNECT_ERROR);
                assert_eq!(send_half.capacity(1).await, Err(StreamError::Reset(ResetCode::CONNECT_ERROR)));
                assert_eq!(send_half.finish(), Err(StreamError::Reset(ResetCode::CONNECT_ERROR)));
            } else {
                drop(send_half);
            }
            // A task in between may still hold the frame it is writing.
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(alive.get(), 0, "abort: {abort}");
            drop(receive_half);
        }
    });
}

#[test]
fn an_empty_chunk_is_not_sent() {
    run(async {
        let peers = peers(echo).await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        // The peer would end the tunnel for more than 100 empty frames.
        for _ in 0..1000 {
            send_half.deliver(Bytes::new()).expect("nothing");
            yield_now().await;
        }
        send(&mut send_half, Bytes::from_static(b"x")).await.expect("sent");
        send_half.finish().expect("finished");
        assert_eq!(receive(&mut receive_half).await.expect("clean"), b"x");
    });
}

#[test]
fn a_wait_that_is_cut_short_loses_nothing() {
    run(async {
        let (near, far) = duplex(1 << 10);
        let peers = peers_over(near, far, &H2Config::default(), |incoming: Incoming<Bytes>| async {
            let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
            send(&mut send_half, pattern(100_000)).await.expect("sent");
            send_half.finish().expect("finished");
            assert_eq!(receive(&mut receive_half).await.expect("clean"), b"");
        })
        .await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        let mut all = Vec::new();
        loop {
            // Polled once, dropped, polled again.
            let polled = tokio::select! {
                biased;
                received = receive_half.receive() => Some(received),
                () = std::future::ready(()) => None,
            };
            match polled {
                Some(Ok(Some(bytes))) => {
                    receive_half.grant(bytes.len());
                    all.extend_from_slice(&bytes);
                }
                Some(Ok(None)) => break,
                Some(Err(error)) => panic!("{error}"),
                None => yield_now().await,
            }
        }
        assert_eq!(all, pattern(100_000));
        send_half.finish().expect("finished");
    });
}

#[test]
fn an_open_that_is_given_up_resets_its_stream() {
    run(async {
        let told = Rc::new(RefCell::new(Vec::new()));
        let noted = told.clone();
        let peers = peers(move |incoming: Incoming<Bytes>| {
            let noted = noted.clone();
            async move {
                tokio::time::sleep(A_WHILE).await;
                let answered = incoming.accept(None).map(|_| ());
                noted.borrow_mut().push(answered);
            }
        })
        .await;
        let open = peers.tunnel.open(request("10.0.0.1:80"));
        timeout(A_WHILE / 4, open).await.map(|_| ()).expect_err("no answer yet");
        tokio::time::sleep(A_WHILE * 2).await;
        assert_eq!(*told.borrow(), [Err(StreamError::Reset(ResetCode::CANCEL))]);
        assert!(peers.tunnel.is_open());
    });
}

#[test]
fn a_ping_is_answered_while_the_peer_lives_and_fails_when_it_is_gone() {
    run(async {
        let peers = peers(echo).await;
        let mut pinger = peers.tunnel.pinger().expect("the first taker");
        assert!(peers.tunnel.pinger().is_none(), "there is one");
        pinger.ping().await.expect("a pong");
        // Cut short, it goes on with the same ping.
        tokio::select! { biased; _ = pinger.ping() => panic!("no answer can be there yet"), () = async {} => {} }
        pinger.ping().await.expect("the pong of the ping before");
        pinger.ping().await.expect("another");
        peers.server.abort();
        let _ = peers.server.await;
        pinger.ping().await.expect_err("nobody is there");
    });
}

#[test]
fn a_server_pings_too() {
    run(async {
        let (near, far) = duplex(64 << 10);
        let config = H2Config::default();
        let (client, server) =
            tokio::join!(client::handshake::<_, Bytes>(near, &config), Server::<_, Bytes>::handshake(far, &config));
        let ((_tunnel, driver), mut server) = (client.expect("client"), server.expect("server"));
        spawn_local(driver);
        let mut pinger = server.pinger().expect("the first taker");
        assert!(server.pinger().is_none(), "there is one");
        tokio::select! {
            pong = pinger.ping() => pong.expect("a pong"),
            _ = server.accept() => panic!("nobody asks"),
        }
    });
}

#[test]
fn a_tunnel_works_the_same_inside_mutual_tls() {
    run(async {
        let ca = Ca::new();
        let (near, far) = duplex(64 << 10);
        let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
        let (client, (server, peer)) = (client.expect("client"), server.expect("server"));
        assert_eq!(peer, identity(ALICE));
        let peers = peers_over(client, server, &H2Config::default(), echo).await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        let bytes = pattern(5_000_000);
        let sending = async {
            send(&mut send_half, bytes.clone()).await.expect("sent");
            send_half.finish().expect("finished");
        };
        let (_, echoed) = tokio::join!(sending, receive(&mut receive_half));
        assert!(echoed.expect("clean") == bytes);
        drop((send_half, receive_half, peers.tunnel));
        peers.driver.await.expect("driver").expect("a good end");
        peers.server.await.expect("server").expect("a good end");
    });
}

#[test]
fn a_peer_that_is_no_http2_is_said_to_be_none() {
    run(async {
        let (near, mut far) = duplex(64 << 10);
        let (tunnel, driver) = client::handshake::<_, Bytes>(near, &H2Config::default()).await.expect("our half");
        let driver = spawn_local(driver);
        let answer = tokio::io::AsyncWriteExt::write_all(&mut far, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        answer.await.expect("room for it");
        let error = tunnel.open(request("10.0.0.1:80")).await.map(|_| ()).expect_err("not HTTP/2");
        assert!(matches!(error, OpenError::Tunnel(TunnelError::Protocol { .. }) | OpenError::NotSent(_)), "{error:?}");
        drop((tunnel, far));
        driver.await.expect("driver").expect_err("not HTTP/2");
    });
}

#[test]
fn a_tunnel_is_open_until_its_driver_is_gone() {
    run(async {
        let peers = peers(echo).await;
        let clone: Tunnel<Bytes> = peers.tunnel.clone();
        assert!(clone.is_open());
        peers.driver.abort();
        let _ = peers.driver.await;
        assert!(!clone.is_open());
        let error = clone.open(request("10.0.0.1:80")).await.map(|_| ()).expect_err("no driver");
        assert!(matches!(error, OpenError::NotSent(_)), "{error:?}");
    });
}

struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_poll_ends_after_a_turns_bytes_and_asks_for_another() {
    run(async {
        let ca = Ca::new();
        let (near, far) = duplex(8 << 20);
        let read = Rc::new(Cell::new(0));
        let near = Counted::new(near, &read);
        let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
        let config = H2Config { turn_bytes: 64 << 10, send_buffer_server: 4 << 20, ..H2Config::default() };
        let (client, server) = tokio::join!(
            client::handshake::<_, Bytes>(client.expect("client"), &config),
            Server::<_, Bytes>::handshake(server.expect("server").0, &config)
        );
        let (tunnel, mut driver) = client.expect("client");
        let bulk = pattern(3 << 20);
        let server = spawn_local(serve(server.expect("server"), move |incoming: Incoming<Bytes>| {
            let bulk = bulk.clone();
            async move {
                let (mut send_half, _receive_half) = incoming.accept(None).expect("client").split();
                send(&mut send_half, bulk).await.expect("sent");
                send_half.finish().expect("finished");
            }
        }));
        let stream = tokio::select! {
            opened = tunnel.open(request("10.0.0.1:80")) => opened.expect("200"),
            _ = &mut driver => panic!("it goes on"),
        };
        let (_send_half, mut receive_half) = stream.split();
        let bell = Arc::new(Bell(AtomicUsize::new(0)));
        let waker = Waker::from(bell.clone());
        let (mut turns, mut received) = (0, 0);
        while received < 3 << 20 {
            // All that is coming is in the pipe.
            tokio::time::sleep(A_WHILE / 10).await;
            let (before, rung) = (read.get(), bell.0.load(Ordering::Relaxed));
            assert!(Pin::new(&mut driver).poll(&mut Context::from_waker(&waker)).is_pending());
            let taken = read.get() - before;
            assert!(taken <= (64 + 64 + 20) << 10, "{taken} bytes in one poll");
            turns += 1;
            while received < 3 << 20
                && let Ok(bytes) = timeout(Duration::ZERO, receive_half.receive()).await
            {
                let bytes = bytes.expect("alive").expect("not at its end");
                receive_half.grant(bytes.len());
                received += bytes.len();
            }
            assert!(received == 3 << 20 || bell.0.load(Ordering::Relaxed) > rung, "nobody would poll it again");
        }
        assert!(turns >= 20, "{turns}");
        server.abort();
    });
}
