//! A core's time: instants to ticks of the wheel, and the future that waits for one.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::wheel::{TimerKey, Wheel};

/// The grain of all timers: coarse, because what they bound are seconds, and a finer grain wakes cores more often.
const TICK: Duration = Duration::from_millis(1);

/// The timers of a core.
pub(crate) struct Timers {
    origin: Instant,
    wheel: RefCell<Wheel<Waker>>,
    over_limit: Cell<u64>,
}

impl Timers {
    /// No timers, at most `timers_max`.
    pub(crate) fn new(timers_max: usize) -> Self {
        Self { origin: Instant::now(), wheel: RefCell::new(Wheel::new(timers_max)), over_limit: Cell::new(0) }
    }

    /// Puts the wakers of all timers that are due at `now` into `due`.
    pub(crate) fn expire(&self, now: Instant, due: &mut Vec<Waker>) {
        self.wheel.borrow_mut().advance(self.passed(now), |waker| due.push(waker));
    }

    /// When [`Timers::expire`] should be called next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let tick = self.wheel.borrow().next_tick()?;
        Some(self.origin + Duration::from_millis(tick))
    }

    /// How many timers are armed.
    pub(crate) fn armed(&self) -> usize {
        self.wheel.borrow().armed()
    }

    /// How often a sleep found the wheel full.
    pub(crate) fn over_limit(&self) -> u64 {
        self.over_limit.get()
    }

    /// The last tick that has passed at `now`.
    fn passed(&self, now: Instant) -> u64 {
        let ticks = now.saturating_duration_since(self.origin).as_nanos() / TICK.as_nanos();
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The first tick not before `deadline`, so that nobody is woken early.
    fn covering(&self, deadline: Instant) -> u64 {
        let ticks = deadline.saturating_duration_since(self.origin).as_nanos().div_ceil(TICK.as_nanos());
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// Resolves at its deadline. When the wheel is full it polls instead: it still resolves in time, but the core does not
/// park meanwhile.
pub(crate) struct Sleep {
    timers: Rc<Timers>,
    deadline: Instant,
    armed: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(timers: Rc<Timers>, deadline: Instant) -> Self {
        Self { timers, deadline, armed: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let waker = context.waker();
        if let Some(key) = this.armed {
            match this.timers.wheel.borrow_mut().payload_mut(key) {
                Some(known) => {
                    known.clone_from(waker);
                    return Poll::Pending;
                }
                None => this.armed = None,
            }
        }
        if Instant::now() >= this.deadline {
            return Poll::Ready(());
        }
        let tick = this.timers.covering(this.deadline);
        match this.timers.wheel.borrow_mut().insert(tick, waker.clone()) {
            Ok(key) => this.armed = Some(key),
            Err(waker) => {
                this.timers.over_limit.set(this.timers.over_limit.get() + 1);
                waker.wake();
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.armed {
            let waker = self.timers.wheel.borrow_mut().cancel(key);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_covered_by_the_first_tick_that_is_not_before_it() {
        let timers = Timers::new(1);
        for (after_us, covering, passed) in [(0, 0, 0), (1, 1, 0), (999, 1, 0), (1_000, 1, 1), (1_001, 2, 1)] {
            let instant = timers.origin + Duration::from_micros(after_us);
            assert_eq!((timers.covering(instant), timers.passed(instant)), (covering, passed), "{after_us} us");
        }
    }

    #[test]
    fn time_before_the_origin_is_its_beginning() {
        let timers = Timers::new(1);
        let Some(before) = timers.origin.checked_sub(Duration::from_secs(1)) else {
            return;
        };
        assert_eq!((timers.covering(before), timers.passed(before)), (0, 0));
    }
}
