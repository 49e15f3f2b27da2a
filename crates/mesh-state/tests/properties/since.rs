//! What changed since a generation is never less than what did; and what is known of something is what was said of it.

use std::collections::BTreeMap;

use mesh_state::absence::ABSENT_MAX;
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::name::NetworkId;
use mesh_state::rbac;
use mesh_state::snapshot::Snapshot;
use mesh_state::touched::{GENERATIONS_MAX, TOUCHED_MAX};
use mesh_state::wanted::{Knowledge, Sought};
use mesh_state::workload::Workload;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::universe::{ACCOUNTS, NAMES, NAMESPACES, changes, sought, workload};

/// What policy says of some connections to each pod there can be, by its namespace, name and account.
fn verdicts(snapshot: &Snapshot) -> BTreeMap<(&'static str, &'static str, &'static str), (Workload, String)> {
    let mut verdicts = BTreeMap::new();
    for namespace in NAMESPACES {
        for name in NAMES {
            for account in ACCOUNTS {
                let Some(workload) = snapshot.local_workload(None, namespace, name, account) else { continue };
                let targets = ["10.0.0.1:80", "10.1.0.1:8080"].map(|text| text.parse().expect(text));
                let said = targets.map(|target| {
                    let peer = "10.0.0.2".parse().expect("an address");
                    let query = rbac::Query { workload, identity: Some(&workload.identity), peer, target };
                    rbac::evaluate(snapshot, &query)
                });
                verdicts.insert((namespace, name, account), (Workload::clone(workload), format!("{said:?}")));
            }
        }
    }
    verdicts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_verdict_is_another_unless_the_change_says_it_may_be(
        before in changes(),
        later in vec(vec(crate::universe::change(), 0..3), 1..6),
    ) {
        let mut builder = SnapshotBuilder::new();
        before.into_iter().for_each(|change| builder.apply(change));
        let old = builder.freeze();
        for batch in later {
            batch.into_iter().for_each(|change| builder.apply(change));
            let new = builder.freeze();
            let changed = new.changed_since(old.generation());
            let old = verdicts(&old);
            for (pod, (workload, said)) in verdicts(&new) {
                let same = old.get(&pod).is_some_and(|(_, before)| *before == said);
                prop_assert!(same || changed.may_touch_policy_for(&workload), "{:?} {}", pod, said);
            }
        }
    }

    #[test]
    fn what_is_known_is_what_was_said_last(steps in vec((sought(), any::<bool>()), 0..30), shop in workload()) {
        let mut builder = SnapshotBuilder::on_demand();
        let mut absent = Vec::new();
        for (sought, said) in steps {
            let held = absent.contains(&same(&sought));
            let expected = if held { Knowledge::Absent } else { Knowledge::NotAsked };
            prop_assert_eq!(builder.freeze().knowledge(&sought), expected);
            if said && !held {
                absent.push(same(&sought));
                builder.apply(Change::Absent(sought));
            } else if said {
                absent.retain(|one| *one != same(&sought));
                builder.apply(Change::Unknown(sought));
            }
        }
        builder.apply(Change::Workload(shop.clone()));
        let there = builder.freeze();
        builder.apply(Change::WorkloadGone(shop.uid.clone()));
        let gone = builder.freeze();
        for address in &shop.addresses {
            let asked = Sought::Address { network: shop.network.clone(), address: *address };
            if there.workload_by_address(&shop.network, *address).is_some() {
                prop_assert_eq!(there.knowledge(&asked), Knowledge::Present);
                prop_assert_eq!(gone.knowledge(&asked), Knowledge::NotAsked, "it was there, so it is not known to be absent");
            }
        }
    }
}

fn same(sought: &Sought) -> Sought {
    match sought {
        Sought::Address { network, address } => {
            Sought::Address { network: network.clone(), address: address.to_canonical() }
        }
        Sought::Hostname(name) => Sought::Hostname(name.clone()),
    }
}

#[test]
fn where_everything_is_sent_what_is_not_there_is_absent() {
    let anywhere = Sought::Address { network: NetworkId::from(""), address: [10, 0, 0, 1].into() };
    assert_eq!(SnapshotBuilder::new().freeze().knowledge(&anywhere), Knowledge::Absent);
    assert_eq!(SnapshotBuilder::on_demand().freeze().knowledge(&anywhere), Knowledge::NotAsked);
}

#[test]
fn absences_beyond_the_limit_are_forgotten_oldest_first() {
    let at = |number: usize| {
        let number = u32::try_from(number).expect("few");
        Sought::Address { network: NetworkId::from(""), address: std::net::Ipv4Addr::from(number).into() }
    };
    let mut builder = SnapshotBuilder::on_demand();
    (0..ABSENT_MAX + 10).for_each(|number| builder.apply(Change::Absent(at(number))));
    let snapshot = builder.freeze();
    let known = |number| snapshot.knowledge(&at(number));
    assert_eq!((known(9), known(10)), (Knowledge::NotAsked, Knowledge::Absent));
    assert_eq!(known(ABSENT_MAX + 9), Knowledge::Absent);
}

#[test]
fn a_generation_too_long_ago_or_never_made_changed_everything() {
    let mut builder = SnapshotBuilder::new();
    let first = builder.freeze();
    for _ in 1..GENERATIONS_MAX {
        builder.freeze();
    }
    let kept = builder.freeze();
    assert!(kept.changed_since(first.generation()).is_nothing(), "nothing changed, and it is known");
    assert!(builder.freeze().changed_since(first.generation()).is_too_old());
    assert!(first.changed_since(first.generation() + 1).is_too_old(), "it is of the future");
    assert!(first.changed_since(first.generation()).is_nothing());
}

#[test]
fn a_generation_of_many_changes_may_touch_all() {
    let identity = mesh_state::identity::Identity::new("td", "a", "s").expect("valid parts");
    let workload = |number: usize| {
        Workload::new(format!("c//Pod/a/{number}").as_str().into(), "a", &number.to_string(), identity.clone())
    };
    let mut builder = SnapshotBuilder::new();
    builder.apply(Change::Workload(workload(0)));
    let few = builder.freeze();
    let other = workload(TOUCHED_MAX * 2);
    assert!(!few.changed_since(few.generation() - 1).may_touch_policy_for(&other));
    (0..TOUCHED_MAX).for_each(|number| builder.apply(Change::WorkloadGone(workload(number).uid)));
    (0..TOUCHED_MAX).for_each(|number| builder.apply(Change::Workload(workload(number))));
    let many = builder.freeze();
    assert!(many.changed_since(few.generation()).may_touch_policy_for(&other));
    assert!(many.changed_since(few.generation()).may_touch_services());
}
