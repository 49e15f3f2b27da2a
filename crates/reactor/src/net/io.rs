//! A stream as [`AsyncRead`] and [`AsyncWrite`], for libraries that bring buffers of their own.
//!
//! They copy, so the socket is read in large pieces into a lease and copied out from there (rustls asks for 4 KiB at a
//! time). While nothing comes no buffer is held, and what comes is held no longer than the library takes to copy it; so
//! that buffer is lent whether the tenant's share is out or not, because a tunnel that stops reading would never hear that
//! it may send what the share is out for. Writes go directly, all of the caller's slices in one call, and the engine is
//! only asked when the socket is full: a system call at the caller's turn and charge.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    inflow::{self, Inflow},
    socket::Socket,
    stream::StreamParts,
};
use crate::{
    Lease,
    engine::{
        Op,
        descriptor::Direction,
        operation::{Operation, Readiness},
    },
};

/// More slices than that in one call are an error (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// The real [`Stream::Io`](crate::Stream::Io).
pub struct TcpIo {
    // First, as in `TcpStream`.
    socket: Socket,
    parts: Rc<StreamParts>,
    inflow: Inflow,
    /// Bytes to copy out.
    left: Lease,
    /// The wait for room in the socket's send buffer.
    writable: Option<Op>,
}

impl TcpIo {
    pub(crate) fn new(socket: Socket, parts: Rc<StreamParts>, inflow: Inflow) -> Self {
        Self { socket, parts, inflow, left: Lease::empty(), writable: None }
    }

    /// What the socket has, up to a buffer full; none is FIN.
    fn poll_fetch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        let room = self.parts.io_room;
        loop {
            ready!(self.inflow.poll_readable(&self.socket, &self.parts, context))?;
            let mut bytes = self.parts.leases.lease_of(self.parts.inside.payer(), room);
            let fetched = inflow::fetch(&self.socket, &mut bytes, room);
            if let Some(count) = self.inflow.seen(&self.socket, fetched, room)? {
                self.parts.moved(count, 0);
                return Poll::Ready(Ok(bytes));
            }
        }
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        send: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.socket.whole()?;
        loop {
            if let Some(writable) = &mut self.writable {
                let completion = ready!(Pin::new(writable).poll(context));
                self.writable = None;
                completion.outcome?;
            }
            match send(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.blocked(Direction::Out);
                    let operation = Operation::Poll { socket: self.socket.descriptor(), ready: Readiness::Writable };
                    self.writable = Some(self.parts.start(operation)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(sent) => {
                    self.parts.moved(0, sent);
                    return Poll::Ready(Ok(sent));
                }
                Err(error) => {
                    self.socket.failed(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl AsyncRead for TcpIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left.is_empty() {
            this.left = ready!(this.poll_fetch(context))?;
        }
        let count = this.left.len().min(into.remaining());
        into.put_slice(&this.left[..count]);
        this.left.advance(count);
        if this.left.is_empty() {
            this.left = Lease::empty();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        self.poll_send(context, |socket| socket.options().send_with_flags(bytes, flags))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        self.poll_send(context, |socket| {
            socket.options().send_vectored_with_flags(&slices[..slices.len().min(SLICES_MAX)], flags)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// FIN; reading goes on. A connection that is gone already needs none.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.whole()?;
        Poll::Ready(match self.socket.options().shutdown(Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            shut => shut,
        })
    }
}
