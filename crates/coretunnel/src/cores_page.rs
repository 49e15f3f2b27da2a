//! What the metrics server says of the cores: counts and tenants' accounts as series, the last turns as a table. All of
//! it is read from the cells that the cores write; no core is asked.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use reactor::{Account, CoreView, Counts, Decision, TenantKey, WAIT_BOUNDS};
use telemetry::exposition::{Kind, Sample};

/// Tenants of a core that have series of their own; the later ones are summed as [`OTHERS`]. Worst case 20 series of 150
/// bytes of page each: 3 MiB per core.
const TENANTS_MAX: usize = 1_000;
const OTHERS: &str = "(others)";

/// The series of all cores.
pub(crate) fn samples(cores: &[CoreView]) -> Vec<Sample> {
    let counts: Vec<_> = cores.iter().map(|core| (core, core.counts())).collect();
    let accounts: Vec<_> = cores.iter().map(|core| (core, by_name(core.accounts()))).collect();
    let mut samples = Vec::new();
    for (family, help, kind, value) in CORE_FAMILIES {
        for (core, counts) in &counts {
            let labels = vec![("core", core.name().to_owned())];
            samples.push(Sample { family, help, kind: *kind, labels, value: value(core, counts) });
        }
    }
    for (family, help, value) in TENANT_FAMILIES {
        for (core, accounts) in &accounts {
            for (tenant, account) in accounts {
                let labels = labels(core, tenant);
                samples.push(Sample { family, help, kind: Kind::Counter, labels, value: value(account) });
            }
        }
    }
    for (core, accounts) in &accounts {
        for (tenant, account) in accounts {
            waits(&mut samples, core, tenant, account);
        }
    }
    samples
}

type OfCore = fn(&CoreView, &Counts) -> u64;

const CORE_FAMILIES: &[(&str, &str, Kind, OfCore)] = &[
    ("coretunnel_core_tasks", "Tasks there are", Kind::Gauge, |_, counts| counts.tasks as u64),
    ("coretunnel_core_tasks_refused", "Tasks refused at the limit", Kind::Counter, |_, counts| counts.tasks_refused),
    ("coretunnel_core_tasks_panicked", "Tasks that panicked", Kind::Counter, |_, counts| counts.tasks_panicked),
    ("coretunnel_core_operations", "Socket operations under way", Kind::Gauge, |_, counts| counts.ops as u64),
    ("coretunnel_core_operations_refused", "Socket operations refused at the limit", Kind::Counter, |_, counts| {
        counts.ops_refused
    }),
    ("coretunnel_core_operations_completed", "Socket operations completed", Kind::Counter, |_, counts| {
        counts.ops_completed
    }),
    ("coretunnel_core_timers", "Timers armed", Kind::Gauge, |_, counts| counts.timers as u64),
    ("coretunnel_core_timers_over_limit", "Sleeps that found no timer", Kind::Counter, |_, counts| {
        counts.timers_over_limit
    }),
    ("coretunnel_core_lent_bytes", "Bytes of buffers lent out", Kind::Gauge, |_, counts| counts.lent_bytes as u64),
    ("coretunnel_core_free_bytes", "Bytes of buffers kept to be lent", Kind::Gauge, |_, counts| {
        counts.free_bytes as u64
    }),
    (
        "coretunnel_core_buffer_waits",
        "Receives that found their tenant's share of buffers out",
        Kind::Counter,
        |_, counts| counts.share_waits,
    ),
    ("coretunnel_core_pipes", "Pipes for splicing there are", Kind::Gauge, |_, counts| counts.pipes as u64),
    ("coretunnel_core_enters", "Entries into the kernel for the core's ring", Kind::Counter, |_, counts| counts.enters),
    ("coretunnel_core_parks", "Entries that were ready to sleep", Kind::Counter, |_, counts| counts.parks),
    (
        "coretunnel_core_longest_gap_microseconds",
        "The longest time within the last half minute to minute that one poll or entry into the kernel took",
        Kind::Gauge,
        |core, _| micros(core.longest_gap()),
    ),
    ("coretunnel_core_stalls", "Times that the watchdog saw the core standing still", Kind::Counter, |core, _| {
        core.stalls()
    }),
];

type OfTenant = fn(&Account) -> u64;

const TENANT_FAMILIES: &[(&str, &str, OfTenant)] = &[
    ("coretunnel_tenant_task_microseconds", "CPU time of the tenant's tasks", |account| account.user_ns / 1_000),
    ("coretunnel_tenant_kernel_microseconds", "CPU time of the kernel for the tenant's socket operations", |account| {
        account.kernel_ns / 1_000
    }),
    ("coretunnel_tenant_operations", "Socket operations completed for the tenant", |account| account.operations),
    ("coretunnel_tenant_received_bytes", "Bytes received on the tenant's sockets", |account| account.received_bytes),
    ("coretunnel_tenant_sent_bytes", "Bytes sent on the tenant's sockets", |account| account.sent_bytes),
    ("coretunnel_tenant_polls", "Polls of the tenant's tasks", |account| account.polls),
    ("coretunnel_tenant_turn_wait_microseconds", "Time that the tenant's turns were waited for", |account| {
        account.waited_ns / 1_000
    }),
];

fn labels(core: &CoreView, tenant: &str) -> Vec<(&'static str, String)> {
    vec![("core", core.name().to_owned()), ("tenant", tenant.to_owned())]
}

/// How long turns were waited for, cumulated as histograms are.
fn waits(samples: &mut Vec<Sample>, core: &CoreView, tenant: &str, account: &Account) {
    let bounds = WAIT_BOUNDS.iter().map(|bound| bound.as_secs_f64().to_string()).chain(["+Inf".to_owned()]);
    let mut value = 0;
    for (bound, turns) in bounds.zip(account.waits) {
        value += turns;
        let mut labels = labels(core, tenant);
        labels.push(("le", bound));
        samples.push(Sample {
            family: "coretunnel_tenant_turns_waited",
            help: "Turns of the tenant by how many seconds it waited for them at most",
            kind: Kind::Counter,
            labels,
            value,
        });
    }
}

/// Accounts by their tenant's name, in bounds.
fn by_name(accounts: Vec<Account>) -> BTreeMap<String, Account> {
    let mut named: BTreeMap<String, Account> = BTreeMap::new();
    for (place, account) in accounts.into_iter().enumerate() {
        let name =
            if place < TENANTS_MAX { called(account.tenant, account.name.as_deref()) } else { OTHERS.to_owned() };
        named.entry(name).and_modify(|sum| sum.add(&account)).or_insert(account);
    }
    named
}

fn called(tenant: TenantKey, name: Option<&str>) -> String {
    match (name, tenant) {
        (Some(name), _) => name.to_owned(),
        (None, TenantKey::OVERFLOW) => OTHERS.to_owned(),
        (None, TenantKey(key)) => format!("(unnamed {key})"),
    }
}

/// The last turns of every core, one line each, the earliest first.
pub(crate) fn turns(cores: &[CoreView]) -> String {
    let mut page = String::new();
    for core in cores {
        let names: BTreeMap<_, _> = core
            .accounts()
            .into_iter()
            .map(|account| (account.tenant, called(account.tenant, account.name.as_deref())))
            .collect();
        let unknown = String::new();
        writeln!(page, "# {}: turn, began s, waited us, length us, used us, polls, end, tenant", core.name())
            .expect("a string takes everything");
        for Decision { serial, began_ns, tenant, waited_ns, length_ns, used_ns, polls, end, .. } in core.decisions() {
            let us = |ns: u64| ns as f64 / 1e3;
            let name = names.get(&tenant).unwrap_or(&unknown);
            writeln!(
                page,
                "{serial} {:.6} {:.1} {:.1} {:.1} {polls} {} {name}",
                began_ns as f64 / 1e9,
                us(waited_ns),
                us(length_ns),
                us(used_ns),
                end.text(),
            )
            .expect("a string takes everything");
        }
    }
    page
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use reactor::{CoreConfig, Runtime, Weight};

    use super::*;

    /// What is seen of a core on which two tenants ran, after its end.
    fn a_core_that_ran() -> CoreView {
        let (tell, told) = mpsc::channel();
        let config = CoreConfig { name: "core-7".to_owned(), ..CoreConfig::default() };
        let core = reactor::start(config, move |reactor| async move {
            reactor.introduce(TenantKey(1), "shop/web", Weight::DEFAULT);
            for tenant in [TenantKey(1), TenantKey(2)] {
                reactor.spawn(tenant, async {}).await.expect("it runs");
            }
            // It sleeps once, and tells its counts before.
            reactor.sleep(Duration::from_millis(2)).await;
            tell.send(()).expect("the test waits");
        })
        .expect("a core");
        let view = core.view();
        told.recv_timeout(Duration::from_secs(60)).expect("the core runs");
        core.join();
        view
    }

    #[test]
    fn the_page_names_cores_and_tenants_and_families_stand_together() {
        let view = a_core_that_ran();
        let samples = samples(std::slice::from_ref(&view));
        let value = |family: &str, tenant: Option<&str>| {
            let labels: Vec<_> =
                [("core", "core-7")].into_iter().chain(tenant.map(|tenant| ("tenant", tenant))).collect();
            let found = samples.iter().find(|sample| {
                let have: Vec<_> = sample.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                sample.family == family && have == labels
            });
            found.unwrap_or_else(|| panic!("no {family} of {tenant:?}")).value
        };
        assert_eq!(value("coretunnel_tenant_polls", Some("shop/web")), 1);
        assert_eq!(value("coretunnel_tenant_polls", Some("(unnamed 2)")), 1);
        assert!(value("coretunnel_tenant_polls", Some("(core)")) >= 2);
        assert!(value("coretunnel_core_enters", None) >= 1 && value("coretunnel_core_parks", None) >= 1);
        assert_eq!(value("coretunnel_core_stalls", None), 0);
        let waited: Vec<_> = samples
            .iter()
            .filter(|sample| sample.labels.contains(&("le", "+Inf".to_owned())) && sample.labels[1].1 == "shop/web")
            .map(|sample| sample.value)
            .collect();
        assert_eq!(waited, [1], "one turn");
        let mut families: Vec<_> = samples.iter().map(|sample| sample.family).collect();
        families.dedup();
        let together = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), together);
    }

    #[test]
    fn the_last_turns_are_a_line_each_with_their_tenants() {
        let page = turns(&[a_core_that_ran()]);
        assert!(page.starts_with("# core-7: turn,"), "{page}");
        assert!(page.lines().any(|line| line.starts_with("1 ") && line.ends_with("idle (core)")), "{page}");
        assert_eq!(page.lines().filter(|line| line.ends_with(" 1 idle shop/web")).count(), 1, "{page}");
    }

    #[test]
    fn tenants_beyond_the_bound_are_summed() {
        let account = a_core_that_ran().accounts().remove(1);
        let accounts: Vec<_> = (1..=TENANTS_MAX as u32 + 5)
            .map(|key| {
                let mut account = account.clone();
                (account.tenant, account.polls) = (TenantKey(key), 2);
                account.name = Some(format!("tenant {key}").into());
                account
            })
            .collect();
        let named = by_name(accounts);
        assert_eq!(named.len(), TENANTS_MAX + 1);
        assert_eq!(named[OTHERS].polls, 10);
    }
}
