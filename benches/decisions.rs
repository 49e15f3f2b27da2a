//! What one connection costs mesh-state, and what one change costs it, in meshes of several sizes: no decision and no change may
//! cost more because the mesh is larger. Not the data path's cost, which is the kernel's and TLS's: see `perf-tests`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use mesh_state::admit;
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::{Authority, NamespacedHostname, NetworkId, PolicyKey, Uid};
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};
use mesh_state::route::{self, Route};
use mesh_state::service::{PortMapping, Service, Vip};
use mesh_state::workload::{TunnelProtocol, Workload};

/// Workloads of a mesh; it has a tenth as many services.
const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const PER_SERVICE: u32 = 10;

criterion_main!(decisions);
criterion_group!(decisions, route, admission, change);

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for size in SIZES {
        let snapshot = mesh(size).freeze();
        let source = workload(0);
        for (name, target) in [("workload", pod(size / 2)), ("service", vip(size / 2 / PER_SERVICE))] {
            let query =
                route::Query { source: &source, peer: IpAddr::V4(pod(0)), target: SocketAddr::from((target, 80)) };
            let chosen = route::outbound(&snapshot, &query, 7);
            assert!(matches!(chosen, Ok(Route::Hbone { .. })), "what is measured is a tunnel: {chosen:?}");
            let mut draw = 0_u64;
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    draw = draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    route::outbound(&snapshot, black_box(&query), draw)
                });
            });
        }
    }
}

fn admission(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("admission");
    for rules in [0, 10, 100] {
        let mut builder = mesh(SIZES[0]);
        if rules > 0 {
            builder.apply(Change::Policy(allowing_the_last_of(rules)));
        }
        let snapshot = builder.freeze();
        let local = workload(1);
        let authority = Authority::Address(SocketAddr::from((pod(1), 80)));
        let client = identity(0);
        let query = admit::Query {
            workload: &local,
            peer: SocketAddr::from((pod(0), 40_000)),
            identity: Some(&client),
            local: IpAddr::V4(pod(1)),
            request: admit::Request::Tunnel(&authority),
            proxy_ports: &[15_001, 15_006, 15_008],
            localhost_tunnel: true,
        };
        let admitted = admit::inbound(&snapshot, &query);
        assert!(admitted.is_ok(), "what is measured is an admission: {admitted:?}");
        group.bench_function(BenchmarkId::new("rules", rules), |bencher| {
            bencher.iter(|| admit::inbound(&snapshot, black_box(&query)));
        });
    }
}

fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    for size in SIZES {
        let mut builder = mesh(size);
        // Held, as cores hold it: what the next generation changes has to be copied.
        let mut held = builder.freeze();
        let mut revision = 0_u64;
        group.bench_function(BenchmarkId::new("one_workload", size), |bencher| {
            bencher.iter_batched(
                || {
                    revision += 1;
                    let mut changed = workload(size / 2);
                    changed.canonical_revision = revision.to_string().into();
                    changed
                },
                |changed| {
                    builder.apply(Change::Workload(changed));
                    held = builder.freeze();
                },
                BatchSize::SmallInput,
            );
        });
        assert!(held.generation() > 1, "snapshots were frozen");
    }
}

fn mesh(workloads: u32) -> SnapshotBuilder {
    let mut builder = SnapshotBuilder::new();
    (0..workloads / PER_SERVICE).for_each(|number| builder.apply(Change::Service(service(number))));
    (0..workloads).for_each(|number| builder.apply(Change::Workload(workload(number))));
    builder
}

fn workload(number: u32) -> Workload {
    let (namespace, name) = (namespace(number), format!("pod-{number}"));
    let uid = Uid::from(format!("cluster//Pod/{namespace}/{name}").as_str());
    let mut workload = Workload::new(uid, &namespace, &name, identity(number));
    workload.addresses = [IpAddr::V4(pod(number))].into();
    workload.protocol = TunnelProtocol::Hbone;
    workload.services = vec![(service(number / PER_SERVICE).key(), Vec::new())];
    workload
}

fn service(number: u32) -> Service {
    let NamespacedHostname { namespace, hostname } = NamespacedHostname {
        namespace: namespace(number * PER_SERVICE).into(),
        hostname: format!("service-{number}.example").into(),
    };
    let mut service = Service::new(&namespace, &format!("service-{number}"), &hostname);
    service.vips = vec![Vip { network: NetworkId::from(""), address: IpNet::from(IpAddr::V4(vip(number))) }];
    service.ports = vec![PortMapping { service_port: 80, target_port: 8080 }];
    service
}

fn allowing_the_last_of(rules: u32) -> Policy {
    let principal = |number: u32| Match {
        principals: vec![StringMatch::Exact(identity(number).principal().into())],
        ..Match::default()
    };
    let rule = |number: u32| Rule { clauses: vec![Clause { matches: vec![principal(number * 100)] }] };
    let namespace = namespace(1);
    Policy {
        key: PolicyKey::from(format!("{namespace}/allow").as_str()),
        namespace: namespace.into(),
        scope: PolicyScope::Namespace,
        action: Action::Allow,
        rules: (0..rules).rev().map(rule).collect(),
        dry_run: false,
    }
}

fn identity(number: u32) -> Identity {
    Identity::new("cluster.local", &namespace(number), &format!("account-{number}")).expect("its parts are valid")
}

fn namespace(number: u32) -> String {
    format!("tenant-{}", number / 100)
}

fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001 + number)
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0001 + number)
}
