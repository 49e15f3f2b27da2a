//! A connected socket: bytes come and go as owned chunks, and the operations under way live in the stream.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    task::{Context, Poll},
};

use super::{
    inflow::Inflow,
    io::TcpIo,
    original_dst::original_dst,
    sending::Sending,
    socket::Socket,
    splice::{self, Pipes},
};
use crate::{
    Chunk, Lease, LeasePool, Spliced, Stream,
    engine::{Engine, Op, descriptor::Descriptor, operation::Operation},
    gate::Inside,
};

/// Bytes that a tenant's own system call moves while another waits: some 30 us of copying, within a slice. With 64 KiB, as much
/// as an entry carries, a tenant of one flow could not use its turns: 0.38 of the CPU beside one of 256 where it gets 0.46.
const DIRECT_MAX: usize = 128 << 10;

/// What a core's streams share.
pub(crate) struct StreamParts {
    pub(crate) inside: Rc<Inside>,
    pub(crate) engine: Rc<Engine>,
    pub(crate) leases: LeasePool,
    pub(crate) pipes: Rc<Pipes>,
    /// See [`CoreConfig::io_room`](crate::CoreConfig::io_room).
    pub(crate) io_room: usize,
}

impl StreamParts {
    /// Queues an operation for the kernel, on the account of the tenant that asks for it.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub(crate) fn start(&self, operation: Operation) -> io::Result<Op> {
        self.engine.start(operation, self.inside.payer())
    }

    /// How many bytes a system call of the tenant's own moves at once, which it would move `most` of: [`DIRECT_MAX`] while
    /// somebody waits for a turn.
    pub(crate) fn at_once(&self, most: usize) -> usize {
        if self.inside.others_wait() { most.min(DIRECT_MAX) } else { most }
    }

    /// Notes bytes that were moved by a system call of the tenant's own, in its turn. Its time is charged by the turn.
    pub(crate) fn moved(&self, received_bytes: usize, sent_bytes: usize) {
        self.inside.moved(received_bytes as u64, sent_bytes as u64);
    }
}

/// The real [`Stream`].
pub struct TcpStream {
    // First: it decides how the socket closes before its operations let go of the descriptor.
    pub(super) socket: Socket,
    pub(super) parts: Rc<StreamParts>,
    pub(super) inflow: RefCell<Inflow>,
}

impl TcpStream {
    pub(crate) fn new(parts: Rc<StreamParts>, descriptor: Rc<Descriptor>) -> Self {
        Self { socket: Socket::new(descriptor), parts, inflow: RefCell::new(Inflow::new()) }
    }

    fn poll_receive(&self, room: usize, context: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        self.inflow.borrow_mut().poll_fetch(&self.socket, &self.parts, room, context)
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream for TcpStream {
    type Io = TcpIo;

    fn receive(&self, room: usize) -> impl Future<Output = io::Result<Lease>> {
        poll_fn(move |context| self.poll_receive(room, context))
    }

    fn send(&self, chunk: Chunk) -> impl Future<Output = io::Result<()>> {
        Sending::new(self, chunk, false)
    }

    fn post(&self, chunk: Chunk) -> impl Future<Output = io::Result<()>> {
        Sending::new(self, chunk, true)
    }

    fn splice_to(&self, sink: &Self) -> impl Future<Output = Spliced> {
        splice::splice_to(self, sink)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.socket.shutdown_write()
    }

    fn reset_on_drop(&self) {
        self.socket.reset_on_drop();
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn original_dst(&self) -> io::Result<SocketAddr> {
        original_dst(&self.socket)
    }

    fn into_io(self) -> TcpIo {
        TcpIo::new(self.socket, self.parts, self.inflow.into_inner())
    }
}
