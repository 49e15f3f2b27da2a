//! How a woken task reaches its core's run queue: directly from the core itself, through the gate from elsewhere.
//!
//! A waker may be used on any thread. On its own core it is a push on the run queue. From another thread it goes through
//! a channel, and if the core is parked in its ring a write to an eventfd brings it back. The core announces that it
//! parks *before* it looks into the channel a last time, and a sender looks for that announcement *after* its message is
//! in the channel; so at least one of them sees the other (Dekker's argument, hence the sequentially consistent fences).

use std::{
    cell::{Cell, RefCell},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    time::{Duration, Instant},
};

use crossbeam_channel as channel;
use rustix::event::EventfdFlags;

use crate::{
    CoreConfig, CoreView, TenantKey, Weight, accounts::Ledger, decisions::Decisions, pulse::Pulse, task::Runnable,
    tenant::Row, turns::RunQueue,
};

/// A task that was woken, and whose turn it is to wait for.
pub(crate) struct Woken {
    pub(crate) row: Row,
    pub(crate) runnable: Runnable,
}

/// What every waker of a core's tasks knows of the core. Shared by threads.
pub(crate) struct Gate {
    /// Unbounded as a type; a task is in it at most once, so it is bounded by the core's tasks.
    foreign: channel::Sender<Woken>,
    parked: AtomicBool,
    bell: OwnedFd,
}

/// The core's end: its run queue and accounts, its time, and what came through the gate.
pub(crate) struct Inside {
    pub(crate) gate: Arc<Gate>,
    pub(crate) queue: RefCell<RunQueue<Runnable>>,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) view: CoreView,
    on_turn: Cell<Row>,
    origin: Instant,
    now_ns: Cell<u64>,
    foreign: channel::Receiver<Woken>,
}

thread_local! {
    // The one piece of state that is reached for instead of being handed over: a waker has no argument to carry it, and
    // what a waker owns must be `Send`, which the run queue is not.
    static HERE: RefCell<Option<Rc<Inside>>> = const { RefCell::new(None) };
}

/// Both ends of a gate, for a core that is to run as `config` says.
///
/// # Errors
/// No descriptor for the eventfd.
pub(crate) fn open(config: &CoreConfig) -> std::io::Result<Rc<Inside>> {
    // Not non-blocking: a read through the ring would fail with EAGAIN instead of waiting. A write blocks only after
    // 2^64 unread ones.
    let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let (sender, foreign) = channel::unbounded();
    let gate = Arc::new(Gate { foreign: sender, parked: AtomicBool::new(false), bell });
    let origin = Instant::now();
    let slice_ns = u64::try_from(config.slice.as_nanos()).unwrap_or(u64::MAX);
    let queue = RunQueue::new(config.tenants_max, slice_ns);
    let mut ledger = Ledger::new();
    queue.tenants().skip(1).for_each(|(row, tenant)| ledger.open(row, tenant));
    ledger.name(Row::CORE, "(core)");
    let view = CoreView {
        name: config.name.as_str().into(),
        accounts: ledger.accounts(),
        decisions: Arc::new(Decisions::new()),
        pulse: Arc::new(Pulse::new(origin)),
        counts: Arc::default(),
    };
    Ok(Rc::new(Inside {
        gate,
        queue: RefCell::new(queue),
        ledger: RefCell::new(ledger),
        view,
        on_turn: Cell::new(Row::CORE),
        origin,
        now_ns: Cell::new(1),
        foreign,
    }))
}

impl Gate {
    /// Puts a woken task where its core finds it. From any thread.
    pub(crate) fn schedule(&self, woken: Woken) {
        let here = HERE.try_with(|here| {
            let here = here.borrow();
            here.as_ref().filter(|inside| ptr::eq(Arc::as_ptr(&inside.gate), self)).cloned()
        });
        if let Ok(Some(inside)) = here {
            inside.push(woken);
            return;
        }
        match self.foreign.send(woken) {
            Ok(()) => self.ring(),
            // The core has ended and its futures are gone. A task's memory may only be freed on its own thread, so what
            // is left of it, some hundred bytes, is leaked.
            Err(channel::SendError(woken)) => std::mem::forget(woken.runnable),
        }
    }

    /// Rings whether the core is parked or not.
    pub(crate) fn ring_always(&self) {
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).expect("an eventfd takes eight bytes");
    }

    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed) {
            self.ring_always();
        }
    }

    /// What becomes readable when a parked core has to look.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Inside {
    /// Whether somebody waits for a turn beside the tenant whose turn it is.
    pub(crate) fn others_wait(&self) -> bool {
        self.queue.borrow().others_wait(self.on_turn.get())
    }

    /// Makes this the core of the calling thread, until [`Inside::leave`].
    pub(crate) fn enter(self: &Rc<Self>) {
        HERE.set(Some(self.clone()));
    }

    /// Ends what [`Inside::enter`] began.
    pub(crate) fn leave() {
        HERE.set(None);
    }

    /// Moves what came through the gate by now into the run queue.
    pub(crate) fn admit(&self) {
        // Bounded by what is there at the beginning: a storm of foreign wakes must not keep the core from running.
        self.foreign.try_iter().take(self.foreign.len()).for_each(|woken| self.push(woken));
    }

    /// Takes one task out, for a core that ends: turns do not matter any more.
    pub(crate) fn next(&self) -> Option<Runnable> {
        let mut queue = self.queue.borrow_mut();
        let row = queue.begin_turn(0)?.row;
        let runnable = queue.pop(row);
        queue.end_turn(row, 0, false, 0);
        runnable
    }

    /// The row of a tenant, and its account, made when they are first asked for.
    pub(crate) fn row(&self, tenant: TenantKey) -> Row {
        let row = self.queue.borrow_mut().row(tenant);
        let mut ledger = self.ledger.borrow_mut();
        if row.index() == ledger.len() {
            ledger.open(row, tenant);
        }
        row
    }

    /// See [`Runtime::introduce`](crate::Runtime::introduce).
    pub(crate) fn introduce(&self, tenant: TenantKey, name: &str, weight: Weight) {
        let row = self.row(tenant);
        // Those that share the last row share nobody's name or weight.
        if self.queue.borrow().key(row) == tenant {
            self.queue.borrow_mut().weigh(row, weight);
            self.ledger.borrow().name(row, name);
        }
    }

    /// Reads the clock: nanoseconds since the core began, and never 0.
    pub(crate) fn read_clock(&self) -> u64 {
        let now_ns = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        self.now_ns.set(now_ns);
        now_ns
    }

    /// What the clock said last: at most one poll, or one entry into the kernel, ago.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    /// The same as an instant.
    pub(crate) fn now(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now_ns.get())
    }

    fn push(&self, Woken { row, runnable }: Woken) {
        self.queue.borrow_mut().push(row, runnable, self.now_ns.get());
    }

    /// Who is charged for what is done now: the tenant on turn, or the core itself between turns.
    pub(crate) fn payer(&self) -> Row {
        self.on_turn.get()
    }

    /// Notes bytes that the payer has moved itself.
    pub(crate) fn moved(&self, received_bytes: u64, sent_bytes: u64) {
        let ledger = self.ledger.borrow();
        let cells = ledger.of(self.on_turn.get());
        cells.received_bytes.add(received_bytes);
        cells.sent_bytes.add(sent_bytes);
    }

    /// The turn of `row` begins; between turns it is the core's own.
    pub(crate) fn bill_to(&self, row: Row) {
        self.on_turn.set(row);
    }

    /// Announces that the core will park. If this returns false something has come meanwhile and it must not.
    pub(crate) fn park(&self) -> bool {
        self.gate.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let quiet = self.foreign.is_empty();
        if !quiet {
            self.unpark();
        }
        quiet
    }

    /// Announces that the core is back.
    pub(crate) fn unpark(&self) {
        self.gate.parked.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;

    #[test]
    fn a_wake_goes_to_the_queue_here_and_through_the_gate_elsewhere() {
        let inside = open(&CoreConfig::default()).unwrap();
        let row = inside.row(TenantKey::CORE);
        let gate = inside.gate.clone();
        let schedule = move |runnable| gate.schedule(Woken { row, runnable });
        let (runnable, _task) = task::prepare(std::future::pending::<()>(), schedule, |_| {});
        let waker = runnable.waker();
        runnable.run();

        inside.enter();
        waker.wake_by_ref();
        assert!(!inside.queue.borrow().is_empty());
        let run = || {
            let mut queue = inside.queue.borrow_mut();
            let row = queue.begin_turn(0).unwrap().row;
            let runnable = queue.pop(row).unwrap();
            queue.end_turn(row, 0, false, 0);
            drop(queue);
            runnable.run();
        };
        run();

        assert!(inside.park());
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake_by_ref());
        });
        assert!(inside.queue.borrow().is_empty());
        let mut rings = [0; 8];
        rustix::io::read(inside.gate.bell(), &mut rings).unwrap();
        assert_eq!(u64::from_ne_bytes(rings), 1, "a parked core is rung for");
        assert!(!inside.park(), "there is something to admit");
        inside.admit();
        assert!(!inside.queue.borrow().is_empty());
        run();
        Inside::leave();
        waker.wake();
        inside.admit();
        assert!(!inside.queue.borrow().is_empty(), "a thread that is no core goes through the gate, whichever it is");
    }
}
