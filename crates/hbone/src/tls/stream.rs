//! An established TLS connection, either side. A peer that closes cleanly ends reading with end-of-file; one that is
//! cut off ends it with `UnexpectedEof`: a truncated transfer never looks complete.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::revocation::Proof;

/// Bytes decrypted in one read, four records. HTTP/2 asks for a whole frame at once, and a mebibyte of records is some
/// 300 us in which no other tenant gets the core.
const READ_BYTES_MAX: usize = 64 << 10;

/// TLS over `Io`. Writing is buffered until a flush; shutting down sends close_notify.
#[derive(Debug)]
pub struct TlsStream<Io> {
    inner: tokio_rustls::TlsStream<Io>,
    /// An error that came after bytes of the same read.
    late: Option<io::Error>,
    proof: Option<Box<Proof>>,
}

impl<Io> TlsStream<Io> {
    pub(crate) fn new(inner: impl Into<tokio_rustls::TlsStream<Io>>, proof: Proof) -> Self {
        Self { inner: inner.into(), late: None, proof: Some(Box::new(proof)) }
    }

    /// How the peer proved itself, for whoever looks at it again; `None` after it was taken.
    pub fn take_proof(&mut self) -> Option<Proof> {
        self.proof.take().map(|proof| *proof)
    }

    /// What is below, for its addresses.
    pub fn transport(&self) -> &Io {
        self.inner.get_ref().0
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.late.take() {
            return Poll::Ready(Err(error));
        }
        let mut copied = 0;
        loop {
            let wanted = room.remaining().min(READ_BYTES_MAX - copied);
            if wanted == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut inner = Pin::new(&mut self.inner);
            match inner.as_mut().poll_fill_buf(cx) {
                Poll::Ready(Ok([])) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(bytes)) => {
                    let count = bytes.len().min(wanted);
                    room.put_slice(&bytes[..count]);
                    inner.consume(count);
                    copied += count;
                }
                Poll::Ready(Err(error)) if copied == 0 => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    self.late = Some(error);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending if copied == 0 => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
