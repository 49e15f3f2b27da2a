//! What can be seen of a core from any thread, while it runs and after.

use std::{sync::Arc, time::Duration};

use crate::{
    Account, Counts,
    accounts::{Accounts, Count},
    decisions::{Decision, Decisions},
    pulse::Pulse,
};

/// A core seen from elsewhere. Looking costs the core nothing; clones see the same core.
#[derive(Clone, Debug)]
pub struct CoreView {
    pub(crate) name: Arc<str>,
    pub(crate) accounts: Accounts,
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) counts: Arc<CountCells>,
}

/// What a core holds and has done, as it said last.
#[derive(Debug, Default)]
pub(crate) struct CountCells([Count; Counts::NUMBERS]);

impl CountCells {
    /// Only the core's thread may.
    pub(crate) fn write(&self, counts: &Counts) {
        self.0.iter().zip(counts.numbers()).for_each(|(cell, number)| cell.set(number));
    }
}

impl CoreView {
    /// The core's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What each tenant has used so far; the core itself is the first.
    pub fn accounts(&self) -> Vec<Account> {
        self.accounts.read()
    }

    /// The last turns, the earliest first: at most 1024.
    pub fn decisions(&self) -> Vec<Decision> {
        self.decisions.read()
    }

    /// What the core holds and has done so far, as of the last 20 ms that it worked, or as it went to sleep.
    pub fn counts(&self) -> Counts {
        Counts::of_numbers(std::array::from_fn(|number| self.counts.0[number].read()))
    }

    /// The longest time the core took for one thing (a poll, an entry into the kernel) within the last half minute to
    /// minute: as long nobody else was served.
    pub fn longest_gap(&self) -> Duration {
        self.pulse.longest_gap()
    }

    /// How often the [`watchdog`](crate::watchdog) found the core standing still.
    pub fn stalls(&self) -> u64 {
        self.pulse.stalls.read()
    }
}
