//! What can be seen of a core from any thread, while it runs and after.

use std::{sync::Arc, time::Duration};

use crate::{
    Account,
    accounts::Accounts,
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
