//! Ways to wait for bytes and for connections on a ring, at what CPU: an echo server on CPU 0 in each of them, the same
//! load from CPU 1, rounds interleaved. What decision 0011 rests on; the engine itself is not in it, so that only the
//! kernel's part differs.
//!
//! `cargo bench -p reactor --bench receive` prints CPU (user and kernel, the server thread's schedstat) per operation as
//! the median of the rounds, and the median of the ratios to the first way in the same round.

#![expect(unsafe_code, reason = "the ring is used directly")]
#![expect(clippy::print_stdout, reason = "it is its result")]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use io_uring::{
    IoUring, cqueue, opcode, squeue,
    types::{BufRingEntry, Fd, SubmitArgs, Timespec},
};
use rustix::{
    event::epoll,
    thread::{CpuSet, sched_setaffinity},
};
use socket2::SockRef;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);
const WORD: usize = 64;
const BUFFER: usize = 16 << 10;
const GROUP: u16 = 512;

/// How the server waits for bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// A receive that holds a buffer meanwhile.
    Held,
    /// A receive that selects a provided buffer.
    Select,
    /// One receive for many, each selecting a buffer.
    Multishot,
    /// A poll, then recv(2).
    Poll,
    /// One poll for many edges, then recv(2).
    PollMultishot,
}

const WAYS: [Way; 5] = [Way::Held, Way::Select, Way::Multishot, Way::Poll, Way::PollMultishot];

fn main() {
    println!("{:>14} {:>6} {:>10} {:>7}", "way", "conns", "us per op", "ratio");
    for connections in [1, 16, 64, 256] {
        let costs: Vec<Vec<f64>> =
            (0..ROUNDS).map(|_| WAYS.iter().map(|way| ping_pong(*way, connections)).collect()).collect();
        for (index, way) in WAYS.iter().enumerate() {
            let own = median(costs.iter().map(|round| round[index]));
            let ratio = median(costs.iter().map(|round| round[index] / round[0]));
            println!("{:>14} {connections:>6} {own:>10.2} {ratio:>7.3}", format!("{way:?}"));
        }
    }
    let costs: Vec<[f64; 2]> = (0..ROUNDS).map(|_| [accepts(false), accepts(true)]).collect();
    for (index, way) in ["accept", "accept, multi"].iter().enumerate() {
        let own = median(costs.iter().map(|round| round[index]));
        let ratio = median(costs.iter().map(|round| round[index] / round[0]));
        println!("{way:>14} {:>6} {own:>10.2} {ratio:>7.3}", 16);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
}

/// CPU time of the calling thread so far, in microseconds.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1000.0
}

fn ring() -> IoUring {
    IoUring::builder().setup_coop_taskrun().setup_single_issuer().setup_submit_all().build(1024).unwrap()
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: all memory that entries refer to lives until the ring is dropped.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().unwrap();
    }
}

fn enter(ring: &mut IoUring) -> Vec<cqueue::Entry> {
    let at_most = Timespec::from(Duration::from_millis(50));
    match ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&at_most)) {
        Ok(_) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
        Err(error) => panic!("{error}"),
    }
    ring.completion().collect()
}

/// Provided buffers, and the ring that tells the kernel of them.
struct Group {
    entries: &'static mut [BufRingEntry],
    memory: Vec<u8>,
    tail: u16,
}

impl Group {
    fn new(ring: &IoUring) -> Self {
        let layout = std::alloc::Layout::from_size_align(usize::from(GROUP) * 16, 4096).unwrap();
        // SAFETY: the layout is not empty.
        let entries: *mut BufRingEntry = unsafe { std::alloc::alloc_zeroed(layout) }.cast();
        // SAFETY: the entries are never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, GROUP, 0, 0) }.unwrap();
        // SAFETY: as many were allocated, and all zeros is an entry.
        let entries = unsafe { std::slice::from_raw_parts_mut(entries, usize::from(GROUP)) };
        let mut group = Self { entries, memory: vec![0; BUFFER * usize::from(GROUP)], tail: 0 };
        (0..GROUP).for_each(|buffer| group.provide(buffer));
        group
    }

    fn provide(&mut self, buffer: u16) {
        let address = &self.memory[usize::from(buffer) * BUFFER] as *const u8 as u64;
        let entry = &mut self.entries[usize::from(self.tail % GROUP)];
        entry.set_addr(address);
        entry.set_len(BUFFER as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the entries are a registered ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: as above; the kernel reads it with an acquire.
        unsafe { &*tail.cast::<AtomicU16>() }.store(self.tail, Ordering::Release);
    }
}

const SEND: u64 = 1 << 32;

/// Echoes until it is told to stop; how many words, at how much CPU.
fn echo(way: Way, sockets: &[TcpStream], stop: &AtomicBool) -> (u64, f64) {
    let mut ring = ring();
    let mut group = Group::new(&ring);
    let mut buffers = vec![vec![0_u8; BUFFER]; sockets.len()];
    let fd = |index: usize| Fd(sockets[index].as_raw_fd());
    let wait = |ring: &mut IoUring, buffer: &mut Vec<u8>, index: usize| {
        let entry = match way {
            Way::Held => opcode::Recv::new(fd(index), buffer.as_mut_ptr(), BUFFER as u32).build(),
            Way::Select => opcode::Recv::new(fd(index), std::ptr::null_mut(), BUFFER as u32)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            Way::Multishot => opcode::RecvMulti::new(fd(index), 0).build(),
            Way::Poll => opcode::PollAdd::new(fd(index), libc::POLLIN as u32).build(),
            Way::PollMultishot => opcode::PollAdd::new(fd(index), libc::POLLIN as u32).multi(true).build(),
        };
        push(ring, &entry.user_data(index as u64));
    };
    let send = |ring: &mut IoUring, bytes: &[u8], index: usize, buffer: Option<u16>| {
        let entry = opcode::Send::new(fd(index), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        let buffer = u64::from(buffer.map_or(u16::MAX, |buffer| buffer));
        push(ring, &entry.user_data(SEND | buffer << 40 | index as u64));
    };
    (0..sockets.len()).for_each(|index| wait(&mut ring, &mut buffers[index], index));
    let (mut words, began) = (0, cpu_us());
    while !stop.load(Ordering::Relaxed) {
        for entry in enter(&mut ring) {
            let data = entry.user_data();
            let index = (data & 0xffff_ffff) as usize;
            if data & SEND != 0 {
                let buffer = (data >> 40) as u16;
                if buffer != u16::MAX {
                    group.provide(buffer);
                }
                if !matches!(way, Way::Multishot | Way::PollMultishot) {
                    wait(&mut ring, &mut buffers[index], index);
                }
                continue;
            }
            if entry.result() == -libc::ENOBUFS {
                wait(&mut ring, &mut buffers[index], index);
                continue;
            }
            assert!(entry.result() >= 0, "{way:?}: {}", io::Error::from_raw_os_error(-entry.result()));
            words += 1;
            match way {
                Way::Held => send(&mut ring, &buffers[index][..entry.result() as usize], index, None),
                Way::Select | Way::Multishot => {
                    let buffer = cqueue::buffer_select(entry.flags()).unwrap();
                    let begin = usize::from(buffer) * BUFFER;
                    let bytes = begin..begin + entry.result() as usize;
                    send(&mut ring, &group.memory[bytes], index, Some(buffer));
                }
                Way::Poll | Way::PollMultishot => {
                    let count = (&sockets[index]).read(&mut buffers[index]).unwrap();
                    send(&mut ring, &buffers[index][..count], index, None);
                }
            }
            if matches!(way, Way::Multishot | Way::PollMultishot) && !cqueue::more(entry.flags()) {
                wait(&mut ring, &mut buffers[index], index);
            }
        }
    }
    (words, cpu_us() - began)
}

/// Microseconds of the server's CPU per word.
fn ping_pong(way: Way, connections: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // One by one: the queue of a listener is shorter than the most connections here.
    let connected = (0..connections).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0));
    let (clients, servers): (Vec<_>, Vec<_>) = connected.unzip();
    clients.iter().chain(&servers).for_each(|socket| socket.set_nodelay(true).unwrap());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            pin(0);
            echo(way, &servers, &stop)
        });
        scope.spawn(|| {
            pin(1);
            load(&clients);
            stop.store(true, Ordering::Relaxed);
        });
        let (words, cpu) = server.join().unwrap();
        cpu / words as f64
    })
}

fn load(clients: &[TcpStream]) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (index, client) in clients.iter().enumerate() {
        epoll::add(&epoll, client, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN).unwrap();
        (&*client).write_all(&[1; WORD]).unwrap();
    }
    let began = Instant::now();
    let mut events = Vec::with_capacity(1024);
    while began.elapsed() < ROUND {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let mut client = &clients[event.data.u64() as usize];
            client.read_exact(&mut [0; WORD]).unwrap();
            client.write_all(&[1; WORD]).unwrap();
        }
    }
}

/// Microseconds of the server's CPU per connection that is accepted and closed.
fn accepts(multishot: bool) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, socket) = (listener.local_addr().unwrap(), listener.as_raw_fd());
    let (stop, accepted) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            pin(0);
            accept_all(socket, multishot, &stop, &accepted)
        });
        scope.spawn(|| {
            pin(1);
            connect_in_bursts(address, &accepted);
            stop.store(true, Ordering::Relaxed);
        });
        server.join().unwrap() / accepted.load(Ordering::Relaxed) as f64
    })
}

fn accept_all(socket: RawFd, multishot: bool, stop: &AtomicBool, accepted: &AtomicU64) -> f64 {
    let mut ring = ring();
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let entry = if multishot {
        opcode::AcceptMulti::new(Fd(socket)).flags(flags).build()
    } else {
        opcode::Accept::new(Fd(socket), std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
    };
    push(&mut ring, &entry);
    let began = cpu_us();
    while !stop.load(Ordering::Relaxed) {
        for completion in enter(&mut ring) {
            assert!(completion.result() >= 0);
            // SAFETY: the kernel has handed over a new descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(completion.result()) });
            accepted.fetch_add(1, Ordering::Relaxed);
            if !cqueue::more(completion.flags()) {
                push(&mut ring, &entry);
            }
        }
    }
    cpu_us() - began
}

fn connect_in_bursts(address: SocketAddr, accepted: &AtomicU64) {
    let (began, mut made) = (Instant::now(), 0);
    while began.elapsed() < ROUND {
        let burst: Vec<TcpStream> = (0..16).map(|_| TcpStream::connect(address).unwrap()).collect();
        // No TIME_WAIT, of which a run would leave too many.
        burst.iter().for_each(|socket| SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap());
        made += 16;
        while accepted.load(Ordering::Relaxed) < made {
            thread::yield_now();
        }
    }
}
