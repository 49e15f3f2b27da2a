//! Keeps glommio's parking defect from stopping a core.
//!
//! glommio 0.9 takes "preempted before anything ran" for "nothing to run" (`run_task_queues` returns false for both) and
//! parks with runnable tasks, until one of its own events comes. So one of its timers must be armed whenever the driver
//! gives it a turn. The usual remedy, a task that sleeps in a loop, is not enough, as measured (preemption timer 50 us,
//! sleep 5 ms: the core stood still within seconds): the defect can strike again right after the timer has ended the
//! park, before the task ran to arm it anew, and then nothing is armed. Hence a ladder of timers, armed well ahead and
//! by the driver itself: the core stands still for good only if glommio is preempted at that very point as many times in
//! a row as there are rungs, and every rung is there before the first chance.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use glommio::timer::Timer;

/// Timers armed ahead. Were glommio preempted there every other time, which takes a preemption timer a thousand times
/// shorter than its default, it would happen 32 times in a row once in four thousand million.
const RUNGS: u32 = 32;
/// A faster heart would only cost.
const EVERY_MIN: Duration = Duration::from_millis(1);

/// The ladder. Belongs to the task that it wakes.
pub(crate) struct Heartbeat {
    every: Duration,
    rungs: VecDeque<Rung>,
}

struct Rung {
    due: Instant,
    _armed: Timer,
}

impl Heartbeat {
    /// A ladder with a rung for every `every`, yet to be armed.
    pub(crate) fn new(every: Duration) -> Self {
        Self { every: every.max(EVERY_MIN), rungs: VecDeque::new() }
    }

    /// Replaces what has passed by new rungs at the far end. On a glommio thread; the timers wake `host`.
    pub(crate) fn arm(&mut self, now: Instant, host: &Waker) {
        while self.rungs.front().is_some_and(|rung| rung.due <= now) {
            self.rungs.pop_front();
        }
        let armed = self.rungs.len() as u32;
        let last = self.rungs.back().map_or(now, |rung| rung.due);
        for step in 1..=RUNGS - armed {
            let due = last + self.every * step;
            let mut timer = Timer::new(due - now);
            // The first poll is what arms it.
            let polled = Pin::new(&mut timer).poll(&mut Context::from_waker(host));
            if polled.is_pending() {
                self.rungs.push_back(Rung { due, _armed: timer });
            }
        }
    }
}
