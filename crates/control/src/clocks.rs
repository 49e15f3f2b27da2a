//! Two clocks: waits here are timed by the runtime's, which stands still while the machine is suspended and which nobody but a
//! test can set, and certificates end by the wall clock.

use std::time::{Duration, Instant, SystemTime};

/// The time by which everything here waits.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Resolves at `due`, or never.
pub(crate) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Less is no leap: clocks are disciplined.
const LEAP_MIN: Duration = Duration::from_secs(10);

/// How often somebody has to look.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Both, when they last went together. Pure: the times come in.
#[derive(Debug)]
pub(crate) struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
    looked_at: Instant,
}

impl Clocks {
    pub(crate) fn new(monotonic: Instant, wall: SystemTime) -> Self {
        Self { monotonic, wall, looked_at: monotonic }
    }

    /// How far the wall clock has come ahead since it was last told, if that is a leap. One that was set back makes
    /// certificates last longer, which nobody has to be told.
    pub(crate) fn leap(&mut self, monotonic: Instant, wall: SystemTime) -> Option<Duration> {
        self.looked_at = monotonic;
        let passed = monotonic.saturating_duration_since(self.monotonic);
        let ahead = match wall.duration_since(self.wall + passed) {
            Ok(ahead) if ahead < LEAP_MIN => return None,
            Ok(ahead) => Some(ahead),
            Err(behind) if behind.duration() < LEAP_MIN => return None,
            Err(_) => None,
        };
        (self.monotonic, self.wall) = (monotonic, wall);
        ahead
    }

    /// When to look again.
    pub(crate) fn next_due(&self) -> Instant {
        self.looked_at + LOOK_EVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_is_told_once_and_a_clock_that_is_set_back_is_followed() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        let mut clocks = Clocks::new(start, wall);
        let s = Duration::from_secs;
        // How much has passed by either, and the leap that is told.
        for (monotonic, by_wall, told) in [
            (1, 1, None),
            (100, 105, None),
            (200, 3_800, Some(3_600)),
            (201, 3_801, None),
            (300, 400, None),
            (301, 401, None),
            (302, 432, Some(30)),
        ] {
            assert_eq!(clocks.leap(start + s(monotonic), wall + s(by_wall)), told.map(s), "{monotonic} {by_wall}");
            assert_eq!(clocks.next_due(), start + s(monotonic) + LOOK_EVERY);
        }
    }
}
