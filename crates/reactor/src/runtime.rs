//! The small door through which the data plane sees a core: time, chance, tasks, sockets and buffers.
//!
//! Implemented by [`Reactor`](crate::Reactor) on a real core and by the simulation on virtual time. Not a general
//! async runtime: there is no blocking pool, no file, no signal.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Chunk, Lease, Task, TenantKey, Weight};

/// A handle on the core that runs the caller. Clones are the same core; it never leaves its thread.
pub trait Runtime: Clone + 'static {
    /// A socket as it comes from outside: made elsewhere, perhaps in another network namespace, options already set.
    type Socket: 'static;
    /// A connected socket.
    type Stream: Stream;
    /// A listening socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// The time by which [`Runtime::sleep_until`] measures.
    fn now(&self) -> Instant;

    /// A random number. Not for secrets.
    fn draw(&self) -> u64;

    /// Resolves at `deadline`, never before, and about a millisecond late at most on an idle core.
    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static;

    /// Resolves after `duration`, as [`Runtime::sleep_until`] does.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.sleep_until(self.now() + duration)
    }

    /// Starts a task on this core whose CPU time, its own and the kernel's for it, is charged to `tenant`. Dropping the
    /// [`Task`] cancels it.
    #[track_caller]
    fn spawn<T: 'static>(&self, tenant: TenantKey, future: impl Future<Output = T> + 'static) -> Task<T>;

    /// Says what a tenant is called, where people read of it, and what share it is to have. The first name stays, the
    /// last weight counts. A tenant of which nothing was said has no name and [`Weight::DEFAULT`].
    fn introduce(&self, tenant: TenantKey, name: &str, weight: Weight);

    /// Adopts a socket that is already bound and listening.
    ///
    /// # Errors
    /// What the kernel says about the socket's options.
    fn listen(&self, socket: Self::Socket) -> io::Result<Self::Listener>;

    /// Connects a socket. When `timeout` passes first, the error's kind is [`io::ErrorKind::TimedOut`]; dropping the
    /// future abandons the attempt and closes the socket.
    fn connect(
        &self,
        socket: Self::Socket,
        target: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<Self::Stream>> + 'static;

    /// An empty buffer of the core's pool with room for `len` bytes.
    fn lease(&self, len: usize) -> Lease;

    /// Lets the tenant's other tasks run first.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static;
}

/// A listening socket. Dropping it closes it.
pub trait Listener: 'static {
    /// What it accepts.
    type Stream: Stream;

    /// The next connection. Dropping the future loses none: the next call goes on with the same operation. One task
    /// may wait at a time. A lack of descriptors or memory is an error, and the caller paces its next attempt.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Where it listens; an IPv4-mapped address is given as IPv4.
    ///
    /// # Errors
    /// What the kernel says.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connected socket, one task per direction at a time. Dropping it closes it, and whatever was under way with it.
pub trait Stream: 'static {
    /// The same socket for a library that wants to copy.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    /// The next bytes, at most `room` of them and at least one; an empty lease is the peer's FIN. While nothing comes no
    /// buffer is held; one whose tenant has its share of buffers lent out waits for some to come back. Dropping the
    /// future loses nothing.
    fn receive(&self, room: usize) -> impl Future<Output = io::Result<Lease>>;

    /// Sends all of `chunk`. If the future is dropped after its first poll, or fails, nobody knows how much of the
    /// chunk went out: the stream is *torn*. Later sends fail, and dropping the stream resets the connection, because
    /// the peer must not take a torn transfer for a whole one.
    fn send(&self, chunk: Chunk) -> impl Future<Output = io::Result<()>>;

    /// As [`Stream::send`], for who waits for something else besides, and more eagerly: that the chunk went out at once and
    /// whole, the usual case for a small one, wakes nobody. The future says so when it is polled next.
    fn post(&self, chunk: Chunk) -> impl Future<Output = io::Result<()>> {
        self.send(chunk)
    }

    /// Moves the next bytes to `sink`, all of what is there up to about a MiB, without them passing through this process:
    /// for bulk, because a small transfer costs more than by [`Stream::receive`] and [`Stream::send`]. It is both in one:
    /// no other receive of this stream or send of `sink` may be under way, and if the future is dropped once it has taken
    /// bytes, or the sink fails, `sink` is torn.
    fn splice_to(&self, sink: &Self) -> impl Future<Output = Spliced>;

    /// Sends FIN after what was sent; receiving goes on.
    ///
    /// # Errors
    /// What the kernel says; also if the stream is torn.
    fn shutdown_write(&self) -> io::Result<()>;

    /// From now on dropping the stream sends RST instead of FIN.
    fn reset_on_drop(&self);

    /// The peer; an IPv4-mapped address is given as IPv4.
    ///
    /// # Errors
    /// What the kernel says.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// This end; an IPv4-mapped address is given as IPv4.
    ///
    /// # Errors
    /// What the kernel says.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Where the connection went before netfilter redirected it; the local address if it was not redirected.
    ///
    /// # Errors
    /// What the kernel says.
    fn original_dst(&self) -> io::Result<SocketAddr>;

    /// The same socket as [`AsyncRead`] and [`AsyncWrite`].
    fn into_io(self) -> Self::Io;
}

/// What became of a [`Stream::splice_to`].
#[derive(Debug)]
pub enum Spliced {
    /// So many bytes were taken and sent.
    Moved(usize),
    /// The peer's FIN.
    End,
    /// The source failed; nothing was taken.
    SourceBroke(io::Error),
    /// The sink failed, and is torn.
    SinkBroke(io::Error),
    /// It cannot be done now: as many flows do it as may, or the process is not allowed to. Nothing was taken; receive and
    /// send do as ever.
    Unavailable,
}
