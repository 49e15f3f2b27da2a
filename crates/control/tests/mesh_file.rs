//! What the mesh file may say, and what is said of it when it says something else.

use control::file_source::{Defaults, FileSource, Origin};
use mesh_state::{change::Change, name::PolicyKey};

fn source() -> FileSource {
    let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
    FileSource::new(Origin::File("mesh.yaml".into()), defaults)
}

const GOOD: &str = include_str!("mesh_file/good.yaml");

#[test]
fn a_whole_mesh_is_read_with_its_defaults() {
    let changes = source().apply(GOOD).expect("it is good");
    assert_eq!(changes.len(), 5);
    let workload = |name: &str| {
        changes
            .iter()
            .find_map(|change| match change {
                Change::Workload(workload) if workload.name() == name => Some(workload),
                _ => None,
            })
            .unwrap_or_else(|| panic!("{name} is not in {changes:?}"))
    };
    let (shop, cart) = (workload("shop-0"), workload("cart-0"));
    assert_eq!(shop.identity.as_str(), "spiffe://cluster.local/ns/retail/sa/shop");
    assert_eq!((&*shop.place.node, shop.services.len()), ("node-a", 1));
    assert_eq!(shop.authorization_policies, [PolicyKey::new("retail", "only-web")]);
    assert_eq!(cart.identity.as_str(), "spiffe://cluster.local/ns/retail/sa/default");
    assert_eq!((cart.addresses.len(), cart.capacity, &*cart.cluster_id), (2, 1, "Kubernetes"));
    assert_eq!(cart.waypoint.as_ref().map(|waypoint| waypoint.hbone_port), Some(15008));
    let service =
        changes.iter().find_map(|change| if let Change::Service(service) = change { Some(service) } else { None });
    assert_eq!(service.map(|service| (service.vips.len(), service.load_balancing.scopes.len())), Some((1, 2)));
    let policy =
        changes.iter().find_map(|change| if let Change::Policy(policy) = change { Some(policy) } else { None });
    let only = &policy.expect("it is there").rules[0].clauses[0].matches[0];
    assert_eq!((only.principals.len(), only.not_source_ips.len(), only.namespaces.len()), (1, 2, 1));
}

#[test]
fn policies_that_are_named_and_not_defined_are_told_by_workload() {
    let mut source = source();
    source.apply(GOOD).expect("it is good");
    assert!(source.undefined_policies().is_empty());
    let misspelt = GOOD.replacen("retail/only-web", "retail/onlyweb", 1);
    assert_ne!(misspelt, GOOD);
    source.apply(&misspelt).expect("it is no mistake of the file's form");
    let told: Vec<String> =
        source.undefined_policies().into_iter().map(|(workload, policy)| format!("{workload} {policy}")).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].ends_with("shop-0 retail/onlyweb"), "{told:?}");
    source.apply(GOOD).expect("it is good");
    assert!(source.undefined_policies().is_empty());
}

#[test]
fn a_file_without_a_word_is_one_that_is_being_written() {
    for text in ["", "\n \n"] {
        let mut source = source();
        source.apply(GOOD).expect("good");
        let error = source.apply(text).expect_err("it would take the whole mesh away").to_string();
        assert!(error.starts_with("mesh.yaml: it is empty"), "{error}");
        assert_eq!(source.apply(GOOD).expect("good"), [], "the last good one is still in force");
    }
}

#[test]
fn what_is_no_file_or_has_no_end_is_refused_at_once() {
    for path in ["/dev/zero", "/proc/self/ns", "/dev/null"] {
        let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
        let error = FileSource::new(Origin::File(path.into()), defaults).load().expect_err(path).to_string();
        assert!(error.starts_with(&format!("{path}: it is no regular file")), "{error}");
    }
}

#[test]
fn nothing_but_comments_is_an_empty_mesh() {
    for text in ["# a mesh to come\n", "{}\n"] {
        assert_eq!(source().apply(text).expect(text).len(), 0, "{text:?}");
    }
}

#[test]
fn a_reload_says_only_what_has_changed() {
    let mut source = source();
    assert_eq!(source.apply(GOOD).expect("good").len(), 5);
    assert_eq!(source.apply(GOOD).expect("good"), []);
    let moved = source.apply(&GOOD.replace("10.40.0.9", "10.40.0.99")).expect("good");
    assert!(matches!(&moved[..], [Change::Workload(workload)] if workload.name() == "shop-0"), "{moved:?}");
    let gone = source.apply("{}").expect("good");
    assert_eq!(gone.len(), 5);
}

#[test]
fn a_bad_file_changes_nothing_and_the_next_good_one_is_compared_with_the_last_good_one() {
    let mut source = source();
    source.apply(GOOD).expect("good");
    source.apply("workloads: 7").expect_err("not a list");
    assert_eq!(source.apply(GOOD).expect("good"), []);
}

#[test]
fn every_mistake_is_named_with_its_place_its_field_and_its_cause() {
    /// A workload that needs only one line more, which is line 6.
    fn workload(line: &str) -> String {
        format!("workloads:\n- name: a\n  namespace: n\n  workloadIps: []\n  services: {{}}\n{line}\n")
    }
    /// The same of a service, whose line is line 5.
    fn service(line: &str) -> String {
        format!("services:\n- name: s\n  namespace: n\n  hostname: h\n{line}\n")
    }
    /// The same of a policy's only match, which is line 8.
    fn policy(line: &str) -> String {
        let head = "policies:\n- name: p\n  namespace: n\n  scope: Global\n  action: Deny\n  dryRun: false\n";
        format!("{head}  rules:\n  - - - {line}\n")
    }
    let bomb = format!("workloads: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    // The file, where it is wrong, which field is named first, and a word of why.
    for (text, place, field, why) in [
        ("workloads: 7", "1:12", "workloads", "a list"),
        ("wrokloads: []", "1:1", "wrokloads", "unknown field"),
        (&workload("  colour: red"), "6:3", "workloads[0].colour", "unknown field"),
        (&workload("  value: 7"), "6:3", "workloads[0].value", "unknown field"),
        (&workload("  serviceAccount: 17"), "6:19", "workloads[0].serviceAccount", "quoted"),
        (&workload("  node: true"), "6:9", "workloads[0].node", "quoted"),
        (&workload("  capacity: -1"), "6:13", "workloads[0].capacity", "whole number"),
        (&workload("  protocol: UDP"), "6:13", "workloads[0].protocol", "expected one of TCP, HBONE"),
        (&workload("  nativeTunnel: often"), "6:17", "workloads[0].nativeTunnel", "bool"),
        (&workload("  name: b"), "6:3", "workloads[0]", "the key name is there twice"),
        (
            &workload("  waypoint: {destination: here, hboneMtlsPort: 1}"),
            "6:27",
            "workloads[0].waypoint.destination",
            "no slash",
        ),
        (&workload("  waypoint: {destination: /10.0.0.1}"), "6:14", "workloads[0].waypoint", "hboneMtlsPort"),
        (&workload("  serviceAccount: a/b"), "2:3", "workloads[0]", "service account \"a/b\""),
        (&workload("workloads: []"), "6:1", "the key workloads", "is there twice"),
        (&workload("- name: b\n  namespace: n\n  workloadIps: 10.0.0.1"), "8:16", "workloads[1].workloadIps", "a list"),
        (
            &workload("- name: a\n  namespace: n\n  workloadIps: []\n  services: {}"),
            "6:3",
            "workloads[1].uid",
            "is there twice",
        ),
        (
            "workloads:\n- namespace: n\n  workloadIps: []\n  services: {}",
            "2:3",
            "workloads[0]",
            "neither a name nor a uid",
        ),
        ("workloads:\n- name: a\n  namespace: n\n  services: {}", "4:3", "workloads[0]", "missing field `workloadIps`"),
        ("workloads:\n- workloadIps: [10.0.0.300]", "2:17", "workloads[0].workloadIps[0]", "is no IP address"),
        ("workloads:\n- services: {shop: {80: 80}}", "2:14", "workloads[0].services.shop", "NAMESPACE/HOSTNAME"),
        (&service("  vips: [10.0.0.1]"), "5:10", "services[0].vips[0]", "NETWORK/IP"),
        (&service("  vips: [/10.0.0]"), "5:10", "services[0].vips[0]", "NETWORK/IP"),
        (&service("  ports: {80: 70000}"), "5:15", "services[0].ports.80", "65535"),
        (&service("  cidrVips: [{cidr: 10.0.0.0/33}]"), "5:21", "services[0].cidrVips[0].cidr", "CIDR"),
        (&service("  subjectAltNames: [me]"), "5:21", "services[0].subjectAltNames[0]", "SPIFFE"),
        (
            &service("  vips: []\n  ports: {}\n- {name: s, namespace: n, hostname: h, vips: [], ports: {}}"),
            "7:3",
            "services[1]",
            "is there twice",
        ),
        (&policy("sourceIps: [10.0.0.0/33]"), "8:21", "policies[0].rules[0][0][0].sourceIps[0]", "CIDR"),
        (&policy("principals: [{Regex: x}]"), "8:23", "policies[0].rules[0][0][0].principals[0]", "Regex"),
        (
            &policy("{}\n- {name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: []}"),
            "9:3",
            "policies[1]",
            "is there twice",
        ),
        ("a flat text", "1:1", "a mapping", ""),
        ("- a\n- b", "1:1", "a mapping", ""),
        ("workloads: [", "1:12", "workloads", "unclosed"),
        ("workloads:\n\t- name: a", "2:2", "tabs", ""),
        ("workloads: []\n---\nworkloads: []", "3:1", "a second document", ""),
        ("workloads: &a [*a]", "1:16", "workloads", "recursive"),
        (&bomb, "1:", "workloads", ""),
    ] {
        let error = source().apply(text).expect_err(text).to_string();
        let shown: String = text.chars().take(300).collect();
        assert!(error.starts_with(&format!("mesh.yaml:{place}")), "not at {place}: {error}\n{shown}");
        let cause = error.splitn(4, ':').nth(3).map_or("", str::trim_start);
        assert!(cause.starts_with(field), "not of {field}: {error}\n{shown}");
        assert!(cause.contains(why), "no {why:?}: {error}\n{shown}");
        assert!(!cause.contains("line ") && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn what_is_there_twice_is_refused() {
    let same = |list: &str, row: &str| format!("{list}:\n- {{{row}}}\n- {{{row}}}\n");
    for (text, says) in [
        (
            same("workloads", "uid: u, namespace: n, workloadIps: [], services: {}"),
            "mesh.yaml:3:3: workloads[1].uid: u is there twice; each workload has a uid of its own",
        ),
        (
            same("services", "name: s, namespace: n, hostname: h, vips: [], ports: {}"),
            "mesh.yaml:3:3: services[1]: n/h is there twice",
        ),
        (
            same("policies", "name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: []"),
            "mesh.yaml:3:3: policies[1]: n/p is there twice",
        ),
    ] {
        assert_eq!(source().apply(&text).expect_err(&text).to_string(), says);
    }
}

#[test]
fn a_file_that_is_missing_is_named() {
    let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
    let error = FileSource::new(Origin::File("/nowhere/mesh.yaml".into()), defaults).load().expect_err("missing");
    assert!(error.to_string().starts_with("/nowhere/mesh.yaml: "), "{error}");
}
