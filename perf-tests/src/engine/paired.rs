//! Ratios of what is measured in the same round, and how far they spread. Not means, and no ratio of medians.

/// The ratios of some rounds.
#[derive(Clone, Debug, Default)]
pub struct Paired(Vec<f64>);

impl Paired {
    /// Adds a round.
    pub fn add(&mut self, ours: f64, theirs: f64) {
        self.0.push(ours / theirs);
        self.0.sort_by(f64::total_cmp);
    }

    /// Lower quartile, median, upper quartile, each interpolated. Not numbers when there was no round.
    #[must_use]
    pub fn quartiles(&self) -> [f64; 3] {
        [0.25, 0.5, 0.75].map(|place| {
            let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
            let place = place * last as f64;
            let (low, high) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
            low + (high - low) * place.fract()
        })
    }

    /// Whether the quartiles are more than a sixth of the median apart: then less than that can't be told.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        let [low, median, high] = self.quartiles();
        (high - low) * 6.0 > median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_ratios_and_an_outlier_only_widens() {
        let mut paired = Paired::default();
        for (ours, theirs) in [(8.0, 10.0), (80.0, 100.0), (9.0, 10.0), (7.0, 10.0), (800.0, 10.0)] {
            paired.add(ours, theirs);
        }
        assert_eq!(paired.quartiles(), [0.8, 0.8, 0.9]);
        assert!(!paired.is_wide());
        paired.add(50.0, 10.0);
        assert!(paired.is_wide());
        assert!(Paired::default().quartiles()[1].is_nan());
    }
}
