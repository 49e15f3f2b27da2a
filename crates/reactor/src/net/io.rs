//! A stream as [`AsyncRead`] and [`AsyncWrite`], for libraries that bring buffers of their own.
//!
//! They copy, so the socket is read in large pieces into a lease and copied out from there (rustls asks for 4 KiB at a
//! time). While nothing comes no buffer is held: the ring waits for readiness, and the bytes are then fetched directly.
//! Writes go directly, all of the caller's slices in one call, and the ring is only asked when the socket is full. Those
//! are system calls of their own, at the caller's turn and charge; on a loopback relay they cost what the ring's do.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    socket::Socket,
    stream::{Receiving, StreamParts, poll_received},
};
use crate::{
    Lease,
    engine::{
        Op,
        operation::{Operation, Readiness},
    },
};

/// More slices than that in one call are an error (`UIO_MAXIOV`).
const SLICES_MAX: usize = 1024;

/// The real [`Stream::Io`](crate::Stream::Io).
pub struct TcpIo {
    // First, as in `TcpStream`.
    socket: Socket,
    parts: StreamParts,
    reading: Reading,
    /// The wait for room in the socket's send buffer.
    writable: Option<Op>,
}

enum Reading {
    /// There may be bytes in the socket.
    Try,
    /// There are none: the wait for some.
    Wait(Op),
    /// A receive that the stream had begun before it became this.
    Receive(Op),
    /// Bytes to copy out; `drained` if the socket had no more at the time.
    Copy { bytes: Lease, drained: bool },
    /// A short read has emptied the socket: trying again would only be told so, and what has come since then makes the
    /// wait end at once.
    Drained,
}

impl TcpIo {
    pub(crate) fn new(socket: Socket, parts: StreamParts, receiving: Receiving) -> Self {
        let reading = match receiving {
            Receiving::Idle => Reading::Try,
            Receiving::UnderWay(op) => Reading::Receive(op),
            Receiving::Left(bytes) => Reading::Copy { bytes, drained: false },
        };
        Self { socket, parts, reading, writable: None }
    }

    fn wait(&self, ready: Readiness) -> io::Result<Op> {
        self.parts.start(Operation::Poll { socket: self.socket.descriptor(), ready })
    }

    /// What the socket has now, up to a buffer full.
    fn fetch(&self) -> io::Result<Lease> {
        let mut bytes = self.parts.leases.lease_within_limit(self.parts.io_room)?;
        let count = self.socket.options().recv_with_flags(bytes.spare(), libc::MSG_DONTWAIT)?;
        #[expect(unsafe_code, reason = "only the kernel knows how much it has written")]
        // SAFETY: recv has written `count` bytes from the beginning of the spare room it was given.
        unsafe {
            bytes.assume_filled(count);
        }
        self.parts.moved(count, 0);
        Ok(bytes)
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
                    self.writable = Some(self.wait(Readiness::Writable)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(sent) => {
                    self.parts.moved(0, sent);
                    return Poll::Ready(Ok(sent));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for TcpIo {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.reading {
                Reading::Try => match this.fetch() {
                    Ok(bytes) if bytes.is_empty() => return Poll::Ready(Ok(())),
                    Ok(bytes) => {
                        let drained = bytes.len() < this.parts.io_room;
                        this.reading = Reading::Copy { bytes, drained };
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        this.reading = Reading::Wait(this.wait(Readiness::Readable)?);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Reading::Wait(readable) => {
                    let completion = ready!(Pin::new(readable).poll(context));
                    this.reading = Reading::Try;
                    completion.outcome?;
                }
                Reading::Receive(op) => {
                    let received = ready!(poll_received(op, context));
                    this.reading = Reading::Try;
                    let bytes = received?;
                    if bytes.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    this.reading = Reading::Copy { bytes, drained: false };
                }
                Reading::Copy { bytes, drained } => {
                    let count = bytes.len().min(into.remaining());
                    into.put_slice(&bytes[..count]);
                    bytes.advance(count);
                    if bytes.is_empty() {
                        this.reading = if *drained { Reading::Drained } else { Reading::Try };
                    }
                    return Poll::Ready(Ok(()));
                }
                Reading::Drained => this.reading = Reading::Wait(this.wait(Readiness::Readable)?),
            }
        }
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
