//! §4.6: workloads of which only DNS knows the address.

use std::collections::BTreeSet;

use mesh_state::route::{Lookup, Route, RouteError};
use mesh_state::service::{IpFamilies, Service, Vip};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::Workload;

use crate::fixture::{Mesh, edited, endpoint_of, hostname, ip, network, plain_pod, pod, service, waypoint};
use crate::outbound::{line, route};

fn named(workload: Workload) -> Workload {
    edited(workload, |workload| {
        workload.addresses = [].into();
        workload.hostname = "api.example.com".into();
    })
}

fn api() -> Service {
    let mut api = service("outside/api", "10.96.0.7", &[(80, 8080)]);
    api.vips.push(Vip { network: network(""), address: ip("fd96::7").into() });
    api
}

fn lookup(snapshot: &Snapshot, target: &str) -> Lookup {
    match route(snapshot, target, 0) {
        Ok(Route::Resolve(lookup)) => lookup,
        other => panic!("{target}: {other:?}"),
    }
}

#[test]
fn a_workload_of_a_hostname_is_reached_where_dns_says_by_the_way_it_is_spoken_to() {
    let plain = endpoint_of(named(plain_pod("outside/api-0", "10.0.0.1")), "outside/api", &[]);
    let captured = endpoint_of(named(pod("outside/api-0", "10.0.0.1")), "outside/api", &[]);
    let way = edited(pod("retail/way-0", "10.40.1.1"), |way| {
        way.addresses = [].into();
        way.hostname = hostname("retail/way").hostname;
    });
    let mut behind = api();
    behind.waypoint = waypoint("retail/way");
    let rows = [
        ("plain", Mesh::new().service(api()).workload(plain), "direct 93.184.216.34:8080"),
        (
            "captured",
            Mesh::new().service(api()).workload(captured),
            "hbone 93.184.216.34:15008 93.184.216.34:8080 cluster.local/ns/outside/sa/api",
        ),
        (
            "a waypoint",
            Mesh::new().service(behind).workload(way),
            "hbone 93.184.216.34:15008 10.96.0.7:80 cluster.local/ns/retail/sa/way",
        ),
    ];
    for (fact, mesh, expected) in rows {
        let found = lookup(&mesh.freeze(), "10.96.0.7:80").found(&[ip("93.184.216.34")], 0);
        assert_eq!(line(found), expected, "{fact}");
    }
}

#[test]
fn a_record_of_the_family_asked_for_is_taken_at_random_and_only_then_one_of_the_other() {
    let snapshot = Mesh::new()
        .service(api())
        .workload(endpoint_of(named(plain_pod("outside/api-0", "10.0.0.1")), "outside/api", &[]))
        .freeze();
    let (four, six) = (["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]);
    let rows: &[(&str, &[&str], &[&str])] = &[
        ("10.96.0.7:80", &[six[0], four[0], six[1], four[1]], &["192.0.2.1:8080", "192.0.2.2:8080"]),
        ("[fd96::7]:80", &[six[0], four[0], six[1], four[1]], &["[2001:db8::1]:8080", "[2001:db8::2]:8080"]),
        ("10.96.0.7:80", &six, &["[2001:db8::1]:8080", "[2001:db8::2]:8080"]),
        ("[fd96::7]:80", &four, &["192.0.2.1:8080", "192.0.2.2:8080"]),
        ("10.96.0.7:80", &["::ffff:192.0.2.1", six[0]], &["192.0.2.1:8080"]),
    ];
    for (target, records, expected) in rows {
        let records: Vec<_> = records.iter().map(|record| ip(record)).collect();
        let reached: BTreeSet<String> =
            (0..64u64).map(|step| line(lookup(&snapshot, target).found(&records, step * (u64::MAX / 63)))).collect();
        let expected: BTreeSet<String> = expected.iter().map(|address| format!("direct {address}")).collect();
        assert_eq!(reached, expected, "{target} of {records:?}");
    }
}

#[test]
fn a_name_that_dns_does_not_know_is_an_error_that_says_whose_it_is() {
    let workload = endpoint_of(named(plain_pod("outside/api-0", "10.0.0.1")), "outside/api", &[]);
    let uid = workload.uid.clone();
    let snapshot = Mesh::new().service(api()).workload(workload).freeze();
    let (hostname, why) = ("api.example.com".to_owned(), "NXDOMAIN".to_owned());
    let nothing = lookup(&snapshot, "10.96.0.7:80").found(&[], 0);
    assert_eq!(nothing, Err(RouteError::ResolvedToNothing { hostname: hostname.clone(), workload: uid.clone() }));
    let failed = lookup(&snapshot, "10.96.0.7:80").failed("NXDOMAIN");
    assert_eq!(failed, RouteError::NotResolved { hostname, workload: uid, why });
    assert!(
        failed.to_string().contains("api.example.com of workload Kubernetes//Pod/outside/api-0: NXDOMAIN"),
        "{failed}"
    );
}

#[test]
fn an_address_comes_before_a_hostname_and_a_refused_family_is_not_asked_of_dns() {
    let both = endpoint_of(
        edited(plain_pod("outside/api-0", "10.0.0.1"), |api| api.hostname = "api.example.com".into()),
        "outside/api",
        &[],
    );
    let mesh = |service: Service| Mesh::new().service(service).workload(both.clone()).freeze();
    assert_eq!(line(route(&mesh(api()), "10.96.0.7:80", 0)), "direct 10.0.0.1:8080");
    let six_only = Service { ip_families: IpFamilies::Ipv6Only, ..api() };
    let error = route(&mesh(six_only), "10.96.0.7:80", 0).unwrap_err();
    assert!(matches!(error, RouteError::NoValidDestination { .. }), "{error}");
}

#[test]
fn a_workload_with_neither_is_not_chosen_by_its_service() {
    let neither =
        endpoint_of(edited(pod("outside/api-0", "10.0.0.1"), |api| api.addresses = [].into()), "outside/api", &[]);
    let snapshot = Mesh::new().service(api()).workload(neither).freeze();
    let error = route(&snapshot, "10.96.0.7:80", 0).unwrap_err().to_string();
    assert!(error.contains("has no endpoint with an address"), "{error}");
}
