//! Which identity's certificate is to be issued next, and when. Pure: the time and the draws come in, and it issues nothing.
//!
//! At most so many are asked for at once; those that a connection waits for come before those of new pods, and these
//! before renewals. Renewals are spread: the first certificate of an identity is renewed at any time up to half of its
//! life, away from the others', and later ones at half of it, so what was issued at one time is never renewed at one time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mesh_state::identity::Identity;

/// The first wait after a failure; it doubles.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest wait after a failure.
const WAIT_MAX: Duration = Duration::from_secs(150);
/// Certificates that are asked for at once.
pub const IN_FLIGHT_MAX: usize = 8;
/// When the first certificate of an identity is renewed, and when later ones are, in parts of the life that is left.
/// From the start of the first to its end is nearly the time between later ones: so if all are issued at one moment, they
/// are spread evenly from then on.
const FIRST_RENEWAL: (f64, f64) = (0.02, 0.5);
const LATER_RENEWAL: (f64, f64) = (0.45, 0.5);
/// Moments that are tried for a renewal; the one furthest from all others is taken.
const CANDIDATES: u64 = 8;

/// How urgent a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// The one in use will end some time.
    Renewal,
    /// A pod is here and nobody has asked yet.
    Warmup,
    /// A connection waits.
    Connection,
}

/// The identities that certificates are kept for.
#[derive(Debug)]
pub struct Rotation {
    identities: HashMap<Identity, State>,
    tickets: u64,
    in_flight: usize,
    in_flight_max: usize,
}

#[derive(Debug, Clone)]
struct State {
    due: Instant,
    priority: Priority,
    /// When the certificate in use ends; `None` when there is none.
    ends: Option<Instant>,
    failures: u32,
    asked: Option<Ticket>,
}

/// One request for a certificate, so that an answer to an earlier one is known for what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// What becomes of an identity whose certificate could not be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// The certificate in use is good, or nobody wants one any more; go on.
    Keep,
    /// There is none, or it has ended: tell the cores.
    Unavailable,
}

impl Default for Rotation {
    fn default() -> Self {
        Self::with_limit(IN_FLIGHT_MAX)
    }
}

impl Rotation {
    /// With so many certificates asked for at once.
    pub fn with_limit(in_flight_max: usize) -> Self {
        Self { identities: HashMap::new(), tickets: 0, in_flight: 0, in_flight_max }
    }

    /// Wants a certificate for `identity`: now if there is none yet, and before others if it is more urgent than it was.
    pub fn want(&mut self, identity: &Identity, priority: Priority, now: Instant) {
        match self.identities.get_mut(identity) {
            // It waits its turn, or for the time after a failure. A good certificate is not made better by a wish.
            Some(state) if state.ends.is_none_or(|ends| ends <= now) => state.priority = state.priority.max(priority),
            Some(_) => {}
            None => {
                let state = State { due: now, priority, ends: None, failures: 0, asked: None };
                self.identities.insert(identity.clone(), state);
            }
        }
    }

    /// The CA may have other roots than before, which only its answers tell: the certificate that is renewed next is
    /// renewed now. One, since what it brings is believed by all.
    pub fn hasten(&mut self, now: Instant) {
        let held = self.identities.values_mut().filter(|state| state.ends.is_some() && state.asked.is_none());
        if let Some(next) = held.min_by_key(|state| state.due) {
            next.due = next.due.min(now);
        }
    }

    /// Certificates have aged by so much more than the time that has passed here: what is due within it is due now.
    pub fn leap(&mut self, leap: Duration, now: Instant) {
        let sooner = |at: Instant| now + at.saturating_duration_since(now).saturating_sub(leap);
        for state in self.identities.values_mut() {
            state.due = sooner(state.due);
            state.ends = state.ends.map(sooner);
        }
    }

    /// All that certificates are kept for.
    pub fn identities(&self) -> Vec<Identity> {
        self.identities.keys().cloned().collect()
    }

    /// No pod is of `identity` any more. An answer that is under way is no longer wanted.
    pub fn forget(&mut self, identity: &Identity) {
        self.identities.remove(identity);
    }

    /// When [`Rotation::start`] has something to start; never while as many are asked for as may be.
    pub fn next_due(&self) -> Option<Instant> {
        if self.in_flight >= self.in_flight_max {
            return None;
        }
        self.waiting().map(|(_, state)| state.due).min()
    }

    /// The identity to ask a certificate for now, if any.
    pub fn start(&mut self, now: Instant) -> Option<(Identity, Ticket)> {
        if self.in_flight >= self.in_flight_max {
            return None;
        }
        let due = self.waiting().filter(|(_, state)| state.due <= now);
        let (identity, _) = due.max_by(|(one, a), (other, b)| {
            a.priority.cmp(&b.priority).then(b.due.cmp(&a.due)).then_with(|| other.cmp(one))
        })?;
        let identity = identity.clone();
        self.tickets += 1;
        self.in_flight += 1;
        let ticket = Ticket(self.tickets);
        self.identities.get_mut(&identity).expect("found a moment ago").asked = Some(ticket);
        Some((identity, ticket))
    }

    /// A certificate was issued that is good for `lifetime` from now. Says whether it is still wanted.
    pub fn issued(&mut self, identity: &Identity, ticket: Ticket, now: Instant, lifetime: Duration, draw: u64) -> bool {
        let Some(state) = self.answered(identity, ticket) else { return false };
        let (from, to) = if state.ends.is_none() { FIRST_RENEWAL } else { LATER_RENEWAL };
        // Not at once, however short the life: a root about to end would have us ask without end.
        let moment = |draw: u64| {
            let part = from + (to - from) * fraction(draw);
            now + lifetime.mul_f64(part).max(WAIT_MIN)
        };
        let due = (0..CANDIDATES)
            .map(|nth| moment(mixed(draw, nth)))
            .max_by_key(|moment| self.distance_to_nearest(*moment))
            .expect("there are some");
        let priority = Priority::Renewal;
        let state = State { due, priority, ends: Some(now + lifetime), failures: 0, asked: None };
        self.identities.insert(identity.clone(), state);
        true
    }

    /// None was issued: try again later, later each time.
    pub fn failed(&mut self, identity: &Identity, ticket: Ticket, now: Instant, draw: u64) -> AfterFailure {
        if self.answered(identity, ticket).is_none() {
            return AfterFailure::Keep;
        }
        let state = self.identities.get_mut(identity).expect("it was answered");
        let wait = (WAIT_MIN * 2_u32.saturating_pow(state.failures.min(16))).min(WAIT_MAX);
        state.failures = state.failures.saturating_add(1);
        state.due = now + wait.mul_f64(0.8 + 0.4 * fraction(draw)).min(WAIT_MAX);
        match state.ends {
            Some(ends) if ends > now => {
                state.due = state.due.min(ends);
                AfterFailure::Keep
            }
            _ => {
                state.ends = None;
                state.priority = state.priority.max(Priority::Warmup);
                AfterFailure::Unavailable
            }
        }
    }

    fn waiting(&self) -> impl Iterator<Item = (&Identity, &State)> {
        self.identities.iter().filter(|(_, state)| state.asked.is_none())
    }

    /// Takes note that a request is over; gives the state if that is still wanted.
    fn answered(&mut self, identity: &Identity, ticket: Ticket) -> Option<State> {
        self.in_flight -= 1;
        let state = self.identities.get_mut(identity).filter(|state| state.asked == Some(ticket))?;
        state.asked = None;
        Some(state.clone())
    }

    fn distance_to_nearest(&self, moment: Instant) -> Duration {
        let distance = |state: &State| moment.max(state.due) - moment.min(state.due);
        let others = self.identities.values().filter(|state| state.ends.is_some());
        others.map(distance).min().unwrap_or(Duration::MAX)
    }
}

/// A draw as a part of 1.
fn fraction(draw: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a spread needs no more than 52 bits")]
    let fraction = draw as f64 / u64::MAX as f64;
    fraction
}

/// The nth draw of a draw (splitmix64).
fn mixed(draw: u64, nth: u64) -> u64 {
    let z = draw.wrapping_add(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
