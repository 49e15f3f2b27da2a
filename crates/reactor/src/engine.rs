//! The network engine of a core: operations as futures that own what the kernel works on, over io_uring or epoll.
//!
//! Dropping the future of an operation under way asks the kernel to cancel it and forgets its outcome; the descriptor
//! and the buffer stay until the kernel has let go of them, and a connection that an abandoned accept brought is closed.
//! Tasks only queue requests; the driver enters the kernel, which it does before it parks and at least once a slice.

mod attempt;
pub(crate) mod choice;
pub(crate) mod descriptor;
mod epoll;
pub(crate) mod operation;
pub(crate) mod table;
pub(crate) mod uring;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use descriptor::Descriptor;
use epoll::Poller;
use operation::{Completion, Operation};
use table::{OpKey, Settled, Table};
use uring::Ring;

use crate::EngineKind;

/// How long a core that ends waits for the kernel to let go of its buffers. They are leaked afterwards.
const CLOSE_MAX: Duration = Duration::from_secs(2);
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// See the module.
pub(crate) struct Engine {
    kernel: RefCell<Kernel>,
    table: RefCell<Table<Operation, Completion>>,
    counts: Cell<EngineCounts>,
}

/// The way to the kernel.
enum Kernel {
    Uring(Ring),
    Epoll(Poller),
}

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) key: OpKey,
    /// What the operation brought, or a negative errno.
    pub(crate) result: i32,
}

/// What the engine has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineCounts {
    pub(crate) enters: u64,
    pub(crate) parks: u64,
    pub(crate) completions: u64,
    pub(crate) refused: u64,
    /// Completions of nothing under way. The kernel has none to give; a number here is a bug.
    pub(crate) stale: u64,
}

/// What [`Engine::enter`] leaves to be done once nothing is borrowed: wakers and destructors may call anything.
#[derive(Default)]
pub(crate) struct Aftermath {
    reaped: Vec<Reaped>,
    pub(crate) woken: Vec<Waker>,
    unwanted: Vec<Completion>,
}

impl Engine {
    /// An engine of at most `ops_max` operations; `ring_entries` are io_uring's. `bell` must stay open as long.
    ///
    /// # Errors
    /// As [`Ring::new`] and [`Poller::new`].
    pub(crate) fn new(kind: EngineKind, ring_entries: u32, ops_max: usize, bell: BorrowedFd<'_>) -> io::Result<Self> {
        let kernel = match kind {
            EngineKind::Uring => Kernel::Uring(Ring::new(ring_entries, bell)?),
            EngineKind::Epoll => Kernel::Epoll(Poller::new(bell)?),
        };
        Ok(Self { kernel: RefCell::new(kernel), table: RefCell::new(Table::new(ops_max)), counts: Cell::default() })
    }

    /// A socket that came from outside, for operations. Those that the core accepts itself need nothing.
    ///
    /// # Errors
    /// Not a descriptor that can be made non-blocking, where that is needed.
    pub(crate) fn adopt(&self, socket: OwnedFd) -> io::Result<Rc<Descriptor>> {
        if let Kernel::Epoll(_) = &*self.kernel.borrow() {
            rustix::io::ioctl_fionbio(&socket, true)?;
        }
        Ok(Rc::new(Descriptor::new(socket)))
    }

    /// Queues an operation for the kernel.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when as many operations are under way as there may be.
    pub(crate) fn start(self: &Rc<Self>, operation: Operation) -> io::Result<Op> {
        let mut table = self.table.borrow_mut();
        let Some(key) = table.begin(operation) else {
            self.count(|counts| counts.refused += 1);
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} socket operations are under way on this core, which is its limit", table.live_max()),
            ));
        };
        match &mut *self.kernel.borrow_mut() {
            Kernel::Uring(ring) => {
                let entry = table.held_mut(key).expect("it has just begun").entry();
                #[expect(unsafe_code, reason = "the kernel is handed addresses")]
                // SAFETY: the entry refers to heap memory that the operation owns, and the table keeps the operation until
                // the completion of `key` is reaped, or for ever.
                unsafe {
                    ring.push(key, entry);
                }
            }
            Kernel::Epoll(poller) => poller.push(key),
        }
        Ok(Op { engine: self.clone(), key: Some(key) })
    }

    /// Exchanges requests for completions with the kernel; with `park`, waits up to that long for a completion.
    ///
    /// # Panics
    /// When the kernel refuses the ring, or the epoll instance, as such: the core cannot go on.
    pub(crate) fn enter(&self, park: Option<Duration>, aftermath: &mut Aftermath) {
        let Aftermath { reaped, woken, unwanted } = aftermath;
        let mut table = self.table.borrow_mut();
        let entered = match &mut *self.kernel.borrow_mut() {
            Kernel::Uring(ring) => ring.enter(park, reaped),
            Kernel::Epoll(poller) => poller.enter(park, &mut table, reaped),
        };
        if let Err(error) = entered {
            panic!("the core's way into the kernel failed: {error}");
        }
        self.count(|counts| {
            counts.enters += 1;
            counts.parks += u64::from(park.is_some());
            counts.completions += reaped.len() as u64;
        });
        for Reaped { key, result } in reaped.drain(..) {
            let settled = table.complete(key, |operation| operation.complete(result), |waiter| woken.push(waiter));
            match settled {
                Settled::Unwanted(completion) => unwanted.push(completion),
                Settled::Delivered => {}
                Settled::Stale | Settled::UnderWay => self.count(|counts| counts.stale += 1),
            }
        }
    }

    /// Operations under way, and those whose outcome was not yet taken.
    pub(crate) fn live(&self) -> usize {
        self.table.borrow().live()
    }

    pub(crate) fn counts(&self) -> EngineCounts {
        self.counts.get()
    }

    /// Ends everything under way, so that the kernel refers to none of the core's memory any more. `ring_bell` must
    /// complete the read of the bell.
    pub(crate) fn close(self: &Rc<Self>, ring_bell: impl Fn()) {
        let under_way: Vec<_> = self.table.borrow().under_way().collect();
        for key in under_way {
            self.kernel.borrow_mut().cancel(key);
        }
        let deadline = Instant::now() + CLOSE_MAX;
        let mut aftermath = Aftermath::default();
        let mut busy = true;
        ring_bell();
        while busy && Instant::now() < deadline {
            self.enter(Some(CLOSE_POLL), &mut aftermath);
            aftermath.settle();
            busy = self.table.borrow().under_way().next().is_some();
        }
        // Entering has armed the bell again, and only the last one may be left unarmed.
        while self.kernel.borrow().bell_under_way() && Instant::now() < deadline {
            ring_bell();
            self.enter(Some(CLOSE_POLL), &mut aftermath);
        }
        if busy || self.kernel.borrow().bell_under_way() {
            tracing::error!("the kernel does not let go of operations of a core that ends: leaking their memory");
            std::mem::forget(self.clone());
        }
    }

    fn count(&self, change: impl FnOnce(&mut EngineCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

impl Kernel {
    fn cancel(&mut self, key: OpKey) {
        match self {
            Self::Uring(ring) => ring.cancel(key),
            Self::Epoll(poller) => poller.cancel(key),
        }
    }

    /// Whether the kernel will still write into the bell's count.
    fn bell_under_way(&self) -> bool {
        match self {
            Self::Uring(ring) => ring.bell_under_way(),
            Self::Epoll(_) => false,
        }
    }
}

impl Aftermath {
    /// Wakes and drops.
    pub(crate) fn settle(&mut self) {
        self.woken.drain(..).for_each(Waker::wake);
        self.unwanted.clear();
    }
}

/// An operation under way.
#[must_use = "dropping an operation cancels it"]
pub(crate) struct Op {
    engine: Rc<Engine>,
    /// `None` once its completion was taken.
    key: Option<OpKey>,
}

impl Future for Op {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let key = self.key.expect("an operation is not polled again after its completion");
        let taken = self.engine.table.borrow_mut().take(key, context.waker());
        match taken {
            Some(completion) => {
                self.key = None;
                Poll::Ready(completion)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let settled = self.engine.table.borrow_mut().abandon(key);
        match settled {
            Settled::UnderWay => self.engine.kernel.borrow_mut().cancel(key),
            // Dropped here, where nothing is borrowed.
            Settled::Unwanted(completion) => drop(completion),
            Settled::Delivered | Settled::Stale => {}
        }
    }
}
