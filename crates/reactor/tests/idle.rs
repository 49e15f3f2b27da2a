//! What an idle relayed connection costs in this process's memory.
//!
//! A binary with one test: it counts all that the process allocates.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait")]

mod on_core;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Read, Write},
    net::TcpStream as StdStream,
    sync::atomic::{AtomicIsize, Ordering},
};

use futures_util::future::join;
use on_core::{PATIENCE, config, listen, listening, on_core, on_each_engine, unconnected, until};
use reactor::{CoreConfig, LeaseLimits, Listener, Reactor, Runtime, Stream, TcpStream};
use rustix::process::{Resource, getrlimit, setrlimit};

const CONNECTIONS: usize = 1_000;
/// The bound, in bytes: two streams, their operations, timers and task.
const EACH_MAX: isize = 1536;

#[global_allocator]
static ALLOCATOR: Counting = Counting(AtomicIsize::new(0));

/// Counts the bytes that are allocated now.
struct Counting(AtomicIsize);

// SAFETY: it passes everything on to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

async fn pump(from: &TcpStream, to: &TcpStream) {
    loop {
        let lease = from.receive(256 << 10).await.unwrap();
        if lease.is_empty() {
            return to.shutdown_write().unwrap();
        }
        to.send(lease.into()).await.unwrap();
    }
}

/// Bytes that one of many idle relays holds, once each has carried a word.
async fn cost_of_one(reactor: Reactor) -> isize {
    let (listener, address) = listen(&reactor);
    let (outside, target) = listening();
    let mut ends: Vec<(StdStream, StdStream)> = Vec::with_capacity(CONNECTIONS);
    let before = ALLOCATOR.0.load(Ordering::Relaxed);
    for _ in 0..CONNECTIONS {
        let mut near = StdStream::connect(address).unwrap();
        let client = listener.accept().await.unwrap();
        let server = reactor.connect(unconnected(), target, PATIENCE).await.unwrap();
        let mut far = outside.accept().unwrap().0;
        let relay = async move { join(pump(&client, &server), pump(&server, &client)).await };
        reactor.spawn(on_core::BODY, relay).detach();
        near.write_all(b"word").unwrap();
        far.set_nonblocking(true).unwrap();
        let word = std::cell::Cell::new([0; 4]);
        until(&reactor, "the word has come through", || {
            let mut bytes = [0; 4];
            let came = (&far).read(&mut bytes).is_ok();
            word.set(bytes);
            came
        })
        .await;
        assert_eq!(&word.get(), b"word");
        far.flush().unwrap();
        ends.push((near, far));
    }
    until(&reactor, "nobody holds a buffer", || reactor.counts().lent_bytes == 0).await;
    let after = ALLOCATOR.0.load(Ordering::Relaxed);
    drop(ends);
    (after - before) / CONNECTIONS.cast_signed()
}

#[test]
fn an_idle_relayed_connection_costs_at_most_a_kibibyte_and_a_half() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    on_each_engine(|| {
        let leases = LeaseLimits { free_bytes_max: 0, ..LeaseLimits::default() };
        let cost = on_core(CoreConfig { leases, ..config() }, cost_of_one);
        #[expect(clippy::print_stdout, reason = "the figure is worth to be seen with --nocapture")]
        {
            println!("{:?}: {cost} bytes", config().engine);
        }
        assert!(cost <= EACH_MAX, "{cost} bytes");
        // The control: what is counted includes buffers.
        assert!(cost > 200, "{cost} bytes cannot be two streams and a task");
    });
}
