//! What a generation is said to have changed: each question, about what a change concerns and about what it does not.

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::name::PolicyKey;
use mesh_state::policy::{Action, PolicyScope};
use mesh_state::touched::Changed;
use mesh_state::workload::Status;

use crate::fixture::{edited, hostname, id, ip, plain_pod, pod, policy, service};

/// A question, about the subject of a change and about another.
type Question = (&'static str, fn(&Changed<'_>) -> bool, fn(&Changed<'_>) -> bool);

const QUESTIONS: [Question; 6] = [
    (
        "workload",
        |changed| changed.may_touch_workload(&pod("shop/web-0", "10.0.0.1").uid),
        |changed| changed.may_touch_workload(&pod("shop/other-0", "10.0.0.1").uid),
    ),
    (
        "identity",
        |changed| changed.may_touch_identity(&id("shop/web")),
        |changed| changed.may_touch_identity(&id("shop/other")),
    ),
    (
        "address",
        |changed| changed.may_touch_address(ip("10.0.0.1")),
        |changed| !changed.may_touch_services() && changed.may_touch_address(ip("10.0.0.9")),
    ),
    (
        "service",
        |changed| changed.may_touch_service(&hostname("shop/web")) && changed.may_touch_services(),
        |changed| changed.may_touch_service(&hostname("shop/other")),
    ),
    (
        "policy",
        |changed| changed.may_touch_policy(&PolicyKey::new("shop", "allow")),
        |changed| changed.may_touch_policy(&PolicyKey::new("shop", "other")),
    ),
    (
        "policy for a workload",
        |changed| changed.may_touch_policy_for(&pod("shop/web-0", "10.0.0.1")),
        |changed| changed.may_touch_policy_for(&pod("elsewhere/other-0", "10.0.0.9")),
    ),
];

#[test]
fn a_change_that_comes_changes_or_goes_touches_its_subject_and_nothing_else() {
    let web = || pod("shop/web-0", "10.0.0.1");
    let of_namespace = || policy("shop/allow", PolicyScope::Namespace, Action::Allow, vec![]);
    let shop = || service("shop/web", "10.96.0.7", &[(80, 8080)]);
    type Row = (&'static str, Change, &'static [&'static str]);
    let rows: [Row; 9] = [
        ("a workload comes", Change::Workload(web()), WORKLOAD),
        ("it turns unhealthy", Change::Workload(edited(web(), |web| web.status = Status::Unhealthy)), WORKLOAD),
        ("it goes", Change::WorkloadGone(web().uid), WORKLOAD),
        // Any service may be the one to an address or a waypoint on the way to it.
        ("a service comes", Change::Service(shop()), &["address", "service"]),
        ("it has other ports", Change::Service(service("shop/web", "10.96.0.7", &[(81, 1)])), &["address", "service"]),
        ("it goes", Change::ServiceGone(shop().key()), &["address", "service"]),
        ("a policy comes", Change::Policy(of_namespace()), &["policy", "policy for a workload"]),
        (
            "it denies",
            Change::Policy(policy("shop/allow", PolicyScope::Namespace, Action::Deny, vec![])),
            &["policy", "policy for a workload"],
        ),
        ("it goes", Change::PolicyGone(of_namespace().key), &["policy", "policy for a workload"]),
    ];
    let mut builder = SnapshotBuilder::new();
    builder.apply(Change::Workload(plain_pod("elsewhere/other-0", "10.0.0.9")));
    let mut before = builder.freeze().generation();
    for (what, change, touched) in rows {
        builder.apply(change);
        let snapshot = builder.freeze();
        let changed = snapshot.changed_since(before);
        assert!(!changed.is_too_old() && !changed.is_nothing(), "{what}");
        for (name, of_subject, of_another) in QUESTIONS {
            assert_eq!(of_subject(&changed), touched.contains(&name), "{what}: {name}");
            assert!(!of_another(&changed), "{what}: another {name}");
        }
        before = snapshot.generation();
    }
    let quiet = builder.freeze();
    assert!(quiet.changed_since(before).is_nothing());
    assert!(quiet.changed_since(quiet.generation() + 1).is_too_old());
}

const WORKLOAD: &[&str] = &["workload", "identity", "address", "policy for a workload"];

#[test]
fn a_global_policy_touches_every_workload() {
    let mut builder = SnapshotBuilder::new();
    let before = builder.freeze().generation();
    builder.apply(Change::Policy(policy("istio-system/all", PolicyScope::Global, Action::Deny, vec![])));
    let snapshot = builder.freeze();
    let changed = snapshot.changed_since(before);
    assert!(changed.may_touch_policy_for(&pod("elsewhere/other-0", "10.0.0.9")));
}
