//! The endpoint that a draw gets is one that a scan over all of them, written from §4.4 in the most literal way, would give it
//! as often: the groups and sums of the snapshot leave nobody out and favour nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::Uid;
use mesh_state::route;
use mesh_state::service::{HealthPolicy, LoadBalancing, Mode, PortMapping, Scope, Service};
use mesh_state::workload::{Locality, Place, Status, Workload};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const SCOPES: [Scope; 6] = [Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster, Scope::Network];

fn place() -> impl Strategy<Value = (String, [String; 3], String, String)> {
    let one_of = |names: [&'static str; 2]| select(names.to_vec()).prop_map(str::to_owned);
    // More nodes than anything else, so that a group has several.
    let node = (0..5_u8).prop_map(|number| format!("node-{number}"));
    let locality = [one_of(["r1", "r2"]), one_of(["z1", "z2"]), one_of(["", "s1"])];
    (node, locality, one_of(["c1", "c2"]), one_of(["", "far"]))
}

fn endpoint() -> impl Strategy<Value = Workload> {
    let status = prop_oneof![4 => Just(Status::Healthy), 1 => Just(Status::Unhealthy)];
    let port = select(vec![None, Some(8080), Some(9090)]);
    let flags = (any::<bool>(), prop_oneof![9 => Just(true), 1 => Just(false)]);
    (0..400_u16, place(), 0..4_u32, status, port, flags).prop_map(|(number, place, capacity, status, port, flags)| {
        let mut workload = described(&format!("c//Pod/a/{number:05}"), place);
        let (has_gateway, has_address) = flags;
        if has_address {
            workload.addresses = [[10, 0, 0, 1].into()].into();
        }
        (workload.capacity, workload.status) = (capacity, status);
        workload.network_gateway = has_gateway.then(|| mesh_state::workload::GatewayAddress {
            destination: mesh_state::workload::GatewayDestination::Hostname(service().key()),
            hbone_port: 15008,
        });
        let own = port.map(|target_port| PortMapping { service_port: 80, target_port });
        workload.services = vec![(service().key(), own.into_iter().collect())];
        workload
    })
}

fn described(uid: &str, (node, locality, cluster, network): (String, [String; 3], String, String)) -> Workload {
    let identity = Identity::new("td", "a", "s").expect("valid parts");
    let mut workload = Workload::new(uid.into(), "a", "x", identity);
    let [region, zone, subzone] = locality.map(Arc::from);
    workload.place = Arc::new(Place { node: node.into(), locality: Arc::new(Locality { region, zone, subzone }) });
    workload.cluster_id = cluster.into();
    workload.network = network.as_str().into();
    workload
}

fn service() -> Service {
    Service::new("a", "many", "many.example.com")
}

/// The endpoints that may be chosen, with what each weighs, and its port.
fn naive(service: &Service, source: &Workload, endpoints: &BTreeMap<Uid, Workload>) -> BTreeMap<Uid, (u32, u16)> {
    let mut ranked: Vec<(usize, &Workload, u16)> = Vec::new();
    for endpoint in endpoints.values() {
        if endpoint.status == Status::Unhealthy && service.load_balancing.health == HealthPolicy::OnlyHealthy {
            continue;
        }
        let through_gateway = endpoint.network != source.network && endpoint.network_gateway.is_some();
        if endpoint.addresses.is_empty() && endpoint.hostname.is_empty() && !through_gateway {
            continue;
        }
        let own = endpoint.services[0].1.first().map(|mapping| mapping.target_port);
        let target = own.unwrap_or(service.ports[0].target_port);
        if target == 0 {
            continue;
        }
        let shares = |scope: &Scope| match scope {
            Scope::Region => source.place.locality.region == endpoint.place.locality.region,
            Scope::Zone => source.place.locality.zone == endpoint.place.locality.zone,
            Scope::Subzone => source.place.locality.subzone == endpoint.place.locality.subzone,
            Scope::Node => source.place.node == endpoint.place.node,
            Scope::Cluster => source.cluster_id == endpoint.cluster_id,
            Scope::Network => source.network == endpoint.network,
        };
        let scopes = &service.load_balancing.scopes;
        let mut rank = 0;
        for (at, scope) in scopes.iter().enumerate() {
            if shares(scope) {
                rank += if at == 0 && *scope == Scope::Network { scopes.len() } else { 1 };
            } else if !(at == 0 && *scope == Scope::Network) {
                break;
            }
        }
        match service.load_balancing.mode {
            Mode::Strict if !scopes.iter().all(shares) => {}
            Mode::Strict | Mode::Unspecified | Mode::Passthrough => ranked.push((0, endpoint, target)),
            Mode::Failover => ranked.push((rank, endpoint, target)),
        }
    }
    let best = ranked.iter().map(|(rank, ..)| *rank).max().unwrap_or(0);
    let of_best = ranked.into_iter().filter(|(rank, endpoint, _)| *rank == best && endpoint.capacity > 0);
    of_best.map(|(_, endpoint, target)| (endpoint.uid.clone(), (endpoint.capacity, target))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_endpoint_of_the_best_is_drawn_as_often_as_it_weighs(
        endpoints in vec(endpoint(), 0..220),
        gone in vec(0..400_u16, 0..60),
        source in place(),
        scopes in vec(select(&SCOPES[..]), 0..4),
        mode in select(&[Mode::Unspecified, Mode::Strict, Mode::Failover][..]),
        health in select(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll][..]),
        target_port in select(&[0, 8080][..]),
    ) {
        let source = described("source", source);
        let mut service = service();
        service.load_balancing = LoadBalancing { scopes, mode, health };
        service.ports = vec![PortMapping { service_port: 80, target_port }];
        let mut builder = SnapshotBuilder::new();
        builder.apply(Change::Service(service.clone()));
        let mut held = BTreeMap::new();
        for endpoint in endpoints {
            builder.apply(Change::Workload(endpoint.clone()));
            held.insert(endpoint.uid.clone(), endpoint);
        }
        for number in gone {
            let uid = Uid::from(format!("c//Pod/a/{number:05}").as_str());
            builder.apply(Change::WorkloadGone(uid.clone()));
            held.remove(&uid);
        }
        let snapshot = builder.freeze();
        let found = snapshot.service(&service.key()).expect("it was applied");
        let expected = naive(&service, &source, &held);
        let total: u64 = expected.values().map(|(weight, _)| u64::from(*weight)).sum();
        if total == 0 {
            prop_assert!(route::endpoint(&snapshot, found, &source, 80, 0).is_err());
            return Ok(());
        }
        // One draw in the middle of each unit of weight.
        let mut drawn: BTreeMap<Uid, (u32, u16)> = BTreeMap::new();
        for unit in 0..total {
            let draw = ((u128::from(unit) * 2 + 1) << 63) / u128::from(total);
            let draw = u64::try_from(draw).expect("below 2^64, since the unit is below the total");
            let chosen = route::endpoint(&snapshot, found, &source, 80, draw);
            let (workload, port) = chosen.expect("there is one to offer");
            drawn.entry(workload.uid.clone()).or_insert((0, port)).0 += 1;
        }
        prop_assert_eq!(drawn, expected);
    }
}
