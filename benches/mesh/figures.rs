//! The figures of one mesh, and how each is got.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::NetworkId;
use mesh_state::policy::{Policy, PolicyScope};
use mesh_state::rbac::{self, Denial, DryRun, Verdict};
use mesh_state::route;
use mesh_state::snapshot::Snapshot;
use mesh_state::warm;
use mesh_state::workload::{Status, Workload};

use crate::measure::{CpuTime, cold_lookup_ns, heap_bytes, lookup_ns, quantile, resident_bytes};
use crate::world::{self, ASKED_PORT, ASKING, PORT, Rules, World};

/// Keys that fit the caches.
const HOT_KEYS: usize = 1_000;
/// Keys drawn over all.
const COLD_KEYS: usize = 200_000;
/// Changes are decoded this many at a time, outside of what is timed.
const BATCH: usize = 64;
const CHANGES: u32 = 20_000;

/// A figure under the name it has in the JSON object.
pub(crate) type Figure = (String, f64);

/// Every figure of one mesh.
pub(crate) fn of(world: World, tell: &dyn Fn(&str)) -> Vec<Figure> {
    let (heap_before, resident_before) = (heap_bytes(), resident_bytes());
    let mut builder = SnapshotBuilder::new();
    let built = build(&mut builder, world.changes());
    let start = CpuTime::now();
    let mut held = builder.freeze();
    let built = built + start.elapsed();
    let per_workload = |bytes: usize| bytes as f64 / f64::from(world.workloads);
    let heap = per_workload(heap_bytes() - heap_before);
    let resident = per_workload(resident_bytes().saturating_sub(resident_before));
    tell(&format!("  built in {built:?}, {heap:.0} B of heap and {resident:.0} B resident per workload"));

    let mut rng = Rng::with_seed(7);
    let source = world.workload(0, 0);
    let network = NetworkId::from("");
    let draw_address = |rng: &mut Rng| world::pod_address(rng.u32(0..world.workloads));
    let addr = hot_and_cold(&mut rng, draw_address, |address| {
        held.workload_by_address(&network, IpAddr::V4(*address)).expect("there is one")
    });
    tell(&format!("  by address, hot and cold: {addr:.0?} ns"));
    let draw_hostname = |rng: &mut Rng| world.hostname(rng.u32(0..world.services()));
    let host = hot_and_cold(&mut rng, draw_hostname, |(host, namespace)| {
        held.service_by_hostname(host, namespace).expect("there is one")
    });
    tell(&format!("  by hostname: {host:.0?} ns"));
    let balanced = |key: &(Ipv4Addr, u64)| balanced(&held, &network, &source, *key);
    let of_few = |rng: &mut Rng| (world::service_address(rng.u32(0..world.services())), rng.u64(..));
    let of_thousand = |rng: &mut Rng| (world::thousand_address(rng.u32(0..world.thousands())), rng.u64(..));
    let of_many = |rng: &mut Rng| (world::many_address(), rng.u64(..));
    let vip = [
        hot_and_cold(&mut rng, of_few, balanced),
        hot_and_cold(&mut rng, of_thousand, balanced),
        hot_and_cold(&mut rng, of_many, balanced),
    ];
    tell(&format!("  by VIP, balanced over 15, 1000, {}: {vip:.0?} ns", world.many()));
    let worst = |at: usize| vip.iter().map(|size| size[at]).fold(0.0, f64::max);
    let mut changes = changes(world, &mut builder, &mut held, &mut rng);
    let change = [0.5, 0.99].map(|part| quantile(&mut changes.us, part));
    let free_p99_us = quantile(&mut changes.free_us, 0.99);
    let generation_kib = quantile(&mut changes.kib, 1.0);
    tell(&format!(
        "  a change, p50 and p99: {change:.1?} us, at most {generation_kib:.1} KiB; freed in {free_p99_us:.1} us"
    ));
    let start = CpuTime::now();
    let bytes = warm::encode(&held, "bench", 0);
    let encoded = start.elapsed().as_secs_f64();
    let start = CpuTime::now();
    let terms = warm::Terms { origin: "bench", now_unix_s: 0, age_max_s: 0 };
    let decoded = warm::decode(&bytes, &terms).expect("it was written a moment ago").freeze();
    let warm_s = start.elapsed().as_secs_f64();
    assert_eq!(decoded.workloads().count(), held.workloads().count());
    tell(&format!("  as bytes: {} MiB, written in {encoded:.2} s, read in {warm_s:.2} s", bytes.len() >> 20));
    [
        ("bytes_per_workload", resident),
        ("build_s", built.as_secs_f64()),
        ("change_p99_us", change[1]),
        ("generation_kib", generation_kib),
        ("addr_hot_ns", addr[0]),
        ("addr_cold_ns", addr[1]),
        ("host_hot_ns", host[0]),
        ("host_cold_ns", host[1]),
        ("vip_hot_ns", worst(0)),
        ("vip_cold_ns", worst(1)),
        ("heap_bytes_per_workload", heap),
        ("change_p50_us", change[0]),
        ("free_p99_us", free_p99_us),
        ("warm_encode_s", encoded),
        ("warm_decode_s", warm_s),
        ("warm_bytes_per_workload", per_workload(bytes.len())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// How long the changes took to apply. Each batch is decoded before its time is taken.
fn build(builder: &mut SnapshotBuilder, mut changes: impl Iterator<Item = Change>) -> Duration {
    let mut built = Duration::ZERO;
    loop {
        let batch: Vec<Change> = changes.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return built;
        }
        let start = CpuTime::now();
        batch.into_iter().for_each(|change| builder.apply(change));
        built += start.elapsed();
    }
}

fn balanced<'s>(
    snapshot: &'s Snapshot,
    network: &NetworkId,
    source: &Workload,
    (vip, draw): (Ipv4Addr, u64),
) -> &'s Arc<Workload> {
    let service = snapshot.service_by_vip(network, IpAddr::V4(vip), &source.namespace).expect("there is one");
    let (workload, _) = route::endpoint(snapshot, service, source, PORT, draw).expect("it has endpoints");
    workload
}

/// Keys drawn beforehand: few that stay in the caches, and many over all.
fn hot_and_cold<K, T>(rng: &mut Rng, draw: impl Fn(&mut Rng) -> K, ask: impl Fn(&K) -> T) -> [f64; 2] {
    let hot: Vec<K> = (0..HOT_KEYS).map(|_| draw(rng)).collect();
    // The same thousand many times over, or the clock would be most of what is measured.
    let hot_ns = (0..20).map(|_| lookup_ns(&hot, &ask)).fold(f64::MAX, f64::min);
    let cold_ns = cold_lookup_ns(|| (0..COLD_KEYS).map(|_| draw(rng)).collect(), &ask);
    [hot_ns, cold_ns]
}

struct Changes {
    us: Vec<f64>,
    kib: Vec<f64>,
    free_us: Vec<f64>,
}

/// One endpoint at a time becomes unhealthy, or goes, or comes in place of one that went. The generation before is held, as
/// cores hold it, and freed afterwards, as control frees it.
fn changes(world: World, builder: &mut SnapshotBuilder, held: &mut Snapshot, rng: &mut Rng) -> Changes {
    let count = CHANGES.min(world.workloads);
    let mut samples = Changes { us: Vec::new(), kib: Vec::new(), free_us: Vec::new() };
    let room = count as usize;
    for list in [&mut samples.us, &mut samples.kib, &mut samples.free_us] {
        list.reserve(room);
    }
    let mut gone = Vec::with_capacity(room);
    for step in 0..count {
        let change = match step % 3 {
            0 => {
                let mut workload = world.workload(rng.u32(0..world.workloads), 0);
                workload.status = Status::Unhealthy;
                Change::Workload(workload)
            }
            1 => {
                let number = rng.u32(0..world.workloads);
                gone.push(number);
                Change::WorkloadGone(world.workload(number, 0).uid)
            }
            _ => Change::Workload(world.workload(gone.pop().expect("the step before left one"), step)),
        };
        let before = heap_bytes();
        let start = CpuTime::now();
        builder.apply(change);
        let next = builder.freeze();
        samples.us.push(start.elapsed().as_secs_f64() * 1e6);
        samples.kib.push((heap_bytes() as f64 - before as f64) / 1024.0);
        let old = std::mem::replace(held, next);
        let start = CpuTime::now();
        drop(old);
        samples.free_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    samples
}

/// A verdict when five of `count` policies are for the workload; when all of them are, whatever their rules are like; and what
/// one more policy for all costs, with the generation that it makes.
pub(crate) fn of_policies(count: u32, tell: &dyn Fn(&str)) -> Vec<Figure> {
    let global = |rules| Policies::new(count, PolicyScope::Global, rules, false);
    let selected = Policies::new(count, PolicyScope::WorkloadSelector, Rules::Principal, false).verdict_us();
    let by_key = global(Rules::Principal).verdict_us();
    let mut negated = global(Rules::Not);
    let by_exclusion = negated.verdict_us();
    let change_p99_us = negated.change_p99_us();
    let either = global(Rules::NotInAlternatives).verdict_us();
    let on_trial = Policies::new(count, PolicyScope::Global, Rules::Not, true).trial_us();
    tell(&format!(
        "  a verdict of 5: {selected:.2} us; of all, by what they name: {by_key:.2} us, by what they exclude: {by_exclusion:.2} us, by what each of two alternatives excludes: {either:.1} us"
    ));
    tell(&format!("  one more for all, of only `not_` fields, p99: {change_p99_us:.1} us"));
    tell(&format!("  of all, by what they exclude, on trial: {on_trial:.2} us"));
    [
        ("rbac_5_of_10k_us", selected),
        ("rbac_10k_global_us", by_key),
        ("rbac_10k_global_not_us", by_exclusion),
        ("rbac_10k_global_either_us", either),
        ("rbac_10k_global_dry_run_us", on_trial),
        ("policy_change_p99_us", change_p99_us),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn asking() -> Identity {
    Identity::new("cluster.local", ASKING[0], ASKING[1]).expect("valid parts")
}

/// A mesh of many policies, and the workload they are for.
struct Policies {
    count: u32,
    rules: Rules,
    builder: SnapshotBuilder,
    snapshot: Snapshot,
    workload: Workload,
}

impl Policies {
    fn new(count: u32, scope: PolicyScope, rules: Rules, dry_run: bool) -> Self {
        let mut builder = SnapshotBuilder::new();
        let mut workload = World { workloads: 10_000 }.workload(0, 0);
        for number in 0..count {
            let policy = Policy { dry_run, ..world::policy(number, scope, rules) };
            if number % (count / 5) == 0 && scope == PolicyScope::WorkloadSelector {
                workload.authorization_policies.push(policy.key.clone());
            }
            builder.apply(Change::Policy(policy));
        }
        let snapshot = builder.freeze();
        Self { count, rules, builder, snapshot, workload }
    }

    fn verdict(&self, identity: &Identity) -> Verdict {
        let query = rbac::Query {
            workload: &self.workload,
            identity: Some(identity),
            peer: IpAddr::V4(world::pod_address(1)),
            target: (world::pod_address(0), ASKED_PORT).into(),
        };
        rbac::evaluate(&self.snapshot, &query)
    }

    fn verdict_us(&self) -> f64 {
        let identity = asking();
        let ask = |_: &()| {
            let verdict = self.verdict(&identity);
            assert!(matches!(verdict.decision, Err(Denial::NoneAllowed)), "no rule is left out: {verdict:?}");
        };
        lookup_ns(&[(); 50], ask) / 1e3
    }

    /// Of policies on trial, whose outcomes are a list.
    fn trial_us(&self) -> f64 {
        const TIMES: u32 = 50;
        let identity = asking();
        let start = CpuTime::now();
        for _ in 0..TIMES {
            let verdict = self.verdict(&identity);
            assert_eq!(verdict.dry_run, [DryRun::NoneAllowed], "no rule is left out");
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)
    }

    fn change_p99_us(&mut self) -> f64 {
        let mut us = Vec::new();
        for number in 0..500 {
            let change = Change::Policy(world::policy(self.count + number, PolicyScope::Global, self.rules));
            let start = CpuTime::now();
            self.builder.apply(change);
            self.snapshot = self.builder.freeze();
            us.push(start.elapsed().as_secs_f64() * 1e6);
        }
        quantile(&mut us, 0.99)
    }
}
