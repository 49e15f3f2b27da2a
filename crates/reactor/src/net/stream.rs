//! A connected socket: bytes come and go as owned chunks, and the operations under way live in the stream.
//!
//! A receive under way holds a buffer of the room it was asked for, also while nothing comes: what that costs an idle
//! connection is the asker's choice.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Buf;

use super::{io::TcpIo, original_dst::original_dst, socket::Socket};
use crate::{
    Chunk, Lease, LeasePool, Stream,
    engine::{
        Engine, Op,
        operation::{Brought, Operation},
    },
    gate::Inside,
};

/// What a core's streams share.
#[derive(Clone)]
pub(crate) struct StreamParts {
    pub(crate) inside: Rc<Inside>,
    pub(crate) engine: Rc<Engine>,
    pub(crate) leases: LeasePool,
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

    /// Notes bytes that were moved by a system call of the tenant's own, in its turn. Its time is charged by the turn.
    pub(crate) fn moved(&self, received_bytes: usize, sent_bytes: usize) {
        self.inside.moved(received_bytes as u64, sent_bytes as u64);
    }
}

/// The real [`Stream`].
pub struct TcpStream {
    // First: it decides how the socket closes before its operations let go of the descriptor.
    socket: Socket,
    parts: StreamParts,
    receiving: RefCell<Receiving>,
}

/// What is known of the bytes that come in.
pub(crate) enum Receiving {
    /// Nobody has asked.
    Idle,
    /// The kernel was asked, perhaps by a future that is gone.
    UnderWay(Op),
    /// More came than was asked for the second time.
    Left(Lease),
}

impl TcpStream {
    pub(crate) fn new(parts: StreamParts, descriptor: Rc<OwnedFd>) -> Self {
        Self { socket: Socket::new(descriptor), parts, receiving: RefCell::new(Receiving::Idle) }
    }

    fn poll_receive(&self, room: usize, context: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        let room = room.max(1);
        let receiving = &mut *self.receiving.borrow_mut();
        loop {
            match receiving {
                Receiving::Idle => {
                    let into = self.parts.leases.lease_within_limit(room)?;
                    let operation = Operation::Receive { socket: self.socket.descriptor(), into, room };
                    *receiving = Receiving::UnderWay(self.parts.start(operation)?);
                }
                Receiving::UnderWay(op) => {
                    let received = ready!(poll_received(op, context));
                    *receiving = Receiving::Idle;
                    let received = received?;
                    if received.len() <= room {
                        return Poll::Ready(Ok(received));
                    }
                    *receiving = Receiving::Left(received);
                }
                Receiving::Left(left) => {
                    let part = left.split_to(room.min(left.len()));
                    if left.is_empty() {
                        *receiving = Receiving::Idle;
                    }
                    return Poll::Ready(Ok(part));
                }
            }
        }
    }

    async fn send_all(&self, mut chunk: Chunk) -> io::Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.socket.begin_send()?;
        while chunk.has_remaining() {
            let operation = Operation::Send { socket: self.socket.descriptor(), chunk };
            chunk = match self.parts.start(operation)?.await.outcome? {
                Brought::Rest(rest) => rest,
                brought => unreachable!("a send brought {brought:?}"),
            };
        }
        self.socket.sent();
        Ok(())
    }
}

/// What a receive brought.
pub(crate) fn poll_received(op: &mut Op, context: &mut Context<'_>) -> Poll<io::Result<Lease>> {
    Poll::Ready(match ready!(Pin::new(op).poll(context)).outcome {
        Ok(Brought::Bytes(bytes)) => Ok(bytes),
        Ok(brought) => unreachable!("a receive brought {brought:?}"),
        Err(error) => Err(error),
    })
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
        self.send_all(chunk)
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
        TcpIo::new(self.socket, self.parts, self.receiving.into_inner())
    }
}
