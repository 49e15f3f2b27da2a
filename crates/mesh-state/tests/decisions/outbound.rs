//! §4.2, §4.3, §4.6: where a connection goes.

use mesh_state::identity::Identity;
use mesh_state::name::Authority;
use mesh_state::route::{Query, Route, RouteError, Unavailable, Unreachable, outbound};
use mesh_state::service::{IpFamilies, Mode};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::{NetworkMode, TunnelProtocol, Workload};

use crate::fixture::{Mesh, at, endpoint_of, hostname, id, ip, network, plain_pod, pod, service, waypoint};

pub(crate) const CLIENT_IP: &str = "10.40.0.2";

pub(crate) fn client() -> Workload {
    pod("web/client-0", CLIENT_IP)
}

pub(crate) fn route(snapshot: &Snapshot, target: &str, draw: u64) -> Result<Route, RouteError> {
    let source = client();
    outbound(snapshot, &Query { source: &source, peer: ip(CLIENT_IP), target: at(target) }, draw)
}

/// A route in one line: what a table compares.
pub(crate) fn line(route: Result<Route, RouteError>) -> String {
    match route {
        Ok(Route::Passthrough { target }) => format!("passthrough {target}"),
        Ok(Route::Direct { target, .. }) => format!("direct {target}"),
        Ok(Route::Hbone { hop, authority, expected, .. }) => {
            let expected: Vec<&str> = expected.iter().map(|identity| identity.principal()).collect();
            format!("hbone {hop} {authority} {}", expected.join(" "))
        }
        Ok(Route::DoubleHbone { hop, authority, expected, inner_expected, .. }) => {
            let names = |expected: &[Identity]| expected.iter().map(Identity::principal).collect::<Vec<_>>().join(" ");
            format!("double hbone {hop} {authority} {} / {}", names(&expected), names(&inner_expected))
        }
        Ok(Route::Resolve(lookup)) => format!("resolve {}", lookup.hostname()),
        Err(error) => format!("error {error}"),
    }
}

fn shop_mesh() -> Mesh {
    let with_sans = {
        let mut service = service("retail/cart", "10.96.0.8", &[(80, 8080)]);
        service.subject_alt_names = vec![id("retail/cart-canary"), id("retail/cart")];
        service
    };
    Mesh::new()
        .workload(client())
        .workload(endpoint_of(pod("retail/shop-0", "10.40.0.9"), "retail/shop", &[]))
        .workload(endpoint_of(pod("retail/cart-0", "10.40.0.10"), "retail/cart", &[(80, 9090)]))
        .workload(endpoint_of(plain_pod("legacy/db-0", "10.40.0.11"), "legacy/db", &[]))
        .service(service("retail/shop", "10.96.0.7", &[(80, 8080), (81, 0)]))
        .service(with_sans)
        .service(service("legacy/db", "10.96.0.9", &[(3306, 3306)]))
        .service(service("retail/empty", "10.96.0.10", &[(80, 8080)]))
}

#[test]
fn a_connection_goes_where_its_address_says() {
    let mut passthrough = service("outside/api", "10.96.0.11", &[(443, 443)]);
    passthrough.load_balancing.mode = Mode::Passthrough;
    let snapshot = shop_mesh().service(passthrough).freeze();
    let rows: &[(&str, &str, &str)] = &[
        ("an unknown address is passed through", "93.184.216.34:443", "passthrough 93.184.216.34:443"),
        (
            "a captured workload is tunnelled to",
            "10.40.0.9:8080",
            "hbone 10.40.0.9:15008 10.40.0.9:8080 cluster.local/ns/retail/sa/shop",
        ),
        (
            "any port of a workload is its own affair",
            "10.40.0.9:1",
            "hbone 10.40.0.9:15008 10.40.0.9:1 cluster.local/ns/retail/sa/shop",
        ),
        (
            "an IPv4-mapped address is the IPv4 it means",
            "[::ffff:10.40.0.9]:8080",
            "hbone 10.40.0.9:15008 10.40.0.9:8080 cluster.local/ns/retail/sa/shop",
        ),
        ("a workload outside the mesh is spoken to in plain TCP", "10.40.0.11:3306", "direct 10.40.0.11:3306"),
        (
            "a VIP goes to an endpoint at the service's target port",
            "10.96.0.7:80",
            "hbone 10.40.0.9:15008 10.40.0.9:8080 cluster.local/ns/retail/sa/shop",
        ),
        (
            "an endpoint's own port comes before the service's, and the service's identities before its own",
            "10.96.0.8:80",
            "hbone 10.40.0.10:15008 10.40.0.10:9090 cluster.local/ns/retail/sa/cart-canary cluster.local/ns/retail/sa/cart",
        ),
        (
            "a VIP of a service outside the mesh goes to an endpoint in plain TCP",
            "10.96.0.9:3306",
            "direct 10.40.0.11:3306",
        ),
        ("a passthrough service is left alone", "10.96.0.11:443", "passthrough 10.96.0.11:443"),
        ("a passthrough service is left alone at any port", "10.96.0.11:99", "passthrough 10.96.0.11:99"),
        (
            "a service without endpoints is an error, not a way out",
            "10.96.0.10:80",
            "error no healthy upstream for 10.96.0.10:80: service retail/empty.retail.svc.cluster.local has no endpoints: does its selector match running pods?",
        ),
        (
            "a port the service has not is an error",
            "10.96.0.7:82",
            "error no healthy upstream for 10.96.0.7:82: service retail/shop.retail.svc.cluster.local has no port 82: is it missing from the service's ports?",
        ),
        (
            "a port with nothing behind it is an error",
            "10.96.0.7:81",
            "error no healthy upstream for 10.96.0.7:81: service retail/shop.retail.svc.cluster.local has no endpoint with a target port for port 81: \
          does its targetPort name a port that the pods declare?",
        ),
    ];
    for (fact, target, expected) in rows {
        assert_eq!(line(route(&snapshot, target, 7)), *expected, "{fact}");
    }
}

#[test]
fn a_route_names_what_it_reaches() {
    let snapshot = shop_mesh().freeze();
    let names = |target: &str| match route(&snapshot, target, 0).unwrap() {
        Route::Hbone { destination, .. } | Route::Direct { destination, .. } => (
            destination.workload.map(|workload| workload.name().to_owned()),
            destination.service.map(|service| service.name.to_string()),
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(names("10.40.0.9:8080"), (Some("shop-0".into()), None));
    assert_eq!(names("10.96.0.7:80"), (Some("shop-0".into()), Some("shop".into())));
    assert_eq!(names("10.96.0.9:3306"), (Some("db-0".into()), Some("db".into())));
}

#[test]
fn a_workload_on_its_nodes_network_is_found_by_service_but_not_by_address() {
    let mut agent = endpoint_of(pod("ops/agent-0", "172.16.0.1"), "ops/agent", &[]);
    agent.network_mode = NetworkMode::HostNetwork;
    agent.protocol = TunnelProtocol::None;
    let snapshot = Mesh::new().workload(agent).service(service("ops/agent", "10.96.0.7", &[(80, 8080)])).freeze();
    assert_eq!(line(route(&snapshot, "172.16.0.1:8080", 0)), "passthrough 172.16.0.1:8080");
    assert_eq!(line(route(&snapshot, "10.96.0.7:80", 0)), "direct 172.16.0.1:8080");
}

#[test]
fn an_address_is_looked_up_in_the_network_of_the_source() {
    let mut far = pod("retail/shop-0", "10.40.0.9");
    far.network = network("far");
    let snapshot = Mesh::new().workload(far).freeze();
    assert_eq!(line(route(&snapshot, "10.40.0.9:80", 0)), "passthrough 10.40.0.9:80");
}

#[test]
fn an_address_that_is_both_a_vip_and_a_workloads_goes_to_an_endpoint_past_the_services_waypoint() {
    let mut both = service("retail/shop", "10.40.0.9", &[(80, 8080)]);
    both.waypoint = waypoint("retail/nowhere");
    let snapshot = Mesh::new()
        .workload(pod("retail/alone-0", "10.40.0.9"))
        .workload(endpoint_of(pod("retail/shop-0", "10.40.0.10"), "retail/shop", &[]))
        .service(both)
        .freeze();
    let expected = "hbone 10.40.0.10:15008 10.40.0.10:8080 cluster.local/ns/retail/sa/shop";
    assert_eq!(line(route(&snapshot, "10.40.0.9:80", 0)), expected);
}

#[test]
fn a_workloads_own_address_is_never_passed_through_for_a_service_that_has_nobody_to_offer() {
    for mode in [Mode::Unspecified, Mode::Passthrough] {
        let mut hollow = service("retail/hollow", "10.40.0.9", &[(80, 8080)]);
        hollow.load_balancing.mode = mode;
        let snapshot = Mesh::new().workload(pod("retail/shop-0", "10.40.0.9")).service(hollow).freeze();
        let expected = "hbone 10.40.0.9:15008 10.40.0.9:80 cluster.local/ns/retail/sa/shop";
        assert_eq!(line(route(&snapshot, "10.40.0.9:80", 0)), expected, "{mode:?}");
    }
}

#[test]
fn the_address_of_an_endpoint_follows_the_family_asked_for_within_what_the_service_allows() {
    let rows: &[(IpFamilies, &[&str], &str, &str)] = &[
        (IpFamilies::Automatic, &["fd00::9", "10.40.0.9"], "10.96.0.7:80", "10.40.0.9:8080"),
        (IpFamilies::Automatic, &["10.40.0.9", "fd00::9"], "[fd96::7]:80", "[fd00::9]:8080"),
        (IpFamilies::Dual, &["10.40.0.9", "fd00::9"], "[fd96::7]:80", "[fd00::9]:8080"),
        (IpFamilies::Automatic, &["10.40.0.9", "10.40.0.10"], "[fd96::7]:80", "10.40.0.9:8080"),
        (IpFamilies::Ipv4Only, &["fd00::9", "10.40.0.9"], "[fd96::7]:80", "10.40.0.9:8080"),
        (IpFamilies::Ipv6Only, &["10.40.0.9", "fd00::9"], "10.96.0.7:80", "[fd00::9]:8080"),
    ];
    for (families, addresses, target, expected) in rows {
        let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
        shop.vips.push(mesh_state::service::Vip { network: network(""), address: ip("fd96::7").into() });
        shop.ip_families = *families;
        let mut endpoint = endpoint_of(plain_pod("retail/shop-0", "10.0.0.1"), "retail/shop", &[]);
        endpoint.addresses = addresses.iter().map(|address| ip(address)).collect();
        let snapshot = Mesh::new().workload(endpoint).service(shop).freeze();
        let row = format!("{families:?} {addresses:?} {target}");
        assert_eq!(line(route(&snapshot, target, 0)), format!("direct {expected}"), "{row}");
    }
}

#[test]
fn a_workload_asked_for_by_any_of_its_addresses_is_reached_at_that_one() {
    let addresses = ["10.40.0.9", "10.40.0.10", "fd00::9", "fd00::10"];
    let mut shop = endpoint_of(plain_pod("retail/shop-0", "10.0.0.1"), "retail/shop", &[]);
    shop.addresses = addresses.iter().map(|address| ip(address)).collect();
    // Which families a service allows is not asked of who is no service.
    let mut only_ipv4 = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    only_ipv4.ip_families = IpFamilies::Ipv4Only;
    let snapshot = Mesh::new().workload(shop).service(only_ipv4).freeze();
    for address in addresses {
        let target = std::net::SocketAddr::new(ip(address), 80);
        assert_eq!(line(route(&snapshot, &target.to_string(), 0)), format!("direct {target}"));
    }
}

#[test]
fn an_endpoint_without_an_allowed_address_is_no_valid_destination() {
    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    shop.ip_families = IpFamilies::Ipv6Only;
    let endpoint = endpoint_of(pod("retail/shop-0", "10.40.0.9"), "retail/shop", &[]);
    let uid = endpoint.uid.clone();
    let snapshot = Mesh::new().workload(endpoint).service(shop).freeze();
    let (target, why) = (at("10.96.0.7:80"), Unreachable::Family);
    assert_eq!(route(&snapshot, "10.96.0.7:80", 0), Err(RouteError::NoValidDestination { workload: uid, target, why }));
}

#[test]
fn a_service_of_another_namespace_that_hides_itself_is_not_there() {
    let mut hidden = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    hidden.visibility = mesh_state::service::Visibility::Namespace;
    let snapshot = Mesh::new().service(hidden).freeze();
    assert_eq!(line(route(&snapshot, "10.96.0.7:80", 0)), "passthrough 10.96.0.7:80");
}

#[test]
fn an_error_says_which_service_and_why() {
    let snapshot = shop_mesh().freeze();
    let error = route(&snapshot, "10.96.0.10:80", 0).unwrap_err();
    let RouteError::NoHealthyUpstream { target, service, why } = error else { panic!("{error}") };
    assert_eq!((target, service, why), (at("10.96.0.10:80"), hostname("retail/empty"), Unavailable::NoEndpoints));
}

#[test]
fn the_authority_of_a_tunnel_is_an_address_even_for_a_service() {
    let snapshot = shop_mesh().freeze();
    let Ok(Route::Hbone { authority, .. }) = route(&snapshot, "10.96.0.7:80", 0) else { panic!() };
    assert_eq!(authority, Authority::Address(at("10.40.0.9:8080")));
}
