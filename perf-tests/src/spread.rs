//! How durations are spread: a histogram of nanoseconds, three digits exact, up to a minute. Not what the durations are of.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer ones count as this long.
const LONGEST: Duration = Duration::from_secs(60);

/// Recorded durations. About 200 KiB.
#[derive(Clone, Debug)]
pub struct Spread {
    nanoseconds: Histogram<u64>,
}

impl Default for Spread {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).expect("a minute of nanoseconds fits");
        Self { nanoseconds: Histogram::new_with_bounds(1, longest, 3).expect("the bounds are valid") }
    }
}

impl Spread {
    /// Records one duration.
    pub fn record(&mut self, duration: Duration) {
        self.nanoseconds.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Takes in what another recorded.
    pub fn add(&mut self, other: &Self) {
        self.nanoseconds.add(&other.nanoseconds).expect("the bounds are the same");
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// The duration that `quantile` of all (0.5, 0.99) do not exceed; zero when there are none.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.nanoseconds.value_at_quantile(quantile))
    }

    /// The longest; zero when there are none.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_three_digits_over_merged_halves() {
        let (mut low, mut high) = (Spread::default(), Spread::default());
        (1..=500).for_each(|n| low.record(Duration::from_micros(n)));
        (501..=1000).for_each(|n| high.record(Duration::from_micros(n)));
        low.add(&high);
        assert_eq!(low.count(), 1000);
        for (quantile, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = low.quantile(quantile).as_secs_f64() * 1e6;
            assert!((found / expected - 1.0).abs() < 0.002, "{quantile}: {found} us, not {expected}");
        }
        assert!(low.longest() >= Duration::from_millis(1));
    }

    #[test]
    fn what_is_longer_than_the_longest_counts_as_that() {
        let mut spread = Spread::default();
        spread.record(Duration::from_secs(600));
        assert_eq!(spread.count(), 1);
        assert!(spread.longest() >= LONGEST && spread.longest() < LONGEST * 2);
    }
}
