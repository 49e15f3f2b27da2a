//! §10: what the DNS proxy answers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_state::dns::{Answer, ENDPOINTS_MAX, Naming, Query, RecordKind, answer};
use mesh_state::service::{HealthPolicy, IpFamilies, LoadBalancing, Service, Vip, Visibility};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::{NetworkMode, Status};

use crate::fixture::{Mesh, edited, endpoint_of, ip, network, pod, service};
use crate::outbound::client;

use RecordKind::{A, Aaaa, Other};

const NAMING: Naming<'_> = Naming { cluster_domain: "cluster.local", preferred_namespace: None, ipv6: true };

/// The answer for a client in namespace web.
fn ask(snapshot: &Snapshot, name: &str, kind: RecordKind, naming: &Naming<'_>) -> Answer {
    answer(snapshot, &Query { client: &client(), name, kind, naming }, 7)
}

/// The answer in one line: `forward`, or whose the addresses are when not the asked name's, and the addresses in order.
fn line(answer: Answer) -> String {
    match answer {
        Answer::Forward => "forward".into(),
        Answer::Local(records) => {
            let addresses: BTreeSet<IpAddr> = records.addresses.iter().copied().collect();
            assert_eq!(addresses.len(), records.addresses.len(), "each once");
            let owner = records.canonical_name.map(|name| format!("{name}:"));
            let addresses = addresses.iter().map(IpAddr::to_string);
            owner.into_iter().chain(addresses).collect::<Vec<_>>().join(" ")
        }
    }
}

fn told(snapshot: &Snapshot, name: &str) -> String {
    line(ask(snapshot, name, A, &NAMING))
}

/// A service of another hostname than Kubernetes would give it: a ServiceEntry's.
fn entry(text: &str, hostname: &str, vip: &str) -> Service {
    Service { hostname: hostname.into(), ..service(text, vip, &[(80, 80)]) }
}

fn headless(text: &str) -> Service {
    Service { vips: vec![], ..service(text, "10.96.0.1", &[(80, 80)]) }
}

fn mesh() -> Mesh {
    Mesh::new()
        .service(service("web/front", "10.96.0.1", &[(80, 80)]))
        .service(service("retail/shop", "10.96.0.2", &[(80, 80)]))
        .service(entry("outside/api", "api.example.com", "240.0.0.1"))
        .service(entry("outside/wild", "*.example.com", "240.0.0.2"))
        .service(entry("outside/deep", "*.deep.example.com", "240.0.0.3"))
        .service(headless("retail/db"))
        .workload(endpoint_of(pod("retail/db-0", "10.40.0.1"), "retail/db", &[]))
        .workload(endpoint_of(pod("retail/db-1", "10.40.0.2"), "retail/db", &[]))
}

#[test]
fn a_name_of_the_mesh_is_answered_here_and_any_other_is_forwarded() {
    let snapshot = mesh().freeze();
    let rows = [
        ("a full name", "shop.retail.svc.cluster.local", "10.96.0.2"),
        ("with the dot at its end", "shop.retail.svc.cluster.local.", "10.96.0.2"),
        ("in any case", "Shop.RETAIL.svc.Cluster.local", "10.96.0.2"),
        ("a name without its domain", "shop.retail.svc", "10.96.0.2"),
        ("with its namespace", "shop.retail", "10.96.0.2"),
        ("alone: in the client's namespace", "front", "10.96.0.1"),
        ("alone, of another namespace", "shop", "forward"),
        ("a name outside", "api.example.com", "240.0.0.1"),
        ("a headless service", "db.retail", "10.40.0.1 10.40.0.2"),
        ("a name nobody has is upstream's to deny", "nobody.retail.svc.cluster.local", "forward"),
        ("a name of the world", "www.rust-lang.org", "forward"),
        ("a domain of the cluster", "svc.cluster.local", "forward"),
        ("a workload's name", "db-0.retail", "forward"),
        ("no name at all", "", "forward"),
        ("the root", ".", "forward"),
        ("no name of a host", "shop..retail", "forward"),
        ("a name in no letters of DNS", "shöp.retail", "forward"),
    ];
    for (fact, name, expected) in rows {
        assert_eq!(told(&snapshot, name), expected, "{fact}");
    }
}

#[test]
fn only_addresses_are_answered_here() {
    let snapshot = mesh().freeze();
    assert_eq!(line(ask(&snapshot, "shop.retail", Other, &NAMING)), "forward");
    assert_eq!(line(ask(&snapshot, "nobody", Other, &NAMING)), "forward");
}

/// What a stub resolver asks one after the other, by its search list and `ndots`.
fn asked_by_resolver(name: &str, ndots: usize) -> Vec<String> {
    let searched =
        ["web.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(|domain| format!("{name}.{domain}."));
    let as_is = format!("{name}.");
    match name.matches('.').count() < ndots {
        true => searched.into_iter().chain([as_is]).collect(),
        false => [as_is].into_iter().chain(searched).collect(),
    }
}

#[test]
fn a_resolver_gets_its_answer_at_the_first_question_whatever_its_ndots_appends() {
    let snapshot = mesh().freeze();
    let rows = [
        ("front", 5, "10.96.0.1"),
        ("front", 1, "10.96.0.1"),
        // The search domain was no part of these: a CNAME says so, as the client must hear of the name it wanted.
        ("shop.retail", 5, "shop.retail: 10.96.0.2"),
        ("shop.retail.svc", 5, "shop.retail.svc: 10.96.0.2"),
        ("api.example.com", 5, "api.example.com: 240.0.0.1"),
        ("shop.retail.svc.cluster.local", 5, "shop.retail.svc.cluster.local: 10.96.0.2"),
        ("db.retail", 5, "db.retail: 10.40.0.1 10.40.0.2"),
        // Asked as they are first.
        ("shop.retail", 1, "10.96.0.2"),
        ("api.example.com", 2, "240.0.0.1"),
        // A wildcard has no name to be canonical.
        ("x.example.com", 5, "240.0.0.2"),
        ("x.deep.example.com", 5, "240.0.0.3"),
    ];
    for (name, ndots, expected) in rows {
        let first = &asked_by_resolver(name, ndots)[0];
        assert_eq!(told(&snapshot, first), expected, "{name} with ndots {ndots}, asked as {first}");
    }
    for asked in asked_by_resolver("www.rust-lang.org", 5) {
        assert_eq!(told(&snapshot, &asked), "forward", "{asked}");
    }
}

#[test]
fn each_search_domain_of_a_pod_is_known_and_no_other() {
    let snapshot = mesh().freeze();
    for (domain, known) in [
        ("web.svc.cluster.local", true),
        ("svc.cluster.local", true),
        ("cluster.local", true),
        // Another namespace's pods search there, not this client's.
        ("retail.svc.cluster.local", false),
        ("corp.example.org", false),
        ("cluster.locale", false),
        ("xcluster.local", false),
    ] {
        // Of three labels only the last domain leaves something else to complete.
        let expected = if known { "api.example.com: 240.0.0.1" } else { "forward" };
        assert_eq!(told(&snapshot, &format!("api.example.com.{domain}")), expected, "{domain}");
    }
    let naming = Naming { cluster_domain: "mesh.test", ..NAMING };
    let name = "api.example.com.web.svc.mesh.test";
    assert_eq!(line(ask(&snapshot, name, A, &naming)), "api.example.com: 240.0.0.1");
    assert_eq!(line(ask(&snapshot, "front", A, &naming)), "forward", "completed with the cluster's domain");
}

#[test]
fn an_exact_name_goes_before_wildcards_and_a_near_wildcard_before_a_far_one() {
    let snapshot = mesh().freeze();
    let rows = [
        ("api.example.com", "240.0.0.1"),
        ("other.example.com", "240.0.0.2"),
        ("x.api.example.com", "240.0.0.2"),
        ("a.b.c.example.com", "240.0.0.2"),
        ("x.deep.example.com", "240.0.0.3"),
        ("x.y.deep.example.com", "240.0.0.3"),
        // A wildcard stands for something: not for the domain itself.
        ("example.com", "forward"),
        // `deep` is only where the nearer wildcard begins.
        ("deep.example.com", "240.0.0.2"),
        ("*.example.com", "240.0.0.2"),
    ];
    for (name, expected) in rows {
        assert_eq!(told(&snapshot, name), expected, "{name}");
    }
}

#[test]
fn a_name_as_it_is_goes_before_what_it_may_be_short_for() {
    let snapshot = mesh()
        .service(entry("outside/odd", "shop.retail", "240.0.0.9"))
        .service(entry("outside/odder", "front.web.svc.cluster.local.web.svc.cluster.local", "240.0.0.8"))
        .freeze();
    assert_eq!(told(&snapshot, "shop.retail"), "240.0.0.9");
    assert_eq!(told(&snapshot, "front.web.svc.cluster.local.web.svc.cluster.local"), "240.0.0.8");
    assert_eq!(told(&snapshot, "front.web.svc.cluster.local"), "10.96.0.1");
}

#[test]
fn of_several_services_of_a_name_the_clients_own_goes_before_a_canonical_before_the_preferred_before_the_first() {
    let of = |namespace: &str, vip: &str| entry(&format!("{namespace}/api"), "api.example.com", vip);
    let canonical = Service { canonical: true, ..of("canon", "240.0.0.2") };
    let all =
        [of("web", "240.0.0.1"), canonical, of("liked", "240.0.0.3"), of("aaa", "240.0.0.4"), of("zzz", "240.0.0.5")];
    let naming = Naming { preferred_namespace: Some("liked"), ..NAMING };
    let best_first = ["240.0.0.1", "240.0.0.2", "240.0.0.3", "240.0.0.4", "240.0.0.5"];
    for (gone, expected) in best_first.iter().enumerate() {
        for reversed in [false, true] {
            let mut left: Vec<_> = all[gone..].to_vec();
            if reversed {
                left.reverse();
            }
            let snapshot = left.into_iter().fold(Mesh::new(), Mesh::service).freeze();
            assert_eq!(line(ask(&snapshot, "api.example.com", A, &naming)), *expected, "reversed {reversed}");
        }
    }
    let snapshot = all[2..].iter().cloned().fold(Mesh::new(), Mesh::service).freeze();
    assert_eq!(told(&snapshot, "api.example.com"), "240.0.0.4", "no namespace is preferred");
}

#[test]
fn a_service_that_hides_itself_or_has_nothing_to_tell_is_not_there() {
    let hidden = Service { visibility: Visibility::Namespace, ..entry("outside/api", "api.example.com", "240.0.0.1") };
    let own = Service { visibility: Visibility::Namespace, ..entry("web/api", "api.example.com", "240.0.0.1") };
    let block = entry("outside/api", "api.example.com", "240.0.0.0/24");
    let nothing = Service { vips: vec![], ..entry("outside/api", "api.example.com", "240.0.0.1") };
    let wild = || entry("outside/wild", "*.example.com", "240.0.0.2");
    let rows = [
        ("hidden from the client", vec![hidden.clone()], "forward"),
        ("hidden from others", vec![own], "240.0.0.1"),
        ("hidden, before a wildcard", vec![hidden, wild()], "240.0.0.2"),
        ("a block has no address to tell", vec![block], "forward"),
        ("without an address, and not Kubernetes'", vec![nothing.clone()], "forward"),
        ("without an address, before a wildcard", vec![nothing, wild()], "240.0.0.2"),
    ];
    for (fact, services, expected) in rows {
        let snapshot = services.into_iter().fold(Mesh::new(), Mesh::service).freeze();
        assert_eq!(told(&snapshot, "api.example.com"), expected, "{fact}");
    }
}

#[test]
fn families_that_a_service_or_the_node_has_not_are_empty_answers_and_never_nxdomain() {
    let both = |families: IpFamilies| {
        let mut shop = service("retail/shop", "10.96.0.2", &[(80, 80)]);
        shop.vips.push(Vip { network: network(""), address: ip("fd96::2").into() });
        shop.ip_families = families;
        Mesh::new().service(shop).freeze()
    };
    let without_ipv6 = Naming { ipv6: false, ..NAMING };
    let rows = [
        (IpFamilies::Automatic, A, NAMING, "10.96.0.2"),
        (IpFamilies::Automatic, Aaaa, NAMING, "fd96::2"),
        (IpFamilies::Dual, Aaaa, NAMING, "fd96::2"),
        (IpFamilies::Ipv4Only, A, NAMING, "10.96.0.2"),
        (IpFamilies::Ipv4Only, Aaaa, NAMING, ""),
        (IpFamilies::Ipv6Only, A, NAMING, ""),
        (IpFamilies::Ipv6Only, Aaaa, NAMING, "fd96::2"),
        (IpFamilies::Dual, A, without_ipv6, "10.96.0.2"),
        (IpFamilies::Dual, Aaaa, without_ipv6, ""),
    ];
    for (families, kind, naming, expected) in rows {
        let row = format!("{families:?} {kind:?} ipv6 {}", naming.ipv6);
        assert_eq!(line(ask(&both(families), "shop.retail", kind, &naming)), expected, "{row}");
    }
    let snapshot = mesh().freeze();
    assert_eq!(line(ask(&snapshot, "shop.retail", Aaaa, &NAMING)), "", "no IPv6 address");
    assert_eq!(line(ask(&snapshot, "db.retail", Aaaa, &NAMING)), "", "no endpoint with one");
    // Nor does an empty answer say that another name has the addresses.
    assert_eq!(line(ask(&snapshot, "shop.retail.web.svc.cluster.local", Aaaa, &NAMING)), "");
}

#[test]
fn addresses_of_other_networks_are_not_told() {
    let mut shop = service("retail/shop", "10.96.0.2", &[(80, 80)]);
    shop.vips.push(Vip { network: network("far"), address: ip("10.96.9.9").into() });
    let mut far_only = service("retail/far", "10.96.0.3", &[(80, 80)]);
    far_only.vips[0].network = network("far");
    let remote = edited(endpoint_of(pod("retail/db-2", "10.40.0.3"), "retail/db", &[]), |db| {
        db.network = network("far");
    });
    let snapshot = mesh().service(shop).service(far_only).workload(remote).freeze();
    assert_eq!(told(&snapshot, "shop.retail"), "10.96.0.2");
    assert_eq!(told(&snapshot, "far.retail"), "", "there is the name, and no address of use");
    assert_eq!(told(&snapshot, "db.retail"), "10.40.0.1 10.40.0.2");
}

#[test]
fn endpoints_of_no_use_take_no_place_in_an_answer() {
    // More than an answer has room for, of a network that stands before the client's.
    let afar = (0..=ENDPOINTS_MAX).map(|number| {
        let [high, low] = u16::try_from(number).expect("a few thousand").to_be_bytes();
        let db = endpoint_of(pod(&format!("retail/a-{number}"), &format!("10.41.{high}.{low}")), "retail/db", &[]);
        edited(db, |db| db.network = network("afar"))
    });
    let near = endpoint_of(pod("retail/z-0", "10.40.0.9"), "retail/db", &[]);
    let mesh = afar.fold(Mesh::new().service(headless("retail/db")), Mesh::workload).workload(near);
    assert_eq!(told(&mesh.freeze(), "db.retail"), "10.40.0.9");
}

#[test]
fn a_headless_service_is_its_fit_endpoints_first_addresses_of_the_kind() {
    let dual = |name: &str, addresses: &[&str]| {
        edited(endpoint_of(pod(&format!("retail/{name}"), "10.0.0.1"), "retail/db", &[]), |db| {
            db.addresses = addresses.iter().map(|address| ip(address)).collect();
        })
    };
    let unfit = edited(dual("db-3", &["10.40.0.3"]), |db| db.status = Status::Unhealthy);
    let on_node = |name: &str| edited(dual(name, &["172.16.0.1"]), |db| db.network_mode = NetworkMode::HostNetwork);
    let mesh = || {
        Mesh::new()
            .workload(dual("db-0", &["fd40::1", "10.40.0.1", "10.40.1.1"]))
            .workload(dual("db-1", &["::ffff:10.40.0.2"]))
            .workload(dual("db-2", &[]))
            .workload(unfit.clone())
            .workload(on_node("db-4"))
            .workload(on_node("db-5"))
    };
    let snapshot = mesh().service(headless("retail/db")).freeze();
    assert_eq!(told(&snapshot, "db.retail"), "10.40.0.1 10.40.0.2 172.16.0.1");
    assert_eq!(line(ask(&snapshot, "db.retail", Aaaa, &NAMING)), "fd40::1");
    let all = LoadBalancing { health: HealthPolicy::AllowAll, ..LoadBalancing::default() };
    let snapshot = mesh().service(Service { load_balancing: all, ..headless("retail/db") }).freeze();
    assert_eq!(told(&snapshot, "db.retail"), "10.40.0.1 10.40.0.2 10.40.0.3 172.16.0.1");
    let snapshot = Mesh::new().service(headless("retail/db")).freeze();
    assert_eq!(told(&snapshot, "db.retail"), "", "no endpoint is no reason to deny the name");
}

#[test]
fn the_order_of_addresses_is_the_draws_and_every_address_comes_first_as_often_as_others() {
    let snapshot = (2..6).fold(mesh(), |mesh, n| {
        mesh.workload(endpoint_of(pod(&format!("retail/db-{n}"), &format!("10.40.1.{n}")), "retail/db", &[]))
    });
    let snapshot = snapshot.freeze();
    let ask = |draw: u64| {
        let query = Query { client: &client(), name: "db.retail", kind: A, naming: &NAMING };
        match answer(&snapshot, &query, draw) {
            Answer::Local(records) => records.addresses,
            Answer::Forward => panic!("it is a name of the mesh"),
        }
    };
    assert_eq!(ask(1), ask(1));
    let draws = 6_000_u64;
    let mut first = std::collections::BTreeMap::<IpAddr, u64>::new();
    for draw in 0..draws {
        let addresses = ask(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        assert_eq!(addresses.len(), 6);
        *first.entry(addresses[0]).or_default() += 1;
    }
    // 1000 each: 150 is more than five standard deviations.
    assert!(first.len() == 6 && first.values().all(|count| count.abs_diff(draws / 6) < 150), "{first:?}");
}

#[test]
fn an_answer_has_no_more_addresses_than_fit_into_a_message() {
    let more = u32::try_from(ENDPOINTS_MAX).unwrap() + 100;
    let mesh = (0..more).fold(Mesh::new().service(headless("retail/db")), |mesh, n| {
        let address = IpAddr::from((0x0a28_0000 + n).to_be_bytes());
        mesh.workload(endpoint_of(pod(&format!("retail/db-{n}"), &address.to_string()), "retail/db", &[]))
    });
    let Answer::Local(records) = ask(&mesh.freeze(), "db.retail", A, &NAMING) else { panic!() };
    assert_eq!(records.addresses.len(), ENDPOINTS_MAX);
}
