//! The connection under a tunnel, as h2 sees it. It adds three things: a poll stops after a bounded number of bytes, a
//! write that fails says what the peer said last, and the tunnel keeps a hand on the connection after h2 is done, to let
//! it end well.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes taken from a peer that keeps sending after the tunnel is over. Twice what our windows let it have under way;
/// nothing is kept, so no memory.
const LINGER_BYTES_MAX: usize = 64 << 20;

/// Bytes read behind a failed write in search of the peer's reason. A refusal comes within a handshake's worth.
const LAST_WORDS_BYTES_MAX: usize = 64 << 10;

/// What h2 reads and writes.
pub(super) struct Line<Io>(Rc<RefCell<Shared<Io>>>);

/// The tunnel's own hand on it.
pub(super) struct LineEnd<Io> {
    shared: Rc<RefCell<Shared<Io>>>,
    lingered: usize,
}

struct Shared<Io> {
    io: Io,
    turn_bytes: usize,
    read_left: usize,
    write_left: usize,
    /// A write failed because the peer no longer listens, and this much was read since to learn why.
    failed: Option<(io::Error, usize)>,
}

pub(super) fn line<Io>(io: Io, turn_bytes: usize) -> (Line<Io>, LineEnd<Io>) {
    // At least a handshake's worth: it runs before the first turn begins.
    let turn_bytes = turn_bytes.max(16 << 10);
    let shared = Shared { io, turn_bytes, read_left: turn_bytes, write_left: turn_bytes, failed: None };
    let shared = Rc::new(RefCell::new(shared));
    (Line(shared.clone()), LineEnd { shared, lingered: 0 })
}

impl<Io: AsyncRead + Unpin> LineEnd<Io> {
    /// Begins a poll: what it may read and write is full again.
    pub(super) fn begin_turn(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.read_left = shared.turn_bytes;
        shared.write_left = shared.turn_bytes;
    }

    /// Reads and drops what still comes, until the peer is done too. To close earlier, with bytes unread, would make
    /// the kernel send a reset, and that would destroy what we sent and the peer has not read yet.
    pub(super) fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        let mut shared = self.shared.borrow_mut();
        while self.lingered < LINGER_BYTES_MAX {
            let mut room = ReadBuf::new(&mut scratch);
            match shared.poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => self.lingered += room.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

impl<Io: AsyncRead + Unpin> Shared<Io> {
    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read_left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = room.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, room);
        self.read_left = self.read_left.saturating_sub(room.filled().len() - before);
        read
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Shared<Io> {
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Io>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.write_left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = self.poll_or_last_words(cx, write);
        if let Poll::Ready(Ok(count)) = &written {
            self.write_left = self.write_left.saturating_sub(*count);
        }
        written
    }

    /// A server of TLS 1.3 refuses a client after the client's handshake is done: its alert waits to be read while our
    /// first write already meets a closed connection. "Broken pipe" would tell nobody that it was our certificate.
    fn poll_or_last_words<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Io>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed.is_none() {
            match write(Pin::new(&mut self.io), cx) {
                Poll::Ready(Err(error)) if nobody_listens(&error) => self.failed = Some((error, 0)),
                other => return other,
            }
        }
        let (error, read) = self.failed.as_mut().expect("set above, if not before");
        let mut scratch = [0; 4096];
        while *read < LAST_WORDS_BYTES_MAX {
            let mut room = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => *read += room.filled().len(),
                Poll::Ready(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => {
                    return Poll::Ready(Err(reason));
                }
                Poll::Ready(_) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Err(io::Error::new(error.kind(), error.to_string())))
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl<Io: AsyncRead + Unpin> AsyncRead for Line<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, room)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_written(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_written(cx, |io, cx| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_or_last_words(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_shutdown(cx)
    }
}
