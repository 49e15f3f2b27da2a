//! When the next generation is published. The first change after a pause goes out at once; a storm goes out in
//! generations no closer than [`APART_MIN`], and never so close that publishing takes more than a share of the thread.
//! Pure: the time comes in. What is published is always all that has changed, so nothing is ever late by more than one
//! interval.

use std::time::{Duration, Instant};

/// Generations are at least so far apart: 50 in a second. A core takes one in microseconds, and looks at its connections
/// again after each.
pub(crate) const APART_MIN: Duration = Duration::from_millis(20);
/// And at least so many times the cost of the last one, so that publishing takes no more than a twentieth of the thread.
const COSTS_APART: u32 = 20;
/// But never further than this, whatever one costs.
pub(crate) const APART_MAX: Duration = Duration::from_secs(1);

/// The pace.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// Since when there is something new.
    changed_at: Option<Instant>,
    /// Not before.
    free_at: Option<Instant>,
}

impl Pacer {
    /// Something is different.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.changed_at.get_or_insert(now);
    }

    /// When the next generation is due; `None` while there is nothing new.
    pub(crate) fn due(&self) -> Option<Instant> {
        let changed_at = self.changed_at?;
        Some(self.free_at.map_or(changed_at, |free_at| free_at.max(changed_at)))
    }

    /// Whether it is due now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// A generation with all changes was published until now, at a cost of so much of the thread's time.
    pub(crate) fn published(&mut self, now: Instant, cost: Duration) {
        self.changed_at = None;
        self.free_at = Some(now + (cost * COSTS_APART).clamp(APART_MIN, APART_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_change_is_due_at_once_and_nothing_is_due_without_one() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        assert_eq!(pacer.due(), None);
        pacer.changed(start);
        assert!(pacer.is_due(start));
        pacer.published(start, Duration::ZERO);
        assert_eq!(pacer.due(), None);
        pacer.changed(start + APART_MIN * 2);
        assert!(pacer.is_due(start + APART_MIN * 2), "after a pause it is as the first");
    }

    #[test]
    fn a_storm_goes_out_at_a_bounded_rate_and_no_change_waits_longer_than_one_interval() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        let (mut published, mut oldest, mut longest) = (0, None, Duration::ZERO);
        for tick in 0..10_000_u32 {
            let now = start + MS / 10 * tick;
            pacer.changed(now);
            oldest.get_or_insert(now);
            if pacer.is_due(now) {
                published += 1;
                longest = longest.max(now - oldest.take().expect("there is a change"));
                pacer.published(now, MS / 10);
            }
        }
        assert_eq!(published, 50, "in a second");
        assert!(longest <= APART_MIN, "{longest:?}");
    }

    #[test]
    fn what_costs_much_is_published_less_often() {
        for (cost, apart) in [(MS, APART_MIN), (MS * 10, MS * 200), (MS * 1000, APART_MAX)] {
            let (mut pacer, start) = (Pacer::default(), Instant::now());
            pacer.published(start, cost);
            pacer.changed(start);
            assert_eq!(pacer.due(), Some(start + apart), "{cost:?}");
        }
    }
}
