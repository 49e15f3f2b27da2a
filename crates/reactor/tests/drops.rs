//! Whatever is dropped, at whatever point of its life, leaves nothing behind and touches nothing that was freed.
//!
//! A binary with one test, because it counts the descriptors of the whole process and keeps all that is freed in
//! quarantine: a kernel that wrote to a freed buffer would change the mark there, and a peer would receive the mark from a
//! kernel that still read one. The controls do both on purpose.

mod on_core;
mod quarantine;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::AsRawFd,
    pin::Pin,
    thread,
};

use bytes::Bytes;
use futures_util::FutureExt;
use glommio::{LocalExecutorBuilder, Placement};
use on_core::{
    PATIENCE, config, listen, listening, on_core, on_each_engine, pair, pattern, silent, stuff, unconnected, until,
};
use quarantine::{MARK, Quarantine};
use reactor::{Chunk, CoreConfig, EngineChoice, LeaseLimits, Listener, Reactor, Runtime, Stream, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[global_allocator]
static ALLOCATOR: Quarantine = Quarantine::new();

const TIMES: usize = 10;

/// What is dropped.
#[derive(Clone, Copy, Debug)]
enum What {
    Accept,
    Receive,
    Send,
    Post,
    Connect,
    Splice,
    AdapterRead,
    AdapterWrite,
    Task,
}

/// When it is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// The kernel has not heard of it.
    Unsubmitted,
    /// The kernel works on it.
    InFlight,
    /// It is complete, and nobody has looked.
    Unseen,
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Brings what was just started to the point where it is to be dropped. `complete` has the kernel complete it.
async fn bring_to(reactor: &Reactor, when: When, complete: impl FnOnce()) {
    let before = reactor.counts();
    match when {
        When::Unsubmitted => {}
        When::InFlight => {
            until(reactor, "the kernel was entered", || reactor.counts().enters > before.enters + 1).await
        }
        When::Unseen => {
            complete();
            until(reactor, "it completes", || reactor.counts().ops_completed > before.ops_completed).await;
        }
    }
}

/// A stream of the core and its peer outside, which in the end has to have received zeros and a pattern's beginning only.
async fn with_peer(reactor: &Reactor) -> (TcpStream, StdStream) {
    let (listener, address) = listen(reactor);
    let peer = StdStream::connect(address).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (listener.accept().await.unwrap(), peer)
}

/// Reads a peer to its end, however that comes, and looks for freed memory in it.
async fn received_nothing_freed(reactor: &Reactor, mut peer: StdStream) {
    let reading = thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut marks = 0;
        loop {
            match peer.read(&mut buffer) {
                Ok(0) | Err(_) => return marks,
                Ok(count) => marks += buffer[..count].windows(8).filter(|bytes| **bytes == [MARK; 8]).count(),
            }
        }
    });
    until(reactor, "the peer is at its end", || reading.is_finished()).await;
    assert_eq!(reading.join().unwrap(), 0, "the peer received freed memory");
}

async fn play(reactor: &Reactor, what: What, when: When, silent: SocketAddr) {
    let large = || Chunk::from(Bytes::from(pattern(64 << 10)));
    match what {
        What::Accept => {
            let (listener, address) = listen(reactor);
            assert!(listener.accept().now_or_never().is_none());
            let mut client = None;
            bring_to(reactor, when, || client = Some(StdStream::connect(address).unwrap())).await;
            drop(listener);
            if let Some(client) = client {
                received_nothing_freed(reactor, client).await;
            }
        }
        What::Receive => {
            let (stream, mut peer) = with_peer(reactor).await;
            assert!(stream.receive(64 << 10).now_or_never().is_none());
            bring_to(reactor, when, || peer.write_all(&[1; 1000]).unwrap()).await;
        }
        What::Send | What::Post => {
            let (stream, peer) = with_peer(reactor).await;
            if when == When::InFlight {
                stuff(reactor, &stream).await;
            }
            let chunk = if when == When::Unseen { Chunk::from(Bytes::from(pattern(5_000))) } else { large() };
            let mut sending: Pin<Box<dyn Future<Output = io::Result<()>>>> = match what {
                What::Post => Box::pin(stream.post(chunk)),
                _ => Box::pin(stream.send(chunk)),
            };
            assert!(sending.as_mut().now_or_never().is_none());
            bring_to(reactor, when, || {}).await;
            drop(sending);
            drop(stream);
            received_nothing_freed(reactor, peer).await;
        }
        What::Connect => {
            let (listener, address) = listening();
            let target = if when == When::InFlight { silent } else { address };
            let mut connecting = Box::pin(reactor.connect(unconnected(), target, PATIENCE));
            assert!(connecting.as_mut().now_or_never().is_none());
            bring_to(reactor, when, || {}).await;
            drop((connecting, listener));
        }
        What::Splice => {
            let (source, mut near) = with_peer(reactor).await;
            let (sink, far) = with_peer(reactor).await;
            if when == When::InFlight {
                // With bytes in its pipe.
                stuff(reactor, &sink).await;
                near.write_all(&pattern(64 << 10)).unwrap();
            }
            let mut splicing = Box::pin(source.splice_to(&sink));
            assert!(splicing.as_mut().now_or_never().is_none());
            if when == When::InFlight {
                while reactor.counts().pipes == 0 {
                    reactor.yield_now().await;
                    assert!(splicing.as_mut().now_or_never().is_none());
                }
            }
            bring_to(reactor, when, || near.write_all(&[1; 1000]).unwrap()).await;
            drop(splicing);
            drop((source, sink));
            received_nothing_freed(reactor, far).await;
        }
        What::AdapterRead => {
            let (stream, mut peer) = with_peer(reactor).await;
            let mut io = stream.into_io();
            assert!(io.read_u8().now_or_never().is_none());
            bring_to(reactor, when, || peer.write_all(&[1; 1000]).unwrap()).await;
        }
        What::AdapterWrite => {
            let (stream, mut peer) = with_peer(reactor).await;
            stuff(reactor, &stream).await;
            let mut io = stream.into_io();
            assert!(io.write_all(&pattern(64 << 10)).now_or_never().is_none());
            bring_to(reactor, when, || drop(peer.read_exact(&mut vec![0; 2 << 20]))).await;
        }
        What::Task => {
            let (client, server) = pair(reactor).await;
            let relay = reactor.spawn(on_core::BODY, async move {
                let lease = server.receive(64 << 10).await.unwrap();
                client.send(lease.into()).await.unwrap();
            });
            reactor.yield_now().await;
            bring_to(reactor, when, || {}).await;
            relay.cancel().await;
        }
    }
}

fn all() -> Vec<(What, When)> {
    use What::{Accept, AdapterRead, AdapterWrite, Connect, Post, Receive, Send, Splice, Task};
    use When::{InFlight, Unseen, Unsubmitted};
    let operations = [Accept, Receive, Send, Post, Connect, Splice, AdapterRead, AdapterWrite];
    // A task that is woken sees what has woken it.
    let tasks = [(Task, Unsubmitted), (Task, InFlight)];
    let each = operations.into_iter().flat_map(|what| [Unsubmitted, InFlight, Unseen].map(|when| (what, when)));
    each.chain(tasks).collect()
}

#[test]
fn what_is_dropped_at_any_point_leaves_nothing_behind_and_touches_nothing_freed() {
    // glommio 0.9 leaks an eventfd per executor, however empty; a process starts its cores once.
    let before_the_host = descriptors();
    let host = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 16).spawn(|| async {});
    host.unwrap().join().unwrap();
    let leaked_by_the_host = descriptors() - before_the_host;
    let (silent, held) = silent();
    ALLOCATOR.begin();
    on_each_engine(|| {
        let before_the_core = descriptors();
        // Free buffers go to the quarantine at once.
        let leases = LeaseLimits { free_bytes_max: 0, ..LeaseLimits::default() };
        on_core(CoreConfig { leases, ..config() }, move |reactor| async move {
            let before = descriptors();
            for (what, when) in all() {
                for _ in 0..TIMES {
                    play(&reactor, what, when, silent).await;
                }
                until(&reactor, "no operation is under way", || reactor.counts().ops == 0).await;
                let counts = reactor.counts();
                let left = (counts.lent_bytes, counts.pipes, counts.timers, counts.tasks, counts.ops_stale);
                assert_eq!(left, (0, 0, 0, 2, 0), "{what:?} {when:?}: {counts:?}");
                assert_eq!(descriptors(), before, "{what:?} {when:?}");
                ALLOCATOR.check().unwrap_or_else(|written| panic!("{what:?} {when:?}: {written}"));
            }
            // The control: the counting itself sees a leak.
            let (_listener, _address) = listen(&reactor);
            assert_eq!(descriptors(), before + 1);
        });
        let left = descriptors() - before_the_core;
        let leaked = if config().engine == EngineChoice::Uring { leaked_by_the_host } else { 0 };
        assert_eq!(left, leaked, "the core's own are closed with it");
    });
    drop(held);
    let kept = ALLOCATOR.check().unwrap();
    assert!(kept > 100, "only {kept} buffers were freed: this shows little");
    a_kernel_that_reads_what_was_freed_is_found_out();
    a_kernel_that_writes_to_what_was_freed_is_found_out();
}

/// An operation without an owner for its buffer, as the engine never makes one.
fn ownerless(entry: io_uring::squeue::Entry, buffer: Vec<u8>, meanwhile: impl FnOnce()) {
    let mut ring = io_uring::IoUring::new(4).unwrap();
    #[expect(unsafe_code, reason = "the mistake that is to be found out")]
    // SAFETY: none but that the quarantine keeps the memory mapped.
    unsafe {
        ring.submission().push(&entry).unwrap();
    }
    drop(buffer);
    ring.submit().unwrap();
    meanwhile();
    ring.submit_and_wait(1).unwrap();
}

fn a_kernel_that_reads_what_was_freed_is_found_out() {
    let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let buffer = vec![0; 8192];
    let target = io_uring::types::Fd(writer.as_raw_fd());
    ownerless(io_uring::opcode::Send::new(target, buffer.as_ptr(), 8192).build(), buffer, || {});
    let mut got = [0; 8];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, [MARK; 8], "the peer received freed memory");
}

fn a_kernel_that_writes_to_what_was_freed_is_found_out() {
    let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut buffer = vec![0_u8; 8192];
    let source = io_uring::types::Fd(reader.as_raw_fd());
    let receive = io_uring::opcode::Recv::new(source, buffer.as_mut_ptr(), 8192).build();
    ownerless(receive, buffer, || writer.write_all(b"late").unwrap());
    let written = ALLOCATOR.check().unwrap_err();
    assert_eq!(written, "byte 0 of 8192 that were freed was written to");
}
