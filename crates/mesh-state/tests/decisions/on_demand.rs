//! What has to be asked for before a decision may be relied on, where the control plane sends only what it is asked for.

use mesh_state::admit::{self, Request};
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::dns::{self, Naming, RecordKind};
use mesh_state::name::NamespacedHostname;
use mesh_state::route::{self, Query};
use mesh_state::snapshot::Snapshot;
use mesh_state::wanted::Sought;
use mesh_state::workload::{GatewayAddress, GatewayDestination, Workload};

use crate::fixture::{at, authority, edited, endpoint_of, hostname, id, ip, network, pod, service, waypoint};

fn mesh(changes: &[Change]) -> Snapshot {
    let mut builder = SnapshotBuilder::on_demand();
    changes.iter().cloned().for_each(|change| builder.apply(change));
    builder.freeze()
}

fn address(text: &str) -> Sought {
    address_of("", text)
}

fn address_of(on: &str, text: &str) -> Sought {
    Sought::Address { network: network(on), address: ip(text) }
}

fn lacked_outbound(changes: &[Change], target: &str) -> Option<Sought> {
    let source = pod("retail/client-0", "10.40.9.9");
    let query = Query { source: &source, peer: ip("10.40.9.9"), target: at(target) };
    let snapshot = mesh(changes);
    route::lacking(&snapshot, &query, &route::outbound(&snapshot, &query, 0))
}

fn lacked_inbound(workload: &Workload, changes: &[Change], asked: &str) -> Option<Sought> {
    let (asked, identity) = (authority(asked), id("retail/client"));
    let query = admit::Query {
        workload,
        peer: at("10.40.9.9:4000"),
        identity: Some(&identity),
        local: ip("10.40.1.1"),
        request: Request::Tunnel(&asked),
        proxy_ports: &[],
        localhost_tunnel: false,
    };
    let snapshot = mesh(changes);
    admit::lacking(&snapshot, &query, &admit::inbound(&snapshot, &query))
}

#[test]
fn a_route_lacks_whoever_is_at_the_target_and_then_its_waypoint() {
    let shop =
        Change::Workload(edited(pod("retail/shop-0", "10.40.0.9"), |shop| shop.waypoint = waypoint("retail/way")));
    let target = "10.40.0.9:80";
    let way = Sought::Hostname(hostname("retail/way"));
    let remote = edited(endpoint_of(pod("far/app-0", "10.40.0.9"), "retail/app", &[]), |app| {
        app.network = network("far");
        let destination = GatewayDestination::Address { network: network("far"), address: ip("203.0.113.1") };
        app.network_gateway = Some(GatewayAddress { destination, hbone_port: 15008 });
    });
    let mut app = service("retail/app", "10.40.0.9", &[(80, 8080)]);
    app.subject_alt_names = vec![id("far/app")];
    let far = vec![Change::Service(app), Change::Workload(remote)];
    let rows = [
        ("nothing is known", vec![], Some(address("10.40.0.9"))),
        ("it is nobody's", vec![Change::Absent(address("10.40.0.9"))], None),
        (
            "that was long ago",
            vec![Change::Absent(address("10.40.0.9")), Change::Unknown(address("10.40.0.9"))],
            Some(address("10.40.0.9")),
        ),
        ("its waypoint is not known", vec![shop.clone()], Some(way.clone())),
        (
            "its waypoint came and went since it was said not to be there",
            vec![
                shop.clone(),
                Change::Absent(way.clone()),
                Change::Service(service("retail/way", "10.96.1.1", &[(15008, 15008)])),
                Change::ServiceGone(hostname("retail/way")),
            ],
            Some(way.clone()),
        ),
        ("it is of a service's block", vec![Change::Service(service("retail/all", "10.40.0.0/16", &[(80, 80)]))], None),
        ("there is no such waypoint", vec![shop.clone(), Change::Absent(way)], None),
        (
            "all is there",
            vec![
                shop,
                Change::Service(service("retail/way", "10.96.1.1", &[(15008, 15008)])),
                Change::Workload(endpoint_of(pod("retail/way-0", "10.40.1.1"), "retail/way", &[])),
            ],
            None,
        ),
        ("the gateway of its network is not known", far.clone(), Some(address_of("far", "203.0.113.1"))),
        ("there is no such gateway", [far, vec![Change::Absent(address_of("far", "203.0.113.1"))]].concat(), None),
    ];
    for (row, changes, expected) in rows {
        assert_eq!(lacked_outbound(&changes, target), expected, "{row}");
    }
    assert_eq!(
        lacked_outbound(&[Change::Absent(address("10.40.0.9"))], "[::ffff:10.40.0.9]:80"),
        None,
        "the same address"
    );
}

#[test]
fn a_name_lacks_each_service_that_it_may_be_until_one_is_there() {
    let client = pod("retail/client-0", "10.40.9.9");
    let naming = Naming { cluster_domain: "cluster.local", preferred_namespace: None, ipv6: true };
    let lacked = |name: &str, changes: &[Change]| {
        let query = dns::Query { client: &client, name, kind: RecordKind::A, naming: &naming };
        match dns::lacking(&mesh(changes), &query) {
            Some(Sought::Hostname(name)) => Some(name.to_string()),
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    };
    let absent = |key: &str| Change::Absent(Sought::Hostname(NamespacedHostname::parse(key).expect(key)));
    // Whatever is asked for is answered with nothing, until nothing more is asked for.
    let all = |name: &str| {
        let (mut changes, mut asked) = (Vec::new(), Vec::new());
        while let Some(key) = lacked(name, &changes) {
            changes.push(absent(&key));
            asked.push(key);
            assert!(asked.len() < 20, "{asked:?}");
        }
        asked
    };
    let keys = [
        "retail/shop.retail.svc.cluster.local",
        "retail/shop",
        "retail/shop.retail",
        "retail/shop.retail.retail.svc.cluster.local",
        "retail/shop.retail.svc",
        "svc/shop.retail.svc.svc.cluster.local",
    ];
    assert_eq!(all("shop.retail.svc.cluster.local"), keys);
    assert_eq!(all("www.example.com")[0], "retail/www.example.com", "a service entry's, of the client's namespace");
    let shop = Change::Service(service("retail/shop", "10.96.0.7", &[(80, 8080)]));
    assert_eq!(lacked("shop.retail.svc.cluster.local", std::slice::from_ref(&shop)), None);
    let first = lacked("shop", std::slice::from_ref(&shop)).expect("the name itself may be somebody's");
    assert_eq!(first, "retail/shop");
    assert_eq!(lacked("shop", &[shop, absent("retail/shop")]), None, "completed, it is there");
}

#[test]
fn a_refused_tunnel_lacks_whom_it_asked_for_and_then_that_ones_waypoint() {
    let way = endpoint_of(pod("retail/way-0", "10.40.1.1"), "retail/way", &[]);
    let mut shop = service("retail/shop", "10.96.0.7", &[(80, 8080)]);
    shop.waypoint = waypoint("retail/way");
    let way_service = Change::Service(service("retail/way", "10.96.1.1", &[(15008, 15008)]));
    let own = Change::Workload(way.clone());
    let mut all = service("retail/all", "10.98.0.0/16", &[(80, 8080)]);
    all.waypoint = waypoint("retail/way");
    let block = Change::Service(all);
    let behind =
        Change::Workload(edited(pod("retail/shop-0", "10.40.0.9"), |shop| shop.waypoint = waypoint("retail/way")));
    let at_vip = "10.96.0.7:80";
    let rows = [
        ("nothing of it is known", at_vip, vec![own.clone()], Some(address("10.96.0.7"))),
        (
            "its waypoint is not",
            at_vip,
            vec![own.clone(), Change::Service(shop.clone())],
            Some(Sought::Hostname(hostname("retail/way"))),
        ),
        ("all is there", at_vip, vec![own.clone(), Change::Service(shop), way_service.clone()], None),
        (
            "in a block of a service's, its waypoint is not known",
            "10.98.3.4:80",
            vec![own.clone(), block.clone()],
            Some(Sought::Hostname(hostname("retail/way"))),
        ),
        (
            "in a block of a service's, all is there",
            "10.98.3.4:80",
            vec![own.clone(), block, way_service.clone()],
            None,
        ),
        (
            "at a workload's address, its waypoint is not known",
            "10.40.0.9:80",
            vec![own.clone(), behind.clone()],
            Some(Sought::Hostname(hostname("retail/way"))),
        ),
        ("at a workload's address, all is there", "10.40.0.9:80", vec![own.clone(), behind, way_service], None),
        ("it is nobody's", at_vip, vec![own.clone(), Change::Absent(address("10.96.0.7"))], None),
        ("it asks for the pod", "10.40.1.1:80", vec![own.clone()], None),
        (
            "by the name of a service of the pod's",
            "way.retail.svc.cluster.local:80",
            vec![own.clone()],
            Some(Sought::Hostname(hostname("retail/way"))),
        ),
        (
            "by another name",
            "shop.retail.svc.cluster.local:80",
            vec![own.clone()],
            Some(Sought::Hostname(hostname("retail/shop"))),
        ),
        (
            "by a name that is nobody's",
            "shop.retail.svc.cluster.local:80",
            vec![own, Change::Absent(Sought::Hostname(hostname("retail/shop")))],
            None,
        ),
    ];
    for (row, asked, changes, expected) in rows {
        assert_eq!(lacked_inbound(&way, &changes, asked), expected, "{row}");
    }
}
