//! §4.7: connections to another network, through its gateway.

use mesh_state::name::Authority;
use mesh_state::route::{Query, Route, RouteError, Unavailable, Unreachable, outbound};
use mesh_state::service::{IpFamilies, LoadBalancing, Mode, Scope, Service, Vip};
use mesh_state::workload::{GatewayAddress, GatewayDestination, Workload};

use crate::fixture::{Mesh, at, edited, endpoint_of, hostname, id, ip, network, pod, service, waypoint};
use crate::outbound::{CLIENT_IP, client, line, route};

const FAR: &str = "far";

fn gateway(destination: GatewayDestination) -> Option<GatewayAddress> {
    Some(GatewayAddress { destination, hbone_port: 15008 })
}

fn at_gateway_address() -> Option<GatewayAddress> {
    gateway(GatewayDestination::Address { network: network(FAR), address: ip("203.0.113.1") })
}

/// An endpoint of far/app on the other network, behind a gateway there.
fn remote(reference: Option<GatewayAddress>) -> Workload {
    edited(endpoint_of(pod("far/app-0", "10.40.0.9"), "far/app", &[]), |app| {
        app.network = network(FAR);
        app.network_gateway = reference;
    })
}

fn app() -> Service {
    let mut app = service("far/app", "10.96.0.8", &[(80, 8080)]);
    app.subject_alt_names = vec![id("far/app"), id("far/app-canary")];
    app
}

fn gateway_workload() -> Workload {
    edited(pod("istio-system/eastwest-0", "203.0.113.1"), |eastwest| eastwest.network = network(FAR))
}

fn mesh(reference: Option<GatewayAddress>) -> Mesh {
    Mesh::new().workload(client()).workload(remote(reference)).service(app())
}

const NAMES: &str = "cluster.local/ns/far/sa/app cluster.local/ns/far/sa/app-canary";
const AUTHORITY: &str = "app.far.svc.cluster.local:80";

#[test]
fn an_endpoint_of_another_network_is_reached_by_its_services_name_through_the_gateway() {
    let by_service = gateway(GatewayDestination::Hostname(hostname("istio-system/eastwest")));
    let mut eastwest = service("istio-system/eastwest", "203.0.113.7", &[(15008, 15009)]);
    eastwest.subject_alt_names = vec![id("istio-system/eastwest-alias")];
    let endpoint = endpoint_of(gateway_workload(), "istio-system/eastwest", &[]);
    let rows = [
        (
            "a gateway by address: the outer tunnel proves the gateway, the inner one the service",
            mesh(at_gateway_address()).workload(gateway_workload()),
            format!("double hbone 203.0.113.1:15008 {AUTHORITY} cluster.local/ns/istio-system/sa/eastwest / {NAMES}"),
        ),
        (
            "a gateway by the name of its service: its target port, and the identities it may have",
            mesh(by_service.clone()).workload(endpoint.clone()).service(eastwest),
            format!(
                "double hbone 203.0.113.1:15009 {AUTHORITY} cluster.local/ns/istio-system/sa/eastwest-alias \
                 cluster.local/ns/istio-system/sa/eastwest / {NAMES}"
            ),
        ),
        (
            "an endpoint without an address of its own: only the gateway's is needed",
            mesh(None)
                .workload(edited(remote(at_gateway_address()), |app| app.addresses = [].into()))
                .workload(gateway_workload()),
            format!("double hbone 203.0.113.1:15008 {AUTHORITY} cluster.local/ns/istio-system/sa/eastwest / {NAMES}"),
        ),
        (
            "a gateway known by a hostname is looked up first",
            mesh(by_service).workload(edited(gateway_workload(), |eastwest| {
                eastwest.addresses = [].into();
                eastwest.hostname = hostname("istio-system/eastwest").hostname;
            })),
            "resolve eastwest.istio-system.svc.cluster.local".into(),
        ),
    ];
    for (fact, mesh, expected) in rows {
        assert_eq!(line(route(&mesh.freeze(), "10.96.0.8:80", 0)), expected, "{fact}");
    }
}

#[test]
fn the_route_through_a_gateway_names_the_endpoint_and_the_service_it_reaches() {
    let snapshot = mesh(at_gateway_address()).workload(gateway_workload()).freeze();
    let Ok(Route::DoubleHbone { destination, authority, .. }) = route(&snapshot, "10.96.0.8:80", 0) else { panic!() };
    assert_eq!(destination.workload.map(|workload| workload.name().to_owned()).as_deref(), Some("app-0"));
    assert_eq!(destination.service.map(|service| service.key()), Some(hostname("far/app")));
    assert_eq!(authority, Authority::Host { host: hostname("far/app").hostname, port: 80 });
}

#[test]
fn a_gateway_found_by_dns_is_connected_to_where_dns_says() {
    let reference = gateway(GatewayDestination::Hostname(hostname("istio-system/eastwest")));
    let named = edited(gateway_workload(), |eastwest| {
        eastwest.addresses = [].into();
        eastwest.hostname = hostname("istio-system/eastwest").hostname;
    });
    let snapshot = mesh(reference).workload(named).freeze();
    let Ok(Route::Resolve(lookup)) = route(&snapshot, "10.96.0.8:80", 0) else { panic!() };
    let expected =
        format!("double hbone 198.51.100.5:15008 {AUTHORITY} cluster.local/ns/istio-system/sa/eastwest / {NAMES}");
    assert_eq!(line(lookup.found(&[ip("198.51.100.5")], 0)), expected);
}

#[test]
fn the_address_of_a_gateway_given_by_address_has_the_family_of_that_address() {
    let both = edited(gateway_workload(), |eastwest| {
        eastwest.addresses = [ip("fd00::1"), ip("203.0.113.1")].into();
    });
    let mut service = app();
    service.vips.push(Vip { network: network(""), address: ip("fd96::8").into() });
    service.ip_families = IpFamilies::Dual;
    let snapshot = mesh(at_gateway_address()).service(service).workload(both).freeze();
    // The application asked for an IPv6 address; the reference is to an IPv4 one.
    let routed = line(route(&snapshot, "[fd96::8]:80", 0));
    assert!(routed.starts_with("double hbone 203.0.113.1:15008 "), "{routed}");
}

#[test]
fn a_services_waypoint_on_another_network_is_reached_through_its_gateway_for_the_service() {
    let mut local = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    local.waypoint = waypoint("retail/way");
    local.subject_alt_names = vec![id("retail/shop")];
    let way = |reference| {
        edited(endpoint_of(pod("retail/way-0", "10.40.1.1"), "retail/way", &[]), |way| {
            way.network = network(FAR);
            way.network_gateway = reference;
        })
    };
    let mut ways = service("retail/way", "10.96.1.1", &[(15008, 15008)]);
    ways.subject_alt_names = vec![id("retail/way")];
    let meshed = |way: Workload, ways: Service| {
        Mesh::new().service(local.clone()).service(ways).workload(way).workload(gateway_workload()).freeze()
    };
    // What is asked for is the service, not the waypoint; who must prove itself at the far end is the waypoint.
    assert_eq!(
        line(route(&meshed(way(at_gateway_address()), ways.clone()), "10.96.0.7:80", 0)),
        "double hbone 203.0.113.1:15008 shop.retail.svc.cluster.local:80 \
         cluster.local/ns/istio-system/sa/eastwest / cluster.local/ns/retail/sa/way"
    );
    let nameless = Service { subject_alt_names: vec![], ..ways.clone() };
    let error = route(&meshed(way(at_gateway_address()), nameless), "10.96.0.7:80", 0).unwrap_err();
    let expected = RouteError::NoExpectedIdentity { service: hostname("retail/way"), network: network(FAR) };
    assert_eq!(error, expected, "the names of the service behind a waypoint are not the waypoint's");
    let error = route(&meshed(way(None), ways), "10.96.0.7:80", 0).unwrap_err();
    assert!(matches!(error, RouteError::NoValidDestination { why: Unreachable::NoGateway(_), .. }), "{error}");
}

#[test]
fn a_workloads_waypoint_on_another_network_is_not_connected_to_as_if_it_were_here() {
    let way = edited(pod("retail/way-0", "10.40.1.1"), |way| {
        way.network = network(FAR);
        way.hostname = hostname("retail/way").hostname;
        way.network_gateway = at_gateway_address();
    });
    let uid = way.uid.clone();
    let behind = edited(pod("retail/shop-0", "10.40.0.9"), |shop| shop.waypoint = waypoint("retail/way"));
    let snapshot = Mesh::new().workload(way).workload(behind).workload(gateway_workload()).freeze();
    let expected = RouteError::NoService { workload: uid, network: network(FAR), target: at("10.40.0.9:80") };
    assert_eq!(route(&snapshot, "10.40.0.9:80", 0), Err(expected));
}

#[test]
fn what_keeps_a_connection_from_another_network_is_told_with_where_to_look() {
    let unnamed = Service { subject_alt_names: vec![], ..app() };
    let by_service = || gateway(GatewayDestination::Hostname(hostname("istio-system/eastwest")));
    let hollow = service("istio-system/eastwest", "203.0.113.7", &[(15008, 15008)]);
    let portless = service("istio-system/eastwest", "203.0.113.7", &[(80, 80)]);
    let endpoint = endpoint_of(gateway_workload(), "istio-system/eastwest", &[]);
    // A captured waypoint takes every port; a gateway must have the one it is referred to by.
    let tunnelled = edited(endpoint, |eastwest| {
        eastwest.application_tunnel = Some(mesh_state::workload::ApplicationTunnel {
            protocol: mesh_state::workload::ApplicationProtocol::None,
            port: Some(15088),
        });
    });
    let rows: [(&str, Mesh, &str, &[&str]); 6] = [
        ("no gateway", mesh(None), "no valid destination", &["far/app-0", "\"far\"", "topology.istio.io/network"]),
        (
            "a gateway nobody has sent",
            mesh(at_gateway_address()),
            "unknown network gateway",
            &["far/203.0.113.1:15008", "far/app-0", "east-west"],
        ),
        (
            "a gateway's service nobody has sent",
            mesh(by_service()),
            "unknown network gateway",
            &["istio-system/eastwest.istio-system.svc.cluster.local:15008"],
        ),
        (
            "a gateway's service without endpoints",
            mesh(by_service()).service(hollow),
            "no healthy upstream",
            &["istio-system/eastwest", "has no endpoints"],
        ),
        (
            "a gateway's service without the port",
            mesh(by_service()).service(portless).workload(tunnelled),
            "no healthy upstream",
            &["has no port 15008"],
        ),
        (
            "a service without names",
            mesh(at_gateway_address()).service(unnamed).workload(gateway_workload()),
            "no identity is expected",
            &["far/app", "subject_alt_names"],
        ),
    ];
    for (fact, mesh, beginning, parts) in rows {
        let error = route(&mesh.freeze(), "10.96.0.8:80", 0).expect_err(fact).to_string();
        assert!(error.starts_with(beginning), "{fact}: {error}");
        for part in parts {
            assert!(error.contains(part), "{fact}: no {part} in {error}");
        }
    }
}

#[test]
fn another_networks_endpoint_without_a_gateway_cannot_be_reached() {
    let uid = remote(None).uid;
    let target = at("10.96.0.8:80");
    let why = Unreachable::NoGateway(network(FAR));
    let expected = Err(RouteError::NoValidDestination { workload: uid.clone(), target, why });
    assert_eq!(route(&mesh(None).freeze(), "10.96.0.8:80", 0), expected);
    // Addressed as a workload (§4.2: the workload wins the first lookup) there is no service that a gateway could be asked for.
    let expected = Err(RouteError::NoService { workload: uid, network: network(FAR), target });
    let both = mesh(at_gateway_address()).workload(gateway_workload()).workload(pod("retail/shop-0", "10.96.0.8"));
    assert_eq!(route(&both.freeze(), "10.96.0.8:80", 0), expected);
}

#[test]
fn an_endpoint_of_this_network_goes_before_one_behind_a_gateway_when_the_network_comes_first() {
    let mut preferring = app();
    preferring.load_balancing =
        LoadBalancing { mode: Mode::Failover, scopes: vec![Scope::Network], ..LoadBalancing::default() };
    let near = endpoint_of(pod("far/app-1", "10.40.0.10"), "far/app", &[]);
    let with = |near: Option<Workload>| {
        let mesh = mesh(at_gateway_address()).service(preferring.clone()).workload(gateway_workload());
        near.into_iter().fold(mesh, Mesh::workload).freeze()
    };
    for draw in [0, u64::MAX / 2, u64::MAX] {
        let near = line(route(&with(Some(near.clone())), "10.96.0.8:80", draw));
        assert!(near.starts_with("hbone 10.40.0.10:15008 10.40.0.10:8080 "), "{near}");
        assert!(line(route(&with(None), "10.96.0.8:80", draw)).starts_with("double hbone "));
    }
}

#[test]
fn which_endpoint_and_which_replica_of_the_gateway_are_independent_choices() {
    let by_service = gateway(GatewayDestination::Hostname(hostname("istio-system/eastwest")));
    let mut mesh =
        Mesh::new().service(app()).service(service("istio-system/eastwest", "203.0.113.7", &[(15008, 15008)]));
    for replica in 0..2 {
        let endpoint = endpoint_of(pod(&format!("far/app-{replica}"), &format!("10.40.0.{replica}")), "far/app", &[]);
        mesh = mesh.workload(edited(endpoint, |app| {
            app.network = network(FAR);
            app.network_gateway = by_service.clone();
        }));
        let name = format!("istio-system/eastwest-{replica}");
        let eastwest = endpoint_of(pod(&name, &format!("203.0.113.{replica}")), "istio-system/eastwest", &[]);
        mesh = mesh.workload(edited(eastwest, |eastwest| eastwest.network = network(FAR)));
    }
    let snapshot = mesh.freeze();
    let reached: std::collections::BTreeSet<_> = (0..400u64)
        .map(|step| match route(&snapshot, "10.96.0.8:80", step * (u64::MAX / 400)) {
            Ok(Route::DoubleHbone { hop, destination, .. }) => {
                (hop, destination.workload.expect("always named").name().to_owned())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reached.len(), 4, "{reached:?}");
}

#[test]
fn the_workload_that_asks_is_not_sent_through_the_gateway_of_its_own_network() {
    let source = edited(client(), |client| client.network = network(FAR));
    let mut here = app();
    here.vips[0].network = network(FAR);
    let snapshot =
        Mesh::new().service(here).workload(remote(at_gateway_address())).workload(gateway_workload()).freeze();
    let query = Query { source: &source, peer: ip(CLIENT_IP), target: at("10.96.0.8:80") };
    let routed = line(outbound(&snapshot, &query, 0));
    assert!(routed.starts_with("hbone 10.40.0.9:15008 10.40.0.9:8080 "), "{routed}");
    let nobody = Query { target: at("10.96.0.8:81"), ..query };
    let error = outbound(&snapshot, &nobody, 0).unwrap_err();
    assert!(matches!(error, RouteError::NoHealthyUpstream { why: Unavailable::NoSuchPort(81), .. }), "{error}");
}
