//! Virtual time: it stands still while anything can run, and then jumps to the next thing that is due.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    task::Waker,
    time::{Duration, Instant},
};

/// The clock of one world.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    passed: Cell<Duration>,
    /// By time, then by order of arming, so that equal times ring in a fixed order.
    alarms: RefCell<BTreeMap<(Duration, u64), Waker>>,
    armed: Cell<u64>,
}

/// An armed alarm's name.
pub(super) type Alarm = (Duration, u64);

impl Clock {
    pub(super) fn new() -> Self {
        // The one reading of a real clock: only differences to it are ever seen.
        Self { start: Instant::now(), passed: Cell::default(), alarms: RefCell::default(), armed: Cell::default() }
    }

    pub(super) fn now(&self) -> Instant {
        self.start + self.passed.get()
    }

    /// How much virtual time has passed since the world began.
    pub(super) fn passed(&self) -> Duration {
        self.passed.get()
    }

    /// Wakes `waker` at `deadline`.
    pub(super) fn arm(&self, deadline: Instant, waker: Waker) -> Alarm {
        let alarm = (deadline.saturating_duration_since(self.start), self.armed.get());
        self.armed.set(self.armed.get() + 1);
        self.alarms.borrow_mut().insert(alarm, waker);
        alarm
    }

    pub(super) fn disarm(&self, alarm: Alarm) {
        self.alarms.borrow_mut().remove(&alarm);
    }

    /// Jumps to the next alarm and rings it; `false` when none is armed.
    pub(super) fn jump(&self) -> bool {
        let Some(((due, _), waker)) = self.alarms.borrow_mut().pop_first() else { return false };
        self.passed.set(self.passed.get().max(due));
        waker.wake();
        true
    }
}
