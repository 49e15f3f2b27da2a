//! The order in which changes came is not part of a mesh: whatever it was, the decisions are the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_state::admit::{self, Request};
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::dns::{self, Naming, RecordKind};
use mesh_state::name::Authority;
use mesh_state::route;
use mesh_state::snapshot::Snapshot;
use proptest::prelude::*;

use crate::universe::{ADDRESSES, HOSTNAMES, PORTS, changes};

/// Every decision of a mesh for each of its workloads, as text.
pub(crate) fn decisions(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut decisions = BTreeMap::new();
    let mut addresses = Vec::new();
    for address in ADDRESSES {
        addresses.extend(PORTS.map(|port| SocketAddr::new(address.parse().expect(address), port)));
    }
    for workload in snapshot.workloads() {
        let peer: SocketAddr = "10.0.0.1:40000".parse().unwrap();
        for target in &addresses {
            for draw in [0, u64::MAX / 3, u64::MAX] {
                let query = route::Query { source: workload, peer: peer.ip(), target: *target };
                let route = route::outbound(snapshot, &query, draw);
                decisions.insert(format!("{} to {target} at {draw}", workload.uid), format!("{route:?}"));
            }
        }
        let hosts = HOSTNAMES.iter().flat_map(|host| PORTS.map(|port| Authority::Host { host: (*host).into(), port }));
        let authorities: Vec<Authority> = addresses.iter().copied().map(Authority::Address).chain(hosts).collect();
        let tunnels = authorities.iter().map(Request::Tunnel);
        for request in tunnels.chain(addresses.iter().copied().map(Request::Plaintext)) {
            let local = workload.addresses.first().copied().unwrap_or(peer.ip());
            let identity = Some(&workload.identity);
            let query = admit::Query {
                workload,
                peer,
                identity,
                local,
                request,
                proxy_ports: &[15008],
                localhost_tunnel: true,
            };
            let answer = admit::inbound(snapshot, &query);
            decisions.insert(format!("{request:?} at {}", workload.uid), format!("{answer:?}"));
        }
        // Of these names some are headless in this domain.
        let naming = Naming { cluster_domain: "example.com", preferred_namespace: Some("b"), ipv6: true };
        for name in HOSTNAMES.into_iter().chain(["x.svc.example.com", "one"]) {
            let query = dns::Query { client: workload, name, kind: RecordKind::A, naming: &naming };
            let answer = dns::answer(snapshot, &query, 7);
            decisions.insert(format!("{name} for {}", workload.uid), format!("{answer:?}"));
        }
    }
    decisions
}

pub(crate) fn built(changes: impl IntoIterator<Item = Change>) -> Snapshot {
    let mut builder = SnapshotBuilder::new();
    for change in changes {
        builder.apply(change);
    }
    builder.freeze()
}

/// What a change is about: of two about the same, the later wins, so their order matters and no other does.
fn subject(change: &Change) -> String {
    match change {
        Change::Workload(workload) => format!("workload {}", workload.uid),
        Change::WorkloadGone(uid) => format!("workload {uid}"),
        Change::Service(service) => format!("service {}", service.key()),
        Change::ServiceGone(key) => format!("service {key}"),
        Change::Policy(policy) => format!("policy {}", policy.key),
        Change::PolicyGone(key) => format!("policy {key}"),
        Change::Absent(sought) | Change::Unknown(sought) => format!("{sought:?}"),
    }
}

fn reordered() -> impl Strategy<Value = (Vec<Change>, Vec<Change>)> {
    changes().prop_flat_map(|changes| {
        let shuffled = Just(changes.clone()).prop_shuffle();
        shuffled.prop_map(move |shuffled| {
            // The order of the shuffle between subjects, the original order within each.
            let mut by_subject: BTreeMap<String, std::collections::VecDeque<Change>> = BTreeMap::new();
            for change in &changes {
                by_subject.entry(subject(change)).or_default().push_back(change.clone());
            }
            let next = |change: &Change| {
                by_subject.get_mut(&subject(change)).and_then(|queue| queue.pop_front()).expect("as many as there were")
            };
            (changes.clone(), shuffled.iter().map(next).collect())
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_of_the_same_changes_gives_the_same_decisions((first, second) in reordered()) {
        let first = decisions(&built(first));
        let second = decisions(&built(second));
        for (question, answer) in &first {
            prop_assert_eq!(Some(answer), second.get(question), "{}", question);
        }
        prop_assert_eq!(first.len(), second.len());
    }

    /// Negative control, by hand: texts of services that are not given back, profiles that are not, empty rosters or networks
    /// that stay, each fails it.
    #[test]
    fn what_is_all_taken_back_leaves_nothing_behind(changes in changes()) {
        let mut builder = SnapshotBuilder::new();
        let gone: Vec<Change> = changes.iter().filter_map(|change| match change {
            Change::Workload(workload) => Some(Change::WorkloadGone(workload.uid.clone())),
            Change::Service(service) => Some(Change::ServiceGone(service.key())),
            Change::Policy(policy) => Some(Change::PolicyGone(policy.key.clone())),
            _ => None,
        }).collect();
        for change in changes {
            builder.apply(change);
        }
        for change in gone {
            builder.apply(change);
        }
        prop_assert!(builder.is_empty(), "{:#?}", builder);
    }

    #[test]
    fn what_was_and_is_no_more_leaves_no_trace(before in changes(), after in changes()) {
        // Everything of `before` that `after` says nothing about is taken back.
        let kept: Vec<String> = after.iter().map(subject).collect();
        let undo: Vec<Change> = before.iter().filter(|change| !kept.contains(&subject(change))).map(|change| match change {
            Change::Workload(workload) => Change::WorkloadGone(workload.uid.clone()),
            Change::Service(service) => Change::ServiceGone(service.key()),
            Change::Policy(policy) => Change::PolicyGone(policy.key.clone()),
            gone => gone.clone(),
        }).collect();
        let with_past = built(before.into_iter().chain(undo).chain(after.clone()));
        prop_assert_eq!(decisions(&with_past), decisions(&built(after)));
    }
}
