//! From its serialised form a mesh decides as it did; and bytes that are not to be believed are not.

use std::sync::Arc;

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::NamespacedHostname;
use mesh_state::service::{
    HealthPolicy, IpFamilies, LoadBalancing, Mode, PortMapping, Scope, Service, Vip, Visibility, WeightedWaypoint,
};
use mesh_state::warm::{CLOCK_SKEW_S, MAGIC, Refused, Terms, VERSION, decode, encode};
use mesh_state::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Locality, NetworkMode, Place, Profile,
    Status, TunnelProtocol, Workload, WorkloadType,
};
use proptest::prelude::*;

use crate::order::{built, decisions};
use crate::universe::{changes, sought};

const ORIGIN: &str = "istiod.istio-system.svc:15012/node-a";
const WRITTEN: u64 = 1_800_000_000;

fn terms() -> Terms<'static> {
    Terms { origin: ORIGIN, now_unix_s: WRITTEN + 10, age_max_s: 3600 }
}

fn refusal(bytes: &[u8], terms: &Terms<'_>) -> Refused {
    decode(bytes, terms).expect_err("it is not to be believed")
}

/// 1,000 workloads of one profile in 1,000 services would be a million memberships from some kilobytes.
#[test]
fn a_few_bytes_do_not_stand_for_a_product_of_workloads_and_services() {
    let mesh = |services: usize| {
        let mut builder = SnapshotBuilder::new();
        let identity = Identity::new("td", "a", "s").expect("valid parts");
        for number in 0..300 {
            let uid = format!("c//Pod/a/x-{number}");
            let mut workload = Workload::new(uid.as_str().into(), "a", "x", identity.clone());
            let service = |number| (NamespacedHostname::new("a", &format!("h{number}")), Vec::new());
            workload.services = (0..services).map(service).collect();
            builder.apply(Change::Workload(workload));
        }
        encode(&builder.freeze(), ORIGIN, WRITTEN)
    };
    assert!(decode(&mesh(10), &terms()).is_ok());
    let refused = refusal(&mesh(300), &terms());
    assert!(matches!(refused, Refused::Malformed { what, .. } if what.contains("memberships")), "{refused}");
}

/// Each of one kind has another value, so that none is mistaken for another, and none is the default.
#[test]
fn every_field_is_kept() {
    let reference = |host: &str, hbone_port: u16| {
        let destination = GatewayDestination::Hostname(NamespacedHostname::new("gateways", host));
        Some(GatewayAddress { destination, hbone_port })
    };
    let mapping = |service_port, target_port| PortMapping { service_port, target_port };
    let identity = Identity::new("td", "ns", "account").expect("valid parts");
    let mut workload = Workload::new("cluster//Pod/ns/uid".into(), "ns", "name", identity.clone());
    workload.addresses = ["10.0.0.1", "fd00::1"].iter().map(|text| text.parse().expect(text)).collect();
    workload.place = Arc::new(Place {
        node: "node".into(),
        locality: Arc::new(Locality { region: "region".into(), zone: "zone".into(), subzone: "subzone".into() }),
    });
    workload.profile = Arc::new(Profile {
        given_name: Some("name".into()),
        namespace: "ns".into(),
        identity: identity.clone(),
        network: "network".into(),
        protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::HostNetwork,
        waypoint: reference("waypoint", 1),
        network_gateway: reference("network-gateway", 2),
        canonical_name: "canonical-name".into(),
        canonical_revision: "canonical-revision".into(),
        workload_type: WorkloadType::CronJob,
        workload_name: "workload-name".into(),
        native_tunnel: true,
        cluster_id: "cluster".into(),
        hostname: "hostname".into(),
        application_tunnel: Some(ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(3) }),
        authorization_policies: vec!["ns/one".into(), "ns/other".into()],
        services: vec![(NamespacedHostname::new("ns", "service"), vec![mapping(4, 5), mapping(6, 7)])],
        status: Status::Unhealthy,
        capacity: 8,
    });
    let destination = reference("weighted", 9).expect("one");
    let service = Service {
        name: "short".into(),
        namespace: "ns".into(),
        hostname: "service".into(),
        vips: vec![Vip { network: "network".into(), address: "10.96.0.0/24".parse().expect("a block") }],
        ports: vec![mapping(10, 11), mapping(12, 13)],
        subject_alt_names: vec![identity],
        waypoint: reference("services-waypoint", 14),
        weighted_waypoints: vec![WeightedWaypoint { destination, weight: 15 }],
        load_balancing: LoadBalancing {
            scopes: vec![Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster, Scope::Network],
            mode: Mode::Failover,
            health: HealthPolicy::AllowAll,
        },
        ip_families: IpFamilies::Dual,
        canonical: true,
        visibility: Visibility::Namespace,
    };
    let snapshot = built([Change::Workload(workload.clone()), Change::Service(service.clone())]);
    let warm = decode(&encode(&snapshot, ORIGIN, WRITTEN), &terms()).expect("it was written a moment ago").freeze();
    assert_eq!(warm.workload(&workload.uid).map(|kept| &**kept), Some(&workload));
    assert_eq!(warm.service(&service.key()).map(|kept| &**kept), Some(&service));
    let kinds = [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job];
    for workload_type in kinds {
        workload.workload_type = workload_type;
        let snapshot = built([Change::Workload(workload.clone())]);
        let warm = decode(&encode(&snapshot, ORIGIN, WRITTEN), &terms()).expect("it was written a moment ago").freeze();
        assert_eq!(warm.workload(&workload.uid).map(|kept| kept.workload_type), Some(workload_type));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn from_its_serialised_form_a_mesh_decides_as_it_did(changes in changes(), more in changes(), asked in sought()) {
        let snapshot = built(changes.clone());
        let bytes = encode(&snapshot, ORIGIN, WRITTEN);
        let mut builder = decode(&bytes, &terms()).expect("it was written a moment ago");
        let warm = builder.freeze();
        prop_assert_eq!(decisions(&warm), decisions(&snapshot));
        for service in snapshot.services() {
            prop_assert_eq!(warm.service(&service.key()), Some(service));
        }
        for policy in snapshot.policies() {
            prop_assert_eq!(warm.policy(&policy.key), Some(policy));
        }
        for workload in snapshot.workloads() {
            prop_assert_eq!(warm.workload(&workload.uid), Some(workload));
        }
        prop_assert_eq!(warm.knowledge(&asked), snapshot.knowledge(&asked));
        // And goes on as the other would have.
        more.iter().cloned().for_each(|change| builder.apply(change));
        prop_assert_eq!(decisions(&builder.freeze()), decisions(&built(changes.into_iter().chain(more))));
    }

    #[test]
    fn damaged_bytes_are_refused(changes in changes(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = encode(&built(changes), ORIGIN, WRITTEN);
        let at = at.index(bytes.len());
        prop_assert!(decode(&bytes[..at], &terms()).is_err(), "cut at {}", at);
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(&bytes, &terms()).is_err(), "bit {} of byte {}", bit, at);
    }
}

#[test]
fn whether_the_mesh_is_on_demand_and_what_is_absent_is_kept() {
    let absent = mesh_state::wanted::Sought::Address { network: "".into(), address: [10, 0, 0, 1].into() };
    let mut builder = SnapshotBuilder::on_demand();
    builder.apply(Change::Absent(absent.clone()));
    let bytes = encode(&builder.freeze(), ORIGIN, WRITTEN);
    let warm = decode(&bytes, &terms()).expect("it was written a moment ago").freeze();
    let other = mesh_state::wanted::Sought::Address { network: "".into(), address: [10, 0, 0, 2].into() };
    assert_eq!(warm.knowledge(&absent), mesh_state::wanted::Knowledge::Absent);
    assert_eq!(warm.knowledge(&other), mesh_state::wanted::Knowledge::NotAsked);
}

#[test]
fn what_is_stale_foreign_or_of_the_future_is_refused_and_says_so() {
    let bytes = encode(&SnapshotBuilder::new().freeze(), ORIGIN, WRITTEN);
    let at = |now_unix_s: u64| Terms { now_unix_s, ..terms() };
    assert!(decode(&bytes, &at(WRITTEN + 3600)).is_ok());
    assert_eq!(refusal(&bytes, &at(WRITTEN + 3601)), Refused::Stale { age_s: 3601, age_max_s: 3600 });
    assert!(decode(&bytes, &at(WRITTEN - CLOCK_SKEW_S)).is_ok());
    assert!(matches!(refusal(&bytes, &at(WRITTEN - CLOCK_SKEW_S - 1)), Refused::Future { .. }));
    let elsewhere = Terms { origin: "istiod/node-b", ..terms() };
    assert_eq!(
        refusal(&bytes, &elsewhere).to_string(),
        "the warm start file is of \"istiod.istio-system.svc:15012/node-a\" and not of \"istiod/node-b\": was the file or \
         the node moved?"
    );
    assert_eq!(refusal(b"", &terms()), Refused::Foreign);
    assert_eq!(refusal(b"CTNLMES", &terms()), Refused::Foreign);
    let mut newer = bytes.clone();
    newer[MAGIC.len()] += 1;
    assert_eq!(refusal(&newer, &terms()), Refused::Version { found: VERSION + 1 });
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(refusal(&longer, &terms()), Refused::Checksum);
}
