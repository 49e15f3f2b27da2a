//! What one tenant does at once, and what it may hold, while there are others on its core.

mod on_core;

use std::{
    cell::Cell,
    io::{Read, Write},
    net::TcpStream as StdStream,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use on_core::{PATIENCE, config, listen, listening, on_core, on_each_engine, pair, spin, unconnected, until};
use reactor::{Chunk, CoreConfig, Listener, Reactor, Runtime, Spliced, Stream, TenantKey};
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};

const BULK: TenantKey = TenantKey(11);
const OTHER: TenantKey = TenantKey(12);
const KIB: usize = 1 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Copy,
    Splice,
}

/// The largest piece, once a flow has proved bulk, that its tenant moves with one system call of its own.
fn largest_piece(by: By, beside_another: bool) -> usize {
    on_core(config(), move |reactor| async move {
        let (listener, address) = listen(&reactor);
        let from = thread::spawn(move || {
            let mut from = StdStream::connect(address).unwrap();
            let bytes = vec![1; 1 << 20];
            while from.write_all(&bytes).is_ok() {}
        });
        let source = listener.accept().await.unwrap();
        socket2::SockRef::from(&source).set_recv_buffer_size(4 << 20).unwrap();
        let (outside, address) = listening();
        let sink = reactor.connect(unconnected(), address, PATIENCE).await.unwrap();
        let mut to = outside.accept().unwrap().0;
        let to = thread::spawn(move || {
            let mut bytes = vec![0; 1 << 20];
            while to.read(&mut bytes).is_ok_and(|count| count > 0) {}
        });
        let busy = beside_another.then(|| keep_busy(&reactor));
        let (pieces, largest) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (counted, noted) = (pieces.clone(), largest.clone());
        let relay = reactor.spawn(BULK, async move {
            loop {
                let piece = match by {
                    By::Copy => {
                        let received = source.receive(256 * KIB).await.unwrap();
                        let piece = received.len();
                        sink.send(Chunk::from(received)).await.unwrap();
                        piece
                    }
                    By::Splice => match source.splice_to(&sink).await {
                        Spliced::Moved(piece) => piece,
                        other => panic!("{other:?}"),
                    },
                };
                noted.set(noted.get().max(piece));
                counted.set(counted.get() + 1);
            }
        });
        // Asleep, not looking all the time: this is a tenant as well.
        for _ in 0..PATIENCE.as_millis() {
            if pieces.get() >= 300 || largest.get() > 128 * KIB {
                break;
            }
            reactor.sleep(Duration::from_millis(1)).await;
        }
        relay.cancel().await;
        if let Some(busy) = busy {
            busy.cancel().await;
        }
        until(&reactor, "the ends are over", || from.is_finished() && to.is_finished()).await;
        largest.get()
    })
}

/// A tenant that always waits for a turn.
fn keep_busy(reactor: &Reactor) -> reactor::Task<()> {
    let inside = reactor.clone();
    reactor.spawn(OTHER, async move {
        loop {
            spin(Duration::from_micros(5));
            inside.yield_now().await;
        }
    })
}

#[test]
fn while_another_tenant_waits_no_system_call_moves_more_than_128_kib() {
    on_each_engine(|| {
        for by in [By::Copy, By::Splice] {
            let beside = largest_piece(by, true);
            assert!(beside <= 128 * KIB, "{by:?}: {beside} bytes at once");
            // The control: with the core to itself it moves more.
            let alone = largest_piece(by, false);
            assert!(alone > 128 * KIB, "{by:?}: {alone} bytes at once");
        }
    });
}

#[test]
fn who_has_all_tasks_it_may_leaves_the_others_some() {
    on_each_engine(|| {
        on_core(CoreConfig { tasks_max: 40, ..config() }, |reactor| async move {
            let hoard: Vec<_> = (0..60).map(|_| reactor.spawn(BULK, std::future::pending::<()>())).collect();
            let refused = reactor.counts().tasks_refused;
            assert_eq!(refused, 30, "three quarters are its own");
            let other = reactor.spawn(OTHER, async { 7 });
            assert_eq!(other.await, Ok(7));
            for task in hoard {
                task.cancel().await;
            }
            assert_eq!(reactor.spawn(BULK, async { 7 }).await, Ok(7), "what it gave back is its own again");
        });
    });
}

#[test]
fn who_has_all_operations_it_may_leaves_the_others_some() {
    on_each_engine(|| {
        on_core(CoreConfig { ops_max: 16, ..config() }, |reactor| async move {
            let mut pairs = Vec::new();
            for _ in 0..14 {
                pairs.push(pair(&reactor).await);
            }
            let last = pair(&reactor).await;
            let refused = Rc::new(Cell::new(0));
            let waiting: Vec<_> = pairs
                .into_iter()
                .map(|(near, far)| {
                    let refused = refused.clone();
                    reactor.spawn(BULK, async move {
                        if let Err(error) = near.receive(100).await {
                            assert!(error.to_string().contains("12 socket operations of this tenant"), "{error}");
                            refused.set(refused.get() + 1);
                        }
                        drop(far);
                    })
                })
                .collect();
            until(&reactor, "it has all it may", || refused.get() == 2).await;
            let theirs = reactor.spawn(OTHER, async move {
                let (near, far) = last;
                far.send(Chunk::from(bytes::Bytes::from_static(b"word"))).await.unwrap();
                near.receive(100).await.unwrap().len()
            });
            assert_eq!(theirs.await, Ok(4));
            for task in waiting {
                task.cancel().await;
            }
        });
    });
}

/// Who connects to a listener again and again, and waits each time until the connection is closed.
fn keep_connecting(address: std::net::SocketAddr, stop: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut stream) = StdStream::connect(address) else { return };
            // Closed or reset, as its acceptor goes.
            let _end = stream.read(&mut [0]);
        }
    })
}

/// Accepts of a tenant with sixteen listeners under a storm, and of one with a single listener and a few connects, each
/// connection costing its tenant as much as a flight of a handshake.
fn accepts(storm: TenantKey, calm: TenantKey) -> [u64; 2] {
    on_core(config(), move |reactor| async move {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        let counts = [storm, calm].into_iter().zip([(16, 1), (1, 3)]).map(|(tenant, (listeners, connects))| {
            let count = Rc::new(Cell::new(0));
            for _ in 0..listeners {
                let (listener, address) = listen(&reactor);
                let (inside, count) = (reactor.clone(), count.clone());
                servers.push(reactor.spawn(tenant, async move {
                    loop {
                        drop(listener.accept().await.unwrap());
                        spin(Duration::from_micros(200));
                        count.set(count.get() + 1);
                        inside.yield_now().await;
                    }
                }));
                clients.extend((0..connects).map(|_| keep_connecting(address, stop.clone())));
            }
            count
        });
        let counts: Vec<Rc<Cell<u64>>> = counts.collect();
        let now = || [counts[0].get(), counts[1].get()];
        until(&reactor, "both are at it", || now().iter().all(|count| *count > 20)).await;
        let before = now();
        until(&reactor, "enough is accepted", || now().iter().sum::<u64>() > before.iter().sum::<u64>() + 1_500).await;
        let after = now();
        stop.store(true, Ordering::Relaxed);
        // They go on accepting until every client has seen its last connection close.
        until(&reactor, "the clients are over", || clients.iter().all(thread::JoinHandle::is_finished)).await;
        for server in servers {
            server.cancel().await;
        }
        [after[0] - before[0], after[1] - before[1]]
    })
}

#[test]
fn a_storm_of_connects_takes_no_more_than_its_tenants_share_of_the_accepts() {
    on_each_engine(|| {
        let [storm, calm] = accepts(BULK, OTHER);
        assert!(calm as f64 >= storm as f64 * 0.6, "{calm} beside {storm}");
        // The control: as one tenant, who asks most gets most.
        let [storm, calm] = accepts(BULK, BULK);
        assert!((calm as f64) < storm as f64 * 0.5, "{calm} beside {storm}");
    });
}

/// Completions of one send of a mebibyte into a socket that takes all of it at once.
fn completions_of_a_large_send(beside_another: bool) -> u64 {
    on_core(config(), move |reactor| async move {
        let (near, far) = pair(&reactor).await;
        set_socket_send_buffer_size_force(&near, 8 << 20).unwrap();
        set_socket_recv_buffer_size_force(&far, 8 << 20).unwrap();
        let busy = beside_another.then(|| keep_busy(&reactor));
        let sends = reactor.spawn(BULK, async move {
            near.send(Chunk::from(bytes::Bytes::from(vec![7; 1 << 20]))).await.unwrap();
            near
        });
        let near = sends.await.unwrap();
        let accounts = reactor.accounts();
        let account = accounts.iter().find(|account| account.tenant == BULK).unwrap();
        let operations = account.operations;
        assert_eq!(account.sent_bytes, 1 << 20);
        if let Some(busy) = busy {
            busy.cancel().await;
        }
        drop((near, far));
        operations
    })
}

#[test]
fn a_large_send_goes_in_pieces_while_another_tenant_waits() {
    on_each_engine(|| {
        let (beside, alone) = (completions_of_a_large_send(true), completions_of_a_large_send(false));
        assert!(beside >= 16, "{beside} completions of at most 64 KiB");
        assert!(alone < beside, "{alone} completions with the core to itself");
    });
}
