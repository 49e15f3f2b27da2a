//! §4.4: which endpoint of a service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_state::route::{GROUPS_MAX, Query, Route, RouteError, Unavailable, outbound};
use mesh_state::service::{HealthPolicy, LoadBalancing, Mode, Scope, Service};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::{Addresses, Locality, Place, Status, Workload};

use crate::fixture::{Mesh, at, edited, endpoint_of, ip, network, plain_pod, service};
use crate::outbound::CLIENT_IP;

/// An endpoint of retail/shop: name, region, zone, node, network.
fn endpoint(name: &str, address: &str, at: [&str; 4]) -> Workload {
    let mut workload = endpoint_of(plain_pod(&format!("retail/{name}"), address), "retail/shop", &[]);
    let [region, zone, node, net] = at;
    workload.place = place(region, zone, node);
    workload.network = network(net);
    workload
}

fn place(region: &str, zone: &str, node: &str) -> Arc<Place> {
    let locality = Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
    Arc::new(Place { node: node.into(), locality: locality.into() })
}

fn shop(mode: Mode, scopes: &[Scope]) -> Service {
    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    shop.load_balancing = LoadBalancing { mode, scopes: scopes.to_vec(), health: HealthPolicy::OnlyHealthy };
    shop
}

/// Which endpoints a client in region r1, zone z1, node n1 on the default network gets over many draws.
fn reached(snapshot: &Snapshot) -> Result<BTreeMap<String, usize>, RouteError> {
    let mut source = plain_pod("web/client-0", CLIENT_IP);
    source.place = place("r1", "z1", "n1");
    let query = Query { source: &source, peer: ip(CLIENT_IP), target: at("10.96.0.7:80") };
    let mut counts = BTreeMap::new();
    for step in 0..DRAWS {
        let draw = step.wrapping_mul(u64::MAX / DRAWS);
        let workload = match outbound(snapshot, &query, draw) {
            Ok(Route::Direct { destination, .. }) => destination.workload.expect("always named").name().to_owned(),
            // On another network: who it was is in the error.
            Err(RouteError::NoValidDestination { workload, .. }) => {
                workload.as_str().rsplit('/').next().unwrap().into()
            }
            Err(error) => return Err(error),
            Ok(other) => panic!("{other:?}"),
        };
        *counts.entry(workload).or_default() += 1;
    }
    Ok(counts)
}

const DRAWS: u64 = 1200;

#[test]
fn of_endpoints_that_are_all_different_so_many_are_judged_and_no_more() {
    let different = (0..u16::try_from(DRAWS).expect("few")).map(|number| {
        let [high, low] = number.to_be_bytes();
        endpoint_of(
            plain_pod(&format!("retail/{number}"), &format!("10.0.{high}.{low}")),
            "retail/shop",
            &[(80, 1 + number)],
        )
    });
    let mesh = different.fold(Mesh::new().service(shop(Mode::Unspecified, &[])), Mesh::workload);
    // One draw for each of them: without the limit each is reached.
    assert_eq!(reached(&mesh.freeze()).expect("some are").len(), GROUPS_MAX);
}

#[test]
fn scopes_decide_as_their_mode_says() {
    use Scope::{Network, Node, Region, Zone};
    let everywhere = [
        endpoint("same-node", "10.0.0.1", ["r1", "z1", "n1", ""]),
        endpoint("same-zone", "10.0.0.2", ["r1", "z1", "n2", ""]),
        endpoint("same-region", "10.0.0.3", ["r1", "z2", "n3", ""]),
        endpoint("elsewhere", "10.0.0.4", ["r2", "z1", "n4", ""]),
    ];
    let all: &[&str] = &["same-node", "same-zone", "same-region", "elsewhere"];
    type Row<'a> = (Mode, &'a [Scope], &'a [&'a str], Result<&'a [&'a str], Unavailable>);
    let rows: &[Row<'_>] = &[
        (Mode::Unspecified, &[], &[], Ok(all)),
        (Mode::Unspecified, &[Region, Zone, Node], &[], Ok(all)),
        (Mode::Strict, &[], &[], Ok(all)),
        (Mode::Strict, &[Node], &[], Ok(&["same-node"])),
        (Mode::Strict, &[Region, Zone], &[], Ok(&["same-node", "same-zone"])),
        (Mode::Strict, &[Node], &["same-node"], Err(Unavailable::OutOfScope)),
        (Mode::Failover, &[], &[], Ok(all)),
        (Mode::Failover, &[Region, Zone, Node], &[], Ok(&["same-node"])),
        (Mode::Failover, &[Region, Zone, Node], &["same-node"], Ok(&["same-zone"])),
        (Mode::Failover, &[Region, Zone, Node], &["same-node", "same-zone"], Ok(&["same-region"])),
        (Mode::Failover, &[Region, Zone, Node], &["same-node", "same-zone", "same-region"], Ok(&["elsewhere"])),
        // The count ends at the first scope not shared: zone z1 of another region is another zone.
        (Mode::Failover, &[Region, Zone], &["same-node", "same-zone"], Ok(&["same-region"])),
        (Mode::Failover, &[Network, Node], &["same-node"], Ok(&["same-zone", "same-region", "elsewhere"])),
    ];
    for (mode, scopes, absent, expected) in rows {
        let mut mesh = Mesh::new().service(shop(*mode, scopes));
        for endpoint in everywhere.iter().filter(|endpoint| !absent.contains(&endpoint.name())) {
            mesh = mesh.workload(endpoint.clone());
        }
        let row = format!("{mode:?} {scopes:?} without {absent:?}");
        let reached = match reached(&mesh.freeze()) {
            Ok(counts) => Ok(counts.into_keys().collect::<BTreeSet<_>>()),
            Err(RouteError::NoHealthyUpstream { why, .. }) => Err(why),
            Err(other) => panic!("{row}: {other}"),
        };
        let expected = expected.map(|names| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>());
        assert_eq!(reached, expected, "{row}");
    }
}

#[test]
fn with_the_network_first_the_order_is_network_then_what_else_is_shared() {
    // §4.4: all 5, network and region 4, network 3, region and zone 2, region 1, none 0.
    let best_first = [
        endpoint("all", "10.0.0.1", ["r1", "z1", "n", ""]),
        endpoint("network-region", "10.0.0.2", ["r1", "z2", "n", ""]),
        endpoint("network", "10.0.0.3", ["r2", "z1", "n", ""]),
        endpoint("region-zone", "10.0.0.4", ["r1", "z1", "n", "far"]),
        endpoint("region", "10.0.0.5", ["r1", "z2", "n", "far"]),
        endpoint("none", "10.0.0.6", ["r2", "z1", "n", "far"]),
    ];
    for first in 0..best_first.len() {
        let mut mesh = Mesh::new().service(shop(Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone]));
        for endpoint in best_first[first..].iter().rev() {
            mesh = mesh.workload(endpoint.clone());
        }
        let reached: Vec<String> = reached(&mesh.freeze()).unwrap().into_keys().collect();
        assert_eq!(reached, [best_first[first].name().to_owned()]);
    }
}

#[test]
fn among_equals_the_draw_decides_by_capacity() {
    let weighted = |name: &str, address: &str, capacity: u32| {
        edited(endpoint(name, address, ["", "", "", ""]), |it| it.capacity = capacity)
    };
    let snapshot = Mesh::new()
        .service(shop(Mode::Unspecified, &[]))
        .workload(weighted("a", "10.0.0.1", 1))
        .workload(weighted("b", "10.0.0.2", 0))
        .workload(weighted("c", "10.0.0.3", 3))
        .freeze();
    let counts = reached(&snapshot).unwrap();
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "c"], "weight 0 is never chosen");
    // Draws are evenly spaced, so the shares are exact up to rounding.
    let quarter = usize::try_from(DRAWS / 4).unwrap();
    assert!(counts["a"].abs_diff(quarter) <= 1 && counts["c"].abs_diff(3 * quarter) <= 1, "{counts:?}");
}

#[test]
fn a_service_with_nobody_to_offer_says_what_stands_in_the_way() {
    let one = || endpoint("a", "10.0.0.1", ["", "", "", ""]);
    let unhealthy = edited(one(), |it| it.status = Status::Unhealthy);
    let addressless = Workload { addresses: Addresses::default(), ..one() };
    let weightless = edited(one(), |it| it.capacity = 0);
    let port_missing = {
        let mut shop = shop(Mode::Unspecified, &[]);
        shop.ports[0].target_port = 0;
        shop
    };
    let usual = || shop(Mode::Unspecified, &[]);
    let rows: Vec<(Service, Vec<Workload>, Unavailable)> = vec![
        (usual(), vec![], Unavailable::NoEndpoints),
        (usual(), vec![unhealthy.clone()], Unavailable::NoneHealthy),
        (usual(), vec![addressless], Unavailable::NoneAddressable),
        (port_missing, vec![one()], Unavailable::NoTargetPort(80)),
        (usual(), vec![weightless.clone()], Unavailable::NoWeight),
        // Of several faults, the one of the endpoint that came furthest.
        (usual(), vec![Workload { uid: "z".into(), ..unhealthy }, weightless], Unavailable::NoWeight),
    ];
    for (service, endpoints, expected) in rows {
        let mesh = endpoints.into_iter().fold(Mesh::new().service(service), Mesh::workload);
        match reached(&mesh.freeze()) {
            Err(RouteError::NoHealthyUpstream { why, .. }) => assert_eq!(why, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
    }
}

#[test]
fn a_changed_health_policy_holds_at_once_and_in_both_directions() {
    let unhealthy = edited(endpoint("a", "10.0.0.1", ["", "", "", ""]), |it| it.status = Status::Unhealthy);
    let with = |health: HealthPolicy| {
        let mut shop = shop(Mode::Unspecified, &[]);
        shop.load_balancing.health = health;
        shop
    };
    let mesh = || Mesh::new().workload(unhealthy.clone()).service(with(HealthPolicy::OnlyHealthy));
    assert!(reached(&mesh().freeze()).is_err());
    let allowing = mesh().service(with(HealthPolicy::AllowAll));
    assert!(reached(&allowing.freeze()).is_ok());
    let again = mesh().service(with(HealthPolicy::AllowAll)).service(with(HealthPolicy::OnlyHealthy));
    assert!(reached(&again.freeze()).is_err());
}

#[test]
fn an_endpoint_that_names_a_service_twice_has_the_ports_it_named_first() {
    let twice = endpoint_of(
        endpoint_of(plain_pod("retail/shop-0", "10.0.0.1"), "retail/shop", &[(80, 1111)]),
        "retail/shop",
        &[(80, 2222)],
    );
    let snapshot = Mesh::new().workload(twice).service(shop(Mode::Unspecified, &[])).freeze();
    assert_eq!(crate::outbound::line(crate::outbound::route(&snapshot, "10.96.0.7:80", 0)), "direct 10.0.0.1:1111");
}
