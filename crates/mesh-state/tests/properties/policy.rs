//! Policy decides as a second evaluator, written from §7 in the most literal way, says it should.

use std::net::{IpAddr, SocketAddr};

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::PolicyKey;
use mesh_state::policy::{Action, Match, Policy, PolicyScope, StringMatch};
use mesh_state::rbac::{Allowance, Denial, DryRun, Query, evaluate};
use mesh_state::workload::Workload;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::universe::{PORTS, address, identity, policy, workload};

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Allowed(bool),
    Denied,
    NoneAllowed,
    Unknown,
}

fn naive(policies: &[Policy], query: &Query<'_>) -> (Expected, Vec<PolicyKey>) {
    let attached = &query.workload.authorization_policies;
    let applies = |policy: &&Policy| {
        policy.scope == PolicyScope::Global
            || (policy.scope == PolicyScope::Namespace && policy.namespace == query.workload.namespace)
            || attached.contains(&policy.key)
    };
    let applying: Vec<&Policy> = policies.iter().filter(applies).collect();
    let matched = |action: Action, dry_run: bool| {
        applying
            .iter()
            .any(|policy| policy.action == action && policy.dry_run == dry_run && policy_matches(policy, query))
    };
    let dry_denials = applying.iter().filter(|policy| policy.action == Action::Deny && policy.dry_run);
    let dry_denials =
        dry_denials.filter(|policy| policy_matches(policy, query)).map(|policy| policy.key.clone()).collect();
    let expected = if matched(Action::Deny, false) {
        Expected::Denied
    } else if attached.iter().any(|key| policies.iter().all(|policy| policy.key != *key)) {
        Expected::Unknown
    } else if !applying.iter().any(|policy| policy.action == Action::Allow && !policy.dry_run) {
        Expected::Allowed(false)
    } else if matched(Action::Allow, false) {
        Expected::Allowed(true)
    } else {
        Expected::NoneAllowed
    };
    (expected, dry_denials)
}

fn policy_matches(policy: &Policy, query: &Query<'_>) -> bool {
    for rule in &policy.rules {
        let mut all_clauses = true;
        for clause in &rule.clauses {
            let mut any_match = clause.matches.is_empty();
            for condition in &clause.matches {
                any_match |= condition_matches(condition, policy.action, query);
            }
            all_clauses &= any_match;
        }
        if all_clauses {
            return true;
        }
    }
    false
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
    let inside = |nets: &[ipnet::IpNet], ip: IpAddr| {
        let mut inside = false;
        for net in nets {
            inside |= net.network() <= ip && ip <= net.broadcast() && net.addr().is_ipv4() == ip.is_ipv4();
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

fn distinct_policies() -> impl Strategy<Value = Vec<Policy>> {
    vec(policy(), 0..6).prop_map(|mut policies| {
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        policies
    })
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
        policies in distinct_policies(),
        workload in subject(),
        identity in option::weighted(0.8, identity()),
        peer in address(),
        target in (address(), select(&PORTS[..])),
    ) {
        let mut builder = SnapshotBuilder::new();
        for policy in &policies {
            builder.apply(Change::Policy(policy.clone()));
        }
        let identity: Option<&Identity> = identity.as_ref();
        let target = SocketAddr::new(target.0, target.1);
        let query = Query { workload: &workload, identity, peer, target };
        let verdict = evaluate(&builder.freeze(), &query);
        let decided = match &verdict.decision {
            Ok(Allowance::NoAllowPolicies) => Expected::Allowed(false),
            Ok(Allowance::Matched(_)) => Expected::Allowed(true),
            Err(Denial::Explicit(_)) => Expected::Denied,
            Err(Denial::NoneAllowed) => Expected::NoneAllowed,
            Err(Denial::UnknownPolicy(_)) => Expected::Unknown,
        };
        let (expected, mut dry_denials) = naive(&policies, &query);
        prop_assert_eq!(decided, expected);
        let mut reported: Vec<PolicyKey> = verdict.dry_run.iter().filter_map(|report| match report {
            DryRun::Denied(deciding) => Some(deciding.policy.clone()),
            DryRun::Allowed(_) | DryRun::NoneAllowed => None,
        }).collect();
        reported.sort();
        // A policy attached twice reports twice.
        reported.dedup();
        dry_denials.sort();
        prop_assert_eq!(reported, dry_denials);
        // Whoever decided does match.
        let deciding = match verdict.decision {
            Ok(Allowance::Matched(deciding)) | Err(Denial::Explicit(deciding)) => Some(deciding),
            Ok(Allowance::NoAllowPolicies) | Err(Denial::NoneAllowed | Denial::UnknownPolicy(_)) => None,
        };
        if let Some(deciding) = deciding {
            let policy = policies.iter().find(|policy| policy.key == deciding.policy).expect("a policy of this mesh");
            let alone = Policy { rules: vec![policy.rules[deciding.rule].clone()], ..policy.clone() };
            prop_assert!(policy_matches(&alone, &query));
        }
    }
}
