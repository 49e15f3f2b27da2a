//! How streams and tunnels end: what was finished arrives whole, and what was cut never looks finished.

use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use hbone::h2::client;
use hbone::h2::server::{Incoming, Server};
use hbone::{H2Config, OpenError, ResetCode, StreamError, TunnelError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::fixture::{
    ALICE, BOB, Ca, Leaf, Peers, echo, identity, pattern, peers, peers_over, receive, request, run, send, serve,
};

const BULK: usize = 64 << 20;

/// What one side does once it has all, so that the other's end meets it in any order.
#[derive(Clone, Copy, Debug)]
enum First {
    Server,
    Client,
}

#[test]
fn a_server_that_finishes_and_goes_loses_nothing() {
    let bulk = pattern(BULK);
    for first in [First::Server, First::Client] {
        for round in 0..10 {
            let bulk = bulk.clone();
            run(async move {
                let bytes = bulk.clone();
                let peers = peers(move |incoming: Incoming<Bytes>| {
                    let bytes = bytes.clone();
                    async move {
                        let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
                        if matches!(first, First::Client) {
                            assert_eq!(receive(&mut receive_half).await.expect("clean"), b"");
                        }
                        send(&mut send_half, bytes).await.expect("sent");
                        send_half.finish().expect("finished");
                        // The relay's way out, whatever happened to the other direction.
                        send_half.reset(ResetCode::CONNECT_ERROR);
                        if round % 2 == 0 {
                            drop(send_half);
                            drop(receive_half);
                        } else {
                            drop(receive_half);
                            drop(send_half);
                        }
                    }
                })
                .await;
                let (mut send_half, mut receive_half) =
                    peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
                if matches!(first, First::Client) {
                    send_half.finish().expect("finished");
                }
                let received = receive(&mut receive_half).await;
                assert!(received.expect("a clean end") == bulk, "{first:?} round {round}");
            });
        }
    }
}

#[test]
fn a_client_that_finishes_and_goes_with_its_tunnel_loses_nothing() {
    let bulk = pattern(BULK);
    for first in [First::Client, First::Server] {
        for round in 0..10 {
            let bulk = bulk.clone();
            run(async move {
                let done = Rc::new(Notify::new());
                let (told, expected) = (done.clone(), bulk.clone());
                let Peers { tunnel, driver, server } = peers(move |incoming: Incoming<Bytes>| {
                    let (told, expected) = (told.clone(), expected.clone());
                    async move {
                        let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
                        if matches!(first, First::Server) {
                            send_half.finish().expect("finished");
                        }
                        let received = receive(&mut receive_half).await;
                        assert!(received.expect("a clean end") == expected, "{first:?} round {round}");
                        told.notify_one();
                    }
                })
                .await;
                let (mut send_half, mut receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
                if matches!(first, First::Server) {
                    assert_eq!(receive(&mut receive_half).await.expect("clean"), b"");
                }
                send(&mut send_half, bulk).await.expect("sent");
                send_half.finish().expect("finished");
                drop((send_half, receive_half, tunnel));
                done.notified().await;
                driver.await.expect("driver").expect("a good end");
                server.await.expect("server").expect("a good end");
            });
        }
    }
}

#[test]
fn the_same_holds_inside_tls_with_an_end_of_the_whole_tunnel() {
    let bulk = pattern(BULK);
    run(async move {
        let ca = Ca::new();
        for _ in 0..3 {
            let (near, far) = duplex(64 << 10);
            let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
            let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
            let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
            let bytes = bulk.clone();
            let handle = move |incoming: Incoming<Bytes>| {
                let bytes = bytes.clone();
                async move {
                    let (mut send_half, _receive_half) = incoming.accept(None).expect("client").split();
                    send(&mut send_half, bytes).await.expect("sent");
                    send_half.finish().expect("finished");
                }
            };
            let config = H2Config::default();
            let (client, (server, _)) = (client.expect("client"), server.expect("server"));
            let (client, server) =
                tokio::join!(client::handshake::<_, Bytes>(client, &config), Server::handshake(server, &config));
            let (tunnel, driver) = client.expect("client");
            let mut server = server.expect("server");
            let driver = spawn_local(driver);
            let server = spawn_local(async move {
                let incoming = server.accept().await.expect("one request").expect("a good one");
                spawn_local(handle(incoming));
                // The pod is draining from here on.
                server.graceful_shutdown();
                serve(server, |_| async { panic!("there is no second") }).await
            });
            let (_send_half, mut receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
            assert!(receive(&mut receive_half).await.expect("a clean end") == bulk);
            drop((_send_half, receive_half));
            server.await.expect("server").expect("a good end");
            assert!(!tunnel.is_open(), "a drained tunnel is not for new streams");
            drop(tunnel);
            driver.await.expect("driver").expect("a good end");
        }
    });
}

#[test]
fn a_reset_is_never_a_clean_end() {
    run(async {
        let codes =
            [ResetCode::CANCEL, ResetCode::CONNECT_ERROR, ResetCode::PROTOCOL_ERROR, ResetCode(2), ResetCode(0xbeef)];
        for code in codes {
            let peers = peers(move |incoming: Incoming<Bytes>| async move {
                let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
                send(&mut send_half, Bytes::from_static(b"part")).await.expect("sent");
                receive_half.receive().await.expect("a go").expect("a go");
                send_half.reset(code);
                let own = receive_half.receive().await;
                assert_eq!(own, Err(StreamError::Reset(code)), "our own reset is an error to ourselves too");
            })
            .await;
            let (mut send_half, mut receive_half) =
                peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
            assert_eq!(receive_half.receive().await, Ok(Some(Bytes::from_static(b"part"))));
            send(&mut send_half, Bytes::from_static(b"go")).await.expect("sent");
            let error = Err(StreamError::Reset(code));
            assert_eq!(receive_half.receive().await, error);
            assert_eq!(receive_half.receive().await, error, "and stays one");
            assert_eq!(send_half.reset_by_peer().await, StreamError::Reset(code));
            assert_eq!(send_half.capacity(1).await.map(|_| ()), Err(StreamError::Reset(code)));
            assert_eq!(send_half.deliver(Bytes::from_static(b"x")), Err(StreamError::Reset(code)));
            assert_eq!(send_half.finish(), Err(StreamError::Reset(code)));
            peers.tunnel.open(request("10.0.0.1:80")).await.expect("other streams don't mind");
        }
    });
}

#[test]
fn a_reset_that_says_no_error_is_an_end() {
    run(async {
        let peers = peers(|incoming: Incoming<Bytes>| async move {
            let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
            send(&mut send_half, Bytes::from_static(b"all")).await.expect("sent");
            receive_half.receive().await.expect("a go").expect("a go");
            send_half.reset(ResetCode::NO_ERROR);
        })
        .await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        assert_eq!(receive_half.receive().await, Ok(Some(Bytes::from_static(b"all"))));
        send(&mut send_half, Bytes::from_static(b"go")).await.expect("sent");
        assert_eq!(receive_half.receive().await, Ok(None));
        assert_eq!(send_half.reset_by_peer().await, StreamError::Reset(ResetCode::NO_ERROR));
    });
}

#[test]
fn an_end_that_came_before_the_reset_stays_clean() {
    run(async {
        let peers = peers(|incoming: Incoming<Bytes>| async move {
            let (mut send_half, receive_half) = incoming.accept(None).expect("client").split();
            send(&mut send_half, pattern(1 << 20)).await.expect("sent");
            send_half.finish().expect("finished");
            // It doesn't read what the client still sends.
            drop((send_half, receive_half));
        })
        .await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        assert_eq!(send_half.reset_by_peer().await, StreamError::Reset(ResetCode::NO_ERROR), "it wants no more");
        assert!(receive(&mut receive_half).await.expect("clean") == pattern(1 << 20));
    });
}

#[test]
fn an_unfinished_half_that_is_dropped_is_a_cancel_to_the_peer() {
    run(async {
        let peers = peers(|incoming: Incoming<Bytes>| async move {
            let (mut send_half, mut receive_half) = incoming.accept(None).expect("client").split();
            send(&mut send_half, Bytes::from_static(b"part")).await.expect("sent");
            receive_half.receive().await.expect("a go").expect("a go");
            drop(send_half);
            assert_eq!(receive_half.receive().await, Err(StreamError::Reset(ResetCode::CANCEL)));
        })
        .await;
        let (mut send_half, mut receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        send(&mut send_half, Bytes::from_static(b"go")).await.expect("sent");
        let (_, error) = receive(&mut receive_half).await.expect_err("not finished");
        assert_eq!(error, StreamError::Reset(ResetCode::CANCEL));
    });
}

/// A peer that dies: with a goodbye of TLS, with HTTP/2's, or with none.
#[derive(Clone, Copy, Debug)]
enum Death {
    Killed,
    ClosedWithoutGoaway,
    GoawayInMidStream,
}

#[test]
fn when_the_peer_dies_every_stream_gets_an_error() {
    let deaths = [Death::Killed, Death::ClosedWithoutGoaway, Death::GoawayInMidStream];
    for (death, tls) in deaths.into_iter().flat_map(|death| [(death, true), (death, false)]) {
        run(async move {
            let (near, far) = duplex(64 << 10);
            if tls {
                let ca = Ca::new();
                let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
                let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
                let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
                die(death, client.expect("client"), server.expect("server").0).await;
            } else {
                die(death, near, far).await;
            }
        });
    }
}

async fn die<Io>(death: Death, near: Io, far: Io)
where
    Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let config = H2Config::default();
    // A raw server, so that it can be killed in any way. It keeps its connection where it can be cut.
    let (client, mut server) = tokio::join!(client::handshake::<_, Bytes>(near, &config), async {
        ::h2::server::handshake(far).await.expect("server")
    });
    let (tunnel, driver) = client.expect("client");
    let driver = spawn_local(driver);
    let (die, dying) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
    let (dies, died) = (die.clone(), dying.clone());
    let server = spawn_local(async move {
        let mut kept = Vec::new();
        loop {
            tokio::select! {
                accepted = server.accept() => {
                    let (request, mut answer) = accepted.expect("alive").expect("good");
                    let mut send = answer.send_response(http::Response::new(()), false).expect("alive");
                    send.send_data(Bytes::from_static(b"part"), false).expect("alive");
                    kept.push((request, send));
                }
                () = dies.notified() => break,
            }
        }
        died.notify_one();
        match death {
            Death::Killed => drop(server),
            Death::GoawayInMidStream | Death::ClosedWithoutGoaway => {
                server.abrupt_shutdown(::h2::Reason::NO_ERROR);
                while server.accept().await.is_some() {}
            }
        }
    });
    let mut streams = Vec::new();
    for _ in 0..10 {
        let (send_half, mut receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        assert_eq!(receive_half.receive().await, Ok(Some(Bytes::from_static(b"part"))));
        streams.push((send_half, receive_half));
    }
    let mut waiting = pin!(tunnel.open(request("10.0.0.1:80")));
    die.notify_one();
    dying.notified().await;
    server.await.expect("dead");
    for (mut send_half, mut receive_half) in streams {
        let error = receive_half.receive().await.expect_err("cut");
        assert!(matches!(error, StreamError::Tunnel(_)), "{death:?}: {error:?}");
        let error = send_half.reset_by_peer().await;
        assert!(!matches!(error, StreamError::Reset(ResetCode::CANCEL)), "{death:?}: {error:?}");
        send_half.capacity(1).await.map(|_| ()).expect_err("cut");
        send_half.finish().expect_err("cut");
    }
    waiting.as_mut().await.map(|_| ()).expect_err("cut");
    assert!(!tunnel.is_open());
    drop(tunnel);
    let _ = driver.await.expect("driver");
}

#[test]
fn a_server_whose_client_is_killed_ends_all_streams_with_errors() {
    run(async {
        let ca = Ca::new();
        let (near, far) = duplex(64 << 10);
        let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
        let (sender, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let handle = move |incoming: Incoming<Bytes>| {
            let sender = sender.clone();
            async move {
                let (_send_half, mut receive_half) = incoming.accept(None).expect("client").split();
                let _ = sender.send(receive(&mut receive_half).await);
            }
        };
        let config = H2Config::default();
        let peers = peers_over(client.expect("client"), server.expect("server").0, &config, handle).await;
        let mut kept = Vec::new();
        for _ in 0..5 {
            let (mut send_half, receive_half) = peers.tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
            send(&mut send_half, Bytes::from_static(b"part")).await.expect("sent");
            kept.push((send_half, receive_half));
        }
        let mut pinger = peers.tunnel.pinger().expect("the first taker");
        pinger.ping().await.expect("all of it is there");
        peers.driver.abort();
        for _ in 0..5 {
            let (received, error) = ends.recv().await.expect("one end each").expect_err("never a clean end");
            assert_eq!(received, 4);
            assert_eq!(error, StreamError::Tunnel(TunnelError::Cut));
        }
    });
}

#[test]
fn a_drained_tunnel_ends_its_streams_in_peace_and_takes_no_new_ones() {
    run(async {
        let (near, far) = duplex(64 << 10);
        let config = H2Config::default();
        let (client, server) =
            tokio::join!(client::handshake::<_, Bytes>(near, &config), Server::<_, Bytes>::handshake(far, &config));
        let ((tunnel, driver), mut server) = (client.expect("client"), server.expect("server"));
        let driver = spawn_local(driver);
        let (drain, draining) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (asked, told) = (drain.clone(), draining.clone());
        let server = spawn_local(async move {
            loop {
                tokio::select! {
                    accepted = server.accept() => match accepted {
                        Some(incoming) => drop(spawn_local(echo(incoming.expect("good")))),
                        None => return,
                    },
                    () = asked.notified() => {
                        server.graceful_shutdown();
                        told.notify_one();
                    }
                }
            }
        });
        let (mut send_half, mut receive_half) = tunnel.open(request("10.0.0.1:80")).await.expect("200").split();
        let mut pinger = tunnel.pinger().expect("the first taker");
        drain.notify_one();
        draining.notified().await;
        pinger.ping().await.expect("the GOAWAY came before the pong");
        assert!(!tunnel.is_open());
        let error = tunnel.open(request("10.0.0.1:80")).await.map(|_| ()).expect_err("draining");
        assert_eq!(error, OpenError::NotSent(TunnelError::GoingAway));
        send(&mut send_half, pattern(1 << 20)).await.expect("sent");
        send_half.finish().expect("finished");
        assert!(receive(&mut receive_half).await.expect("clean") == pattern(1 << 20));
        drop((send_half, receive_half));
        server.await.expect("the server is done by itself");
        drop(tunnel);
        driver.await.expect("driver").expect("a good end");
    });
}

#[test]
fn an_aborted_tunnel_is_an_error_to_its_streams() {
    run(async {
        let (near, far) = duplex(64 << 10);
        let config = H2Config::default();
        let (client, server) =
            tokio::join!(client::handshake::<_, Bytes>(near, &config), Server::<_, Bytes>::handshake(far, &config));
        let ((tunnel, driver), mut server) = (client.expect("client"), server.expect("server"));
        let driver = spawn_local(driver);
        let server = spawn_local(async move {
            let stream = server.accept().await.expect("one").expect("good").accept(None).expect("client");
            server.abort();
            assert!(server.accept().await.is_none());
            let (mut send_half, mut receive_half) = stream.split();
            assert_eq!(receive_half.receive().await, Err(StreamError::Tunnel(TunnelError::Closed)));
            send_half.capacity(1).await.expect_err("over");
        });
        let opened = tunnel.open(request("10.0.0.1:80")).await;
        if let Ok(stream) = opened {
            let (_send_half, mut receive_half) = stream.split();
            let error = receive_half.receive().await.expect_err("aborted");
            assert!(matches!(error, StreamError::Tunnel(_)), "{error:?}");
        }
        drop(tunnel);
        server.await.expect("server");
        let _ = driver.await.expect("driver");
    });
}

#[test]
fn a_tunnel_that_said_goodbye_waits_for_the_peers() {
    run(async {
        let (near, mut far) = duplex(64 << 10);
        let (tunnel, driver) = client::handshake::<_, Bytes>(near, &H2Config::default()).await.expect("our half");
        drop(tunnel);
        let mut driver = pin!(driver);
        let mut said = Vec::new();
        tokio::select! {
            biased;
            _ = driver.as_mut() => panic!("closing now could destroy what the peer has not read"),
            read = far.read_to_end(&mut said) => drop(read.expect("our end")),
        }
        assert!(said.ends_with(&[0, 0, 0, 0, 0, 0, 0, 0]), "GOAWAY, NO_ERROR: {said:?}");
        // What the peer still sends is read, not answered with a reset.
        let late = async {
            far.write_all(&[0; 1_000_000]).await.expect("it is taken");
            drop(far);
        };
        let (ended, ()) = tokio::join!(driver, late);
        ended.expect("a good end");
    });
}
