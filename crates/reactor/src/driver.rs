//! The loop of a core: the one task that glommio runs, which polls our run queue and our ring.
//!
//! One round: exchange requests for completions with the kernel (sleeping there when nobody is runnable), admit what
//! other threads woke, wake whose timers are due, then give tenants their turns until nobody is runnable, a slice has
//! passed, or as much waits for the kernel as it is to do at once. So a tenant that wakes waits for at most a slice per
//! runnable tenant, plus the entry and what the longest poll overruns, and small requests of many tasks go to the kernel in one call.
//!
//! glommio's own loop gets a turn every [`CoreConfig::host_turn`], after the round's work and not in front of it, and
//! only when its preemption timer has passed does it use it. There its parking defect waits; see `heartbeat`.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    process,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{
    CoreConfig, Decision, Reactor, Task, TaskEnded, TurnEnd,
    books::Books,
    engine::Aftermath,
    gate::Inside,
    heartbeat::Heartbeat,
    reactor::Core,
    submit::{Limit, Load},
    task::Runnable,
    tenant::Row,
    turns::Turn,
};

/// Runs a core until its root task ends.
pub(crate) struct Driver {
    reactor: Reactor,
    root: Task<()>,
    pace: Pace,
    books: Books,
    heartbeat: Option<Heartbeat>,
    last_host_turn: Instant,
    aftermath: Aftermath,
}

/// The times that bound a round.
struct Pace {
    slice_ns: u64,
    park_max: Duration,
    host_turn: Duration,
}

impl Driver {
    /// A driver of `reactor`, whose tasks are woken into this thread's run queue from now on.
    pub(crate) fn new(reactor: Reactor, root: Task<()>, config: &CoreConfig) -> Self {
        let slice_ns = u64::try_from(config.slice.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = reactor.0.inside.read_clock();
        Self {
            books: Books::new(config, now_ns),
            reactor,
            root,
            pace: Pace { slice_ns, park_max: config.park_max, host_turn: config.host_turn },
            heartbeat: config.heartbeat.map(Heartbeat::new),
            last_host_turn: Instant::now(),
            aftermath: Aftermath::default(),
        }
    }

    fn rounds(&mut self, host: &Waker) -> Poll<()> {
        // The host's turn, in which it may even have slept, is nobody's.
        self.reactor.0.inside.read_clock();
        loop {
            let Self { reactor, root, pace, books, heartbeat, last_host_turn, aftermath } = self;
            round(reactor, pace, books, aftermath);
            if root.is_finished() {
                self.end();
                return Poll::Ready(());
            }
            let now = reactor.0.inside.now();
            if now.saturating_duration_since(*last_host_turn) >= pace.host_turn {
                *last_host_turn = now;
                reactor.tell();
                reactor.0.inside.view.pulse.works(reactor.0.inside.now_ns());
                if let Some(heartbeat) = heartbeat {
                    heartbeat.arm(now, host);
                }
                host.wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    fn end(&mut self) {
        let outcome = Pin::new(&mut self.root).poll(&mut Context::from_waker(Waker::noop()));
        assert!(
            !matches!(outcome, Poll::Ready(Err(TaskEnded::Panicked))),
            "the core's root task panicked, and nothing runs without it"
        );
        let Core { tasks, engine, inside, .. } = &*self.reactor.0;
        self.reactor.tell();
        tasks.end();
        engine.close(|| inside.gate.ring_always());
        Inside::leave();
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        catch_unwind(AssertUnwindSafe(|| self.rounds(context.waker()))).unwrap_or_else(|_panic| die())
    }
}

/// A core whose loop is broken serves nobody, and its connections would hang: better the process is started again.
fn die() -> ! {
    #[expect(clippy::print_stderr, reason = "the logger may need a thread that does not get to run any more")]
    {
        eprintln!("the loop of core {:?} panicked (see above): ending the process", std::thread::current().name());
    }
    process::abort()
}

fn round(reactor: &Reactor, pace: &Pace, books: &mut Books, aftermath: &mut Aftermath) {
    let core = &*reactor.0;
    exchange(reactor, pace, books, aftermath);
    core.timers.expire(core.inside.now(), &mut aftermath.woken);
    aftermath.settle();
    core.inside.admit();
    books.own(&core.inside);
    take_turns(core, pace, books);
}

/// Enters the kernel, to stay there if nobody is runnable.
fn exchange(reactor: &Reactor, pace: &Pace, books: &mut Books, aftermath: &mut Aftermath) {
    let core = &*reactor.0;
    let Core { inside, timers, engine, stream_parts, .. } = core;
    let began_ns = inside.now_ns();
    let idle = inside.queue.borrow().is_empty() && Limit::ALONE.holds(engine.total_load()) && inside.park();
    let worked_ns = if !idle {
        inside.view.pulse.works(began_ns);
        let several_ask = engine.several_ask();
        engine.enter(None, |row| if several_ask { Limit::CONTENDED } else { limit_by_turns(core, row) }, aftermath);
        let now_ns = inside.read_clock();
        books.worked_of(now_ns - began_ns, now_ns)
    } else {
        stream_parts.pipes.prune();
        let began_ns = inside.read_clock();
        let due = timers.next().map(|due| due.saturating_duration_since(inside.now()));
        let at_most = due.map_or(pace.park_max, |due| due.min(pace.park_max));
        reactor.tell();
        let measured = books.sleeps(began_ns);
        inside.view.pulse.sleeps();
        engine.enter(Some(at_most), |_| Limit::NONE, aftermath);
        inside.unpark();
        let now_ns = inside.read_clock();
        inside.view.pulse.works(now_ns);
        books.slept(measured, now_ns - began_ns, now_ns, &aftermath.bill)
    };
    let now_ns = inside.now_ns();
    inside.view.pulse.took(now_ns, worked_ns);
    books.enter(inside, worked_ns, aftermath);
    engine.left_behind(|row| inside.queue.borrow_mut().rouse(row, now_ns));
}

/// Turns of one tenant after the other, until a slice has passed, or those who had one have asked for as much as the kernel
/// is to do at once. What an entry has left behind does not count: it goes by a turn of its own.
fn take_turns(core: &Core, pace: &Pace, books: &mut Books) {
    let began_ns = core.inside.now_ns();
    let mut asked = Load::default();
    while core.inside.now_ns() - began_ns < pace.slice_ns && !Limit::CONTENDED.reached(asked) {
        let turn = core.inside.queue.borrow_mut().begin_turn(core.inside.now_ns());
        let Some(turn) = turn else { return };
        take_turn(core, pace, books, turn);
        asked = asked.and(core.engine.load(turn.row));
    }
}

/// A turn lasts its length while others wait, and a slice if nobody does.
fn take_turn(core: &Core, pace: &Pace, books: &mut Books, turn: Turn) {
    let Core { inside, engine, .. } = core;
    let Turn { row, length_ns, .. } = turn;
    let began_ns = inside.now_ns();
    let tenant = inside.queue.borrow().key(row);
    inside.bill_to(row);
    inside.view.pulse.turn(tenant);
    let (mut polls, mut poll_began_ns) = (0, began_ns);
    let end = loop {
        let others_wait = inside.queue.borrow().others_wait(row);
        let lasts = if others_wait { length_ns } else { pace.slice_ns };
        if poll_began_ns - began_ns >= lasts && polls > 0 {
            break TurnEnd::Time;
        }
        if limit(core, row).reached(engine.load(row)) {
            break TurnEnd::Requests;
        }
        let Some(runnable) = pop(core, row) else { break TurnEnd::Idle };
        inside.view.pulse.polls(poll_began_ns, runnable.metadata());
        runnable.run();
        polls += 1;
        let now_ns = inside.read_clock();
        inside.view.pulse.took(now_ns, now_ns - poll_began_ns);
        poll_began_ns = now_ns;
    };
    inside.bill_to(Row::CORE);
    engine.had_a_turn(row);
    let now_ns = poll_began_ns;
    let used_ns = books.worked_of(now_ns - began_ns, now_ns);
    inside.queue.borrow_mut().end_turn(row, used_ns, false, now_ns);
    books.turn(
        inside,
        turn,
        &Decision { serial: 0, began_ns, tenant, waited_ns: turn.waited_ns, length_ns, used_ns, polls, end },
    );
}

/// How much of a row an entry carries now. Whoever waits for its turn is another, and so is who has asked for something that
/// goes with the same entry: a tenant of one flow is always in one of the two, and never in both.
fn limit(core: &Core, row: Row) -> Limit {
    if core.engine.others_ask(row) { Limit::CONTENDED } else { limit_by_turns(core, row) }
}

fn limit_by_turns(core: &Core, row: Row) -> Limit {
    if core.inside.queue.borrow().others_wait(row) { Limit::CONTENDED } else { Limit::ALONE }
}

fn pop(core: &Core, row: Row) -> Option<Runnable> {
    core.inside.queue.borrow_mut().pop(row)
}
