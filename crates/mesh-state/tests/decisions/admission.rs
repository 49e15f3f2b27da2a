//! §6.2 to §6.6: what is taken in, and where it goes.

use std::sync::Arc;

use mesh_state::admit::{Admission, ProxyHeader, Query, Refusal, Request, Unresolvable, attribute, inbound};
use mesh_state::identity::Identity;
use mesh_state::name::Authority;
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};
use mesh_state::rbac::{Deciding, Denial, DryRun};
use mesh_state::service::{Service, Vip, Visibility};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::{ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Workload};

use crate::fixture::{
    Mesh, any_of, at, authority, edited, endpoint_of, id, ip, mappings, network, plain_pod, pod, policy, principal,
    service, waypoint,
};

const LOCAL: &str = "10.40.0.9";
const PROXY_PORTS: &[u16] = &[15001, 15006, 15008];

fn shop() -> Workload {
    endpoint_of(pod("retail/shop-0", LOCAL), "retail/shop", &[(81, 9090)])
}

fn query<'a>(workload: &'a Workload, identity: Option<&'a Identity>, request: Request<'a>) -> Query<'a> {
    Query {
        workload,
        peer: at("10.40.0.2:40000"),
        identity,
        local: ip(LOCAL),
        request,
        proxy_ports: PROXY_PORTS,
        localhost_tunnel: true,
    }
}

fn ask(
    snapshot: &Snapshot,
    workload: &Workload,
    identity: Option<&Identity>,
    request: Request<'_>,
) -> Result<Admission, Refusal> {
    inbound(snapshot, &query(workload, identity, request))
}

fn tunnel(snapshot: &Snapshot, workload: &Workload, text: &str) -> Result<Admission, Refusal> {
    ask(snapshot, workload, Some(&id("web/client")), Request::Tunnel(&authority(text)))
}

/// The target, or the kind of refusal.
fn line(answer: Result<Admission, Refusal>) -> String {
    match answer {
        Ok(admission) => admission.target.to_string(),
        Err(Refusal::Address { .. }) => "address".into(),
        Err(Refusal::Unresolvable(Unresolvable::Host { .. })) => "no such host".into(),
        Err(Refusal::Unresolvable(Unresolvable::Port { .. })) => "no such port".into(),
        Err(Refusal::Unresolvable(Unresolvable::NoVip { .. })) => "no vip".into(),
        Err(Refusal::RecursiveCall { .. }) => "recursive".into(),
        Err(Refusal::Policy { .. }) => "policy".into(),
    }
}

#[test]
fn a_tunnel_reaches_its_own_pod_and_nothing_else() {
    let hidden = {
        let mut hidden = service("other/hidden", "10.96.0.8", &[(80, 8080)]);
        hidden.visibility = Visibility::Namespace;
        hidden
    };
    let snapshot = Mesh::new()
        .workload(shop())
        .workload(pod("retail/cart-0", "10.40.0.10"))
        .service(service("retail/shop", "10.96.0.7", &[(80, 8080), (81, 8081), (82, 0), (83, 15008)]))
        .service(hidden)
        .freeze();
    let rows: &[(&str, &str, &str)] = &[
        ("its own address", "10.40.0.9:8080", "10.40.0.9:8080"),
        ("its own address, written as IPv6", "[::ffff:10.40.0.9]:8080", "10.40.0.9:8080"),
        ("another workload's address", "10.40.0.10:8080", "address"),
        ("an address nobody has", "8.8.8.8:53", "address"),
        ("loopback", "127.0.0.1:8080", "address"),
        ("its service's VIP, which no sender should ask it for", "10.96.0.7:80", "address"),
        ("a port of the proxy", "10.40.0.9:15008", "recursive"),
        ("another port of the proxy", "10.40.0.9:15001", "recursive"),
        ("a hostname: the service's target port", "shop.retail.svc.cluster.local:80", "10.40.0.9:8080"),
        ("a hostname: its own target port first", "shop.retail.svc.cluster.local:81", "10.40.0.9:9090"),
        ("a hostname: a target port of 0", "shop.retail.svc.cluster.local:82", "no such port"),
        ("a hostname: a port behind which is the proxy", "shop.retail.svc.cluster.local:83", "recursive"),
        ("a hostname: a port the service has not", "shop.retail.svc.cluster.local:99", "no such port"),
        ("a hostname nobody has", "nobody.retail.svc.cluster.local:80", "no such host"),
        ("a hostname it may not see", "hidden.other.svc.cluster.local:80", "no such host"),
    ];
    for (fact, text, expected) in rows {
        assert_eq!(line(tunnel(&snapshot, &shop(), text)), *expected, "{fact}");
    }
}

#[test]
fn a_captured_waypoint_takes_what_is_behind_it() {
    let way = endpoint_of(pod("retail/way-0", LOCAL), "retail/way", &[]);
    let behind =
        |reference: &str, address: &str| edited(plain_pod("retail/x-0", address), |x| x.waypoint = waypoint(reference));
    let service_behind = |reference: &str| {
        let mut service = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
        service.waypoint = waypoint(reference);
        service
    };
    let block_behind = |reference: &str| {
        let mut service = service("retail/block", "10.97.0.0/16", &[(80, 8080)]);
        service.weighted_waypoints =
            vec![mesh_state::service::WeightedWaypoint { destination: waypoint(reference).unwrap(), weight: 1 }];
        service
    };
    let mesh = || Mesh::new().workload(way.clone()).service(service("retail/way", "10.96.1.1", &[(15008, 15008)]));
    let rows = [
        (
            "a workload's address, by the waypoint's service",
            mesh().workload(behind("retail/way", "10.40.0.20")),
            "10.40.0.20:8080",
            "10.40.0.9:8080",
        ),
        (
            "by the waypoint's VIP",
            mesh().workload(behind("10.96.1.1", "10.40.0.20")),
            "10.40.0.20:8080",
            "10.40.0.9:8080",
        ),
        (
            "by the waypoint's own address",
            mesh().workload(behind(LOCAL, "10.40.0.20")),
            "10.40.0.20:8080",
            "10.40.0.9:8080",
        ),
        ("a service's VIP", mesh().service(service_behind("retail/way")), "10.96.0.7:80", "10.40.0.9:80"),
        ("a block, by a weighted waypoint", mesh().service(block_behind("retail/way")), "10.97.3.4:80", "10.40.0.9:80"),
        (
            "behind what has the waypoint's address on another network",
            mesh().workload(edited(behind(LOCAL, "10.40.0.20"), |x| {
                let Some(GatewayAddress { destination: GatewayDestination::Address { network: of, .. }, .. }) =
                    &mut x.waypoint
                else {
                    unreachable!("it is by address")
                };
                *of = network("far");
            })),
            "10.40.0.20:8080",
            "address",
        ),
        ("behind another waypoint", mesh().workload(behind("10.40.0.77", "10.40.0.20")), "10.40.0.20:8080", "address"),
        ("behind no waypoint", mesh().workload(plain_pod("retail/x-0", "10.40.0.20")), "10.40.0.20:8080", "address"),
    ];
    for (fact, mesh, text, expected) in rows {
        assert_eq!(line(tunnel(&mesh.freeze(), &way, text)), expected, "{fact}");
    }
}

#[test]
fn an_application_tunnel_takes_any_address_and_its_port_comes_after_the_check_of_the_proxys() {
    let tunnelled =
        |protocol, port| edited(shop(), |shop| shop.application_tunnel = Some(ApplicationTunnel { protocol, port }));
    let rows = [
        (ApplicationProtocol::None, Some(15088), "10.96.0.7:80", "10.40.0.9:15088"),
        (ApplicationProtocol::None, None, "10.96.0.7:80", "10.40.0.9:80"),
        (ApplicationProtocol::None, Some(15088), "10.96.0.7:15008", "recursive"),
        (ApplicationProtocol::Proxy, Some(15088), "10.96.0.7:80", "127.0.0.1:15088"),
        (ApplicationProtocol::Proxy, None, "10.96.0.7:80", "127.0.0.1:80"),
        (ApplicationProtocol::Proxy, Some(15088), "10.96.0.7:15008", "recursive"),
    ];
    for (protocol, port, text, expected) in rows {
        let answer = tunnel(&Snapshot::empty(), &tunnelled(protocol, port), text);
        assert_eq!(line(answer), expected, "{protocol:?} {port:?} {text}");
    }
}

#[test]
fn an_application_that_wants_a_proxy_header_is_told_who_asked_for_what() {
    let way = edited(endpoint_of(pod("retail/way-0", LOCAL), "retail/way", &[(80, 9090)]), |way| {
        way.application_tunnel = Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: None });
    });
    let vip = |network_name: &str, address: &str| Vip { network: network(network_name), address: ip(address).into() };
    let with_vips = |vips: Vec<Vip>| {
        let service = Service { vips, ..service("retail/way", "10.96.1.1", &[(80, 8080)]) };
        Mesh::new().workload(way.clone()).service(service).freeze()
    };
    let block = Vip { network: network(""), address: "10.97.0.0/16".parse().unwrap() };
    let host = "way.retail.svc.cluster.local:80";
    let rows = [
        ("an address as it was asked for", vec![], "10.40.0.20:443", Some("10.40.0.20:443"), "127.0.0.1:443"),
        ("a service's VIP and port", vec![vip("", "10.96.1.1")], host, Some("10.96.1.1:80"), "127.0.0.1:9090"),
        (
            "the VIP of the workload's network first",
            vec![vip("far", "10.96.9.9"), vip("", "fd96::1")],
            host,
            Some("[fd96::1]:80"),
            "127.0.0.1:9090",
        ),
        (
            "then an IPv4 one",
            vec![vip("", "fd96::1"), vip("", "10.96.1.1")],
            host,
            Some("10.96.1.1:80"),
            "127.0.0.1:9090",
        ),
        ("else one of another network", vec![vip("far", "10.96.9.9")], host, Some("10.96.9.9:80"), "127.0.0.1:9090"),
        ("a service without a VIP", vec![], host, None, "no vip"),
        ("a service with a block only", vec![block], host, None, "no vip"),
    ];
    for (fact, vips, text, destination, target) in rows {
        let admitted = tunnel(&with_vips(vips), &way, text);
        if let Ok(admission) = &admitted {
            let header = admission.proxy_header.as_ref().expect(fact);
            assert_eq!(Some(header.destination.to_string().as_str()), destination, "{fact}");
            assert_eq!(header.source, at("10.40.0.2:40000"), "{fact}");
            assert_eq!(header.identity, Some(id("web/client")), "{fact}");
            assert!(!admission.keeps_source, "{fact}: loopback takes no other source");
        }
        assert_eq!(line(admitted), target, "{fact}");
    }
}

#[test]
fn without_localhost_tunnels_a_proxy_header_goes_to_the_pods_address_from_the_clients() {
    let with = |protocol| {
        edited(shop(), |shop| shop.application_tunnel = Some(ApplicationTunnel { protocol, port: Some(15088) }))
    };
    let authority = authority("10.40.0.9:80");
    let client = id("web/client");
    for (protocol, localhost_tunnel, local, target, keeps_source) in [
        (ApplicationProtocol::Proxy, true, LOCAL, "127.0.0.1:15088", false),
        (ApplicationProtocol::Proxy, true, "fd00::9", "[::1]:15088", false),
        (ApplicationProtocol::Proxy, false, LOCAL, "10.40.0.9:15088", true),
        // Only a header is worth a loopback: without one the application would not learn who asks.
        (ApplicationProtocol::None, true, LOCAL, "10.40.0.9:15088", true),
    ] {
        let workload = with(protocol);
        let asked = query(&workload, Some(&client), Request::Tunnel(&authority));
        let admitted = inbound(&Snapshot::empty(), &Query { localhost_tunnel, local: ip(local), ..asked }).unwrap();
        assert_eq!((admitted.target, admitted.keeps_source), (at(target), keeps_source), "{protocol:?} {local}");
        assert_eq!(admitted.proxy_header.is_some(), protocol == ApplicationProtocol::Proxy);
    }
}

#[test]
fn policy_sees_the_pods_address_though_the_application_is_reached_on_loopback() {
    let tunnelled = edited(shop(), |shop| {
        shop.application_tunnel = Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) });
    });
    let at_pod = Match { destination_ips: vec![ip(LOCAL).into()], destination_ports: vec![15088], ..Match::default() };
    let deny = policy("retail/deny", PolicyScope::Namespace, Action::Deny, vec![any_of(vec![at_pod])]);
    let snapshot = Mesh::new().workload(tunnelled.clone()).policy(deny).freeze();
    assert_eq!(line(tunnel(&snapshot, &tunnelled, "10.40.0.9:80")), "policy");
}

#[test]
fn a_proxy_header_is_the_bytes_of_the_specification() {
    let identity = || Some(id("web/client"));
    let head = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21];
    let name = b"spiffe://cluster.local/ns/web/sa/client";
    let named = |body: &[u8]| [body, &[0xd0, 0, u8::try_from(name.len()).unwrap()], &name[..]].concat();
    let four = [10, 40, 0, 2, 10, 96, 0, 7, 0x9c, 0x40, 0, 80];
    let six = [&ip6("fd00::2")[..], &ip6("fd96::7")[..], &[0x9c, 0x40, 0, 80]].concat();
    let mixed = [&ip6("::ffff:10.40.0.2")[..], &ip6("fd96::7")[..], &[0x9c, 0x40, 0, 80]].concat();
    let rows = [
        ("10.40.0.2:40000", "10.96.0.7:80", None, 0x11, four.to_vec()),
        ("10.40.0.2:40000", "10.96.0.7:80", identity(), 0x11, named(&four)),
        ("[::ffff:10.40.0.2]:40000", "10.96.0.7:80", None, 0x11, four.to_vec()),
        ("[fd00::2]:40000", "[fd96::7]:80", identity(), 0x21, named(&six)),
        ("10.40.0.2:40000", "[fd96::7]:80", None, 0x21, mixed),
    ];
    for (source, destination, identity, family, body) in rows {
        let header = ProxyHeader { source: at(source), destination: at(destination), identity };
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        assert_eq!(header.to_bytes(), [&head[..], &[family], &length, &body].concat(), "{source} {destination}");
    }
}

fn ip6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().expect(text).octets()
}

#[test]
fn plaintext_goes_where_it_was_going_without_identity() {
    let deny_plaintext = policy(
        "istio-system/strict",
        PolicyScope::Global,
        Action::Deny,
        vec![any_of(vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }])],
    );
    let open = Mesh::new().workload(shop()).freeze();
    let strict = Mesh::new().workload(shop()).policy(deny_plaintext).freeze();
    let identity = id("web/client");
    let rows = [
        (&open, "10.40.0.9:8080", "10.40.0.9:8080"),
        (&open, "[::ffff:10.40.0.9]:8080", "10.40.0.9:8080"),
        (&open, "10.40.0.9:15006", "recursive"),
        (&open, "8.8.8.8:15001", "recursive"),
        (&strict, "10.40.0.9:8080", "policy"),
    ];
    for (snapshot, original, expected) in rows {
        // An identity given by mistake must not count: nothing proved it on this connection.
        for identity in [None, Some(&identity)] {
            assert_eq!(
                line(ask(snapshot, &shop(), identity, Request::Plaintext(at(original)))),
                expected,
                "{original}"
            );
        }
    }
    assert_eq!(line(tunnel(&strict, &shop(), "10.40.0.9:8080")), "10.40.0.9:8080");
}

/// As istiod converts `PeerAuthentication`: policies attached by name that deny who has no identity, at all ports, at all but
/// some, or at some.
#[test]
fn strict_peer_authentication_refuses_plaintext_where_it_holds_and_tunnels_nowhere() {
    let nobody = || Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let clause = |matching: Match| Clause { matches: vec![matching] };
    let but = Match { not_destination_ports: vec![8080], ..Match::default() };
    let rows = [
        ("istio-system/istio_converted_static_strict", vec![clause(nobody())], [true, true]),
        ("retail/converted_peer_authentication_but", vec![clause(nobody()), clause(but)], [false, true]),
        (
            "retail/converted_peer_authentication_only",
            vec![clause(Match { destination_ports: vec![8080], ..nobody() })],
            [true, false],
        ),
    ];
    for (name, clauses, refused) in rows {
        let strict = policy(name, PolicyScope::WorkloadSelector, Action::Deny, vec![Rule { clauses }]);
        let attached = edited(shop(), |shop| shop.authorization_policies = vec![name.into()]);
        let snapshot = Mesh::new().workload(attached.clone()).policy(strict).freeze();
        for (port, refused) in [8080, 9090].into_iter().zip(refused) {
            let target = format!("{LOCAL}:{port}");
            let plain = line(ask(&snapshot, &attached, None, Request::Plaintext(at(&target))));
            assert_eq!(plain, if refused { "policy" } else { &target }, "{name}");
            assert_eq!(line(tunnel(&snapshot, &attached, &target)), target, "{name}");
            let other = line(ask(&snapshot, &shop(), None, Request::Plaintext(at(&target))));
            assert_eq!(other, target, "{name} is not attached");
        }
    }
}

#[test]
fn policy_sees_the_applications_port_and_the_answer_names_what_decided() {
    let only_web = Match { destination_ports: vec![9090], ..principal("cluster.local/ns/web/sa/client") };
    let snapshot = Mesh::new()
        .workload(shop())
        .service(service("retail/shop", "10.96.0.7", &[(80, 8080), (81, 8081)]))
        .policy(policy("retail/only-web", PolicyScope::Namespace, Action::Allow, vec![any_of(vec![only_web])]))
        .freeze();
    let admitted = tunnel(&snapshot, &shop(), "shop.retail.svc.cluster.local:81").unwrap();
    assert_eq!(admitted.decided_by, Some(Deciding { policy: "retail/only-web".into(), rule: 0 }));
    let refused = tunnel(&snapshot, &shop(), "shop.retail.svc.cluster.local:80").unwrap_err();
    assert_eq!(refused, Refusal::Policy { denied: Denial::NoneAllowed, dry_run: vec![] });
    assert_eq!(
        refused.to_string(),
        "connection closed due to policy rejection: allow policies exist, but none allowed"
    );
}

#[test]
fn what_policies_on_trial_would_do_is_told_of_a_refusal_too() {
    let dry = |name: &str, action: Action| Policy {
        dry_run: true,
        ..policy(name, PolicyScope::Global, action, vec![any_of(vec![])])
    };
    let by = |name: &str| Deciding { policy: name.into(), rule: 0 };
    let refuses_all = policy("retail/none", PolicyScope::Namespace, Action::Allow, vec![]);
    let snapshot = Mesh::new()
        .workload(shop())
        .policy(refuses_all)
        .policy(dry("d/all", Action::Deny))
        .policy(dry("a/all", Action::Allow))
        .freeze();
    let dry_run = vec![DryRun::Denied(by("d/all")), DryRun::Allowed(by("a/all"))];
    let refused = Refusal::Policy { denied: Denial::NoneAllowed, dry_run };
    assert_eq!(tunnel(&snapshot, &shop(), "10.40.0.9:8080"), Err(refused.clone()));
    assert_eq!(ask(&snapshot, &shop(), None, Request::Plaintext(at("10.40.0.9:8080"))), Err(refused));
}

#[test]
fn a_policy_attached_after_a_connection_came_is_seen_when_the_present_workload_is_asked_about() {
    let strict = policy("istio-system/strict", PolicyScope::WorkloadSelector, Action::Deny, vec![any_of(vec![])]);
    let attached = edited(shop(), |shop| shop.authorization_policies = vec!["istio-system/strict".into()]);
    let snapshot = Mesh::new().workload(attached).policy(strict).freeze();
    let present = snapshot.workload(&shop().uid).unwrap();
    assert_eq!(line(tunnel(&snapshot, present, "10.40.0.9:8080")), "policy");
    assert_eq!(line(tunnel(&snapshot, &shop(), "10.40.0.9:8080")), "10.40.0.9:8080", "the workload it first was");
}

#[test]
fn a_name_in_a_tunnel_means_the_service_of_the_pods_own_namespace() {
    // Another namespace has the name, too, and its service another port behind the same one.
    let name = |namespace: &str, port: u16| {
        let mut shop = service(&format!("{namespace}/shop"), "10.96.0.7", &[(80, port)]);
        shop.hostname = "shop.example.com".into();
        shop.vips = Vec::new();
        shop
    };
    let mesh = Mesh::new().workload(shop()).service(Service { canonical: true, ..name("a-first", 7070) });
    let snapshot = mesh.service(name("retail", 8080)).freeze();
    assert_eq!(line(tunnel(&snapshot, &shop(), "shop.example.com:80")), "10.40.0.9:8080");
}

#[test]
fn the_service_of_a_connection_is_the_one_named_else_the_one_whose_port_it_is() {
    let workload = endpoint_of(shop(), "retail/cart", &[]);
    let snapshot = Mesh::new()
        .workload(workload.clone())
        .service(service("retail/shop", "10.96.0.7", &[(80, 8080), (81, 8081)]))
        .service(service("retail/cart", "10.96.0.8", &[(80, 8080), (90, 7070)]))
        .freeze();
    let rows = [
        (Some("cart.retail.svc.cluster.local"), "10.40.0.9:8080", Some("cart")),
        (Some("stranger.retail.svc.cluster.local"), "10.40.0.9:8080", Some("shop")),
        (Some("cart.retail.svc.cluster.local"), "10.40.0.9:1", Some("cart")),
        (None, "10.40.0.9:8080", Some("shop")),
        (None, "10.40.0.9:9090", Some("shop")),
        // Its own port for service port 81 is 9090, so nothing of the service's reaches 8081.
        (None, "10.40.0.9:8081", None),
        (None, "10.40.0.9:7070", Some("cart")),
        (None, "10.40.0.9:1", None),
        (None, "cart.retail.svc.cluster.local:80", Some("cart")),
        (Some("shop.retail.svc.cluster.local"), "cart.retail.svc.cluster.local:80", Some("shop")),
        (None, "nobody:80", None),
    ];
    let named = |service: Option<&Arc<Service>>| service.map(|service| service.name.to_string());
    for (host, asked, expected) in rows {
        let found = attribute(&snapshot, &workload, Request::Tunnel(&authority(asked)), host);
        assert_eq!(named(found).as_deref(), expected, "{host:?} {asked}");
    }
    for (original, expected) in [("10.40.0.9:7070", Some("cart")), ("10.40.0.9:1", None)] {
        let found = attribute(&snapshot, &workload, Request::Plaintext(at(original)), None);
        assert_eq!(named(found).as_deref(), expected, "{original}");
    }
    let moved = edited(workload.clone(), |shop| {
        shop.application_tunnel = Some(ApplicationTunnel { protocol: ApplicationProtocol::None, port: Some(7070) });
    });
    let found = attribute(&snapshot, &moved, Request::Tunnel(&authority("10.40.0.9:8080")), None);
    assert_eq!(named(found).as_deref(), Some("cart"), "the port that the application tunnel leads to");
    assert_eq!(workload.services[0].1, mappings(&[(81, 9090)]));
}

#[test]
fn a_refusal_says_what_was_wrong() {
    let snapshot = Mesh::new().workload(shop()).freeze();
    let rows = [
        ("10.40.0.10:80", "ip mismatch: 10.40.0.10 != 10.40.0.9"),
        ("10.40.0.9:15008", "attempted recursive call to ourselves: 10.40.0.9:15008"),
        ("nobody:80", "no service or workload for hostname: nobody"),
    ];
    for (text, expected) in rows {
        let refusal = tunnel(&snapshot, &shop(), text).unwrap_err().to_string();
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    assert!(matches!(authority("nobody:80"), Authority::Host { .. }));
}
