//! How much of asking again about live connections is done at once. After a slice the tasks of tenants have their turns. Pure:
//! the time comes in.

use std::time::{Duration, Instant};

/// Connections looked at between two looks at the clock.
pub(crate) const STEP: usize = 8;

/// Connections looked at in one slice, if they take no longer than [`TIME`].
const CONNECTIONS: usize = 64;

/// A slice ends after so long however few were looked at: a verdict may ask thousands of policies. It lasts one step longer at
/// most.
const TIME: Duration = Duration::from_micros(50);

/// A slice under way.
#[derive(Debug)]
pub(crate) struct Slice {
    begun: Instant,
    looked_at: usize,
}

impl Slice {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { begun: now, looked_at: 0 }
    }

    /// So many more were looked at, be it only to find a pod not to be concerned. How long the slice took, if it is over.
    pub(crate) fn step(&mut self, looked_at: usize, now: Instant) -> Option<Duration> {
        self.looked_at += looked_at;
        let took = self.took(now);
        (self.looked_at >= CONNECTIONS || took >= TIME).then_some(took)
    }

    /// How long it has taken so far.
    pub(crate) fn took(&self, now: Instant) -> Duration {
        now.duration_since(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_ends_after_its_connections_or_its_time_whichever_is_first() {
        let us = Duration::from_micros;
        for (a_step_takes, steps) in [(us(0), 8), (us(1), 8), (us(10), 5), (us(49), 2), (us(900), 1)] {
            let begun = Instant::now();
            let mut slice = Slice::begin(begun);
            let ended = (1..100).find(|step| slice.step(STEP, begun + a_step_takes * *step).is_some());
            assert_eq!(ended, Some(steps), "{a_step_takes:?}");
            assert_eq!(slice.took(begun + a_step_takes), a_step_takes);
        }
    }
}
