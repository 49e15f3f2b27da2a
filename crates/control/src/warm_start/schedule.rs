//! When the file is written. Pure: the time comes in.
//!
//! After a change, and as long as there is a stream now and then without one: a file says how old its mesh may be, and a
//! mesh that the control plane would have told us of otherwise is as good as new.

use std::time::{Duration, Instant};

/// Between the end of one writing and the begin of the next: a storm of changes is written once in it.
pub(crate) const APART_MIN: Duration = Duration::from_secs(10);
/// And at least so many times what the last one took, so that the thread that writes has at most 2 % of a CPU.
const COSTS_APART: u32 = 50;
/// Written again after so long even without a change, while there is a stream.
pub(crate) const REFRESH_AFTER: Duration = Duration::from_secs(300);

/// The plan.
#[derive(Debug)]
pub(crate) struct Schedule {
    changed: bool,
    writing: bool,
    /// Not before.
    free_at: Instant,
    refresh_at: Instant,
}

impl Schedule {
    /// Nothing has changed.
    pub(crate) fn new(now: Instant) -> Self {
        Self { changed: false, writing: false, free_at: now, refresh_at: now + REFRESH_AFTER }
    }

    /// The mesh is another.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    /// Whether there is something that was not written.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    /// When the next writing is due.
    pub(crate) fn next_due(&self, connected: bool) -> Option<Instant> {
        if self.writing {
            return None;
        }
        let refresh = connected.then_some(self.refresh_at);
        let changed = self.changed.then_some(self.free_at);
        changed.or(refresh).map(|due| due.max(self.free_at))
    }

    /// It begins.
    pub(crate) fn begun(&mut self) {
        (self.changed, self.writing) = (false, true);
    }

    /// It has ended, and took so long.
    pub(crate) fn ended(&mut self, now: Instant, took: Duration) {
        self.writing = false;
        self.free_at = now + APART_MIN.max(took * COSTS_APART);
        self.refresh_at = now + REFRESH_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_storm_is_written_at_a_bounded_rate_and_one_that_costs_much_less_often() {
        for (took, expected) in [(Duration::ZERO, 60), (SECOND, 12)] {
            let (start, mut writings) = (Instant::now(), 0);
            let mut schedule = Schedule::new(start);
            let mut now = start;
            while now < start + SECOND * 600 {
                schedule.changed();
                if schedule.next_due(true).is_some_and(|due| due <= now) {
                    schedule.begun();
                    assert_eq!(schedule.next_due(true), None, "one at a time");
                    now += took;
                    schedule.ended(now, took);
                    writings += 1;
                }
                now += SECOND / 10;
            }
            assert!((expected - 2..=expected).contains(&writings), "{writings} for {took:?}");
        }
    }

    #[test]
    fn without_a_change_it_is_written_again_only_while_there_is_a_stream() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert_eq!(schedule.next_due(false), None);
        assert_eq!(schedule.next_due(true), Some(start + REFRESH_AFTER));
        schedule.changed();
        assert_eq!(schedule.next_due(false), Some(start), "the first change at once");
        schedule.begun();
        schedule.changed();
        schedule.ended(start, Duration::ZERO);
        assert_eq!(schedule.next_due(false), Some(start + APART_MIN), "what changed meanwhile is written, too");
    }
}
