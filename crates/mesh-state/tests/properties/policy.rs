//! Policy decides as a second evaluator, written from §7 in the most literal way, says it should.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::PolicyKey;
use mesh_state::policy::{Action, Match, Policy, PolicyScope, StringMatch};
use mesh_state::rbac::{Allowance, Deciding, Denial, DryRun, Query, Verdict, evaluate};
use mesh_state::workload::Workload;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::universe::{PORTS, address, identity, policy, workload};

/// The whole verdict, from all policies, in the most literal reading of §7.1 and §7.2.
fn naive(policies: &BTreeMap<PolicyKey, Policy>, query: &Query<'_>) -> Verdict {
    let attached = &query.workload.authorization_policies;
    let of_mesh = |policy: &&Policy| policy.scope == PolicyScope::Global;
    let of_namespace =
        |policy: &&Policy| policy.scope == PolicyScope::Namespace && policy.namespace == query.workload.namespace;
    let mut applying: Vec<&Policy> = policies.values().filter(of_mesh).collect();
    applying.extend(policies.values().filter(of_namespace));
    let in_scope = applying.clone();
    applying.extend(attached.iter().filter_map(|key| policies.get(key)).filter(|policy| !in_scope.contains(policy)));

    let of = |action: Action, dry_run: bool| {
        applying.iter().filter(move |policy| policy.action == action && policy.dry_run == dry_run)
    };
    let matched = |action: Action, dry_run: bool| of(action, dry_run).filter_map(|policy| matching(policy, query));
    let mut dry_run: Vec<DryRun> = matched(Action::Deny, true).map(DryRun::Denied).collect();
    let unknown = attached.iter().find(|key| !policies.contains_key(*key));
    let denied = matched(Action::Deny, false).next().map(Denial::Explicit);
    if let Some(denial) = denied.or(unknown.cloned().map(Denial::UnknownPolicy)) {
        return Verdict { decision: Err(denial), dry_run };
    }
    let allowed_dry: Vec<DryRun> = matched(Action::Allow, true).map(DryRun::Allowed).collect();
    let enforced = of(Action::Allow, false).count() > 0;
    if of(Action::Allow, true).count() > 0 && !enforced && allowed_dry.is_empty() {
        dry_run.push(DryRun::NoneAllowed);
    }
    dry_run.extend(allowed_dry);
    let decision = match matched(Action::Allow, false).next() {
        Some(deciding) => Ok(Allowance::Matched(deciding)),
        None if enforced => Err(Denial::NoneAllowed),
        None => Ok(Allowance::NoAllowPolicies),
    };
    Verdict { decision, dry_run }
}

/// The first rule that matches.
fn matching(policy: &Policy, query: &Query<'_>) -> Option<Deciding> {
    for (rule, clauses) in policy.rules.iter().map(|rule| &rule.clauses).enumerate() {
        let mut all_clauses = true;
        for clause in clauses {
            let mut any_match = clause.matches.is_empty();
            for condition in &clause.matches {
                any_match |= condition_matches(condition, policy.action, query);
            }
            all_clauses &= any_match;
        }
        if all_clauses {
            return Some(Deciding { policy: policy.key.clone(), rule });
        }
    }
    None
}

fn condition_matches(condition: &Match, action: Action, query: &Query<'_>) -> bool {
    let namespace = query.identity.map(|identity| identity.namespace().to_string()).unwrap_or_default();
    let principal = query.identity.map(|identity| identity.to_string().replace("spiffe://", ""));
    let text = |value: &StringMatch, subject: &str| match value {
        StringMatch::Exact(exact) => **exact == *subject,
        StringMatch::Prefix(prefix) => subject.len() >= prefix.len() && subject[..prefix.len()] == **prefix,
        StringMatch::Suffix(suffix) => {
            subject.len() >= suffix.len() && subject[subject.len() - suffix.len()..] == **suffix
        }
        StringMatch::Presence => !subject.is_empty(),
    };
    // An IPv4 address is in IPv4 blocks, and in blocks of IPv6 addresses that stand for IPv4 ones; not in `::/0`.
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let inside = |nets: &[IpNet], ip: IpAddr| {
        let mut inside = false;
        for net in nets {
            let in_range = (number(net.network())..=number(net.broadcast())).contains(&number(ip));
            let of_ipv4 = net.addr().is_ipv4() || (net.prefix_len() >= 96 && net.addr().to_canonical().is_ipv4());
            inside |= in_range && (ip.is_ipv6() || of_ipv4);
        }
        inside
    };
    // Each field: is it populated, and is one of its values true.
    let mut fields: Vec<(bool, bool)> = Vec::new();
    let names = |values: &[StringMatch]| values.iter().any(|value| text(value, &namespace));
    let principals =
        |values: &[StringMatch]| principal.as_ref().is_some_and(|id| values.iter().any(|value| text(value, id)));
    fields.push((!condition.namespaces.is_empty(), names(&condition.namespaces)));
    fields.push((!condition.not_namespaces.is_empty(), !names(&condition.not_namespaces)));
    fields.push((!condition.principals.is_empty(), principals(&condition.principals)));
    fields.push((!condition.not_principals.is_empty(), !principals(&condition.not_principals)));
    let source = query.peer.to_canonical();
    fields.push((!condition.source_ips.is_empty(), inside(&condition.source_ips, source)));
    fields.push((!condition.not_source_ips.is_empty(), !inside(&condition.not_source_ips, source)));
    let destination = query.target.ip().to_canonical();
    fields.push((!condition.destination_ips.is_empty(), inside(&condition.destination_ips, destination)));
    fields.push((!condition.not_destination_ips.is_empty(), !inside(&condition.not_destination_ips, destination)));
    let port = query.target.port();
    fields.push((!condition.destination_ports.is_empty(), condition.destination_ports.contains(&port)));
    fields.push((!condition.not_destination_ports.is_empty(), !condition.not_destination_ports.contains(&port)));
    let account = |values: &[mesh_state::policy::ServiceAccountMatch]| {
        let end = |value: &mesh_state::policy::ServiceAccountMatch| {
            format!("/ns/{}/sa/{}", value.namespace, value.service_account)
        };
        principal.as_ref().is_some_and(|id| values.iter().any(|value| id.ends_with(&end(value))))
    };
    fields.push((!condition.service_accounts.is_empty(), account(&condition.service_accounts)));
    fields.push((!condition.not_service_accounts.is_empty(), !account(&condition.not_service_accounts)));
    fields.push((!condition.unreadable.is_empty(), action == Action::Deny));
    let populated: Vec<bool> = fields.into_iter().filter(|(populated, _)| *populated).map(|(_, holds)| holds).collect();
    !populated.is_empty() && populated.into_iter().all(|holds| holds)
}

/// Policies that come, change and go.
fn history() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => policy().prop_map(Change::Policy),
        1 => policy().prop_map(|policy| Change::PolicyGone(policy.key)),
    ];
    vec(change, 0..12)
}

/// The workload half the time without attached policies, which are unknown too often to let others decide.
fn subject() -> impl Strategy<Value = Workload> {
    (workload(), any::<bool>()).prop_map(|(mut workload, attached)| {
        if !attached {
            workload.authorization_policies.clear();
        }
        workload
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn policy_decides_as_a_naive_evaluator_does(
        history in history(),
        workload in subject(),
        identity in option::weighted(0.8, identity()),
        peer in address(),
        target in (address(), select(&PORTS[..])),
    ) {
        let mut builder = SnapshotBuilder::new();
        let mut policies = BTreeMap::new();
        for change in history {
            builder.apply(change.clone());
            match change {
                Change::Policy(policy) => drop(policies.insert(policy.key.clone(), policy)),
                Change::PolicyGone(key) => drop(policies.remove(&key)),
                other => panic!("no policy: {other:?}"),
            }
        }
        let identity: Option<&Identity> = identity.as_ref();
        let target = SocketAddr::new(target.0, target.1);
        let query = Query { workload: &workload, identity, peer, target };
        prop_assert_eq!(evaluate(&builder.freeze(), &query), naive(&policies, &query));
    }
}

/// So many that the lists of rules are in several pieces, in an order to come and one to go. Nearly all on trial: of these
/// everyone that matches is told, so none can be lost unnoticed.
fn crowd() -> impl Strategy<Value = (Vec<Policy>, Vec<PolicyKey>)> {
    vec(policy(), 500..800).prop_flat_map(|mut policies| {
        for (number, policy) in policies.iter_mut().enumerate() {
            policy.key = PolicyKey::new(&policy.namespace, &format!("p{number}"));
            policy.dry_run = number % 20 != 0;
        }
        let keys: Vec<PolicyKey> = policies.iter().map(|policy| policy.key.clone()).collect();
        (Just(policies).prop_shuffle(), Just(keys).prop_shuffle())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn hundreds_of_policies_decide_as_a_naive_evaluator_does_while_they_come_and_go(
        (come, go) in crowd(),
        workload in workload(),
        identity in identity(),
        peer in address(),
        target in (address(), select(&PORTS[..])),
    ) {
        let mut builder = SnapshotBuilder::new();
        let mut policies = BTreeMap::new();
        let mut workload = workload;
        // Names that nobody has would decide alone.
        workload.authorization_policies.clear();
        let target = SocketAddr::new(target.0, target.1);
        let agrees = |builder: &mut SnapshotBuilder, policies: &BTreeMap<PolicyKey, Policy>| {
            let snapshot = builder.freeze();
            for identity in [Some(&identity), None] {
                let query = Query { workload: &workload, identity, peer, target };
                prop_assert_eq!(evaluate(&snapshot, &query), naive(policies, &query));
            }
            Ok(())
        };
        for (number, policy) in come.into_iter().enumerate() {
            builder.apply(Change::Policy(policy.clone()));
            policies.insert(policy.key.clone(), policy);
            if number % 50 == 0 {
                agrees(&mut builder, &policies)?;
            }
        }
        for (number, key) in go.into_iter().enumerate() {
            builder.apply(Change::PolicyGone(key.clone()));
            policies.remove(&key);
            if number % 50 == 0 || policies.len() < 5 {
                agrees(&mut builder, &policies)?;
            }
        }
        prop_assert_eq!(builder.freeze().policies().count(), 0);
    }
}
