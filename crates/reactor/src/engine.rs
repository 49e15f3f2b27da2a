//! The network engine of a core: operations as futures that own what the kernel works on, over io_uring or epoll.
//!
//! Dropping the future of an operation under way asks the kernel to cancel it and forgets its outcome; the descriptor
//! and the buffer stay until the kernel has let go of them, and a connection that an abandoned accept brought is closed.
//! Tasks only queue requests, each tenant its own (`submit`); the driver enters the kernel, which it does before it parks and at least once a slice.

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

use crate::{
    bill::Bill,
    quota::Quota,
    submit::{Limit, Load, Size, Submissions},
    tenant::Row,
};

/// How long a core that ends waits for the kernel to let go of its buffers. They are leaked afterwards.
const CLOSE_MAX: Duration = Duration::from_secs(2);
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// See the module.
pub(crate) struct Engine {
    kernel: RefCell<Kernel>,
    table: RefCell<Table<Held, Completion>>,
    /// Of the operations that the kernel has or is to get.
    quota: Quota,
    submissions: RefCell<Submissions<OpKey>>,
    counts: Cell<EngineCounts>,
}

/// The way to the kernel.
#[expect(clippy::large_enum_variant, reason = "there is one in a core")]
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

/// An operation that is not complete.
pub(crate) struct Held {
    pub(crate) operation: Operation,
    /// Whose it is.
    row: Row,
    /// Whether the kernel, or the way to it, has it. Until then it can be dropped like anything else.
    submitted: bool,
    /// Whether its future was asked once and not since: so far nobody waits for it alone, and what is no news may stay untold.
    asked_once: bool,
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
    /// What the entry did for whom.
    pub(crate) bill: Bill,
    /// What was completed for whom.
    pub(crate) moved: Vec<Moved>,
}

/// An operation that is complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) row: Row,
    pub(crate) sent_bytes: u64,
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
        Ok(Self {
            kernel: RefCell::new(kernel),
            table: RefCell::new(Table::new(ops_max)),
            quota: Quota::of(ops_max),
            submissions: RefCell::new(Submissions::new()),
            counts: Cell::default(),
        })
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

    /// Queues an operation for the kernel, on the account of `row`.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when as many operations are under way as there may be.
    pub(crate) fn start(self: &Rc<Self>, mut operation: Operation, row: Row) -> io::Result<Op> {
        let size = Size { cost_ns: operation.cost_at_once(), bytes: operation.bytes_max() };
        let refused = |whose: &str, limit: usize| {
            self.count(|counts| counts.refused += 1);
            let what = format!("{limit} socket operations of {whose} are under way on this core, which is the limit");
            io::Error::new(io::ErrorKind::ResourceBusy, what)
        };
        if !self.quota.take(row) {
            return Err(refused("this tenant", self.quota.tenant_max()));
        }
        let mut table = self.table.borrow_mut();
        let Some(key) = table.begin(Held { operation, row, submitted: false, asked_once: true }) else {
            self.quota.give_back(row);
            return Err(refused("all tenants", table.live_max()));
        };
        self.submissions.borrow_mut().add(row, key, size);
        Ok(Op { engine: self.clone(), key: Some(key), asked: false })
    }

    /// Exchanges requests for completions with the kernel; with `park`, waits up to that long for a completion. Of each
    /// row the kernel gets what `limit` allows.
    ///
    /// # Panics
    /// When the kernel refuses the ring, or the epoll instance, as such: the core cannot go on.
    pub(crate) fn enter(&self, park: Option<Duration>, limit: impl Fn(Row) -> Limit, aftermath: &mut Aftermath) {
        self.submit(limit, &mut aftermath.bill);
        let mut table = self.table.borrow_mut();
        let mut kernel = self.kernel.borrow_mut();
        let entered = match &mut *kernel {
            Kernel::Uring(ring) => ring.enter(park, &mut aftermath.reaped),
            Kernel::Epoll(poller) => poller.enter(park, &mut table, &mut aftermath.reaped),
        };
        if let Err(error) = entered {
            panic!("the core's way into the kernel failed: {error}");
        }
        self.count(|counts| {
            counts.enters += 1;
            counts.parks += u64::from(park.is_some());
        });
        self.complete(&mut table, aftermath);
        if let Kernel::Uring(ring) = &mut *kernel {
            let still = |silent: &Reaped| table.held_mut(silent.key).is_some();
            aftermath.reaped.extend(ring.silent_successes().filter(still));
            self.complete(&mut table, aftermath);
        }
    }

    /// Tells the waiters of what was reaped.
    fn complete(&self, table: &mut Table<Held, Completion>, aftermath: &mut Aftermath) {
        let Aftermath { reaped, woken, unwanted, bill, moved } = aftermath;
        self.count(|counts| counts.completions += reaped.len() as u64);
        for Reaped { key, result } in reaped.drain(..) {
            let mut no_news = false;
            let complete = |Held { row, operation, asked_once, .. }: Held| {
                self.quota.give_back(row);
                bill.add(row, operation.completed(result));
                moved.push(Moved::of(row, &operation, result));
                no_news = asked_once && operation.is_no_news(result);
                let mut completion = operation.complete(result);
                if no_news {
                    unwanted.extend(completion.spent());
                }
                completion
            };
            match table.complete(key, complete) {
                Settled::Unwanted(completion) => unwanted.push(completion),
                Settled::Delivered(waiter) => woken.extend(waiter.filter(|_| !no_news)),
                Settled::Stale | Settled::UnderWay => self.count(|counts| counts.stale += 1),
            }
        }
    }

    /// Moves from the tenants' queues into the ring what the next enter carries.
    fn submit(&self, limit: impl Fn(Row) -> Limit, bill: &mut Bill) {
        let (mut table, mut kernel) = (self.table.borrow_mut(), self.kernel.borrow_mut());
        self.submissions.borrow_mut().carry(limit, |row, key, bytes_max| {
            // What was dropped before the kernel saw it is gone from the table.
            let Held { operation, submitted, asked_once, .. } = table.held_mut(key)?;
            *submitted = true;
            let bytes = operation.bytes_max().min(bytes_max);
            bill.add(row, operation.submitted(bytes));
            match &mut *kernel {
                Kernel::Uring(ring) => {
                    let entry = operation.entry(bytes_max);
                    let expected = i32::try_from(bytes).unwrap_or(i32::MAX);
                    let silent = *asked_once && operation.is_no_news(expected);
                    #[expect(unsafe_code, reason = "the kernel is handed addresses")]
                    // SAFETY: the entry refers to heap memory that the operation owns, and the table keeps the operation
                    // until the completion of `key` is reaped, or for ever. One that is silent is over when the enter that
                    // carries it returns, and completed not before.
                    unsafe {
                        ring.push(key, entry, silent.then_some(expected));
                    }
                }
                Kernel::Epoll(poller) => poller.push(key, bytes_max),
            }
            Some(bytes)
        });
    }

    /// What waits of a row for the next enter.
    pub(crate) fn load(&self, row: Row) -> Load {
        self.submissions.borrow().load(row)
    }

    /// Whether something of another row than this waits for the next enter.
    pub(crate) fn others_ask(&self, row: Row) -> bool {
        let submissions = self.submissions.borrow();
        submissions.total().requests > submissions.load(row).requests
    }

    /// Whether something of more than one row waits for the next enter.
    pub(crate) fn several_ask(&self) -> bool {
        self.submissions.borrow().waiting().nth(1).is_some()
    }

    /// What waits of all rows.
    pub(crate) fn total_load(&self) -> Load {
        self.submissions.borrow().total()
    }

    /// `row` had a turn, so that the next enter carries something of it.
    pub(crate) fn had_a_turn(&self, row: Row) {
        self.submissions.borrow_mut().had_a_turn(row);
    }

    /// Hands every row to `rouse` of which an enter has left something behind.
    pub(crate) fn left_behind(&self, rouse: impl FnMut(Row)) {
        self.submissions.borrow().waiting().for_each(rouse);
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
        self.submit(|_| Limit::NONE, &mut Bill::default());
        let under_way: Vec<_> = self.table.borrow().under_way().collect();
        for key in under_way {
            self.kernel.borrow_mut().cancel(key);
        }
        let deadline = Instant::now() + CLOSE_MAX;
        let mut aftermath = Aftermath::default();
        let mut busy = true;
        ring_bell();
        while busy && Instant::now() < deadline {
            self.enter(Some(CLOSE_POLL), |_| Limit::NONE, &mut aftermath);
            aftermath.settle();
            busy = self.table.borrow().under_way().next().is_some();
        }
        // Entering has armed the bell again, and only the last one may be left unarmed.
        while self.kernel.borrow().bell_under_way() && Instant::now() < deadline {
            ring_bell();
            self.enter(Some(CLOSE_POLL), |_| Limit::NONE, &mut aftermath);
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

impl Moved {
    fn of(row: Row, operation: &Operation, result: i32) -> Self {
        let bytes = u64::try_from(result).unwrap_or(0);
        let sends = matches!(operation, Operation::Send { .. } | Operation::Post { .. });
        let sent_bytes = if sends { bytes } else { 0 };
        Self { row, sent_bytes }
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
    /// Whether it was polled before.
    asked: bool,
}

impl Future for Op {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let key = self.key.expect("an operation is not polled again after its completion");
        let mut table = self.engine.table.borrow_mut();
        let taken = table.take(key, context.waker());
        if taken.is_none()
            && self.asked
            && let Some(held) = table.held_mut(key)
        {
            held.asked_once = false;
        }
        drop(table);
        match taken {
            Some(completion) => {
                self.key = None;
                Poll::Ready(completion)
            }
            None => {
                self.asked = true;
                Poll::Pending
            }
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut table = self.engine.table.borrow_mut();
        let submitted = table.held_mut(key).is_some_and(|held| held.submitted);
        let mut settled = table.abandon(key);
        if !submitted && matches!(settled, Settled::UnderWay) {
            settled = table.complete(key, |held| {
                self.engine.quota.give_back(held.row);
                held.operation.complete(-libc::ECANCELED)
            });
        }
        drop(table);
        match settled {
            Settled::UnderWay => self.engine.kernel.borrow_mut().cancel(key),
            // Dropped here, where nothing is borrowed.
            Settled::Unwanted(completion) => drop(completion),
            Settled::Delivered(_) | Settled::Stale => {}
        }
    }
}
