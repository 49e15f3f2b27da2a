//! What each tenant has used of a core, in cells that the core alone writes and any thread reads.
//!
//! A cell is a number with one writer, so counting is a load and a store. The accounts of a core are a list that only
//! grows: whoever holds its head walks to the end, and sees what the core opened meanwhile. No lock, no message, and
//! nothing for the core to do when somebody looks.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::tenant::{Row, TenantKey};

/// Upper bounds of the classes of [`Account::waits`]; one more class takes the rest.
pub const WAIT_BOUNDS: [Duration; 12] = {
    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }
    [
        us(10),
        us(20),
        us(50),
        us(100),
        us(200),
        us(500),
        us(1_000),
        us(2_000),
        us(5_000),
        us(10_000),
        us(50_000),
        us(200_000),
    ]
};
const WAIT_CLASSES: usize = WAIT_BOUNDS.len() + 1;

/// What a tenant has used of a core by some moment. Numbers of one account may be some operations apart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// Whose account.
    pub tenant: TenantKey,
    /// What the tenant is called, if the core was told.
    pub name: Option<Arc<str>>,
    /// Time its tasks ran, system calls of their own included, in nanoseconds.
    pub user_ns: u64,
    /// Its part of the time that the kernel spent on the core's requests, in nanoseconds.
    pub kernel_ns: u64,
    /// Turns it had.
    pub turns: u64,
    /// How often its tasks were polled.
    pub polls: u64,
    /// Socket operations completed.
    pub operations: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// How long its turns were waited for, counted by [`WAIT_BOUNDS`]. What is measured begins when the core saw that
    /// there was something to do.
    pub waits: [u64; WAIT_CLASSES],
    /// The sum of that, in nanoseconds.
    pub waited_ns: u64,
}

impl Account {
    /// All of its time.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        self.user_ns + self.kernel_ns
    }

    /// Adds what another account has, for a sum of several tenants.
    pub fn add(&mut self, other: &Self) {
        self.user_ns += other.user_ns;
        self.kernel_ns += other.kernel_ns;
        self.turns += other.turns;
        self.polls += other.polls;
        self.operations += other.operations;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.waits.iter_mut().zip(other.waits).for_each(|(sum, more)| *sum += more);
        self.waited_ns += other.waited_ns;
    }
}

/// A number with one writer.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, by: u64) {
        // One writer: a plain load and store cannot lose a count, and needs no locked instruction.
        self.0.store(self.read().wrapping_add(by), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The cells of one account.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Cells {
    pub(crate) user_ns: Count,
    pub(crate) kernel_ns: Count,
    pub(crate) turns: Count,
    pub(crate) polls: Count,
    pub(crate) operations: Count,
    pub(crate) received_bytes: Count,
    pub(crate) sent_bytes: Count,
    waits: [Count; WAIT_CLASSES],
    waited_ns: Count,
    tenant: TenantKey,
    name: OnceLock<Arc<str>>,
    next: OnceLock<Arc<Cells>>,
}

impl Cells {
    fn of(tenant: TenantKey) -> Arc<Self> {
        let mut cells = Self::default();
        cells.tenant = tenant;
        Arc::new(cells)
    }

    pub(crate) fn waited(&self, waited_ns: u64) {
        let class = WAIT_BOUNDS.partition_point(|bound| u128::from(waited_ns) > bound.as_nanos());
        self.waits[class].add(1);
        self.waited_ns.add(waited_ns);
    }

    fn read(&self) -> Account {
        Account {
            tenant: self.tenant,
            name: self.name.get().cloned(),
            user_ns: self.user_ns.read(),
            kernel_ns: self.kernel_ns.read(),
            turns: self.turns.read(),
            polls: self.polls.read(),
            operations: self.operations.read(),
            received_bytes: self.received_bytes.read(),
            sent_bytes: self.sent_bytes.read(),
            waits: std::array::from_fn(|class| self.waits[class].read()),
            waited_ns: self.waited_ns.read(),
        }
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        // One by one: the drop of a long list must not recurse.
        let mut next = self.next.take();
        while let Some(mut cells) = next.and_then(Arc::into_inner) {
            next = cells.next.take();
        }
    }
}

/// A core's end: its accounts by row.
#[derive(Debug)]
pub(crate) struct Ledger {
    rows: Vec<Arc<Cells>>,
}

/// Anybody's end.
#[derive(Clone, Debug)]
pub(crate) struct Accounts {
    head: Arc<Cells>,
}

impl Ledger {
    /// A ledger with the account of the core itself.
    pub(crate) fn new() -> Self {
        Self { rows: vec![Cells::of(TenantKey::CORE)] }
    }

    /// Opens the account of a new row, which is the next one.
    pub(crate) fn open(&mut self, row: Row, tenant: TenantKey) {
        assert!(row.index() == self.rows.len(), "rows are numbered without gaps");
        let cells = Cells::of(tenant);
        let last = self.rows.last().expect("the core's own is there");
        last.next.set(cells.clone()).expect("only the last one has no next one");
        self.rows.push(cells);
    }

    /// How many accounts there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn of(&self, row: Row) -> &Cells {
        &self.rows[row.index()]
    }

    /// Says what a row's tenant is called. The first name stays.
    pub(crate) fn name(&self, row: Row, name: &str) {
        self.of(row).name.get_or_init(|| name.into());
    }

    pub(crate) fn accounts(&self) -> Accounts {
        Accounts { head: self.rows[0].clone() }
    }
}

impl Accounts {
    /// All accounts, in the order in which they were opened.
    pub(crate) fn read(&self) -> Vec<Account> {
        self.cells().map(Cells::read).collect()
    }

    /// What a tenant is called.
    pub(crate) fn name(&self, tenant: TenantKey) -> Option<Arc<str>> {
        self.cells().find(|cells| cells.tenant == tenant)?.name.get().cloned()
    }

    fn cells(&self) -> impl Iterator<Item = &Cells> {
        std::iter::successors(Some(&*self.head), |cells| cells.next.get().map(|next| &**next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_opened_later_is_seen_from_another_thread() {
        let mut ledger = Ledger::new();
        let accounts = ledger.accounts();
        let seen = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                loop {
                    let all = accounts.read();
                    if all.len() == 3 && all[2].polls == 10_000 && all[2].name.is_some() {
                        return all;
                    }
                }
            });
            ledger.open(Row::at(1), TenantKey(7));
            ledger.open(Row::at(2), TenantKey(8));
            (0..10_000).for_each(|_| ledger.of(Row::at(2)).polls.add(1));
            ledger.name(Row::at(2), "payments/web");
            ledger.name(Row::at(2), "renamed");
            reader.join().unwrap()
        });
        assert_eq!(seen.iter().map(|account| account.tenant.0).collect::<Vec<_>>(), [0, 7, 8]);
        assert_eq!(seen[2].name.as_deref(), Some("payments/web"));
        assert_eq!(accounts.name(TenantKey(8)).as_deref(), Some("payments/web"));
        assert_eq!(accounts.name(TenantKey(9)), None);
    }

    #[test]
    fn a_wait_is_counted_in_the_first_class_that_holds_it() {
        let cells = Cells::default();
        for (waited_us, class) in [(0, 0), (10, 0), (11, 1), (200_000, 11), (200_001, 12), (9_000_000, 12)] {
            let before = cells.read().waits[class];
            cells.waited(waited_us * 1_000);
            assert_eq!(cells.read().waits[class], before + 1, "{waited_us} us");
        }
        assert_eq!(cells.read().waits.iter().sum::<u64>(), 6);
    }

    #[test]
    fn a_long_list_is_dropped_without_recursion() {
        let mut ledger = Ledger::new();
        (1..200_000).for_each(|row| ledger.open(Row::at(row), TenantKey(row as u32)));
        let accounts = ledger.accounts();
        drop(ledger);
        drop(accounts);
    }

    #[test]
    fn an_account_is_as_small_as_the_limit_of_tenants_says() {
        assert!(size_of::<Cells>() <= 256);
    }
}
