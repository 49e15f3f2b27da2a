//! How bytes come in: wait until there are some, then fetch them into a buffer that is borrowed for no longer than that.
//!
//! Nothing is held while nothing comes. The unit grows while the socket fills it, up to 256 KiB, where bytes per system
//! call stop to pay, and falls back at the first read that the socket could not fill: a flow is bulk by what it does. The
//! fetch is a system call in the tenant's own turn and on its account; what a ring would save here was measured, and could
//! not be told from nothing (decision 0011).

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{socket::Socket, stream::StreamParts};
use crate::{
    Lease,
    engine::{
        Op,
        descriptor::Direction,
        operation::{Operation, Readiness},
    },
    lease::Waiting,
};

/// After so many bytes without a wait the core is let go on with its other work first.
const STRETCH_MAX: usize = 256 << 10;

/// See the module. What a stream knows of its incoming bytes. Every connection has two of these, so they are small.
pub(crate) struct Inflow {
    state: State,
    unit: Unit,
    /// Bytes since the last wait, as far as they are counted.
    stretch: u32,
    /// A place in the queue for the tenant's share of buffers.
    share: Option<Box<Waiting>>,
}

/// What is fetched at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// What a flow begins with, and falls back to: a request or an answer with room to spare.
    Small,
    Medium,
    /// What bulk comes in.
    Bulk,
}

impl Unit {
    fn bytes(self) -> usize {
        match self {
            Self::Small => 16 << 10,
            Self::Medium => 64 << 10,
            Self::Bulk => 256 << 10,
        }
    }

    fn larger(self) -> Self {
        match self {
            Self::Small => Self::Medium,
            Self::Medium | Self::Bulk => Self::Bulk,
        }
    }
}

enum State {
    /// There may be bytes.
    Try,
    /// There are none, and what comes later makes the wait end at once.
    Drained,
    /// The wait for some.
    Wait(Op),
}

impl Inflow {
    pub(crate) fn new() -> Self {
        // A connection that was just made has seldom said anything yet.
        Self { state: State::Drained, unit: Unit::Small, stretch: 0, share: None }
    }

    /// The next bytes, at most `room`; none is FIN.
    pub(crate) fn poll_fetch(
        &mut self,
        socket: &Socket,
        parts: &StreamParts,
        room: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Lease>> {
        loop {
            ready!(self.poll_readable(socket, parts, context))?;
            let unit = parts.at_once(self.unit.bytes());
            let room = room.clamp(1, unit);
            let mut into = ready!(parts.leases.poll_lease(parts.inside.payer(), room, &mut self.share, context));
            let fetched = fetch(socket, &mut into, room);
            let Some(count) = self.seen(socket, fetched, room)? else { continue };
            parts.moved(count, 0);
            // Unless it is the caller who wants no more.
            if room == unit {
                self.unit = match count == room {
                    true if unit == self.unit.bytes() => self.unit.larger(),
                    true => self.unit,
                    false => Unit::Small,
                };
            }
            if self.stretch as usize >= parts.at_once(STRETCH_MAX) {
                self.state = State::Drained;
            }
            return Poll::Ready(Ok(into));
        }
    }

    /// Ready when there may be bytes.
    pub(crate) fn poll_readable(
        &mut self,
        socket: &Socket,
        parts: &StreamParts,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Try => return Poll::Ready(Ok(())),
                State::Drained => {
                    let ready = Readiness::Readable;
                    self.state = State::Wait(parts.start(Operation::Poll { socket: socket.descriptor(), ready })?);
                }
                State::Wait(readable) => {
                    let completion = ready!(Pin::new(readable).poll(context));
                    self.state = State::Try;
                    self.stretch = 0;
                    completion.outcome?;
                }
            }
        }
    }

    /// Takes note of what the kernel said to a read of at most `most`; `None` is to be tried again.
    pub(crate) fn seen(&mut self, socket: &Socket, read: io::Result<usize>, most: usize) -> io::Result<Option<usize>> {
        match read {
            Ok(0) => {
                // Nothing at all is FIN, and stays so.
                socket.ended()?;
                Ok(Some(0))
            }
            Ok(count) => {
                self.stretch = self.stretch.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                if count < most {
                    socket.drained();
                    self.state = State::Drained;
                }
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.blocked(Direction::In);
                self.state = State::Drained;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads what the socket has now.
pub(crate) fn fetch(socket: &Socket, into: &mut Lease, room: usize) -> io::Result<usize> {
    let spare = into.spare();
    let room = room.min(spare.len());
    let count = socket.options().recv_with_flags(&mut spare[..room], libc::MSG_DONTWAIT)?;
    #[expect(unsafe_code, reason = "only the kernel knows how much it has written")]
    // SAFETY: recv has written `count` bytes from the beginning of the spare room it was given.
    unsafe {
        into.assume_filled(count);
    }
    Ok(count)
}
