//! §7: what policy says.

use mesh_state::identity::Identity;
use mesh_state::name::PolicyKey;
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh_state::rbac::{Allowance, Deciding, Denial, DryRun, Query, Verdict, evaluate};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::Workload;

use crate::fixture::{Mesh, any_of, at, edited, id, ip, pod, policy, principal};

use Action::{Allow, Deny};
use PolicyScope::{Global, Namespace, WorkloadSelector};

fn shop() -> Workload {
    pod("retail/shop-0", "10.40.0.9")
}

fn judge(snapshot: &Snapshot, workload: &Workload, identity: Option<&Identity>) -> Verdict {
    evaluate(snapshot, &Query { workload, identity, peer: ip("10.40.0.2"), target: at("10.40.0.9:8080") })
}

fn with(policies: Vec<Policy>) -> Snapshot {
    policies.into_iter().fold(Mesh::new(), Mesh::policy).freeze()
}

fn key(text: &str) -> PolicyKey {
    text.into()
}

fn everything() -> Vec<Rule> {
    vec![Rule::default()]
}

/// Whether a policy of this one match matches: a deny policy that matches denies.
fn matches(condition: &Match, identity: Option<&Identity>) -> bool {
    let snapshot = with(vec![policy("retail/p", Global, Deny, vec![any_of(vec![condition.clone()])])]);
    judge(&snapshot, &shop(), identity).decision.is_err()
}

#[test]
fn each_field_matches_what_it_says() {
    let client = id("web/client");
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let prefix = |text: &str| vec![StringMatch::Prefix(text.into())];
    let suffix = |text: &str| vec![StringMatch::Suffix(text.into())];
    let presence = || vec![StringMatch::Presence];
    let net = |text: &str| vec![text.parse().unwrap()];
    let account = |namespace: &str, account: &str| {
        vec![ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }]
    };
    let of = Match::default;
    // What it is, the match, whether it matches spiffe://cluster.local/ns/web/sa/client, whether it matches plaintext.
    let rows = [
        ("nothing", of(), false, false),
        ("namespaces exact", Match { namespaces: exact("web"), ..of() }, true, false),
        ("namespaces exact, another", Match { namespaces: exact("we"), ..of() }, false, false),
        ("namespaces prefix", Match { namespaces: prefix("we"), ..of() }, true, false),
        ("namespaces suffix", Match { namespaces: suffix("eb"), ..of() }, true, false),
        ("namespaces presence", Match { namespaces: presence(), ..of() }, true, false),
        ("namespaces: plaintext has the empty one", Match { namespaces: exact(""), ..of() }, false, true),
        ("namespaces: the empty prefix is everybody's", Match { namespaces: prefix(""), ..of() }, true, true),
        ("namespaces: one of several", Match { namespaces: [exact("x"), exact("web")].concat(), ..of() }, true, false),
        ("not_namespaces", Match { not_namespaces: exact("web"), ..of() }, false, true),
        (
            "not_namespaces: none of several",
            Match { not_namespaces: [exact("x"), exact("web")].concat(), ..of() },
            false,
            true,
        ),
        ("principals exact", Match { principals: exact("cluster.local/ns/web/sa/client"), ..of() }, true, false),
        (
            "principals have no scheme",
            Match { principals: exact("spiffe://cluster.local/ns/web/sa/client"), ..of() },
            false,
            false,
        ),
        ("principals prefix", Match { principals: prefix("cluster.local/ns/web/"), ..of() }, true, false),
        ("principals suffix", Match { principals: suffix("/sa/client"), ..of() }, true, false),
        ("principals presence", Match { principals: presence(), ..of() }, true, false),
        (
            "principals: plaintext matches not even the empty prefix",
            Match { principals: prefix(""), ..of() },
            true,
            false,
        ),
        ("principals: nor the empty text", Match { principals: exact(""), ..of() }, false, false),
        ("not_principals", Match { not_principals: exact("cluster.local/ns/web/sa/client"), ..of() }, false, true),
        ("not_principals presence: the idiom of STRICT", Match { not_principals: presence(), ..of() }, false, true),
        ("source_ips", Match { source_ips: net("10.40.0.0/24"), ..of() }, true, true),
        ("source_ips, elsewhere", Match { source_ips: net("10.41.0.0/24"), ..of() }, false, false),
        ("source_ips of all IPv6", Match { source_ips: net("::/0"), ..of() }, false, false),
        ("source_ips of IPv4 written as IPv6", Match { source_ips: net("::ffff:10.40.0.0/120"), ..of() }, true, true),
        ("not_source_ips", Match { not_source_ips: net("10.40.0.2/32"), ..of() }, false, false),
        ("not_source_ips, elsewhere", Match { not_source_ips: net("10.41.0.0/24"), ..of() }, true, true),
        ("destination_ips", Match { destination_ips: net("10.40.0.9/32"), ..of() }, true, true),
        ("destination_ips, elsewhere", Match { destination_ips: net("10.40.0.2/32"), ..of() }, false, false),
        ("not_destination_ips", Match { not_destination_ips: net("10.40.0.9/32"), ..of() }, false, false),
        ("destination_ports", Match { destination_ports: vec![1, 8080], ..of() }, true, true),
        ("destination_ports, another", Match { destination_ports: vec![15008], ..of() }, false, false),
        ("not_destination_ports", Match { not_destination_ports: vec![8080], ..of() }, false, false),
        ("service_accounts", Match { service_accounts: account("web", "client"), ..of() }, true, false),
        (
            "service_accounts of another namespace",
            Match { service_accounts: account("retail", "client"), ..of() },
            false,
            false,
        ),
        ("service_accounts of another name", Match { service_accounts: account("web", "clien"), ..of() }, false, false),
        ("not_service_accounts", Match { not_service_accounts: account("web", "client"), ..of() }, false, true),
        (
            "all populated fields must hold",
            Match { namespaces: exact("web"), destination_ports: vec![1], ..of() },
            false,
            false,
        ),
        ("and do here", Match { namespaces: exact("web"), destination_ports: vec![8080], ..of() }, true, false),
    ];
    for (fact, condition, for_client, for_plaintext) in rows {
        assert_eq!(matches(&condition, Some(&client)), for_client, "{fact}, with identity");
        assert_eq!(matches(&condition, None), for_plaintext, "{fact}, plaintext");
    }
}

#[test]
fn the_trust_domain_counts_for_principals_and_not_for_service_accounts() {
    let foreign = Identity::new("elsewhere", "web", "client").unwrap();
    assert!(!matches(&principal("cluster.local/ns/web/sa/client"), Some(&foreign)));
    let account = ServiceAccountMatch { namespace: "web".into(), service_account: "client".into() };
    assert!(matches(&Match { service_accounts: vec![account], ..Match::default() }, Some(&foreign)));
}

#[test]
fn rules_are_alternatives_clauses_conditions_and_matches_alternatives() {
    let yes = || Match { destination_ports: vec![8080], ..Match::default() };
    let no = || Match { destination_ports: vec![1], ..Match::default() };
    let empty = Match::default;
    let rule =
        |clauses: Vec<Vec<Match>>| Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() };
    let rows: Vec<(&str, Vec<Rule>, Option<usize>)> = vec![
        ("no rules", vec![], None),
        ("a rule without clauses", vec![rule(vec![])], Some(0)),
        ("a clause without matches", vec![rule(vec![vec![]])], Some(0)),
        ("a clause of empty matches only", vec![rule(vec![vec![empty(), empty()]])], None),
        ("an empty match beside one that holds", vec![rule(vec![vec![empty(), yes()]])], Some(0)),
        ("one match of a clause", vec![rule(vec![vec![no(), yes()]])], Some(0)),
        ("one clause of two", vec![rule(vec![vec![yes()], vec![no()]])], None),
        ("both clauses", vec![rule(vec![vec![yes()], vec![no(), yes()]])], Some(0)),
        ("one rule of two", vec![rule(vec![vec![no()]]), rule(vec![vec![yes()]])], Some(1)),
        ("neither rule", vec![rule(vec![vec![no()]]), rule(vec![vec![no()]])], None),
    ];
    for (fact, rules, expected) in rows {
        let snapshot = with(vec![policy("retail/p", Global, Deny, rules)]);
        let matched = match judge(&snapshot, &shop(), None).decision {
            Err(Denial::Explicit(deciding)) => Some(deciding.rule),
            Ok(Allowance::NoAllowPolicies) => None,
            other => panic!("{fact}: {other:?}"),
        };
        assert_eq!(matched, expected, "{fact}");
    }
}

#[test]
fn a_policy_is_for_the_workloads_of_its_scope() {
    let attached = |names: &[&str]| {
        edited(shop(), |shop| shop.authorization_policies = names.iter().map(|name| key(name)).collect())
    };
    let rows = [
        ("all workloads", "istio-system/p", Global, vec![], true),
        ("its namespace's", "retail/p", Namespace, vec![], true),
        ("not another namespace's", "other/p", Namespace, vec![], false),
        ("another namespace's if attached", "other/p", Namespace, vec!["other/p"], true),
        ("those it is attached to", "retail/p", WorkloadSelector, vec!["retail/p"], true),
        ("not others of its namespace", "retail/p", WorkloadSelector, vec![], false),
        ("of another namespace if attached", "istio-system/p", WorkloadSelector, vec!["istio-system/p"], true),
    ];
    for (fact, name, scope, names, applies) in rows {
        let snapshot = with(vec![policy(name, scope, Deny, everything())]);
        let denied = judge(&snapshot, &attached(&names), None).decision.is_err();
        assert_eq!(denied, applies, "{fact}");
    }
}

#[test]
fn deny_comes_before_allow_and_allow_policies_refuse_what_they_do_not_match() {
    let web = || vec![any_of(vec![principal("cluster.local/ns/web/sa/client")])];
    let other = || vec![any_of(vec![principal("cluster.local/ns/other/sa/client")])];
    let by = |name: &str| Deciding { policy: key(name), rule: 0 };
    let rows = [
        ("no policy", vec![], Ok(Allowance::NoAllowPolicies)),
        (
            "an allow policy that matches",
            vec![policy("a/web", Global, Allow, web())],
            Ok(Allowance::Matched(by("a/web"))),
        ),
        ("an allow policy that does not", vec![policy("a/other", Global, Allow, other())], Err(Denial::NoneAllowed)),
        (
            "one of several",
            vec![policy("a/other", Global, Allow, other()), policy("a/web", Global, Allow, web())],
            Ok(Allowance::Matched(by("a/web"))),
        ),
        (
            "an allow policy without rules allows nobody",
            vec![policy("a/none", Global, Allow, vec![])],
            Err(Denial::NoneAllowed),
        ),
        (
            "a deny policy that does not match",
            vec![policy("d/other", Global, Deny, other())],
            Ok(Allowance::NoAllowPolicies),
        ),
        (
            "a deny policy before an allow policy",
            vec![policy("a/web", Global, Allow, web()), policy("d/web", Global, Deny, web())],
            Err(Denial::Explicit(by("d/web"))),
        ),
        (
            "the narrowest scope does not win",
            vec![policy("retail/web", Namespace, Allow, web()), policy("d/web", Global, Deny, web())],
            Err(Denial::Explicit(by("d/web"))),
        ),
    ];
    for (fact, policies, expected) in rows {
        assert_eq!(judge(&with(policies), &shop(), Some(&id("web/client"))).decision, expected, "{fact}");
    }
}

#[test]
fn a_denial_reads_as_users_of_the_reference_know_it() {
    let deciding = Deciding { policy: key("retail/no-web"), rule: 3 };
    assert_eq!(Denial::Explicit(deciding).to_string(), "explicitly denied by: retail/no-web");
    assert_eq!(Denial::NoneAllowed.to_string(), "allow policies exist, but none allowed");
    assert!(Denial::UnknownPolicy(key("retail/lost")).to_string().contains("retail/lost"));
}

#[test]
fn dry_run_policies_are_reported_and_not_enforced() {
    let dry =
        |name: &str, action: Action, rules: Vec<Rule>| Policy { dry_run: true, ..policy(name, Global, action, rules) };
    let by = |name: &str| Deciding { policy: key(name), rule: 0 };
    let none = || Ok(Allowance::NoAllowPolicies);
    let allowed = |name: &str| Ok(Allowance::Matched(by(name)));
    let rows = [
        ("a deny that matches", vec![dry("d/all", Deny, everything())], none(), vec![DryRun::Denied(by("d/all"))]),
        ("a deny that does not", vec![dry("d/none", Deny, vec![])], none(), vec![]),
        ("an allow that matches", vec![dry("a/all", Allow, everything())], none(), vec![DryRun::Allowed(by("a/all"))]),
        ("an allow that does not", vec![dry("a/none", Allow, vec![])], none(), vec![DryRun::NoneAllowed]),
        (
            "allows of which one matches",
            vec![dry("a/all", Allow, everything()), dry("a/none", Allow, vec![])],
            none(),
            vec![DryRun::Allowed(by("a/all"))],
        ),
        (
            "an allow beside a real one",
            vec![dry("a/none", Allow, vec![]), policy("b/all", Global, Allow, everything())],
            allowed("b/all"),
            vec![],
        ),
        (
            "an allow does not allow",
            vec![dry("a/all", Allow, everything()), policy("b/none", Global, Allow, vec![])],
            Err(Denial::NoneAllowed),
            vec![DryRun::Allowed(by("a/all"))],
        ),
        (
            "a deny beside a real one",
            vec![dry("a/all", Deny, everything()), policy("d/all", Global, Deny, everything())],
            Err(Denial::Explicit(by("d/all"))),
            vec![DryRun::Denied(by("a/all"))],
        ),
    ];
    for (fact, policies, decision, dry_run) in rows {
        assert_eq!(judge(&with(policies), &shop(), None), Verdict { decision, dry_run }, "{fact}");
    }
}

#[test]
fn an_unknown_policy_attached_to_a_workload_denies_until_it_is_known() {
    let attached = edited(shop(), |shop| shop.authorization_policies = vec![key("istio-system/strict")]);
    let allow = || policy("a/all", Global, Allow, everything());
    for policies in [vec![], vec![allow()]] {
        let verdict = judge(&with(policies), &attached, Some(&id("web/client")));
        assert_eq!(verdict.decision, Err(Denial::UnknownPolicy(key("istio-system/strict"))));
    }
    let known = policy("istio-system/strict", WorkloadSelector, Deny, vec![]);
    assert_eq!(judge(&with(vec![known]), &attached, None).decision, Ok(Allowance::NoAllowPolicies));
}

#[test]
fn a_condition_that_could_not_be_read_matches_for_deny_and_not_for_allow() {
    let unreadable = || Match { unreadable: vec!["source_ips: 10.0.0.0/99".into()], ..Match::default() };
    let beside = |port: u16| Match { destination_ports: vec![port], ..unreadable() };
    let rows = [
        (Deny, unreadable(), true),
        (Deny, beside(8080), true),
        (Deny, beside(1), false),
        (Allow, unreadable(), false),
        (Allow, beside(8080), false),
    ];
    for (action, condition, expected) in rows {
        let snapshot = with(vec![policy("a/p", Global, action, vec![any_of(vec![condition.clone()])])]);
        let decision = judge(&snapshot, &shop(), None).decision;
        let matched = matches!(decision, Err(Denial::Explicit(_)) | Ok(Allowance::Matched(_)));
        assert_eq!(matched, expected, "{action:?} {condition:?}");
    }
}

#[test]
fn a_removed_or_rescoped_policy_no_longer_holds() {
    use mesh_state::builder::SnapshotBuilder;
    use mesh_state::change::Change;
    let denied = |snapshot: &Snapshot| judge(snapshot, &shop(), None).decision.is_err();
    for scope in [Global, Namespace] {
        let mut builder = SnapshotBuilder::new();
        builder.apply(Change::Policy(policy("retail/p", scope, Deny, everything())));
        assert!(denied(&builder.freeze()));
        builder.apply(Change::Policy(policy("retail/p", WorkloadSelector, Deny, everything())));
        assert!(!denied(&builder.freeze()), "{scope:?} to WorkloadSelector");
        builder.apply(Change::Policy(policy("retail/p", scope, Deny, everything())));
        assert!(denied(&builder.freeze()));
        builder.apply(Change::PolicyGone(key("retail/p")));
        assert!(!denied(&builder.freeze()), "{scope:?} removed");
        assert_eq!(builder.freeze().policies().count(), 0);
    }
}
