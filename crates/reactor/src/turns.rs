//! The run queue over tenants: whose turn it is, for how long, and what that tenant runs. Pure: time comes in as numbers,
//! so that a simulation runs the same queue.
//!
//! Time is dealt out in rounds. In each round a tenant may use its quantum, which is the slice for the heaviest weight on
//! the core and proportionally less for the others; how long the turns in which it does so are is its own business. The
//! next turn is that of the tenant in the earliest round, and among those in the same round, of the one whose last turn is
//! the longest ago. It follows that
//!
//! * shares are as the weights while all want more, whatever a single turn takes: a turn that overran its quantum, because
//!   a poll cannot be interrupted, has used up rounds to come;
//! * between two turns of a tenant that owes nothing every other tenant runs for at most its quantum and the longest poll;
//! * a tenant that slept longer than a round is in the current round, and served longest ago: it is next. It brings
//!   nothing along but the quantum that everybody has, so sleeping saves no time up.
//!
//! This is start-time fair queueing on virtual time counted in quanta, or deficit round robin with a memory. Plain virtual
//! time (the least used first) was not taken because a tenant that sleeps just short of the end of its quantum is served
//! twice there between two turns of another; so it is with deficit round robin that puts those who woke in front (DRR++).
//!
//! Within a tenant, first come first served.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use crate::tenant::{Row, TenantKey, Weight};

/// What a tenant is charged at most at once, in slices, so that one accident (a task that blocked, a machine that stood still)
/// does not keep it from being served for seconds: so many rounds, or those that one slice costs a tenant of its weight.
const CHARGE_MAX_SLICES: u64 = 1_000;

/// The least part of a slice that a turn lasts: shorter ones would spend more on the change than they give.
const TURN_MIN: u64 = 4;

/// See the module.
#[derive(Debug)]
pub struct RunQueue<T> {
    rows: Vec<Tenant<T>>,
    by_key: HashMap<TenantKey, Row>,
    rows_max: usize,
    /// Tenants that wait for their turn, by when they were put there: a charge since then may have moved a tenant on,
    /// which is looked at when it comes up. None is in it twice.
    waiting: BinaryHeap<Reverse<Place>>,
    /// That of the turn that began last. Nobody who waits is in an earlier one.
    round: u64,
    /// Turns that have ended.
    turns: u64,
    slice_ns: u64,
    heaviest: Weight,
}

#[derive(Debug)]
struct Tenant<T> {
    key: TenantKey,
    weight: Weight,
    runnable: VecDeque<T>,
    state: State,
    place: Place,
    /// Of its quantum in its round. More than nothing.
    left_ns: u64,
    /// When it began to wait.
    since_ns: u64,
}

/// The earlier the sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    round: u64,
    /// Which turn its last one was.
    served: u64,
    row: Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Waiting,
    OnTurn,
}

/// A turn that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose.
    pub row: Row,
    /// How long it may last while others wait. Up to a slice.
    pub length_ns: u64,
    /// How long its tenant has waited for it.
    pub waited_ns: u64,
}

impl<T> RunQueue<T> {
    /// A queue for at most `tenants_max` tenants besides [`TenantKey::CORE`] and [`TenantKey::OVERFLOW`], whose turns last
    /// up to `slice_ns`.
    #[must_use]
    pub fn new(tenants_max: usize, slice_ns: u64) -> Self {
        let mut queue = Self {
            rows: Vec::new(),
            by_key: HashMap::new(),
            rows_max: tenants_max.saturating_add(2).min(u32::MAX as usize),
            waiting: BinaryHeap::new(),
            round: 0,
            turns: 0,
            slice_ns: slice_ns.max(TURN_MIN),
            heaviest: Weight::MIN,
        };
        queue.row(TenantKey::CORE);
        queue.row(TenantKey::OVERFLOW);
        queue
    }

    /// The row of a tenant, made when it is first asked for.
    pub fn row(&mut self, key: TenantKey) -> Row {
        if let Some(row) = self.by_key.get(&key) {
            return *row;
        }
        if self.rows.len() >= self.rows_max {
            return self.by_key[&TenantKey::OVERFLOW];
        }
        let row = Row::at(self.rows.len());
        self.rows.push(Tenant {
            key,
            weight: Weight::DEFAULT,
            runnable: VecDeque::new(),
            state: State::Idle,
            place: Place { round: 0, served: 0, row },
            left_ns: self.slice_ns,
            since_ns: 0,
        });
        self.by_key.insert(key, row);
        self.heaviest = self.heaviest.max(Weight::DEFAULT);
        row
    }

    /// Gives a tenant another weight, from its next round on.
    pub fn weigh(&mut self, row: Row, weight: Weight) {
        self.rows[row.index()].weight = weight;
        self.heaviest = self.rows.iter().map(|tenant| tenant.weight).max().expect("the core has a row");
    }

    /// Adds something to run.
    pub fn push(&mut self, row: Row, item: T, now_ns: u64) {
        self.rows[row.index()].runnable.push_back(item);
        self.rouse(row, now_ns);
    }

    /// Has the tenant wait for a turn, whether it has something to run or not.
    pub fn rouse(&mut self, row: Row, now_ns: u64) {
        if self.rows[row.index()].state == State::Idle {
            self.wait(row, now_ns);
        }
    }

    /// Begins the next turn.
    pub fn begin_turn(&mut self, now_ns: u64) -> Option<Turn> {
        let row = loop {
            let Reverse(noted) = self.waiting.pop()?;
            let place = self.rows[noted.row.index()].place;
            if place == noted {
                break noted.row;
            }
            self.waiting.push(Reverse(place));
        };
        let tenant = &mut self.rows[row.index()];
        tenant.state = State::OnTurn;
        self.round = tenant.place.round;
        Some(Turn {
            row,
            length_ns: tenant.left_ns.clamp(self.slice_ns / TURN_MIN, self.slice_ns),
            waited_ns: now_ns.saturating_sub(tenant.since_ns),
        })
    }

    /// The next thing to run in this turn.
    pub fn pop(&mut self, row: Row) -> Option<T> {
        self.rows[row.index()].runnable.pop_front()
    }

    /// Something to run in this turn that `choose` picks by its place among as many, for whom the order shall not matter.
    pub fn pop_any(&mut self, row: Row, choose: impl FnOnce(usize) -> usize) -> Option<T> {
        let runnable = &mut self.rows[row.index()].runnable;
        if runnable.is_empty() { None } else { runnable.remove(choose(runnable.len())) }
    }

    /// Ends a turn of `used_ns`. What the tenant has left, or `more`, waits for its next one.
    pub fn end_turn(&mut self, row: Row, used_ns: u64, more: bool, now_ns: u64) {
        self.turns += 1;
        let tenant = &mut self.rows[row.index()];
        tenant.place.served = self.turns;
        tenant.state = State::Idle;
        let more = more || !tenant.runnable.is_empty();
        self.charge(row, used_ns);
        if more {
            self.wait(row, now_ns);
        }
    }

    /// Charges a tenant for what was done for it outside its turn.
    pub fn charge(&mut self, row: Row, used_ns: u64) {
        let quantum_ns = self.quantum_ns(row);
        let tenant = &mut self.rows[row.index()];
        if used_ns < tenant.left_ns {
            tenant.left_ns -= used_ns;
            return;
        }
        let over_ns = used_ns - tenant.left_ns;
        let rounds_max = CHARGE_MAX_SLICES.max(self.slice_ns / quantum_ns);
        tenant.place.round += (over_ns / quantum_ns).min(rounds_max) + 1;
        tenant.left_ns = quantum_ns - over_ns % quantum_ns;
    }

    /// Whether somebody other than `row` waits for a turn.
    #[must_use]
    pub fn others_wait(&self, row: Row) -> bool {
        self.waiting.len() > usize::from(self.rows[row.index()].state == State::Waiting)
    }

    /// Whether nobody waits for a turn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tenants, in the order of their rows.
    pub fn tenants(&self) -> impl Iterator<Item = (Row, TenantKey)> {
        self.rows.iter().map(|tenant| (tenant.place.row, tenant.key))
    }

    /// Whose row it is.
    #[must_use]
    pub fn key(&self, row: Row) -> TenantKey {
        self.rows[row.index()].key
    }

    fn wait(&mut self, row: Row, now_ns: u64) {
        let quantum_ns = self.quantum_ns(row);
        let tenant = &mut self.rows[row.index()];
        if tenant.place.round < self.round {
            tenant.place.round = self.round;
            tenant.left_ns = quantum_ns;
        }
        tenant.state = State::Waiting;
        tenant.since_ns = now_ns;
        self.waiting.push(Reverse(tenant.place));
    }

    /// What a tenant may use in a round.
    fn quantum_ns(&self, row: Row) -> u64 {
        let weight = u64::from(self.rows[row.index()].weight.value());
        (self.slice_ns * weight / u64::from(self.heaviest.value())).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: u64 = 50;

    /// Takes a turn in which each item takes `each` ns; its row's key and what ran.
    fn turn(queue: &mut RunQueue<&'static str>, each: u64) -> Vec<&'static str> {
        let Some(turn) = queue.begin_turn(0) else {
            return Vec::new();
        };
        let (mut ran, mut used) = (Vec::new(), 0);
        while used < turn.length_ns
            && let Some(item) = queue.pop(turn.row)
        {
            ran.push(item);
            used += each;
        }
        queue.end_turn(turn.row, used, false, 0);
        ran
    }

    fn queue() -> (RunQueue<&'static str>, Row, Row) {
        let mut queue = RunQueue::new(8, SLICE);
        let (one, other) = (queue.row(TenantKey(1)), queue.row(TenantKey(2)));
        (queue, one, other)
    }

    #[test]
    fn a_backlog_delays_another_tenant_by_one_turn() {
        let (mut queue, noisy, quiet) = queue();
        for item in ["n1", "n2", "n3", "n4", "n5"] {
            queue.push(noisy, item, 0);
        }
        assert_eq!(turn(&mut queue, 25), ["n1", "n2"]);
        queue.push(quiet, "q1", 0);
        assert_eq!(turn(&mut queue, 25), ["q1"]);
        assert_eq!(turn(&mut queue, 25), ["n3", "n4"]);
        assert_eq!(turn(&mut queue, 25), ["n5"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_is_pushed_in_a_tenants_own_turn_runs_in_it() {
        let (mut queue, row, _) = queue();
        queue.push(row, "first", 0);
        assert_eq!(queue.begin_turn(7).map(|turn| (turn.row, turn.waited_ns)), Some((row, 7)));
        assert_eq!(queue.pop(row), Some("first"));
        queue.push(row, "second", 0);
        assert!(queue.is_empty(), "it is on turn and must not wait for another one");
        assert!(!queue.others_wait(row));
        assert_eq!(queue.pop(row), Some("second"));
        queue.push(row, "third", 0);
        queue.end_turn(row, 0, false, 0);
        assert_eq!(turn(&mut queue, 1), ["third"]);
    }

    #[test]
    fn a_turn_that_overran_is_paid_for_with_rounds() {
        let (mut queue, long, short) = queue();
        let mut order = Vec::new();
        for _ in 0..12 {
            queue.rouse(long, 0);
            queue.rouse(short, 0);
            let turn = queue.begin_turn(0).unwrap();
            order.push(if turn.row == long { 'L' } else { 's' });
            queue.end_turn(turn.row, if turn.row == long { 5 * SLICE } else { SLICE }, true, 0);
        }
        assert_eq!(order.iter().collect::<String>(), "LsssssLsssss");
    }

    #[test]
    fn a_charge_outside_its_turn_sets_a_waiting_tenant_back() {
        let (mut queue, one, other) = queue();
        queue.push(one, "one", 0);
        queue.push(other, "other", 0);
        assert!(queue.others_wait(one));
        queue.charge(one, SLICE);
        assert_eq!(turn(&mut queue, 1), ["other"]);
        assert_eq!(turn(&mut queue, 1), ["one"]);
        assert!(turn(&mut queue, 1).is_empty());
    }

    #[test]
    fn one_accident_is_not_charged_for_ever() {
        // However light the tenant is. One of 1:10,000 pays a single slice with as many rounds.
        for (light, heavy, slices_max) in [(1, 1, CHARGE_MAX_SLICES), (1, 10, CHARGE_MAX_SLICES), (1, 10_000, 10_000)] {
            let mut queue = RunQueue::<()>::new(2, 50_000);
            let (one, other) = (queue.row(TenantKey(1)), queue.row(TenantKey(2)));
            queue.weigh(one, Weight::new(light).expect("in range"));
            queue.weigh(other, Weight::new(heavy).expect("in range"));
            queue.weigh(Row::CORE, Weight::new(light).expect("in range"));
            queue.weigh(Row::at(1), Weight::new(light).expect("in range"));
            queue.rouse(one, 0);
            queue.rouse(other, 0);
            queue.charge(one, u64::MAX);
            let mut slices = 0_u64;
            while queue.begin_turn(0).map(|turn| turn.row) == Some(other) {
                queue.end_turn(other, 50_000, true, 0);
                slices += 1;
            }
            assert!(slices.abs_diff(slices_max) <= 2, "{light}:{heavy}: {slices}");
        }
    }

    #[test]
    fn tenants_beyond_the_limit_share_the_overflow_row() {
        let mut queue = RunQueue::<()>::new(2, SLICE);
        let (first, second) = (queue.row(TenantKey(1)), queue.row(TenantKey(2)));
        assert_ne!(first, second);
        let overflow = queue.row(TenantKey::OVERFLOW);
        assert_eq!(queue.row(TenantKey(3)), overflow);
        assert_eq!(queue.row(TenantKey(4)), overflow);
        assert_eq!(queue.row(TenantKey(1)), first);
        assert_eq!(queue.tenants().count(), 4);
    }
}
