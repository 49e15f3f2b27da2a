//! The loop of a core: the one task that glommio runs, which polls our run queue and our ring.
//!
//! One round: exchange requests for completions with the kernel (sleeping there when nobody is runnable), admit what
//! other threads woke, wake whose timers are due, then give tenants their turns until nobody is runnable or a slice has
//! passed since the kernel was entered. So a tenant that wakes waits for at most a slice per runnable tenant, plus what
//! the longest poll overruns, and requests of many tasks go to the kernel in one call.
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

use async_task::Runnable;

use crate::{
    CoreConfig, Reactor, Task, TaskEnded, engine::Aftermath, gate::Inside, heartbeat::Heartbeat, reactor::Core,
    submit::Limit, tenant::Row,
};

/// Runs a core until its root task ends.
pub(crate) struct Driver {
    reactor: Reactor,
    root: Task<()>,
    pace: Pace,
    heartbeat: Option<Heartbeat>,
    last_host_turn: Instant,
    aftermath: Aftermath,
}

/// The times that bound a round.
struct Pace {
    slice: Duration,
    park_max: Duration,
    host_turn: Duration,
}

impl Driver {
    /// A driver of `reactor`, whose tasks are woken into this thread's run queue from now on.
    pub(crate) fn new(reactor: Reactor, root: Task<()>, config: &CoreConfig) -> Self {
        Self {
            reactor,
            root,
            pace: Pace { slice: config.slice, park_max: config.park_max, host_turn: config.host_turn },
            heartbeat: config.heartbeat.map(Heartbeat::new),
            last_host_turn: Instant::now(),
            aftermath: Aftermath::default(),
        }
    }

    fn rounds(&mut self, host: &Waker) -> Poll<()> {
        loop {
            let Self { reactor, root, pace, heartbeat, last_host_turn, aftermath } = self;
            round(&reactor.0, pace, aftermath);
            if root.is_finished() {
                self.end();
                return Poll::Ready(());
            }
            let now = Instant::now();
            if now - *last_host_turn >= pace.host_turn {
                *last_host_turn = now;
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

fn round(core: &Core, pace: &Pace, aftermath: &mut Aftermath) {
    exchange(core, pace, aftermath);
    let now = Instant::now();
    core.timers.expire(now, &mut aftermath.woken);
    aftermath.settle();
    core.inside.admit();
    take_turns(core, pace, now);
}

/// Enters the kernel, to stay there if nobody is runnable.
fn exchange(core: &Core, pace: &Pace, aftermath: &mut Aftermath) {
    if !core.inside.queue.borrow().is_empty() || !core.inside.park() {
        return core.engine.enter(None, |_| Limit::NONE, aftermath);
    }
    let due = core.timers.next().map(|due| due.saturating_duration_since(Instant::now()));
    let at_most = due.map_or(pace.park_max, |due| due.min(pace.park_max));
    core.engine.enter(Some(at_most), |_| Limit::NONE, aftermath);
    core.inside.unpark();
}

/// Turns of one tenant after the other, until a slice after `began` at the latest.
fn take_turns(core: &Core, pace: &Pace, began: Instant) {
    let mut now = began;
    while now - began < pace.slice {
        let Some(row) = core.inside.queue.borrow_mut().begin_turn() else {
            return;
        };
        core.inside.bill_to(row);
        let turn_began = now;
        let mut polls = 0;
        while now - turn_began < pace.slice
            && let Some(runnable) = pop(core, row)
        {
            runnable.run();
            polls += 1;
            now = Instant::now();
        }
        core.inside.bill_to(Row::CORE);
        let used = u64::try_from((now - turn_began).as_nanos()).unwrap_or(u64::MAX);
        core.inside.queue.borrow_mut().end_turn(row, used, polls);
    }
}

fn pop(core: &Core, row: Row) -> Option<Runnable> {
    core.inside.queue.borrow_mut().pop(row)
}
