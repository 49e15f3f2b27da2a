//! §8.4 and §2.6: who is found when several could be.

use std::sync::Arc;

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::service::{Service, Vip, Visibility};
use mesh_state::workload::{NetworkMode, Place, TunnelProtocol, Workload};

use crate::fixture::{Mesh, edited, endpoint_of, hostname, id, ip, network, plain_pod, pod, service};

#[test]
fn of_several_workloads_at_an_address_a_captured_pod_comes_first_in_whatever_order_they_came() {
    let entry = |name: &str, protocol: TunnelProtocol| {
        let uid = format!("Kubernetes/networking.istio.io/WorkloadEntry/retail/{name}");
        let mut entry = Workload::new(uid.as_str().into(), "retail", name, id("retail/shop"));
        entry.addresses = [ip("10.40.0.9")].into();
        entry.protocol = protocol;
        entry
    };
    let best_first = [
        pod("retail/captured-0", "10.40.0.9"),
        pod("retail/captured-1", "10.40.0.9"),
        plain_pod("retail/plain-0", "10.40.0.9"),
        entry("hbone", TunnelProtocol::Hbone),
        entry("tcp", TunnelProtocol::None),
    ];
    for reversed in [false, true] {
        let mut order = best_first.to_vec();
        if reversed {
            order.reverse();
        }
        let mut builder = SnapshotBuilder::new();
        for workload in order {
            builder.apply(Change::Workload(workload));
        }
        for (at, expected) in best_first.iter().enumerate() {
            let found = builder.freeze();
            let found = found.workload_by_address(&network(""), ip("10.40.0.9")).expect("somebody is left");
            assert_eq!(found.name(), expected.name(), "without the first {at}, reversed {reversed}");
            builder.apply(Change::WorkloadGone(expected.uid.clone()));
        }
        assert!(builder.freeze().workload_by_address(&network(""), ip("10.40.0.9")).is_none());
    }
}

#[test]
fn a_resent_workload_is_found_only_by_what_it_is_now() {
    let mut before = endpoint_of(pod("retail/shop-0", "10.40.0.9"), "retail/shop", &[]);
    before.hostname = "old.example.com".into();
    let renamed = |shop: &mut Workload| shop.given_name = Some("shop-1".into());
    let mut after = endpoint_of(edited(pod("retail/shop-0", "10.40.0.10"), renamed), "retail/cart", &[]);
    after.network = network("far");
    after.hostname = "new.example.com".into();
    let snapshot = Mesh::new()
        .workload(before)
        .workload(after)
        .service(service("retail/shop", "10.96.0.7", &[]))
        .service(service("retail/cart", "10.96.0.8", &[]))
        .freeze();
    let endpoints = |name: &str| snapshot.endpoints(snapshot.service(&hostname(name)).unwrap()).count();
    assert!(snapshot.workload_by_address(&network(""), ip("10.40.0.9")).is_none());
    assert!(snapshot.workload_by_address(&network("far"), ip("10.40.0.10")).is_some());
    assert!(snapshot.local_workload(None, "retail", "shop-0", "shop").is_none());
    assert!(snapshot.local_workload(None, "retail", "shop-1", "shop").is_some());
    let named = |text: &str| mesh_state::name::NamespacedHostname::new("retail", text);
    assert!(snapshot.workload_by_hostname(&named("old.example.com")).is_none());
    assert!(snapshot.workload_by_hostname(&named("new.example.com")).is_some());
    assert_eq!((endpoints("retail/shop"), endpoints("retail/cart")), (0, 1));
    assert_eq!(snapshot.workloads().count(), 1);
}

#[test]
fn endpoints_are_there_whether_they_or_their_service_came_first_or_it_went_and_came_back() {
    let endpoint = endpoint_of(pod("retail/shop-0", "10.40.0.9"), "retail/shop", &[]);
    let shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    let gone = Change::ServiceGone(hostname("retail/shop"));
    let (workload, service) = (Change::Workload(endpoint), Change::Service(shop));
    let orders = [
        vec![workload.clone(), service.clone()],
        vec![service.clone(), workload.clone()],
        // The reference forgets the endpoints here until they are sent again (trap 24).
        vec![workload.clone(), service.clone(), gone.clone(), service.clone()],
        vec![service.clone(), gone, workload, service],
    ];
    for order in orders {
        let mut builder = SnapshotBuilder::new();
        order.iter().cloned().for_each(|change| builder.apply(change));
        let snapshot = builder.freeze();
        let shop = snapshot.service(&hostname("retail/shop")).unwrap();
        assert_eq!(snapshot.endpoints(shop).count(), 1, "{order:?}");
    }
}

#[test]
fn a_service_is_chosen_by_namespace_then_canonical_then_first() {
    let of = |namespace: &str, canonical: bool, visibility: Visibility, vip: &str| {
        let mut service = service(&format!("{namespace}/shop"), vip, &[]);
        service.hostname = "shop.example.com".into();
        (service.canonical, service.visibility) = (canonical, visibility);
        service
    };
    use Visibility::{Namespace, Public};
    type Row<'a> = (&'a str, &'a [(&'a str, bool, Visibility)], Option<&'a str>);
    let rows: &[Row<'_>] = &[
        ("nobody", &[], None),
        ("the only one", &[("a", false, Public)], Some("a")),
        ("the client's own", &[("a", true, Public), ("web", false, Public)], Some("web")),
        ("a canonical one", &[("a", false, Public), ("b", true, Public)], Some("b")),
        ("the first of canonical ones", &[("c", true, Public), ("b", true, Public)], Some("b")),
        ("the first", &[("c", false, Public), ("b", false, Public)], Some("b")),
        ("never one that hides itself", &[("a", true, Namespace), ("b", false, Public)], Some("b")),
        ("its own though hidden from others", &[("web", false, Namespace), ("b", true, Public)], Some("web")),
        ("nobody when all hide", &[("a", true, Namespace)], None),
    ];
    for (fact, services, expected) in rows {
        for vip in ["10.96.0.7", "10.96.0.0/16"] {
            let mesh = services
                .iter()
                .fold(Mesh::new(), |mesh, (namespace, canonical, visibility)| {
                    mesh.service(of(namespace, *canonical, *visibility, vip))
                })
                .freeze();
            let by_vip = mesh.service_by_vip(&network(""), ip("10.96.0.7"), "web");
            let by_name = mesh.service_by_hostname("shop.example.com", "web");
            for found in [by_vip, by_name] {
                assert_eq!(found.map(|service| &*service.namespace), *expected, "{fact} ({vip})");
            }
        }
    }
}

#[test]
fn a_block_of_addresses_is_asked_after_single_ones_and_the_longest_first_but_for_the_clients_own() {
    let block = |name: &str, vip: &str, canonical: bool| Service { canonical, ..service(name, vip, &[]) };
    let snapshot = Mesh::new()
        .service(block("a/wide", "10.0.0.0/8", true))
        .service(block("a/narrow", "10.96.0.0/16", false))
        .service(block("b/narrow", "10.96.0.0/16", true))
        .service(block("web/own", "10.97.0.0/16", false))
        .service(block("a/inside-own", "10.97.1.0/24", true))
        .service(block("a/single", "10.96.0.7", false))
        .service(block("a/hidden-single", "10.98.0.1", false))
        .service(block("a/everything-v6", "::/0", false))
        .service(block("a/mapped", "::ffff:172.16.0.0/108", false))
        .freeze();
    let rows = [
        ("10.96.0.7", Some("a/single")),
        ("10.96.0.8", Some("b/narrow")),
        ("10.1.1.1", Some("a/wide")),
        ("10.97.1.1", Some("web/own")),
        ("11.0.0.1", None),
        ("fd00::1", Some("a/everything-v6")),
        ("172.17.1.1", Some("a/mapped")),
    ];
    for (address, expected) in rows {
        let found = snapshot.service_by_vip(&network(""), ip(address), "web");
        let found = found.map(|service| format!("{}/{}", service.namespace, service.name));
        assert_eq!(found.as_deref(), expected, "{address}");
    }
    assert!(snapshot.service_by_vip(&network("far"), ip("10.96.0.7"), "web").is_none());
}

#[test]
fn a_block_takes_over_where_the_single_address_hides_itself() {
    let mut hidden = service("a/single", "10.96.0.7", &[]);
    hidden.visibility = Visibility::Namespace;
    let snapshot = Mesh::new().service(hidden).service(service("b/wide", "10.96.0.0/16", &[])).freeze();
    let found = |namespace: &str| {
        snapshot.service_by_vip(&network(""), ip("10.96.0.7"), namespace).map(|service| service.name.to_string())
    };
    assert_eq!((found("web"), found("a")), (Some("wide".into()), Some("single".into())));
}

#[test]
fn a_resent_service_is_found_only_by_what_it_is_now() {
    let mut before = service("retail/shop", "10.96.0.7", &[]);
    before.vips.push(Vip { network: network(""), address: "10.97.0.0/16".parse().unwrap() });
    let snapshot = Mesh::new()
        .service(before)
        .service(Service { canonical: true, ..service("retail/shop", "10.96.0.8", &[]) })
        .freeze();
    let found = |address: &str| snapshot.service_by_vip(&network(""), ip(address), "web").is_some();
    assert_eq!((found("10.96.0.7"), found("10.97.1.1"), found("10.96.0.8")), (false, false, true));
    assert_eq!(snapshot.services().count(), 1);
}

#[test]
fn a_local_workload_is_found_by_what_the_cni_agent_knows_of_it() {
    let on = |node: &str, uid: &str| {
        let mut shop = Workload::new(uid.into(), "retail", "shop-0", id("retail/shop"));
        shop.place = Arc::new(Place { node: node.into(), locality: shop.place.locality.clone() });
        shop
    };
    let snapshot = Mesh::new().workload(on("node-a", "a")).workload(on("node-b", "b")).freeze();
    let rows = [
        (Some("node-a"), "retail", "shop-0", "shop", Some("a")),
        (Some("node-b"), "retail", "shop-0", "shop", Some("b")),
        (Some("node-c"), "retail", "shop-0", "shop", None),
        (None, "retail", "shop-0", "shop", Some("a")),
        (Some("node-a"), "other", "shop-0", "shop", None),
        (Some("node-a"), "retail", "shop-1", "shop", None),
        (Some("node-a"), "retail", "shop-0", "default", None),
    ];
    for (node, namespace, name, account, expected) in rows {
        let found = snapshot.local_workload(node, namespace, name, account);
        assert_eq!(found.map(|workload| workload.uid.as_str()), expected, "{node:?} {namespace} {name} {account}");
    }
}

#[test]
fn a_local_workload_on_its_nodes_network_is_found_too() {
    let agent = edited(pod("ops/agent-0", "172.16.0.1"), |agent| agent.network_mode = NetworkMode::HostNetwork);
    assert!(Mesh::new().workload(agent).freeze().local_workload(None, "ops", "agent-0", "agent").is_some());
}

#[test]
fn generations_count_up_and_old_ones_stay_as_they_were() {
    let mut builder = SnapshotBuilder::new();
    let empty = builder.freeze();
    builder.apply(Change::Workload(pod("retail/shop-0", "10.40.0.9")));
    let one = builder.freeze();
    builder.apply(Change::WorkloadGone("Kubernetes//Pod/retail/shop-0".into()));
    let none = builder.freeze();
    assert_eq!([empty.generation(), one.generation(), none.generation()], [1, 2, 3]);
    assert_eq!([empty.workloads().count(), one.workloads().count(), none.workloads().count()], [0, 1, 0]);
    assert_eq!(mesh_state::snapshot::Snapshot::empty().generation(), 0);
}

#[test]
fn snapshots_cross_threads() {
    fn crosses<T: Send + Sync + 'static>() {}
    crosses::<mesh_state::snapshot::Snapshot>();
    crosses::<Change>();
    crosses::<SnapshotBuilder>();
    crosses::<mesh_state::wanted::Wanted>();
}

#[test]
fn generations_share_what_did_not_change() {
    let mut builder = SnapshotBuilder::new();
    builder.apply(Change::Workload(pod("retail/shop-0", "10.40.0.9")));
    let before = builder.freeze();
    builder.apply(Change::Workload(pod("retail/shop-1", "10.40.0.10")));
    // The control plane sends everything again after a reconnect.
    builder.apply(Change::Workload(pod("retail/shop-0", "10.40.0.9")));
    let after = builder.freeze();
    let shop = |snapshot: &mesh_state::snapshot::Snapshot| {
        snapshot.workload_by_address(&network(""), ip("10.40.0.9")).cloned().unwrap()
    };
    assert!(Arc::ptr_eq(&shop(&before), &shop(&after)));
}
