//! What the mesh file may say, and what is said of it when it says something else.

use control::file_source::{Defaults, FileSource, Origin};
use mesh_state::change::Change;

fn source() -> FileSource {
    let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
    FileSource::new(Origin::File("mesh.yaml".into()), defaults)
}

const GOOD: &str = r#"
services:
- name: shop
  namespace: retail
  hostname: shop.retail.svc.cluster.local
  vips: ["/10.96.7.7"]
  ports: {80: 8080}
  subjectAltNames: ["spiffe://cluster.local/ns/retail/sa/shop"]
  loadBalancer: {mode: Failover, routingPreferences: [Region, Zone], healthPolicy: OnlyHealthy}
workloads:
- uid: cluster1//v1/Pod/retail/shop-0
  name: shop-0
  namespace: retail
  trustDomain: cluster.local
  serviceAccount: shop
  workloadIps: ["10.40.0.9"]
  protocol: HBONE
  node: node-a
  network: ""
  services:
    "retail/shop.retail.svc.cluster.local": {80: 8080}
  authorizationPolicies: ["retail/only-web"]
- uid: cluster1//v1/Pod/retail/cart-0
  name: cart-0
  namespace: retail
  workloadIps: ["10.40.0.11", "fd00::11"]
  waypoint: {destination: "/10.40.0.10", hboneMtlsPort: 15008}
  services: {}
policies:
- name: only-web
  namespace: retail
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [{Exact: cluster.local/ns/retail/sa/web}]
        notSourceIps: ["10.0.0.0/8", "fd00::1"]
        namespaces: [{Presence: []}]
"#;

#[test]
fn a_whole_mesh_is_read_with_its_defaults() {
    let changes = source().apply(GOOD).expect("it is good");
    let workloads: Vec<_> = changes
        .iter()
        .filter_map(|change| if let Change::Workload(workload) = change { Some(workload) } else { None })
        .collect();
    assert_eq!((changes.len(), workloads.len()), (4, 2));
    let cart = workloads.iter().find(|workload| &*workload.name == "cart-0").expect("it is there");
    assert_eq!(cart.identity.as_str(), "spiffe://cluster.local/ns/retail/sa/default");
    assert_eq!((cart.addresses.len(), cart.capacity, &*cart.cluster_id), (2, 1, "Kubernetes"));
    assert!(cart.waypoint.is_some());
}

#[test]
fn nothing_but_comments_is_an_empty_mesh() {
    for text in ["", "\n\n", "# a mesh to come\n", "{}\n"] {
        assert_eq!(source().apply(text).expect(text).len(), 0, "{text:?}");
    }
}

#[test]
fn a_reload_says_only_what_has_changed() {
    let mut source = source();
    assert_eq!(source.apply(GOOD).expect("good").len(), 4);
    assert_eq!(source.apply(GOOD).expect("good"), []);
    let moved = source.apply(&GOOD.replace("10.40.0.9", "10.40.0.99")).expect("good");
    assert!(matches!(&moved[..], [Change::Workload(workload)] if &*workload.name == "shop-0"), "{moved:?}");
    let gone = source.apply("{}").expect("good");
    assert_eq!(gone.len(), 4);
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
    let workload = |lines: &str| format!("workloads:\n- name: a\n  namespace: n\n{lines}");
    for (text, line, says) in [
        ("workloads: 7\n".into(), 1, &["workloads"][..]),
        ("wrokloads: []\n".into(), 1, &["wrokloads", "unknown field"]),
        (workload("  workloadIps: []\n  services: {}\n  colour: red\n"), 6, &["workloads[0]", "colour"]),
        (workload("  workloadIps: 10.0.0.1\n  services: {}\n"), 4, &["workloads[0].workloadIps"]),
        (workload("  workloadIps: [10.0.0.300]\n  services: {}\n"), 4, &["workloads[0].workloadIps[0]", "10.0.0.300", "IP address"]),
        (workload("  services: {}\n"), 4, &["workloads[0]", "workloadIps"]),
        (workload("  workloadIps: []\n  services: {shop: {80: 80}}\n"), 5, &["services", "NAMESPACE/HOSTNAME"]),
        (workload("  workloadIps: []\n  services: {}\n  capacity: -1\n"), 6, &["workloads[0].capacity"]),
        (workload("  workloadIps: []\n  services: {}\n  protocol: UDP\n"), 6, &["workloads[0].protocol", "UDP"]),
        (workload("  name: b\n  workloadIps: []\n  services: {}\n"), 4, &["duplicate", "name"]),
        (
            "services:\n- name: s\n  namespace: n\n  hostname: h\n  vips: [10.0.0.1]\n  ports: {}\n".into(),
            5,
            &["services[0].vips[0]", "NETWORK/IP"],
        ),
        (
            "services:\n- name: s\n  namespace: n\n  hostname: h\n  vips: []\n  ports: {80: 70000}\n".into(),
            6,
            &["services[0].ports", "u16"],
        ),
        (
            "services:\n- name: s\n  namespace: n\n  hostname: h\n  vips: []\n  ports: {}\n  subjectAltNames: [me]\n".into(),
            7,
            &["subjectAltNames[0]", "SPIFFE"],
        ),
        (
            "policies:\n- name: p\n  namespace: n\n  scope: Global\n  action: Deny\n  dryRun: false\n  rules:\n  - - - sourceIps: [10.0.0.0/33]\n".into(),
            8,
            &["policies[0].rules[0][0][0].sourceIps[0]", "10.0.0.0/33"],
        ),
        (
            "policies:\n- name: p\n  namespace: n\n  scope: Global\n  action: Deny\n  dryRun: false\n  rules:\n  - - - principals: [{Regex: x}]\n".into(),
            8,
            &["principals[0]", "Regex"],
        ),
        ("workloads: [\n".into(), 1, &["unclosed"]),
    ] {
        let error = source().apply(&text).expect_err(&text).to_string();
        assert!(error.starts_with(&format!("mesh.yaml:{line}:")), "{error}\n{text}");
        for word in says {
            assert!(error.contains(word), "{word:?} is not in {error}\n{text}");
        }
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn what_is_there_twice_is_refused() {
    let twice = "workloads:\n- {uid: u, namespace: n, workloadIps: [], services: {}}\n- {uid: u, namespace: n, workloadIps: [], services: {}}\n";
    let error = source().apply(twice).expect_err("twice").to_string();
    assert!(error.contains("uid u is there twice"), "{error}");
}

#[test]
fn a_file_that_is_missing_is_named() {
    let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
    let error = FileSource::new(Origin::File("/nowhere/mesh.yaml".into()), defaults).load().expect_err("missing");
    assert!(error.to_string().starts_with("/nowhere/mesh.yaml: "), "{error}");
}
