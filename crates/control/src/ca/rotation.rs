//! When each identity's certificate is to be issued next. Pure: the time and the draws come in, and it issues nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mesh_state::identity::Identity;

/// The first wait after a failure; it doubles.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest wait after a failure.
const WAIT_MAX: Duration = Duration::from_secs(150);

/// The identities that certificates are kept for.
#[derive(Debug, Default)]
pub struct Rotation(HashMap<Identity, State>);

#[derive(Debug, Clone)]
struct State {
    due: Instant,
    /// When the certificate in use ends; `None` when there is none.
    ends: Option<Instant>,
    failures: u32,
}

/// What becomes of an identity whose certificate could not be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// The certificate in use is good; go on with it.
    Keep,
    /// There is none, or it has ended: tell the cores.
    Unavailable,
}

impl Rotation {
    /// Wants a certificate for `identity`, now if there is none yet. Says whether it is new.
    pub fn want(&mut self, identity: &Identity, now: Instant) -> bool {
        if self.0.contains_key(identity) {
            return false;
        }
        self.0.insert(identity.clone(), State { due: now, ends: None, failures: 0 });
        true
    }

    /// All that certificates are kept for.
    pub fn identities(&self) -> Vec<Identity> {
        self.0.keys().cloned().collect()
    }

    /// No pod is of `identity` any more.
    pub fn forget(&mut self, identity: &Identity) {
        self.0.remove(identity);
    }

    /// When the next certificate is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|state| state.due).min()
    }

    /// Identities whose certificate is due.
    pub fn due(&self, now: Instant) -> Vec<Identity> {
        self.0.iter().filter(|(_, state)| state.due <= now).map(|(identity, _)| identity.clone()).collect()
    }

    /// A certificate was issued that is good for `lifetime` from now. The next is due around half of it, spread by
    /// `draw` over a tenth, so that certificates issued together are not renewed together.
    pub fn issued(&mut self, identity: &Identity, now: Instant, lifetime: Duration, draw: u64) {
        if let Some(state) = self.0.get_mut(identity) {
            // Not at once, however short the life: a root about to end would have us issue without end.
            let wait = (lifetime / 2).max(WAIT_MIN);
            *state = State { due: now + spread(wait, 10, draw), ends: Some(now + lifetime), failures: 0 };
        }
    }

    /// None was issued: try again later, later each time.
    pub fn failed(&mut self, identity: &Identity, now: Instant, draw: u64) -> AfterFailure {
        let Some(state) = self.0.get_mut(identity) else { return AfterFailure::Keep };
        let wait = (WAIT_MIN * 2_u32.saturating_pow(state.failures.min(16))).min(WAIT_MAX);
        state.failures = state.failures.saturating_add(1);
        state.due = now + spread(wait, 20, draw).min(WAIT_MAX);
        match state.ends {
            Some(ends) if ends > now => {
                state.due = state.due.min(ends);
                AfterFailure::Keep
            }
            _ => AfterFailure::Unavailable,
        }
    }
}

/// `middle`, moved by up to so many per cent either way.
fn spread(middle: Duration, per_cent: u32, draw: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a spread needs no more than 52 bits")]
    let draw = draw as f64 / u64::MAX as f64;
    middle.mul_f64(1.0 + f64::from(per_cent) / 100.0 * (2.0 * draw - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Identity {
        Identity::new("cluster.local", "retail", "web").expect("a good identity")
    }

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_certificate_is_renewed_around_half_of_its_life() {
        let start = Instant::now();
        for (draw, least, most) in [(0, 0.449, 0.451), (u64::MAX / 2, 0.499, 0.501), (u64::MAX, 0.549, 0.551)] {
            let mut rotation = Rotation::default();
            assert!(rotation.want(&web(), start));
            assert_eq!(rotation.due(start), [web()]);
            rotation.issued(&web(), start, DAY, draw);
            assert!(rotation.due(start + DAY.mul_f64(least)).is_empty(), "{draw}");
            assert_eq!(rotation.due(start + DAY.mul_f64(most)), [web()], "{draw}");
            assert!(!rotation.want(&web(), start), "wanted already");
        }
    }

    #[test]
    fn a_certificate_that_is_about_to_end_is_not_renewed_without_pause() {
        let start = Instant::now();
        let mut rotation = Rotation::default();
        rotation.want(&web(), start);
        rotation.issued(&web(), start, Duration::ZERO, 0);
        assert!(rotation.next_due().expect("wanted") >= start + WAIT_MIN / 2);
    }

    #[test]
    fn a_failure_keeps_the_certificate_until_it_ends_and_waits_longer_each_time() {
        let start = Instant::now();
        let mut rotation = Rotation::default();
        rotation.want(&web(), start);
        rotation.issued(&web(), start, DAY, u64::MAX / 2);
        let mut now = start + DAY / 2;
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(rotation.failed(&web(), now, u64::MAX / 2), AfterFailure::Keep);
            let due = rotation.next_due().expect("wanted");
            waits.push((due - now).as_secs_f64().round());
            now = due;
        }
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0]);
        assert_eq!(rotation.failed(&web(), start + DAY, 0), AfterFailure::Unavailable);
    }

    #[test]
    fn without_a_certificate_a_failure_is_told_and_success_starts_anew() {
        let start = Instant::now();
        let mut rotation = Rotation::default();
        rotation.want(&web(), start);
        for _ in 0..40 {
            assert_eq!(rotation.failed(&web(), start, u64::MAX), AfterFailure::Unavailable);
        }
        assert!(rotation.next_due().expect("wanted") <= start + WAIT_MAX);
        rotation.issued(&web(), start, DAY, 0);
        rotation.failed(&web(), start, u64::MAX / 2);
        assert!(rotation.next_due().expect("wanted") < start + Duration::from_secs(2));
        rotation.forget(&web());
        assert_eq!(rotation.next_due(), None);
    }
}
