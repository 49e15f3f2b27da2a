//! Bytes from one socket to another without a copy: splice(2) through a pipe, in the tenant's own turn.
//!
//! A pipe is borrowed from the core when there is something to put into it and returned once all of that has left, so an
//! idle flow has none, and an end of data is only ever met with an empty pipe. What must not happen twice stands here:
//! * A short splice does not mean that the socket is empty. A pipe is full when its slots are, and a packet of one byte
//!   takes one.
//! * Bytes in a pipe are in nobody's send or receive buffer. A flow that is dropped with some has torn its sink.
//! * A ring would hand a splice to a kernel thread; so it is called directly, non-blocking, when readiness was told.
//! * It can raise SIGPIPE, for which there is no flag: Rust's runtime ignores that signal, and nothing here changes it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

use super::stream::TcpStream;
use crate::{
    Spliced,
    engine::{
        descriptor::Direction,
        operation::{Operation, Readiness},
    },
    quota::Quota,
    tasks::yield_now,
    tenant::Row,
};

/// What a pipe is asked to hold. The sysctl `fs.pipe-max-size` may allow an unprivileged process less.
const PIPE_BYTES: usize = 1 << 20;
/// What is sent in one call: some 50 us of a loopback connection's work, and then other tenants may have their turn.
const STEP_BYTES: usize = 128 << 10;
/// How long an unused pipe is kept.
const KEEP: Duration = Duration::from_secs(1);

/// The pipes of a core.
pub(crate) struct Pipes {
    unused: RefCell<Vec<(Pipe, Instant)>>,
    made: Cell<usize>,
    made_max: Cell<usize>,
    quota: Quota,
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe on loan. One that is dropped with bytes in it is closed.
struct Loan {
    pipes: Rc<Pipes>,
    pipe: Option<Pipe>,
    /// Whose.
    row: Row,
    held: usize,
}

impl Pipes {
    /// At most `made_max` pipes at once.
    pub(crate) fn new(made_max: usize) -> Self {
        let quota = Quota::of(made_max);
        Self { unused: RefCell::default(), made: Cell::new(0), made_max: Cell::new(made_max), quota }
    }

    /// An empty pipe for `row`; none at its limit or the core's, or when the process may not have one.
    fn borrow(self: &Rc<Self>, row: Row) -> Option<Loan> {
        if !self.quota.take(row) {
            return None;
        }
        let Some(pipe) = self.unused_or_new() else {
            self.quota.give_back(row);
            return None;
        };
        Some(Loan { pipes: self.clone(), pipe: Some(pipe), row, held: 0 })
    }

    fn unused_or_new(&self) -> Option<Pipe> {
        let unused = self.unused.borrow_mut().pop();
        let pipe = match unused {
            Some((pipe, _)) => pipe,
            None if self.made.get() >= self.made_max.get() => return None,
            None => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                // A smaller one will do.
                let _refused = fcntl_setpipe_size(&write, PIPE_BYTES);
                self.made.set(self.made.get() + 1);
                Pipe { read, write }
            }
        };
        Some(pipe)
    }

    /// Closes what nobody has used for a while. Called by a core that is about to sleep.
    pub(crate) fn prune(&self) {
        let mut unused = self.unused.borrow_mut();
        if unused.is_empty() {
            return;
        }
        let now = Instant::now();
        // The last used is the first to be used again, so the oldest are in front.
        let stale = unused.iter().take_while(|(_, since)| now.saturating_duration_since(*since) >= KEEP).count();
        unused.drain(..stale);
        self.made.set(self.made.get() - stale);
    }

    /// How many there are.
    pub(crate) fn made(&self) -> usize {
        self.made.get()
    }

    /// This process may not splice.
    fn give_up(&self) {
        self.made_max.set(0);
    }
}

impl Loan {
    fn pipe(&self) -> &Pipe {
        self.pipe.as_ref().expect("it is on loan until it is dropped")
    }

    fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let count = splice(from, None, &self.pipe().write, None, most, flags)?;
        self.held += count;
        Ok(count)
    }

    fn drain(&mut self, into: impl AsFd, most: usize) -> io::Result<()> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(&self.pipe().read, None, into, None, self.held.min(most), flags)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            count => {
                self.held -= count;
                Ok(())
            }
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take() else { return };
        self.pipes.quota.give_back(self.row);
        if self.held == 0 && self.pipes.made_max.get() > 0 {
            self.pipes.unused.borrow_mut().push((pipe, Instant::now()));
        } else {
            self.pipes.made.set(self.pipes.made.get() - 1);
        }
    }
}

/// As [`Stream::splice_to`](crate::Stream::splice_to).
pub(crate) async fn splice_to(source: &TcpStream, sink: &TcpStream) -> Spliced {
    let mut loan = match fill(source).await {
        Ok(Some(loan)) if loan.held == 0 => return Spliced::End,
        Ok(Some(loan)) => loan,
        Ok(None) => return Spliced::Unavailable,
        Err(error) => return Spliced::SourceBroke(error),
    };
    let taken = loan.held;
    match drain(&mut loan, sink).await {
        Ok(()) => {
            source.parts.moved(taken, taken);
            Spliced::Moved(taken)
        }
        Err(error) => Spliced::SinkBroke(error),
    }
}

/// Waits for bytes and takes them; an empty pipe is FIN. `None` if there is no pipe, and nothing was taken.
async fn fill(source: &TcpStream) -> io::Result<Option<Loan>> {
    let TcpStream { socket, parts, inflow } = source;
    socket.make_nonblocking()?;
    loop {
        poll_fn(|context| inflow.borrow_mut().poll_readable(socket, parts, context)).await?;
        let Some(mut loan) = parts.pipes.borrow(parts.inside.payer()) else { return Ok(None) };
        let filled = match loan.fill(socket, parts.at_once(PIPE_BYTES)) {
            Err(error) if is_forbidden(&error) => {
                parts.pipes.give_up();
                return Ok(None);
            }
            // This socket cannot, whatever others can.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => return Ok(None),
            filled => filled,
        };
        // As if it had been asked for no more: see above on short ones.
        if inflow.borrow_mut().seen(socket, filled, 0)?.is_some() {
            return Ok(Some(loan));
        }
    }
}

/// Not an error of this socket: seccomp, or a kernel that has no such call.
fn is_forbidden(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::NOSYS))
}

/// Sends all that is in the pipe.
async fn drain(loan: &mut Loan, sink: &TcpStream) -> io::Result<()> {
    let TcpStream { socket, parts, .. } = sink;
    socket.make_nonblocking()?;
    socket.begin_send()?;
    while loan.held > 0 {
        match loan.drain(socket, parts.at_once(STEP_BYTES)) {
            Ok(()) if loan.held == 0 => {}
            Ok(()) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.blocked(Direction::Out);
                let room = Operation::Poll { socket: socket.descriptor(), ready: Readiness::Writable };
                parts.start(room)?.await.outcome?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                socket.failed(&error);
                return Err(error);
            }
        }
    }
    socket.sent();
    Ok(())
}
