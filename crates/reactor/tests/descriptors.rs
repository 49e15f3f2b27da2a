//! Nothing that is dropped in the middle leaks a descriptor, an operation, a buffer or a timer.
//!
//! A binary with one test: it counts the descriptors of the whole process.

mod on_core;

use std::{io::Write, net::TcpStream as StdStream, pin::pin, time::Duration};

use futures_util::{FutureExt, future::select};
use glommio::{LocalExecutorBuilder, Placement};
use on_core::{PATIENCE, config, listen, on_core, on_each_engine, pair, pattern, unconnected, until};
use reactor::{Chunk, EngineChoice, Listener, Reactor, Runtime, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[derive(Clone, Copy, Debug)]
enum Scenario {
    AcceptDroppedIdle,
    AcceptDroppedWithConnection,
    AcceptCompletedButNotTaken,
    ReceiveDropped,
    ReceiveCompletedButNotTaken,
    SendDropped,
    ConnectDropped,
    AdapterDroppedReading,
    AdapterDroppedWriting,
    TaskCancelled,
}

async fn play(reactor: &Reactor, scenario: Scenario) {
    let flood = || Chunk::from(bytes::Bytes::from(pattern(16 << 20)));
    match scenario {
        Scenario::AcceptDroppedIdle => {
            let (listener, _address) = listen(reactor);
            assert!(listener.accept().now_or_never().is_none());
        }
        Scenario::AcceptDroppedWithConnection => {
            let (listener, address) = listen(reactor);
            assert!(listener.accept().now_or_never().is_none());
            drop(StdStream::connect(address).unwrap());
        }
        Scenario::AcceptCompletedButNotTaken => {
            let (listener, address) = listen(reactor);
            assert!(listener.accept().now_or_never().is_none());
            let before = reactor.counts().ops_completed;
            let client = StdStream::connect(address).unwrap();
            until(reactor, "the accept completes", || reactor.counts().ops_completed > before).await;
            drop((listener, client));
        }
        Scenario::ReceiveDropped => {
            let (client, server) = pair(reactor).await;
            assert!(server.receive(64 << 10).now_or_never().is_none());
            reactor.yield_now().await;
            drop((server, client));
        }
        Scenario::ReceiveCompletedButNotTaken => {
            let (listener, address) = listen(reactor);
            let mut client = StdStream::connect(address).unwrap();
            let server = listener.accept().await.unwrap();
            assert!(server.receive(64 << 10).now_or_never().is_none());
            let before = reactor.counts().ops_completed;
            client.write_all(b"hello").unwrap();
            until(reactor, "the receive completes", || reactor.counts().ops_completed > before).await;
        }
        Scenario::SendDropped => {
            let (_client, server) = pair(reactor).await;
            select(pin!(server.send(flood())), pin!(reactor.sleep(Duration::from_millis(1)))).await;
        }
        Scenario::ConnectDropped => {
            let (_listener, address) = listen(reactor);
            assert!(reactor.connect(unconnected(), address, PATIENCE).now_or_never().is_none());
        }
        Scenario::AdapterDroppedReading => {
            let (_client, server) = pair(reactor).await;
            let mut io = server.into_io();
            assert!(io.read_u8().now_or_never().is_none());
        }
        Scenario::AdapterDroppedWriting => {
            let (_client, server) = pair(reactor).await;
            let mut io = server.into_io();
            let bytes = pattern(16 << 20);
            assert!(io.write_all(&bytes).now_or_never().is_none());
        }
        Scenario::TaskCancelled => {
            let (client, server) = pair(reactor).await;
            let relay = reactor.spawn(on_core::BODY, async move {
                let lease = server.receive(64 << 10).await.unwrap();
                client.send(lease.into()).await.unwrap();
            });
            reactor.yield_now().await;
            relay.cancel().await;
        }
    }
}

#[test]
fn what_is_dropped_in_the_middle_leaves_nothing_behind() {
    on_each_engine(|| {
        // glommio 0.9 leaks an eventfd per executor, however empty; a process starts its cores once.
        let before_the_host = descriptors();
        let host = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 16).spawn(|| async {});
        host.unwrap().join().unwrap();
        let leaked_by_the_host = descriptors() - before_the_host;
        let before_the_core = descriptors();
        on_core(config(), |reactor| async move {
            let before = descriptors();
            for scenario in [
                Scenario::AcceptDroppedIdle,
                Scenario::AcceptDroppedWithConnection,
                Scenario::AcceptCompletedButNotTaken,
                Scenario::ReceiveDropped,
                Scenario::ReceiveCompletedButNotTaken,
                Scenario::SendDropped,
                Scenario::ConnectDropped,
                Scenario::AdapterDroppedReading,
                Scenario::AdapterDroppedWriting,
                Scenario::TaskCancelled,
            ] {
                for _ in 0..20 {
                    play(&reactor, scenario).await;
                }
                until(&reactor, "no operation is under way", || reactor.counts().ops == 0).await;
                let counts = reactor.counts();
                assert_eq!((counts.lent_bytes, counts.timers, counts.tasks), (0, 0, 2), "{scenario:?}: {counts:?}");
                assert_eq!(descriptors(), before, "{scenario:?}");
            }
            // The counting itself sees a leak.
            let (_listener, _address) = listen(&reactor);
            assert_eq!(descriptors(), before + 1);
        });
        let left = descriptors() - before_the_core;
        let leaked = if config().engine == EngineChoice::Uring { leaked_by_the_host } else { 0 };
        assert_eq!(left, leaked, "the core's own are closed with it");
    });
}
