//! The connection under a tunnel, as h2 sees it. It adds two things: a poll stops after a bounded number of bytes, and
//! the tunnel keeps a hand on the connection after h2 is done, to let it end well.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes taken from a peer that keeps sending after the tunnel is over. Twice what our windows let it have under way;
/// nothing is kept, so no memory.
const LINGER_BYTES_MAX: usize = 64 << 20;

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
}

pub(super) fn line<Io>(io: Io, turn_bytes: usize) -> (Line<Io>, LineEnd<Io>) {
    // At least a handshake's worth: it runs before the first turn begins.
    let turn_bytes = turn_bytes.max(16 << 10);
    let shared = Shared { io, turn_bytes, read_left: turn_bytes, write_left: turn_bytes };
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

impl<Io: AsyncWrite + Unpin> Shared<Io> {
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Io>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.write_left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = write(Pin::new(&mut self.io), cx);
        if let Poll::Ready(Ok(count)) = &written {
            self.write_left = self.write_left.saturating_sub(*count);
        }
        written
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Line<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, room)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Line<Io> {
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
        Pin::new(&mut self.0.borrow_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_shutdown(cx)
    }
}
