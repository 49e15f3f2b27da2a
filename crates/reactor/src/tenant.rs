//! The run queue over tenants: whose turn it is, what that tenant runs, and what it was charged.
//!
//! Round robin: a tenant with something to run waits for its turn once, however much it has to run, so nobody's
//! backlog delays another by more than one turn per runnable tenant. How long a turn lasts is the driver's business;
//! weights will be, too: whatever is known of a tenant stands in its row here. Within a tenant, first come first served.

use std::collections::{HashMap, VecDeque};

/// Who a task's work is charged to. Opaque here: the data plane knows the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey(pub u32);

impl TenantKey {
    /// The core's own work, which no tenant asked for.
    pub const CORE: Self = Self(0);
    /// Takes in the tenants beyond [`CoreConfig::tenants_max`](crate::CoreConfig::tenants_max).
    pub const OVERFLOW: Self = Self(u32::MAX);
}

/// What a tenant has used of a core so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose account.
    pub tenant: TenantKey,
    /// Time its tasks ran, in nanoseconds.
    pub cpu_ns: u64,
    /// How often its tasks were polled.
    pub polls: u64,
    /// Tasks that wait for its turn now.
    pub runnable: usize,
}

/// A tenant's row in a core's [`RunQueue`]; rows are never removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row(u32);

impl Row {
    /// The row of [`TenantKey::CORE`].
    pub(crate) const CORE: Self = Self(0);

    /// Its place in whatever is kept by row.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    #[cfg(test)]
    pub(crate) fn test(index: u32) -> Self {
        Self(index)
    }
}

/// See the module.
pub(crate) struct RunQueue<T> {
    rows: Vec<Tenant<T>>,
    by_key: HashMap<TenantKey, Row>,
    rows_max: usize,
    /// Tenants that wait for their turn. None is in it twice.
    turns: VecDeque<Row>,
}

struct Tenant<T> {
    key: TenantKey,
    runnable: VecDeque<T>,
    state: State,
    cpu_ns: u64,
    polls: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Waiting,
    OnTurn,
}

impl<T> RunQueue<T> {
    /// A queue for at most `tenants_max` tenants besides [`TenantKey::CORE`] and [`TenantKey::OVERFLOW`].
    pub(crate) fn new(tenants_max: usize) -> Self {
        let mut queue = Self {
            rows: Vec::new(),
            by_key: HashMap::new(),
            rows_max: tenants_max.saturating_add(2).min(u32::MAX as usize),
            turns: VecDeque::new(),
        };
        queue.row(TenantKey::CORE);
        queue.row(TenantKey::OVERFLOW);
        queue
    }

    /// The row of a tenant, made at its first task.
    pub(crate) fn row(&mut self, key: TenantKey) -> Row {
        if let Some(row) = self.by_key.get(&key) {
            return *row;
        }
        if self.rows.len() >= self.rows_max {
            return self.by_key[&TenantKey::OVERFLOW];
        }
        let row = Row(u32::try_from(self.rows.len()).expect("rows_max fits"));
        self.rows.push(Tenant { key, runnable: VecDeque::new(), state: State::Idle, cpu_ns: 0, polls: 0 });
        self.by_key.insert(key, row);
        row
    }

    /// Adds something to run.
    pub(crate) fn push(&mut self, row: Row, item: T) {
        let tenant = &mut self.rows[row.0 as usize];
        tenant.runnable.push_back(item);
        if tenant.state == State::Idle {
            tenant.state = State::Waiting;
            self.turns.push_back(row);
        }
    }

    /// Begins the turn of the tenant that has waited longest.
    pub(crate) fn begin_turn(&mut self) -> Option<Row> {
        let row = self.turns.pop_front()?;
        self.rows[row.0 as usize].state = State::OnTurn;
        Some(row)
    }

    /// The next thing to run in this turn.
    pub(crate) fn pop(&mut self, row: Row) -> Option<T> {
        self.rows[row.0 as usize].runnable.pop_front()
    }

    /// Ends a turn and charges it. What the tenant has left waits for its next turn.
    pub(crate) fn end_turn(&mut self, row: Row, cpu_ns: u64, polls: u64) {
        let tenant = &mut self.rows[row.0 as usize];
        tenant.cpu_ns += cpu_ns;
        tenant.polls += polls;
        if tenant.runnable.is_empty() {
            tenant.state = State::Idle;
        } else {
            tenant.state = State::Waiting;
            self.turns.push_back(row);
        }
    }

    /// Whether nobody waits for a turn.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// What each tenant has used.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let account = |tenant: &Tenant<T>| Account {
            tenant: tenant.key,
            cpu_ns: tenant.cpu_ns,
            polls: tenant.polls,
            runnable: tenant.runnable.len(),
        };
        self.rows.iter().map(account).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(queue: &mut RunQueue<&'static str>, items_max: usize) -> Vec<&'static str> {
        let Some(row) = queue.begin_turn() else {
            return Vec::new();
        };
        let ran: Vec<_> = (0..items_max).map_while(|_| queue.pop(row)).collect();
        queue.end_turn(row, 10, ran.len() as u64);
        ran
    }

    #[test]
    fn a_backlog_delays_another_tenant_by_one_turn() {
        let mut queue = RunQueue::new(8);
        let (noisy, quiet) = (queue.row(TenantKey(1)), queue.row(TenantKey(2)));
        for item in ["n1", "n2", "n3", "n4", "n5"] {
            queue.push(noisy, item);
        }
        assert_eq!(turn(&mut queue, 2), ["n1", "n2"]);
        queue.push(quiet, "q1");
        assert_eq!(turn(&mut queue, 2), ["n3", "n4"]);
        assert_eq!(turn(&mut queue, 2), ["q1"]);
        assert_eq!(turn(&mut queue, 2), ["n5"]);
        assert!(queue.is_empty());
        let noisy = queue.accounts().into_iter().find(|account| account.tenant == TenantKey(1)).unwrap();
        assert_eq!(noisy, Account { tenant: TenantKey(1), cpu_ns: 30, polls: 5, runnable: 0 });
    }

    #[test]
    fn what_is_pushed_in_a_tenants_own_turn_runs_in_it() {
        let mut queue = RunQueue::new(8);
        let row = queue.row(TenantKey(1));
        queue.push(row, "first");
        assert_eq!(queue.begin_turn(), Some(row));
        assert_eq!(queue.pop(row), Some("first"));
        queue.push(row, "second");
        assert!(queue.is_empty(), "it is on turn and must not wait for another one");
        assert_eq!(queue.pop(row), Some("second"));
        queue.push(row, "third");
        queue.end_turn(row, 0, 2);
        assert_eq!(turn(&mut queue, 9), ["third"]);
    }

    #[test]
    fn tenants_beyond_the_limit_share_the_overflow_row() {
        let mut queue = RunQueue::<()>::new(2);
        let (first, second) = (queue.row(TenantKey(1)), queue.row(TenantKey(2)));
        assert_ne!(first, second);
        let overflow = queue.row(TenantKey::OVERFLOW);
        assert_eq!(queue.row(TenantKey(3)), overflow);
        assert_eq!(queue.row(TenantKey(4)), overflow);
        assert_eq!(queue.row(TenantKey(1)), first);
        assert_eq!(queue.accounts().len(), 4);
    }
}
