//! Connections between simulated hosts: bytes arrive whole and in order, late and cut where the seed says.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, VecDeque},
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use futures_util::future::{Either, select};
use reactor::{Chunk, Lease, Listener, Runtime, Spliced, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::runtime::SimRuntime;

/// What one splice takes at most, as through a pipe.
const SPLICE_MAX: usize = 1 << 20;

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// The longest a packet is under way.
    pub delay_max: Duration,
    /// The longest piece in which bytes arrive.
    pub piece_max: usize,
    /// Bytes that may be under way or unread in one direction before a sender has to wait.
    pub window: usize,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay_max: Duration::from_millis(2), piece_max: 4_096, window: 64 << 10 }
    }
}

/// A socket that does nothing yet: where it is, and from which address it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimSocket {
    /// Its host's address, or the address it pretends to be.
    pub address: IpAddr,
    /// The port it listens on; 0 for one that connects.
    pub port: u16,
    /// Where the redirect rules of its host send what it connects to.
    pub captured_by: Option<SocketAddr>,
}

impl SimSocket {
    /// One that listens.
    #[must_use]
    pub fn listening(address: IpAddr, port: u16) -> Self {
        Self { address, port, captured_by: None }
    }

    /// One that connects from `address`.
    #[must_use]
    pub fn from(address: IpAddr) -> Self {
        Self { address, port: 0, captured_by: None }
    }

    /// One whose connections are redirected to `listener`, which finds out where they were meant to go.
    #[must_use]
    pub fn captured_by(self, listener: SocketAddr) -> Self {
        Self { captured_by: Some(listener), ..self }
    }
}

/// All connections of a world.
pub(super) struct Net {
    weather: Weather,
    listeners: RefCell<HashMap<SocketAddr, Rc<Queue>>>,
    blackholes: RefCell<BTreeSet<SocketAddr>>,
    next_port: Cell<u16>,
}

#[derive(Default)]
struct Queue {
    arrived: RefCell<VecDeque<SimStream>>,
    waiting: RefCell<Option<Waker>>,
}

impl Net {
    pub(super) fn new(weather: Weather) -> Self {
        Self { weather, listeners: RefCell::default(), blackholes: RefCell::default(), next_port: Cell::new(32_768) }
    }

    pub(super) fn blackhole(&self, address: SocketAddr) {
        self.blackholes.borrow_mut().insert(address);
    }

    fn port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port.set(port.checked_add(1).unwrap_or(32_768));
        port
    }
}

/// A simulated listener.
pub struct SimListener {
    runtime: SimRuntime,
    address: SocketAddr,
    queue: Rc<Queue>,
}

impl SimListener {
    pub(super) fn new(runtime: SimRuntime, socket: SimSocket) -> io::Result<Self> {
        let address = SocketAddr::new(socket.address, socket.port);
        let queue = Rc::new(Queue::default());
        let taken = runtime.0.net.listeners.borrow_mut().insert(address, queue.clone());
        if let Some(taken) = taken {
            runtime.0.net.listeners.borrow_mut().insert(address, taken);
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(Self { runtime, address, queue })
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<SimStream> {
        poll_fn(|context| match self.queue.arrived.borrow_mut().pop_front() {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => {
                *self.queue.waiting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.runtime.0.net.listeners.borrow_mut().remove(&self.address);
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    /// What is under way or unread, each with the time of its arrival.
    pieces: RefCell<VecDeque<(Instant, Piece)>>,
    bytes: Cell<usize>,
    /// Nothing more goes in.
    finished: Cell<bool>,
    /// The reader is gone: what goes in is answered with a reset.
    deaf: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

enum Piece {
    Bytes(Bytes),
    End,
}

impl Pipe {
    fn wake_reader(&self) {
        if let Some(waker) = self.reader.borrow_mut().take() {
            waker.wake();
        }
    }

    fn wake_writer(&self) {
        if let Some(waker) = self.writer.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Whether the connection was reset, which both ends share.
#[derive(Default)]
struct Line {
    reset: Cell<bool>,
    to_server: Pipe,
    to_client: Pipe,
}

/// One end of a simulated connection.
pub struct SimStream {
    runtime: SimRuntime,
    line: Rc<Line>,
    client: bool,
    local: SocketAddr,
    peer: SocketAddr,
    original: SocketAddr,
    reset_on_drop: Cell<bool>,
    torn: Cell<bool>,
}

impl SimStream {
    pub(super) async fn connect(
        runtime: SimRuntime,
        socket: SimSocket,
        target: SocketAddr,
        timeout: Duration,
    ) -> io::Result<Self> {
        let deadline = runtime.now() + timeout;
        let world = runtime.0.clone();
        if world.net.blackholes.borrow().contains(&target) {
            runtime.sleep_until(deadline).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let arrival = runtime.sleep(world.delay(world.net.weather.delay_max));
        if let Either::Right(_) = select(pin!(arrival), pin!(runtime.sleep_until(deadline))).await {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let reached = socket.captured_by.unwrap_or(target);
        let queue = world.net.listeners.borrow().get(&reached).cloned();
        let Some(queue) = queue else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        let line = Rc::new(Line::default());
        let local = SocketAddr::new(socket.address, world.net.port());
        let end = |client, local, peer| Self {
            runtime: runtime.clone(),
            line: line.clone(),
            client,
            local,
            peer,
            original: target,
            reset_on_drop: Cell::new(false),
            torn: Cell::new(false),
        };
        queue.arrived.borrow_mut().push_back(end(false, reached, local));
        if let Some(waker) = queue.waiting.borrow_mut().take() {
            waker.wake();
        }
        Ok(end(true, local, target))
    }

    fn incoming(&self) -> &Pipe {
        if self.client { &self.line.to_client } else { &self.line.to_server }
    }

    fn outgoing(&self) -> &Pipe {
        if self.client { &self.line.to_server } else { &self.line.to_client }
    }

    /// Up to `room` bytes that have arrived; `None` at the end.
    fn poll_receive(&self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<Option<Bytes>>> {
        let pipe = self.incoming();
        if self.line.reset.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let clock = &self.runtime.0.clock;
        let mut pieces = pipe.pieces.borrow_mut();
        match pieces.front_mut() {
            Some((arrival, _)) if *arrival > clock.now() => {
                clock.arm(*arrival, context.waker().clone());
                Poll::Pending
            }
            Some((_, Piece::End)) => Poll::Ready(Ok(None)),
            Some((_, Piece::Bytes(bytes))) => {
                let taken = bytes.split_to(room.min(bytes.len()));
                if bytes.is_empty() {
                    pieces.pop_front();
                }
                pipe.bytes.set(pipe.bytes.get() - taken.len());
                pipe.wake_writer();
                Poll::Ready(Ok(Some(taken)))
            }
            None => {
                *pipe.reader.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Takes as many bytes as the window has room for, at least one.
    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = self.outgoing();
        if self.line.reset.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.finished.get() || self.torn.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.deaf.get() {
            // The peer has closed: its kernel answers with a reset, which we see with the next call.
            self.line.reset.set(true);
            pipe.wake_reader();
            self.incoming().wake_reader();
        }
        let world = &self.runtime.0;
        let Weather { delay_max, piece_max, window } = world.net.weather;
        let room = window.saturating_sub(pipe.bytes.get());
        if room == 0 {
            *pipe.writer.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        let most = bytes.len().min(room).min(piece_max);
        let taken = world.random.borrow_mut().usize(1..=most);
        world.note(taken as u64);
        self.push(Piece::Bytes(Bytes::copy_from_slice(&bytes[..taken])), delay_max);
        pipe.bytes.set(pipe.bytes.get() + taken);
        Poll::Ready(Ok(taken))
    }

    /// Sends a piece on its way; it never overtakes the one before.
    fn push(&self, piece: Piece, delay_max: Duration) {
        let pipe = self.outgoing();
        let soonest = self.runtime.now() + self.runtime.0.delay(delay_max);
        let mut pieces = pipe.pieces.borrow_mut();
        let arrival = pieces.back().map_or(soonest, |(before, _)| soonest.max(*before));
        pieces.push_back((arrival, piece));
        pipe.wake_reader();
    }

    fn finish(&self) {
        if !self.outgoing().finished.replace(true) {
            self.push(Piece::End, self.runtime.0.net.weather.delay_max);
        }
    }
}

impl Stream for SimStream {
    type Io = SimIo;

    async fn receive(&self, room: usize) -> io::Result<Lease> {
        let bytes = poll_fn(|context| self.poll_receive(context, room)).await?;
        Ok(bytes.map_or_else(Lease::empty, |bytes| Lease::copy_from(&self.runtime.0.leases, &bytes)))
    }

    async fn send(&self, mut chunk: Chunk) -> io::Result<()> {
        let mut whole = Torn { stream: self, armed: true };
        while chunk.has_remaining() {
            let sent = poll_fn(|context| self.poll_send(context, chunk.chunk())).await?;
            chunk.advance(sent);
        }
        whole.armed = false;
        Ok(())
    }

    async fn splice_to(&self, sink: &Self) -> Spliced {
        let taken = match poll_fn(|context| self.poll_receive(context, SPLICE_MAX)).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Spliced::End,
            Err(error) => return Spliced::SourceBroke(error),
        };
        let count = taken.len();
        let splices = &self.runtime.0.splices;
        splices.set(splices.get() + 1);
        match sink.send(Chunk::from(taken)).await {
            Ok(()) => Spliced::Moved(count),
            Err(error) => Spliced::SinkBroke(error),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        if self.torn.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.finish();
        Ok(())
    }

    fn reset_on_drop(&self) {
        self.reset_on_drop.set(true);
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn original_dst(&self) -> io::Result<SocketAddr> {
        Ok(self.original)
    }

    fn into_io(self) -> SimIo {
        SimIo(self)
    }
}

/// Marks the stream torn unless the send came to its end, as the real one does.
struct Torn<'a> {
    stream: &'a SimStream,
    armed: bool,
}

impl Drop for Torn<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.stream.torn.set(true);
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let incoming = self.incoming();
        incoming.deaf.set(true);
        // As TCP does: unread bytes at the close make it a reset.
        let unread = incoming.bytes.get() > 0;
        if self.reset_on_drop.get() || self.torn.get() || unread {
            self.line.reset.set(true);
            self.outgoing().wake_reader();
            incoming.wake_writer();
        } else {
            self.finish();
        }
    }
}

/// A simulated stream for a library that wants to copy.
pub struct SimIo(SimStream);

impl AsyncRead for SimIo {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.0.poll_receive(context, buffer.remaining()) {
            Poll::Ready(Ok(bytes)) => {
                buffer.put_slice(&bytes.unwrap_or_default());
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for SimIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.0.poll_send(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown_write())
    }
}
