//! How long to wait before trying again: doubling, and spread so that nodes which lost the same server do not come back
//! together. Pure: the draw comes in.

use std::time::Duration;

/// A wait that doubles from `min` to `max`.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// One that begins with `min`.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The next wait, somewhere between its half and the whole.
    pub(crate) fn wait(&mut self, draw: u64) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        #[expect(clippy::cast_precision_loss, reason = "a spread needs no more than 52 bits")]
        whole.mul_f64(0.5 + 0.5 * (draw as f64 / u64::MAX as f64))
    }

    /// It worked: begin anew.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let (min, max) = (Duration::from_millis(10), Duration::from_secs(15));
        let mut backoff = Backoff::new(min, max);
        let waits: Vec<u128> = (0..13).map(|_| backoff.wait(u64::MAX).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000]);
        backoff.reset();
        assert_eq!(backoff.wait(0), min / 2, "the least draw is half");
        assert_eq!(backoff.wait(u64::MAX / 2).as_millis(), 15, "and a middle one three quarters, of 20");
    }
}
