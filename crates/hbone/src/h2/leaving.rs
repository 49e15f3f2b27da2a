//! Streams whose owner is gone while their last bytes are not. h2 0.4 drops what a stream has queued when its last
//! handle is dropped before the peer has ended its own direction (a server's finished stream excepted). So a handle of
//! a finished stream is kept here until its end has been written; then it is dropped, and the peer told to stop.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use ::h2::SendStream;
use bytes::Buf;

use super::Payload;

/// The tunnel's list. At most one entry for each of its streams, some 100 bytes each.
pub(super) struct Leaving<B: Buf>(Rc<List<B>>);

/// A stream's way to it; leads nowhere when the tunnel is over.
pub(super) struct Exit<B: Buf>(Weak<List<B>>);

struct List<B: Buf> {
    streams: RefCell<Vec<Kept<B>>>,
    written: Rc<Cell<usize>>,
}

struct Kept<B: Buf> {
    end: Rc<End>,
    /// Held for its drop.
    _stream: SendStream<Payload<B>>,
}

/// Whether a stream's end has been written, or there is nothing left that could be.
pub(super) struct End {
    written: Cell<bool>,
    count: Rc<Cell<usize>>,
}

/// Travels with the end through h2's queue, and notes when h2 is done with it.
#[derive(Debug)]
pub(crate) struct EndMark(Rc<End>);

impl<B: Buf> Leaving<B> {
    pub(super) fn new() -> Self {
        Self(Rc::new(List { streams: RefCell::default(), written: Rc::default() }))
    }

    pub(super) fn exit(&self) -> Exit<B> {
        Exit(Rc::downgrade(&self.0))
    }

    /// Lets go of the streams whose end is written by now; says whether there were any.
    pub(super) fn let_go(&self) -> bool {
        if self.0.written.take() == 0 {
            return false;
        }
        let done: Vec<_> = self.0.streams.borrow_mut().extract_if(.., |kept| kept.end.written.get()).collect();
        !done.is_empty()
    }
}

impl<B: Buf> Exit<B> {
    /// The end of a stream: to be asked later, and to be queued.
    pub(super) fn end(&self) -> (Rc<End>, EndMark) {
        let count = self.0.upgrade().map_or_else(Rc::default, |list| list.written.clone());
        let end = Rc::new(End { written: Cell::new(false), count });
        (end.clone(), EndMark(end))
    }

    /// Keeps a finished stream for as long as its end isn't written.
    pub(super) fn leave(&self, end: Rc<End>, stream: SendStream<Payload<B>>) {
        if end.written.get() {
            return;
        }
        if let Some(list) = self.0.upgrade() {
            list.streams.borrow_mut().push(Kept { end, _stream: stream });
        }
    }
}

impl<B: Buf> Clone for Exit<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("End").field("written", &self.written.get()).finish()
    }
}

impl Drop for EndMark {
    /// Runs inside h2, under its lock: nothing of h2 may be called or dropped here.
    fn drop(&mut self) {
        self.0.written.set(true);
        self.0.count.set(self.0.count.get() + 1);
    }
}
