//! The run queue in simulation: hundreds of tenants that arrive as they please, hostile ones among them. Each promise is
//! checked on the queue and, as its control, on a policy that lacks what keeps it.

use std::{cmp::Reverse, collections::BinaryHeap};

use reactor::{
    TenantKey, Weight,
    tenant::Row,
    turns::{RunQueue, Turn},
};

const US: u64 = 1_000;
const SECOND: u64 = 1_000_000 * US;
const SLICE: u64 = 50 * US;

/// Who gets the next turn, and for how long.
trait Policy {
    fn wake(&mut self, tenant: usize, now: u64);
    fn begin(&mut self, now: u64) -> Option<(usize, u64)>;
    fn end(&mut self, tenant: usize, used: u64, more: bool, now: u64);
    /// The kernel has worked for a tenant, outside its turns.
    fn entered(&mut self, tenant: usize, took: u64);
    fn others_wait(&self) -> bool;
}

/// The queue itself.
struct Fair {
    queue: RunQueue<()>,
    rows: Vec<Row>,
    /// What a tenant is charged for so much time.
    charged: fn(u64) -> u64,
    /// How much of a turn's length counts.
    length: fn(u64) -> u64,
    /// What a tenant is charged for so much time in the kernel.
    charged_for_kernel: fn(u64) -> u64,
}

impl Fair {
    fn new(weights: &[u32]) -> Self {
        let mut queue = RunQueue::new(weights.len(), SLICE);
        let rows = (1..).zip(weights).map(|(key, weight)| {
            let row = queue.row(TenantKey(key));
            queue.weigh(row, Weight::new(*weight).unwrap());
            row
        });
        let rows = rows.collect();
        Self { queue, rows, charged: |used| used, length: |length| length, charged_for_kernel: |took| took }
    }

    fn tenant(&self, row: Row) -> usize {
        self.rows.binary_search(&row).unwrap()
    }
}

impl Policy for Fair {
    fn wake(&mut self, tenant: usize, now: u64) {
        self.queue.rouse(self.rows[tenant], now);
    }

    fn begin(&mut self, now: u64) -> Option<(usize, u64)> {
        let Turn { row, length_ns, .. } = self.queue.begin_turn(now)?;
        Some((self.tenant(row), (self.length)(length_ns)))
    }

    fn end(&mut self, tenant: usize, used: u64, more: bool, now: u64) {
        self.queue.end_turn(self.rows[tenant], (self.charged)(used), more, now);
    }

    fn entered(&mut self, tenant: usize, took: u64) {
        self.queue.charge(self.rows[tenant], (self.charged_for_kernel)(took));
    }

    fn others_wait(&self) -> bool {
        !self.queue.is_empty()
    }
}

/// The control: always the one that has used the least so far, whenever that was.
struct LeastUsed {
    used: Vec<u64>,
    waiting: Vec<usize>,
}

impl LeastUsed {
    fn new(tenants: usize) -> Self {
        Self { used: vec![0; tenants], waiting: Vec::new() }
    }
}

impl Policy for LeastUsed {
    fn wake(&mut self, tenant: usize, _now: u64) {
        if !self.waiting.contains(&tenant) {
            self.waiting.push(tenant);
        }
    }

    fn begin(&mut self, _now: u64) -> Option<(usize, u64)> {
        let next = (0..self.waiting.len()).min_by_key(|at| self.used[self.waiting[*at]])?;
        Some((self.waiting.swap_remove(next), SLICE))
    }

    fn end(&mut self, tenant: usize, used: u64, more: bool, now: u64) {
        self.used[tenant] += used;
        if more {
            self.wake(tenant, now);
        }
    }

    fn entered(&mut self, tenant: usize, took: u64) {
        self.used[tenant] += took;
    }

    fn others_wait(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// How a tenant behaves. Times are drawn up to the given ones.
#[derive(Clone, Copy)]
enum Manner {
    /// Always has something to run, in polls up to so long.
    Saturating { poll: u64 },
    /// Runs for up to `burst`, then sleeps for up to `pause`.
    Bursts { poll: u64, burst: u64, pause: u64 },
    /// Runs until just before the end of its turn and wakes at once: the cheat against queues that favour sleepers.
    Cheat,
    /// Sleeps until then, and saturates from then on.
    From { poll: u64, wakes: u64 },
}

struct Tenant {
    manner: Manner,
    /// Of the burst.
    left: u64,
    waits: Option<Wait>,
    turns: u64,
}

/// Since when it waits, and what everybody had used by then.
struct Wait {
    since: u64,
    used: Vec<u64>,
}

/// What came of it.
struct Outcome {
    used: Vec<u64>,
    turns: Vec<u64>,
    /// The most that one other tenant ran while somebody waited for one turn.
    worst_by_one: u64,
    /// The longest anybody waited for a turn.
    longest_wait: u64,
}

struct World {
    now: u64,
    random: fastrand::Rng,
    tenants: Vec<Tenant>,
    used: Vec<u64>,
    /// The longest that the kernel works for each after a turn. Drawn up to it.
    kernel: Vec<u64>,
    /// Who sleeps, and until when.
    sleepers: BinaryHeap<Reverse<(u64, usize)>>,
    worst_by_one: u64,
    longest_wait: u64,
}

fn simulate(seed: u64, policy: &mut impl Policy, manners: &[Manner], until: u64) -> Outcome {
    simulate_with_kernel(seed, policy, manners, vec![0; manners.len()], until)
}

fn simulate_with_kernel(
    seed: u64,
    policy: &mut impl Policy,
    manners: &[Manner],
    kernel: Vec<u64>,
    until: u64,
) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut wakes = |manner: &Manner| match manner {
        Manner::From { wakes, .. } => *wakes,
        Manner::Bursts { pause, .. } => random.u64(..=*pause),
        Manner::Saturating { .. } | Manner::Cheat => 0,
    };
    let sleepers = manners.iter().enumerate().map(|(tenant, manner)| Reverse((wakes(manner), tenant))).collect();
    let tenant = |manner: &Manner| Tenant { manner: *manner, left: 0, waits: None, turns: 0 };
    let mut world = World {
        now: 0,
        random,
        tenants: manners.iter().map(tenant).collect(),
        used: vec![0; manners.len()],
        kernel,
        sleepers,
        worst_by_one: 0,
        longest_wait: 0,
    };
    while world.now < until {
        world.wake(policy);
        match policy.begin(world.now) {
            Some((tenant, length)) => world.take_turn(policy, tenant, length, until),
            None => world.now = world.sleepers.peek().expect("somebody wakes some time").0.0,
        }
    }
    for tenant in 0..manners.len() {
        world.waited(tenant);
    }
    let World { tenants, used, worst_by_one, longest_wait, .. } = world;
    Outcome { used, turns: tenants.iter().map(|tenant| tenant.turns).collect(), worst_by_one, longest_wait }
}

impl World {
    fn take_turn(&mut self, policy: &mut impl Policy, tenant: usize, length: u64, until: u64) {
        self.waited(tenant);
        let mut used = 0;
        let sleeps = loop {
            let Tenant { manner, left, .. } = &mut self.tenants[tenant];
            let poll = match *manner {
                Manner::Saturating { poll } | Manner::From { poll, .. } => self.random.u64(1..=poll),
                Manner::Bursts { poll, .. } => self.random.u64(1..=poll).min((*left).max(1)),
                Manner::Cheat => length.saturating_sub(used + 100).clamp(100, 10 * US),
            };
            *left = left.saturating_sub(poll);
            used += poll;
            self.now += poll;
            self.used[tenant] += poll;
            let sleeps = match *manner {
                Manner::Saturating { .. } | Manner::From { .. } => None,
                Manner::Bursts { pause, .. } => (*left == 0).then(|| self.now + self.random.u64(1..=pause)),
                Manner::Cheat => (used + 200 > length).then_some(self.now),
            };
            // Who woke meanwhile waits, whatever this turn still takes.
            self.wake(policy);
            let lasts = if policy.others_wait() { length } else { length.max(SLICE) };
            if sleeps.is_some() || used >= lasts || self.now >= until {
                break sleeps;
            }
        };
        self.tenants[tenant].turns += 1;
        match sleeps {
            Some(wakes) => self.sleepers.push(Reverse((wakes, tenant))),
            None => self.waits(tenant),
        }
        policy.end(tenant, used, sleeps.is_none(), self.now);
        if self.kernel[tenant] > 0 {
            let took = self.random.u64(1..=self.kernel[tenant]);
            self.now += took;
            self.used[tenant] += took;
            self.wake(policy);
            policy.entered(tenant, took);
        }
    }

    fn wake(&mut self, policy: &mut impl Policy) {
        while let Some(Reverse((wakes, tenant))) = self.sleepers.peek().copied()
            && wakes <= self.now
        {
            self.sleepers.pop();
            if let Manner::Bursts { burst, .. } = self.tenants[tenant].manner {
                self.tenants[tenant].left = self.random.u64(1..=burst);
            }
            self.waits(tenant);
            policy.wake(tenant, self.now);
        }
    }

    fn waits(&mut self, tenant: usize) {
        self.tenants[tenant].waits = Some(Wait { since: self.now, used: self.used.clone() });
    }

    /// A wait is over, or the world is.
    fn waited(&mut self, tenant: usize) {
        let Some(wait) = self.tenants[tenant].waits.take() else { return };
        let by_one = self.used.iter().zip(&wait.used).map(|(now, then)| now - then).max().unwrap_or(0);
        self.worst_by_one = self.worst_by_one.max(by_one);
        self.longest_wait = self.longest_wait.max(self.now - wait.since);
    }
}

/// Two hundred saturating tenants of three weights and three lengths of poll, a hundred that come and go, and twenty
/// cheats.
fn a_crowd() -> (Vec<u32>, Vec<Manner>) {
    let (mut weights, mut manners) = (Vec::new(), Vec::new());
    for tenant in 0..200 {
        weights.push([100, 200, 400][tenant % 3]);
        manners.push(Manner::Saturating { poll: [1, 5, 20][tenant / 3 % 3] * US });
    }
    for tenant in 0..100 {
        weights.push(100);
        let pause = [100, 3_000, 50_000][tenant % 3] * US;
        manners.push(Manner::Bursts { poll: 3 * US, burst: 30 * US, pause });
    }
    weights.extend([100; 20]);
    manners.extend([Manner::Cheat; 20]);
    (weights, manners)
}

/// How far the saturating tenants' shares are from their weights, the worst of them.
fn worst_share(outcome: &Outcome, weights: &[u32], manners: &[Manner]) -> f64 {
    let saturating = || (0..manners.len()).filter(|tenant| matches!(manners[*tenant], Manner::Saturating { .. }));
    let used: u64 = saturating().map(|tenant| outcome.used[tenant]).sum();
    let weight: u64 = saturating().map(|tenant| u64::from(weights[tenant])).sum();
    let off = |tenant: usize| {
        let due = used as f64 * f64::from(weights[tenant]) / weight as f64;
        (outcome.used[tenant] as f64 / due - 1.0).abs()
    };
    saturating().map(off).fold(0.0, f64::max)
}

#[test]
fn weights_hold_within_five_percent_over_a_second_among_hundreds() {
    let (weights, manners) = a_crowd();
    for seed in 0..5 {
        let outcome = simulate(seed, &mut Fair::new(&weights), &manners, SECOND);
        let worst = worst_share(&outcome, &weights, &manners);
        assert!(worst <= 0.05, "seed {seed}: {worst}");
    }
    // The control: charged by turns instead of by time.
    let mut by_turns = Fair { charged: |_| SLICE, ..Fair::new(&weights) };
    let outcome = simulate(0, &mut by_turns, &manners, SECOND);
    assert!(worst_share(&outcome, &weights, &manners) > 0.05);
}

/// Most CPU of a proxy is the kernel's, in entries after a turn: 300 tenants of which every second asks nothing of it and the
/// others up to what one entry carries beside others, whatever little they run themselves; and those who come and go.
#[test]
fn weights_hold_when_the_kernel_works_for_some_and_not_for_others() {
    let (weights, manners) = a_crowd();
    let kernel: Vec<u64> = (0..manners.len()).map(|tenant| [0, 60, 0, 15][tenant % 4] * US).collect();
    for seed in 0..5 {
        let outcome = simulate_with_kernel(seed, &mut Fair::new(&weights), &manners, kernel.clone(), 2 * SECOND);
        let worst = worst_share(&outcome, &weights, &manners);
        assert!(worst <= 0.05, "seed {seed}: {worst}");
        assert!(outcome.turns.iter().all(|turns| *turns > 0), "seed {seed}: somebody starved");
    }
    // The control: what the kernel does is free.
    let mut free = Fair { charged_for_kernel: |_| 0, ..Fair::new(&weights) };
    let outcome = simulate_with_kernel(0, &mut free, &manners, kernel, 2 * SECOND);
    assert!(worst_share(&outcome, &weights, &manners) > 0.3);
}

#[test]
fn a_cheat_that_sleeps_before_its_turn_ends_gets_no_more_than_its_share() {
    let manners = [vec![Manner::Saturating { poll: 5 * US }; 10], vec![Manner::Cheat; 10]].concat();
    let outcome = simulate(1, &mut Fair::new(&[100; 20]), &manners, SECOND);
    let (honest, cheats) = outcome.used.split_at(10);
    let (most, least) = (cheats.iter().max().unwrap(), honest.iter().min().unwrap());
    assert!(*most as f64 <= *least as f64 * 1.05, "{most} {least}");
}

#[test]
fn nobody_waits_longer_than_a_slice_per_other_runnable_tenant() {
    const POLL: u64 = 20 * US;
    // A turn may begin at the very end of a quantum and still lasts a quarter of a slice, and its last poll overruns it.
    const ONE: u64 = SLICE + SLICE / 4 + POLL;
    let (_, mut manners) = a_crowd();
    manners.push(Manner::Bursts { poll: POLL, burst: 10_000 * US, pause: 10_000 * US });
    let weights = vec![100; manners.len()];
    for seed in 0..5 {
        let outcome = simulate(seed, &mut Fair::new(&weights), &manners, SECOND / 2);
        assert!(outcome.worst_by_one <= ONE, "seed {seed}: one tenant ran {} ns meanwhile", outcome.worst_by_one);
        assert!(outcome.longest_wait <= ONE * manners.len() as u64, "seed {seed}: {} ns", outcome.longest_wait);
        assert!(outcome.turns.iter().all(|turns| *turns > 0), "seed {seed}: somebody starved");
    }
    // The controls: turns that last twice as long, and a queue that knows no rounds.
    let mut longer = Fair { length: |length| 2 * length, ..Fair::new(&weights) };
    assert!(simulate(0, &mut longer, &manners, SECOND / 2).worst_by_one > ONE);
    let late: Vec<_> = (0..20).map(|tenant| Manner::From { poll: POLL, wakes: tenant * SECOND / 40 }).collect();
    let fair = simulate(0, &mut Fair::new(&[100; 20]), &late, SECOND);
    let least_used = simulate(0, &mut LeastUsed::new(20), &late, SECOND);
    assert!(
        fair.worst_by_one <= ONE && least_used.worst_by_one > ONE,
        "{} {}",
        fair.worst_by_one,
        least_used.worst_by_one
    );
}

#[test]
fn a_long_indivisible_poll_delays_the_others_by_itself_and_is_paid_for() {
    const FLIGHT: u64 = 250 * US;
    let manners =
        [vec![Manner::Saturating { poll: 2 * FLIGHT }; 2], vec![Manner::Saturating { poll: 5 * US }; 8]].concat();
    let outcome = simulate(3, &mut Fair::new(&[100; 10]), &manners, 2 * SECOND);
    let mean = 2 * SECOND / 10;
    for used in &outcome.used {
        assert!((*used as f64 / mean as f64 - 1.0).abs() <= 0.05, "{:?}", outcome.used);
    }
    assert!(outcome.turns[9] > 3 * outcome.turns[0], "who overruns has fewer turns: {:?}", outcome.turns);
}

#[test]
fn who_slept_is_served_next_and_has_saved_nothing_up() {
    const WAKES: u64 = SECOND / 2;
    let manners =
        [vec![Manner::Saturating { poll: 5 * US }; 9], vec![Manner::From { poll: 5 * US, wakes: WAKES }]].concat();
    let late_share = |policy: &mut dyn FnMut() -> Outcome| {
        let outcome = policy();
        outcome.used[9] as f64 / (SECOND - WAKES) as f64
    };
    let fair = late_share(&mut || simulate(5, &mut Fair::new(&[100; 10]), &manners, SECOND));
    assert!((fair * 10.0 - 1.0).abs() <= 0.05, "{fair}");
    // The control: the least used first gives it all of the core until it has caught up.
    let least_used = late_share(&mut || simulate(5, &mut LeastUsed::new(10), &manners, SECOND));
    assert!(least_used * 10.0 > 1.5, "{least_used}");

    let mut queue = Fair::new(&[100; 10]);
    (0..9).for_each(|tenant| queue.wake(tenant, 0));
    for turn in 0..1_000_u64 {
        let now = turn * SLICE;
        let (tenant, length) = queue.begin(now).unwrap();
        queue.end(tenant, length, true, now + length);
    }
    queue.wake(9, 1_000 * SLICE);
    assert_eq!(queue.begin(1_000 * SLICE).unwrap().0, 9, "at once");
}
