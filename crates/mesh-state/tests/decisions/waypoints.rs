//! §4.2 and §4.5: connections that must pass a waypoint.

use std::collections::BTreeSet;

use mesh_state::route::{Query, Route, RouteError, outbound};
use mesh_state::service::{Mode, Service, Visibility, WeightedWaypoint};
use mesh_state::workload::{ApplicationProtocol, ApplicationTunnel, GatewayAddress, TunnelProtocol, Workload};

use crate::fixture::{Mesh, at, edited, endpoint_of, hostname, id, ip, plain_pod, pod, service, waypoint};
use crate::outbound::{client, line, route};

fn way(name: &str, address: &str) -> Workload {
    endpoint_of(pod(&format!("retail/{name}"), address), "retail/way", &[])
}

fn way_service() -> Service {
    let mut way = service("retail/way", "10.96.1.1", &[(15008, 15008)]);
    way.subject_alt_names = vec![id("retail/way-alias")];
    way
}

fn behind(reference: &str, mut workload: Workload) -> Workload {
    workload.waypoint = waypoint(reference);
    workload
}

const TO_WAY: &str = "hbone 10.40.1.1:15008 ";

#[test]
fn a_waypoint_gets_the_address_as_the_application_gave_it() {
    let shop = |reference: &str| {
        let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
        shop.waypoint = waypoint(reference);
        shop
    };
    let by_name_of_workload = {
        let mut way = pod("retail/edge-0", "10.40.1.9");
        way.hostname = hostname("retail/edge").hostname;
        way
    };
    let mesh =
        || Mesh::new().workload(way("way-0", "10.40.1.1")).workload(by_name_of_workload.clone()).service(way_service());
    let endpoint = || endpoint_of(pod("retail/shop-0", "10.40.0.9"), "retail/shop", &[]);
    let sans = "cluster.local/ns/retail/sa/way-alias cluster.local/ns/retail/sa/way";
    let rows: Vec<(&str, Mesh, &str, String)> = vec![
        (
            "a service's, by the name of the waypoint's service",
            mesh().service(shop("retail/way")),
            "10.96.0.7:80",
            format!("{TO_WAY}10.96.0.7:80 {sans}"),
        ),
        (
            "a service's, by the waypoint's VIP",
            mesh().service(shop("10.96.1.1")),
            "10.96.0.7:80",
            format!("{TO_WAY}10.96.0.7:80 {sans}"),
        ),
        (
            "a service's, by the waypoint's own address",
            mesh().service(shop("10.40.1.1")),
            "10.96.0.7:80",
            format!("{TO_WAY}10.96.0.7:80 cluster.local/ns/retail/sa/way"),
        ),
        (
            "a service's, by an address that a workload has, too: the service is meant",
            mesh().workload(pod("retail/stray-0", "10.96.1.1")).service(shop("10.96.1.1")),
            "10.96.0.7:80",
            format!("{TO_WAY}10.96.0.7:80 {sans}"),
        ),
        (
            "a service's, by the name of a service that the client cannot see: it asked for nothing of it",
            Mesh::new()
                .workload(way("way-0", "10.40.1.1"))
                .service(Service { visibility: Visibility::Namespace, ..way_service() })
                .service(shop("retail/way")),
            "10.96.0.7:80",
            format!("{TO_WAY}10.96.0.7:80 {sans}"),
        ),
        (
            "a service's, by a workload's hostname",
            mesh().service(shop("retail/edge")),
            "10.96.0.7:80",
            "hbone 10.40.1.9:15008 10.96.0.7:80 cluster.local/ns/retail/sa/edge".into(),
        ),
        (
            "at ports the service has not, too: that is the waypoint's affair",
            mesh().service(shop("retail/way")),
            "10.96.0.7:99",
            format!("{TO_WAY}10.96.0.7:99 {sans}"),
        ),
        (
            "a workload's",
            mesh().workload(behind("retail/way", endpoint())),
            "10.40.0.9:8080",
            format!("{TO_WAY}10.40.0.9:8080 {sans}"),
        ),
        (
            "a workload's, whether or not it is captured",
            mesh().workload(behind("retail/way", plain_pod("retail/shop-0", "10.40.0.9"))),
            "10.40.0.9:8080",
            format!("{TO_WAY}10.40.0.9:8080 {sans}"),
        ),
        (
            "a workload's does not hold for its service",
            mesh().workload(behind("retail/way", endpoint())).service(service(
                "retail/shop",
                "10.96.0.7",
                &[(80, 8080)],
            )),
            "10.96.0.7:80",
            "hbone 10.40.0.9:15008 10.40.0.9:8080 cluster.local/ns/retail/sa/shop".into(),
        ),
        (
            "a service's does not hold for its workloads",
            mesh().workload(endpoint()).service(shop("retail/way")),
            "10.40.0.9:8080",
            "hbone 10.40.0.9:15008 10.40.0.9:8080 cluster.local/ns/retail/sa/shop".into(),
        ),
    ];
    for (fact, mesh, target, expected) in rows {
        assert_eq!(line(route(&mesh.freeze(), target, 0)), expected, "{fact}");
    }
}

#[test]
fn a_waypoint_is_reached_at_the_family_of_what_is_behind_it() {
    let both = |workload: Workload, v6: &str| {
        edited(workload, |workload| workload.addresses = [workload.addresses[0], ip(v6)].into())
    };
    let shop = both(pod("retail/shop-0", "10.40.0.9"), "fd00::9");
    let mesh = Mesh::new()
        .workload(both(way("way-0", "10.40.1.1"), "fd00::1"))
        .service(way_service())
        .workload(behind("retail/way", shop));
    let snapshot = mesh.freeze();
    for (target, hop) in [("10.40.0.9:80", "hbone 10.40.1.1:15008 "), ("[fd00::9]:80", "hbone [fd00::1]:15008 ")] {
        let line = line(route(&snapshot, target, 0));
        assert!(line.starts_with(hop), "{target}: {line}");
    }
}

#[test]
fn a_waypoint_is_tunnelled_to_even_if_it_speaks_plain_tcp_otherwise() {
    let mut plain = way("way-0", "10.40.1.1");
    plain.protocol = TunnelProtocol::None;
    let snapshot = Mesh::new()
        .workload(plain)
        .service(way_service())
        .workload(behind("retail/way", pod("retail/shop-0", "10.40.0.9")))
        .freeze();
    assert!(matches!(route(&snapshot, "10.40.0.9:80", 0), Ok(Route::Hbone { .. })));
}

#[test]
fn a_waypoint_that_cannot_be_found_stops_the_connection() {
    let absent = Mesh::new().workload(behind("retail/way", pod("retail/shop-0", "10.40.0.9"))).freeze();
    let error = route(&absent, "10.40.0.9:80", 0).unwrap_err();
    assert!(matches!(error, RouteError::UnknownWaypoint { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("retail/way.retail.svc.cluster.local:15008") && text.contains("Kubernetes//Pod/retail/shop-0"),
        "{text}"
    );

    // Whose endpoints nobody is to choose among is no waypoint.
    let mut passed_through = way_service();
    passed_through.load_balancing.mode = Mode::Passthrough;
    let mesh = Mesh::new().service(passed_through).workload(way("way-0", "10.40.1.1"));
    let snapshot = mesh.workload(behind("retail/way", pod("retail/shop-0", "10.40.0.9"))).freeze();
    let error = route(&snapshot, "10.40.0.9:80", 0).unwrap_err();
    assert!(matches!(error, RouteError::UnknownWaypoint { .. }), "{error}");

    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    shop.waypoint = waypoint("retail/way");
    let without_endpoints = Mesh::new()
        .service(way_service())
        .service(shop)
        .workload(endpoint_of(plain_pod("retail/shop-0", "10.40.0.9"), "retail/shop", &[]))
        .freeze();
    let error = route(&without_endpoints, "10.96.0.7:80", 0).unwrap_err();
    assert!(error.to_string().contains("service retail/way.retail.svc.cluster.local has no endpoints"), "{error}");
}

#[test]
fn a_captured_waypoint_takes_ports_its_service_has_not() {
    let portless = service("retail/way", "10.96.1.1", &[]);
    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    shop.waypoint = waypoint("retail/way");
    let mesh = |tunnel: Option<ApplicationTunnel>| {
        let way = edited(way("way-0", "10.40.1.1"), |way| way.application_tunnel = tunnel);
        Mesh::new().workload(way).service(portless.clone()).service(shop.clone()).freeze()
    };
    let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::None, port: Some(15088) };
    assert!(route(&mesh(None), "10.96.0.7:80", 0).is_err());
    assert_eq!(
        line(route(&mesh(Some(tunnel)), "10.96.0.7:80", 0)),
        "hbone 10.40.1.1:15008 10.96.0.7:80 cluster.local/ns/retail/sa/way"
    );
}

#[test]
fn what_comes_out_of_a_waypoint_is_not_sent_back_into_it_whichever_replica_it_is() {
    let replicas = [way("way-0", "10.40.1.1"), way("way-1", "10.40.1.2"), way("way-2", "10.40.1.3")];
    for reference in ["retail/way", "10.96.1.1"] {
        let mut mesh =
            Mesh::new().service(way_service()).workload(behind(reference, pod("retail/shop-0", "10.40.0.9")));
        for replica in &replicas {
            mesh = mesh.workload(replica.clone());
        }
        let snapshot = mesh.freeze();
        for replica in &replicas {
            for draw in [0, u64::MAX / 2, u64::MAX] {
                let query = Query { source: replica, peer: replica.addresses[0], target: at("10.40.0.9:8080") };
                let expected = "hbone 10.40.0.9:15008 10.40.0.9:8080 cluster.local/ns/retail/sa/shop";
                assert_eq!(line(outbound(&snapshot, &query, draw)), expected, "{reference} {}", replica.name());
                // The address must be the replica's own: an identity alone may be shared.
                let elsewhere = Query { peer: ip("10.40.9.9"), ..query };
                assert!(
                    line(outbound(&snapshot, &elsewhere, draw))
                        .contains(" 10.40.0.9:8080 cluster.local/ns/retail/sa/way")
                );
            }
        }
    }
}

#[test]
fn a_waypoint_given_by_address_knows_itself_by_it() {
    let way = pod("retail/way-0", "10.40.1.1");
    let snapshot =
        Mesh::new().workload(way.clone()).workload(behind("10.40.1.1", pod("retail/shop-0", "10.40.0.9"))).freeze();
    let from_way = Query { source: &way, peer: ip("10.40.1.1"), target: at("10.40.0.9:8080") };
    assert!(line(outbound(&snapshot, &from_way, 0)).starts_with("hbone 10.40.0.9:15008"));
    let source = client();
    let from_client = Query { source: &source, peer: ip("10.40.0.2"), target: at("10.40.0.9:8080") };
    assert!(line(outbound(&snapshot, &from_client, 0)).starts_with(TO_WAY));
}

#[test]
fn weighted_waypoints_share_connections_by_weight_and_fall_back_when_they_have_none() {
    let weighted = |weights: [u32; 2]| {
        let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
        shop.waypoint = waypoint("10.40.1.9");
        let [a, b] = weights;
        let of = |address: &str, weight| WeightedWaypoint { destination: waypoint(address).unwrap(), weight };
        shop.weighted_waypoints = vec![of("10.40.1.1", a), of("10.40.1.2", b)];
        Mesh::new()
            .workload(pod("retail/a-0", "10.40.1.1"))
            .workload(pod("retail/b-0", "10.40.1.2"))
            .workload(pod("retail/c-0", "10.40.1.9"))
            .service(shop)
            .freeze()
    };
    let rows: &[([u32; 2], &[&str])] = &[
        ([0, 0], &["10.40.1.9:15008"]),
        ([1, 0], &["10.40.1.1:15008"]),
        ([0, 5], &["10.40.1.2:15008"]),
        ([3, 1], &["10.40.1.1:15008", "10.40.1.2:15008"]),
    ];
    for (weights, hops) in rows {
        let snapshot = weighted(*weights);
        let reached: Vec<String> = (0..400u64)
            .map(|step| match route(&snapshot, "10.96.0.7:80", step * (u64::MAX / 400)) {
                Ok(Route::Hbone { hop, .. }) => hop.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            reached.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            hops.iter().copied().collect(),
            "{weights:?}"
        );
        if *weights == [3, 1] {
            let first = reached.iter().filter(|hop| *hop == "10.40.1.1:15008").count();
            assert!(first.abs_diff(300) <= 1, "{first}");
        }
    }
}

#[test]
fn which_waypoint_and_which_of_its_replicas_are_independent_choices() {
    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    let of = |name: &str| WeightedWaypoint { destination: waypoint(name).unwrap(), weight: 1 };
    shop.weighted_waypoints = vec![of("retail/a"), of("retail/b")];
    let mut mesh = Mesh::new().service(shop);
    for (at, name) in ["a", "b"].iter().enumerate() {
        let text = format!("retail/{name}");
        mesh = mesh.service(service(&text, &format!("10.96.1.{at}"), &[(15008, 15008)]));
        for replica in 0..2 {
            mesh = mesh.workload(endpoint_of(
                pod(&format!("{text}-{replica}"), &format!("10.40.{at}.{replica}")),
                &text,
                &[],
            ));
        }
    }
    let snapshot = mesh.freeze();
    let hops: BTreeSet<String> = (0..400u64)
        .map(|step| match route(&snapshot, "10.96.0.7:80", step * (u64::MAX / 400)) {
            Ok(Route::Hbone { hop, .. }) => hop.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(hops.len(), 4, "{hops:?}");
}

#[test]
fn a_waypoints_port_is_the_references() {
    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    shop.waypoint = waypoint("10.40.1.1").map(|reference| GatewayAddress { hbone_port: 15443, ..reference });
    let snapshot = Mesh::new().workload(pod("retail/way-0", "10.40.1.1")).service(shop).freeze();
    assert!(line(route(&snapshot, "10.96.0.7:80", 0)).starts_with("hbone 10.40.1.1:15443 "));
}
