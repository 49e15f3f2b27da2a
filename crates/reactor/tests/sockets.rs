//! Streams and listeners: bytes arrive whole and in order, ends are passed on as what they were, nothing is lost when a
//! future is dropped.

mod on_core;

use std::{
    cell::Cell,
    collections::HashSet,
    hash::{DefaultHasher, Hasher},
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream as StdStream},
    os::fd::{AsFd, AsRawFd},
    pin::pin,
    rc::Rc,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Either, join, select},
};
use on_core::{
    BODY, PATIENCE, config, listen, listening, on_core, on_each_engine, pair, pattern, spin, unconnected, until,
};
use reactor::{Chunk, CoreConfig, LeaseLimits, Listener, Reactor, Runtime, Stream, TcpStream, TenantKey};
use rustix::{
    fs::{OFlags, fcntl_getfl},
    io::{FdFlags, fcntl_getfd},
};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Sends `bytes` and FIN while reading what comes until FIN; the hash of that.
fn exchange(address: SocketAddr, bytes: Vec<u8>) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut reading = StdStream::connect(address).unwrap();
        reading.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut writing = reading.try_clone().unwrap();
        let writer = thread::spawn(move || {
            writing.write_all(&bytes).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        reading.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        hash(&got)
    })
}

async fn read_all(stream: &TcpStream, room: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let lease = stream.receive(room).await.unwrap();
        assert!(lease.len() <= room, "{} of {room}", lease.len());
        if lease.is_empty() {
            return all;
        }
        all.extend_from_slice(&lease);
    }
}

fn chunk(reactor: &Reactor, bytes: &[u8]) -> Chunk {
    let mut lease = reactor.lease(bytes.len());
    lease.put_slice(bytes);
    lease.into()
}

#[test]
fn sixty_four_mebibytes_come_back_whole_through_receive_and_send() {
    on_each_engine(|| {
        let sent = pattern(64 * MIB);
        let expected = hash(&sent);
        let got = on_core(config(), move |reactor| async move {
            let (listener, address) = listen(&reactor);
            let peer = exchange(address, sent);
            let stream = listener.accept().await.unwrap();
            loop {
                let lease = stream.receive(256 << 10).await.unwrap();
                if lease.is_empty() {
                    break;
                }
                stream.send(lease.into()).await.unwrap();
            }
            stream.shutdown_write().unwrap();
            drop(stream);
            until(&reactor, "every lease is back", || reactor.counts().lent_bytes == 0).await;
            peer
        });
        assert_eq!(got.join().unwrap(), expected);
    });
}

#[test]
fn sixty_four_mebibytes_come_back_whole_through_the_adapter() {
    on_each_engine(|| {
        let sent = pattern(64 * MIB);
        let expected = hash(&sent);
        let got = on_core(config(), move |reactor| async move {
            let (listener, address) = listen(&reactor);
            let peer = exchange(address, sent);
            let io = listener.accept().await.unwrap().into_io();
            let (mut reading, mut writing) = tokio::io::split(io);
            // A reader of its own size, as rustls is, and vectored writes, as h2's are.
            let mut buffer = vec![0; 5_000];
            loop {
                let count = reading.read(&mut buffer).await.unwrap();
                if count == 0 {
                    break;
                }
                let (one, two) = buffer[..count].split_at(count / 3);
                let mut slices = [io::IoSlice::new(one), io::IoSlice::new(two)];
                let mut left = &mut slices[..];
                while left.iter().any(|slice| !slice.is_empty()) {
                    let written = writing.write_vectored(left).await.unwrap();
                    io::IoSlice::advance_slices(&mut left, written);
                }
            }
            writing.shutdown().await.unwrap();
            drop((reading, writing));
            until(&reactor, "every lease is back", || reactor.counts().lent_bytes == 0).await;
            peer
        });
        assert_eq!(got.join().unwrap(), expected);
    });
}

#[test]
fn both_directions_are_under_way_at_once() {
    on_each_engine(|| {
        // Neither side reads before the other has begun to write more than the sockets can hold.
        on_core(config(), |reactor| async move {
            let (client, server) = pair(&reactor).await;
            let bytes = pattern(8 * MIB);
            let one = async |stream: TcpStream| {
                let send = async {
                    for part in bytes.chunks(MIB) {
                        stream.send(chunk(&reactor, part)).await.unwrap();
                    }
                    stream.shutdown_write().unwrap();
                };
                let ((), got) = join(send, read_all(&stream, 64 << 10)).await;
                hash(&got)
            };
            let (at_client, at_server) = join(one(client), one(server)).await;
            assert_eq!((at_client, at_server), (hash(&bytes), hash(&bytes)));
        });
    });
}

#[test]
fn a_direction_that_has_ended_leaves_the_other_open() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            for ends_first in ["client", "server"] {
                let (client, server) = pair(&reactor).await;
                let (first, second) = if ends_first == "client" { (client, server) } else { (server, client) };
                first.send(chunk(&reactor, b"question")).await.unwrap();
                first.shutdown_write().unwrap();
                assert_eq!(read_all(&second, 100).await, b"question", "{ends_first} first");
                second.send(chunk(&reactor, b"answer")).await.unwrap();
                second.shutdown_write().unwrap();
                assert_eq!(read_all(&first, 100).await, b"answer", "{ends_first} first");
            }
        });
    });
}

/// The byte itself is for nobody: it is taken out of the stream, as everywhere where it is not asked for.
#[test]
fn urgent_data_does_not_hold_up_what_follows_it() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (listener, address) = listen(&reactor);
            let mut peer = StdStream::connect(address).unwrap();
            let near = listener.accept().await.unwrap();
            for _ in 0..3 {
                let mut bytes = Vec::new();
                peer.write_all(b"abc").unwrap();
                SockRef::from(&peer).send_out_of_band(b"!").unwrap();
                peer.write_all(b"def").unwrap();
                // All of it is there before the first read, which ends at the mark: no further edge comes for the rest.
                reactor.sleep(Duration::from_millis(10)).await;
                let all = async {
                    while bytes.len() < 6 {
                        bytes.extend_from_slice(&near.receive(1000).await.unwrap());
                    }
                };
                let in_time = matches!(select(pin!(all), pin!(reactor.sleep(PATIENCE))).await, Either::Left(_));
                assert!(in_time, "the rest was not told of");
                assert_eq!(bytes, b"abcdef");
            }
        });
    });
}

#[test]
fn the_adapter_goes_on_where_the_stream_was() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            // A receive under way, and bytes left over from one, when the stream becomes an adapter.
            for left_over in [false, true] {
                let (client, server) = pair(&reactor).await;
                assert!(server.receive(100).now_or_never().is_none());
                if left_over {
                    client.send(chunk(&reactor, b"lost?")).await.unwrap();
                    assert_eq!(&*server.receive(2).await.unwrap(), b"lo");
                }
                let mut io = server.into_io();
                if !left_over {
                    client.send(chunk(&reactor, b"lost?")).await.unwrap();
                }
                client.shutdown_write().unwrap();
                let mut rest = Vec::new();
                io.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, if left_over { b"st?".as_slice() } else { b"lost?" }, "left over: {left_over}");
                io.shutdown().await.unwrap();
                assert!(read_all(&client, 10).await.is_empty());
            }
        });
    });
}

#[test]
fn an_idle_adapter_holds_no_buffer() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (client, server) = pair(&reactor).await;
            let mut io = server.into_io();
            let reading = reactor.spawn(BODY, async move {
                let mut word = [0; 4];
                io.read_exact(&mut word).await.unwrap();
                (io, word)
            });
            reactor.sleep(Duration::from_millis(2)).await;
            assert_eq!(reactor.counts().lent_bytes, 0);
            client.send(chunk(&reactor, b"word")).await.unwrap();
            assert_eq!(reading.await.unwrap().1, *b"word");
            assert_eq!(reactor.counts().lent_bytes, 0, "and none after all was read");
        });
    });
}

#[test]
fn a_dropped_receive_loses_no_byte() {
    on_each_engine(|| {
        let sent = pattern(16 * MIB);
        let expected = hash(&sent);
        on_core(config(), move |reactor| async move {
            let (listener, address) = listen(&reactor);
            // The peer sends a piece for each receive that was dropped, so that however slow the core is, it waits often.
            let (ask, asked) = mpsc::sync_channel(1);
            let peer = thread::spawn(move || {
                let mut stream = StdStream::connect(address).unwrap();
                for piece in sent.chunks(64 << 10) {
                    asked.recv_timeout(PATIENCE).expect("the core reads");
                    stream.write_all(piece).unwrap();
                }
            });
            let stream = listener.accept().await.unwrap();
            let (mut all, mut dropped) = (Vec::new(), 0);
            // Rooms that differ from call to call: what a larger one left behind comes with the smaller one.
            for room in [64 << 10, 1, 5_000, 300_000].into_iter().cycle() {
                match select(pin!(stream.receive(room)), pin!(reactor.yield_now())).await {
                    Either::Left((lease, _)) => {
                        let lease = lease.unwrap();
                        assert!(lease.len() <= room);
                        if lease.is_empty() {
                            break;
                        }
                        all.extend_from_slice(&lease);
                    }
                    Either::Right(_) => {
                        dropped += 1;
                        // Refused while the last is not taken, and once everything is sent.
                        let _ = ask.try_send(());
                    }
                }
            }
            assert!(dropped >= 16 * MIB / (64 << 10), "only {dropped} receives were dropped");
            assert_eq!(hash(&all), expected);
            drop(stream);
            peer.join().unwrap();
        });
    });
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    on_each_engine(|| {
        const CONNECTIONS: usize = 500;
        on_core(config(), |reactor| async move {
            let (listener, address) = listen(&reactor);
            // A client connects for each accept that was dropped.
            let (ask, asked) = mpsc::sync_channel(1);
            let connecting = thread::spawn(move || {
                let connect = |_| {
                    asked.recv_timeout(PATIENCE).expect("the core accepts");
                    StdStream::connect(address).unwrap()
                };
                (0..CONNECTIONS).map(connect).collect::<Vec<_>>()
            });
            let (mut accepted, mut dropped) = (Vec::new(), 0);
            while accepted.len() < CONNECTIONS {
                match select(pin!(listener.accept()), pin!(reactor.yield_now())).await {
                    Either::Left((stream, _)) => accepted.push(stream.unwrap()),
                    Either::Right(_) => {
                        dropped += 1;
                        // Refused while the last is not taken, and once all have connected.
                        let _ = ask.try_send(());
                    }
                }
            }
            assert!(dropped >= CONNECTIONS, "only {dropped} accepts were dropped");
            drop((accepted, connecting.join().unwrap()));
        });
    });
}

/// What a peer sees of a stream's end.
fn end_of(mut peer: StdStream) -> io::Result<usize> {
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    io::copy(&mut peer, &mut io::sink()).map(|count| usize::try_from(count).unwrap())
}

#[test]
fn a_drop_is_seen_as_what_it_was_meant() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            for case in ["dropped", "dropped while receiving", "reset", "reset while receiving", "torn", "adapter"] {
                let (listener, address) = listen(&reactor);
                let peer = thread::spawn(move || StdStream::connect(address).unwrap());
                let stream = listener.accept().await.unwrap();
                let peer = peer.join().unwrap();
                stream.send(chunk(&reactor, b"hello")).await.unwrap();
                match case {
                    "dropped while receiving" => assert!(stream.receive(10).now_or_never().is_none()),
                    "reset" => stream.reset_on_drop(),
                    "reset while receiving" => {
                        assert!(stream.receive(10).now_or_never().is_none());
                        stream.reset_on_drop();
                    }
                    "torn" => {
                        let flood = stream.send(chunk(&reactor, &pattern(64 * MIB)));
                        let pause = reactor.sleep(Duration::from_millis(20));
                        let abandoned = matches!(select(pin!(flood), pin!(pause)).await, Either::Right(_));
                        assert!(abandoned, "the peer does not read");
                        let next = stream.send(chunk(&reactor, b"more")).await;
                        assert_eq!(next.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
                        assert_eq!(stream.shutdown_write().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
                    }
                    _ => {}
                }
                if case == "adapter" {
                    drop(stream.into_io());
                } else {
                    drop(stream);
                }
                let seen = thread::spawn(move || end_of(peer));
                until(&reactor, "the peer sees the end", || seen.is_finished()).await;
                match (case, seen.join().unwrap()) {
                    ("reset" | "reset while receiving" | "torn", Err(error)) => {
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{case}");
                    }
                    ("dropped" | "dropped while receiving" | "adapter", Ok(5)) => {}
                    (case, seen) => panic!("{case}: {seen:?}"),
                }
            }
        });
    });
}

#[test]
fn a_busy_core_closes_promptly() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (listener, address) = listen(&reactor);
            let peer = thread::spawn(move || end_of(StdStream::connect(address).unwrap()));
            let stream = listener.accept().await.unwrap();
            assert!(stream.receive(10).now_or_never().is_none());
            // The busy tenant looks, for its turns are many: the body may be preempted and then have none for a while.
            let awaited = Rc::new(Cell::new(0));
            let over = Rc::new(Cell::new(None));
            let tenant = reactor.spawn(TenantKey(9), {
                let (reactor, awaited, over) = (reactor.clone(), awaited.clone(), over.clone());
                async move {
                    loop {
                        spin(Duration::from_micros(20));
                        if over.get().is_none() && reactor.counts().ops < awaited.get() {
                            over.set(Some(reactor.counts().enters));
                        }
                        reactor.yield_now().await;
                    }
                }
            });
            let begun = reactor.counts().enters;
            until(&reactor, "the kernel has the receive", || reactor.counts().enters > begun).await;
            assert!(!tenant.is_finished());
            // Two turns of the busy tenant bring the core to the kernel at least once, which is where the drop takes effect.
            let before = reactor.counts();
            drop(stream);
            awaited.set(before.ops);
            until(&reactor, "the cancelled receive is over", || over.get().is_some()).await;
            assert!(over.get().unwrap() - before.enters <= 3, "{before:?} {:?}", reactor.counts());
            until(&reactor, "the peer sees the end", || peer.is_finished()).await;
            assert_eq!(peer.join().unwrap().unwrap(), 0);
        });
    });
}

#[test]
fn what_the_kernel_has_not_seen_is_gone_as_soon_as_it_is_dropped() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (one, other) = pair(&reactor).await;
            let before = reactor.counts();
            assert!(one.receive(100).now_or_never().is_none());
            assert_eq!(reactor.counts().ops, before.ops + 1);
            drop(one);
            let after = reactor.counts();
            assert_eq!((after.ops, after.lent_bytes), (before.ops, before.lent_bytes));
            // The negative control is `before.enters`: had the kernel been asked, the drop would have had to ask it again.
            assert_eq!(after.enters, before.enters);
            assert!(other.receive(100).await.unwrap().is_empty(), "the descriptor is closed");
            assert_eq!(reactor.counts().ops_stale, 0);
        });
    });
}

#[test]
fn a_reused_descriptor_never_takes_a_stale_completion() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let mut reused = 0;
            let mut closed = HashSet::new();
            for round in 0_u32..500 {
                let (client, server) = pair(&reactor).await;
                reused += usize::from(closed.contains(&server.as_fd().as_raw_fd()));
                // An operation of the new stream, on a number that just had one in flight for the old stream.
                let expected = round.to_le_bytes();
                let (sent, got) = join(client.send(chunk(&reactor, &expected)), server.receive(100)).await;
                sent.unwrap();
                assert_eq!(&*got.unwrap(), expected, "round {round}");
                // Left in flight: one that will never complete by itself, and one whose bytes are on their way.
                assert!(server.receive(100).now_or_never().is_none());
                assert!(client.receive(100).now_or_never().is_none());
                client.send(chunk(&reactor, b"for nobody")).await.unwrap();
                closed.extend([&server, &client].map(|stream| stream.as_fd().as_raw_fd()));
                drop((server, client));
            }
            assert!(reused > 50, "only {reused} of 500 descriptors were reused");
            until(&reactor, "nothing is under way", || reactor.counts().ops == 0).await;
            assert_eq!(reactor.counts().ops_stale, 0);
        });
    });
}

#[test]
fn sockets_are_as_the_data_plane_needs_them() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (client, server) = pair(&reactor).await;
            for (name, stream) in [("connected", &client), ("accepted", &server)] {
                assert!(SockRef::from(stream).tcp_nodelay().unwrap(), "{name}");
                assert!(fcntl_getfd(stream).unwrap().contains(FdFlags::CLOEXEC), "{name}");
            }
            assert!(fcntl_getfl(&server).unwrap().contains(OFlags::NONBLOCK));
            assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(server.local_addr().unwrap(), client.peer_addr().unwrap());
            assert_eq!(server.original_dst().unwrap(), server.local_addr().unwrap(), "nothing redirected it");
        });
    });
}

#[test]
fn an_ipv4_client_of_a_dual_stack_listener_has_ipv4_addresses() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let dual = std::net::TcpListener::bind("[::]:0").unwrap();
            let port = dual.local_addr().unwrap().port();
            let listener = reactor.listen(dual.into()).unwrap();
            let target = SocketAddr::from(([127, 0, 0, 1], port));
            let client = reactor.connect(unconnected(), target, PATIENCE).await.unwrap();
            let server = listener.accept().await.unwrap();
            assert_eq!(server.local_addr().unwrap(), target);
            assert_eq!(server.original_dst().unwrap(), target);
            assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
        });
    });
}

#[test]
fn limits_are_errors_of_the_operation_that_meets_them() {
    on_each_engine(|| {
        let few_ops = CoreConfig { ops_max: 2, ..config() };
        on_core(few_ops, |reactor| async move {
            let (client, server) = pair(&reactor).await;
            assert!(client.receive(1).now_or_never().is_none());
            assert!(server.receive(1).now_or_never().is_none());
            let refused = client.send(chunk(&reactor, b"x")).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
            assert_eq!(reactor.counts().ops_refused, 1);
            let (other, _address) = listen(&reactor);
            assert_eq!(other.accept().await.err().unwrap().kind(), io::ErrorKind::ResourceBusy);
        });
    });
}

#[test]
fn a_tenant_whose_share_of_buffers_is_out_waits_and_goes_on_when_some_are_back() {
    on_each_engine(|| {
        let leases = LeaseLimits { tenant_bytes_max: 16 << 10, ..LeaseLimits::default() };
        on_core(CoreConfig { leases, ..config() }, |reactor| async move {
            let (client, server) = pair(&reactor).await;
            server.send(chunk(&reactor, b"word")).await.unwrap();
            let held = reactor.lease(16 << 10);
            let receiving = reactor.spawn(BODY, async move { client.receive(100).await.unwrap().to_vec() });
            until(&reactor, "it waits for a buffer", || reactor.counts().share_waits == 1).await;
            // The control: another tenant receives meanwhile.
            let (other_client, other_server) = pair(&reactor).await;
            let other = reactor.spawn(TenantKey(9), async move { other_client.receive(100).await.unwrap().len() });
            other_server.send(Chunk::from(bytes::Bytes::from_static(b"other"))).await.unwrap();
            assert_eq!(other.await.unwrap(), 5);
            assert!(!receiving.is_finished(), "its own share is still out");
            drop(held);
            assert_eq!(receiving.await.unwrap(), b"word");
        });
    });
}

#[test]
fn a_core_ends_with_everything_under_way() {
    on_each_engine(|| {
        let (outside, address) = listening();
        let peer = thread::spawn(move || {
            let (stream, _) = outside.accept().unwrap();
            end_of(stream)
        });
        on_core(config(), move |reactor| async move {
            let stream = reactor.connect(unconnected(), address, PATIENCE).await.unwrap();
            let (listener, _address) = listen(&reactor);
            let inner = reactor.clone();
            reactor
                .spawn(BODY, async move {
                    let under_way = join(stream.receive(1 << 20), listener.accept());
                    join(under_way, inner.sleep(PATIENCE)).map(drop).await;
                })
                .detach();
            until(&reactor, "both are under way", || reactor.counts().ops == 2).await;
        });
        assert_eq!(peer.join().unwrap().unwrap(), 0);
    });
}
