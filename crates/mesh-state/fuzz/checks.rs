//! What must hold of any changes and of any warm start, for the fuzz targets and for the replay of their corpora.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_state::admit::{self, Admission, Request};
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::dns::{self, Naming, RecordKind};
use mesh_state::identity::Identity;
use mesh_state::name::{Authority, NamespacedHostname, NetworkId, PolicyKey, Uid};
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh_state::route::{self, Route};
use mesh_state::service::{
    HealthPolicy, IpFamilies, LoadBalancing, Mode, PortMapping, Scope, Service, Vip, Visibility, WeightedWaypoint,
};
use mesh_state::snapshot::Snapshot;
use mesh_state::wanted::Sought;
use mesh_state::warm::{Terms, decode, encode, framed};
use mesh_state::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Locality, NetworkMode, Place, Status,
    TunnelProtocol, Workload,
};

const NAMESPACES: [&str; 2] = ["a", "b"];
const HOSTS: [&str; 3] = ["one.example", "two.example", "three.example"];
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1", "::ffff:10.0.0.1", "10.1.0.1"];
const BLOCKS: [&str; 4] = ["10.0.0.0/24", "0.0.0.0/0", "fd00::/16", "10.0.0.0/16"];
const PORTS: [u16; 3] = [80, 8080, 15008];
const POLICIES: [&str; 3] = ["a/p", "b/p", "root/p"];

/// Reads bytes as changes to a small mesh, asks everything after each few, and holds the answers against a scan. How many
/// changes they were.
pub(crate) fn changes(bytes: &[u8]) -> usize {
    let mut dice = Dice(bytes);
    let mut builder = if dice.roll(4) == 0 { SnapshotBuilder::on_demand() } else { SnapshotBuilder::new() };
    let mut scan = Scan::default();
    let mut count = 0;
    let mut before: Option<(Snapshot, Vec<u8>)> = None;
    while !dice.0.is_empty() && count < 256 {
        let change = dice.change();
        scan.apply(&change);
        builder.apply(change);
        count += 1;
        if dice.roll(4) == 0 {
            let snapshot = builder.freeze();
            if let Some((old, bytes)) = before.take() {
                assert_eq!(encode(&old, "", 0), bytes, "a frozen snapshot never changes");
            }
            agree(&snapshot, &scan);
            ask(&snapshot);
            let bytes = encode(&snapshot, "", 0);
            let terms = Terms { origin: "", now_unix_s: 0, age_max_s: 0 };
            let warm = decode(&bytes, &terms).expect("what is written is read").freeze();
            agree(&warm, &scan);
            before = Some((snapshot, bytes));
        }
    }
    take_back(&mut builder, &scan);
    count
}

/// Whatever came, in whatever order: when it has gone, nothing is left of it.
fn take_back(builder: &mut SnapshotBuilder, scan: &Scan) {
    scan.workloads.keys().for_each(|uid| builder.apply(Change::WorkloadGone(uid.clone())));
    scan.services.keys().for_each(|key| builder.apply(Change::ServiceGone(key.clone())));
    scan.policies.keys().for_each(|key| builder.apply(Change::PolicyGone(key.clone())));
    assert!(builder.is_empty(), "{builder:?}");
}

/// Decodes bytes as they are, and as a body that is believed. Whether they then are a mesh.
pub(crate) fn warm(bytes: &[u8]) -> bool {
    let terms = Terms { origin: "o", now_unix_s: 1, age_max_s: 1 };
    let _ = decode(bytes, &terms);
    let Ok(mut builder) = decode(&framed(bytes, "o", 1), &terms) else { return false };
    let snapshot = builder.freeze();
    ask(&snapshot);
    let again = decode(&encode(&snapshot, "o", 1), &terms).expect("what is written is read").freeze();
    assert_eq!(again.workloads().count(), snapshot.workloads().count());
    for workload in snapshot.workloads() {
        assert_eq!(again.workload(&workload.uid), Some(workload));
    }
    for service in snapshot.services() {
        assert_eq!(again.service(&service.key()), Some(service));
    }
    for policy in snapshot.policies() {
        assert_eq!(again.policy(&policy.key), Some(policy));
    }
    true
}

#[derive(Default)]
struct Scan {
    workloads: BTreeMap<Uid, Workload>,
    services: BTreeMap<NamespacedHostname, Service>,
    policies: BTreeMap<PolicyKey, Policy>,
}

impl Scan {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Workload(mut workload) => {
                // What is named twice is held once, as it was named first.
                let mut seen = BTreeSet::new();
                let addresses = workload.addresses.iter().copied();
                workload.addresses = addresses.filter(|address| seen.insert(address.to_canonical())).collect();
                let mut seen = BTreeSet::new();
                workload.authorization_policies.retain(|key| seen.insert(key.clone()));
                drop(self.workloads.insert(workload.uid.clone(), workload));
            }
            Change::WorkloadGone(uid) => drop(self.workloads.remove(&uid)),
            Change::Service(service) => drop(self.services.insert(service.key(), service)),
            Change::ServiceGone(key) => drop(self.services.remove(&key)),
            Change::Policy(policy) => drop(self.policies.insert(policy.key.clone(), policy)),
            Change::PolicyGone(key) => drop(self.policies.remove(&key)),
            Change::Absent(_) | Change::Unknown(_) => {}
        }
    }
}

fn agree(snapshot: &Snapshot, scan: &Scan) {
    assert_eq!(snapshot.workloads().count(), scan.workloads.len());
    assert_eq!(snapshot.services().count(), scan.services.len());
    assert_eq!(snapshot.policies().count(), scan.policies.len());
    for (uid, workload) in &scan.workloads {
        assert_eq!(snapshot.workload(uid).map(|found| &**found), Some(workload));
        let account = workload.identity.service_account();
        assert!(snapshot.local_workload(None, &workload.namespace, workload.name(), account).is_some());
    }
    for (key, service) in &scan.services {
        assert_eq!(snapshot.service(key).map(|found| &**found), Some(service));
    }
    for address in addresses() {
        let has = |workload: &&Workload| {
            workload.network_mode == NetworkMode::Standard
                && workload.network.as_str().is_empty()
                && workload.addresses.iter().any(|own| own.to_canonical() == address.to_canonical())
        };
        let found = snapshot.workload_by_address(&NetworkId::from(""), address);
        assert_eq!(found.is_some(), scan.workloads.values().any(|workload| has(&workload)), "{address}");
        assert!(found.is_none_or(|found| has(&&**found)));
        let here = |vip: &Vip| vip.network.as_str().is_empty();
        let single = |vip: &Vip| vip.address.prefix_len() == vip.address.max_prefix_len();
        let at = |vip: &Vip| here(vip) && single(vip) && vip.address.addr().to_canonical() == address.to_canonical();
        let expected = scan.services.values().filter(|service| service.vips.iter().any(at)).count();
        assert_eq!(snapshot.services_by_vip(&NetworkId::from(""), address).len(), expected, "{address}");
        for namespace in NAMESPACES {
            let sees =
                |service: &&Service| service.visibility == Visibility::Public || &*service.namespace == namespace;
            let covers = |vip: &Vip| at(vip) || here(vip) && vip.address.contains(&address.to_canonical());
            let visible = scan.services.values().filter(sees);
            let any = visible.clone().any(|service| service.vips.iter().any(covers));
            let found = snapshot.service_by_vip(&NetworkId::from(""), address, namespace);
            assert_eq!(found.is_some(), any, "{address} for {namespace}");
        }
    }
    for namespace in NAMESPACES {
        for host in HOSTS {
            let key = NamespacedHostname::new(namespace, host);
            let serves = |workload: &&Workload| workload.services.iter().any(|(service, _)| *service == key);
            let expected: Vec<&Uid> = scan.workloads.values().filter(serves).map(|workload| &workload.uid).collect();
            let asked = Service::new(namespace, "", host);
            let mut found: Vec<&Uid> = snapshot.endpoints(&asked).map(|endpoint| &endpoint.workload.uid).collect();
            found.sort();
            assert_eq!(found, expected, "{key}");
        }
    }
}

/// Every kind of question, for the panics they might end in.
fn ask(snapshot: &Snapshot) {
    let peer: SocketAddr = ([10, 0, 0, 9], 40_000).into();
    for source in snapshot.workloads().take(16) {
        for host in HOSTS {
            let naming = Naming { cluster_domain: "example", preferred_namespace: Some("b"), ipv6: true };
            for kind in [RecordKind::A, RecordKind::Aaaa] {
                let query = dns::Query { client: source, name: host, kind, naming: &naming };
                let _ = (dns::answer(snapshot, &query, 1 << 62), dns::lacking(snapshot, &query));
            }
            for port in PORTS {
                let authority = Authority::Host { host: host.into(), port };
                let query = tunnel_to(source, peer, Request::Tunnel(&authority));
                let _ = admit::lacking(snapshot, &query, &admit::inbound(snapshot, &query));
            }
            let name = NamespacedHostname { namespace: source.namespace.clone(), hostname: host.into() };
            let _ = snapshot.knowledge(&Sought::Hostname(name));
        }
        for address in addresses() {
            let _ = snapshot.knowledge(&Sought::Address { network: source.network.clone(), address });
            for port in PORTS {
                let target = SocketAddr::new(address, port);
                let query = route::Query { source, peer: peer.ip(), target };
                for draw in [0, 1 << 63, u64::MAX] {
                    let route = route::outbound(snapshot, &query, draw);
                    let _ = route::lacking(snapshot, &query, &route);
                    if let Ok(Route::Resolve(lookup)) = route {
                        let _ = lookup.found(&addresses().collect::<Vec<_>>(), draw);
                    }
                }
                let authority = Authority::Address(target);
                for request in [Request::Tunnel(&authority), Request::Plaintext(target)] {
                    let query = tunnel_to(source, peer, request);
                    let verdict = admit::inbound(snapshot, &query);
                    let _ = admit::lacking(snapshot, &query, &verdict);
                    let _ = admit::attribute(snapshot, source, request, Some(HOSTS[1]));
                    if let Ok(Admission { proxy_header: Some(header), .. }) = verdict {
                        let _ = header.to_bytes();
                    }
                }
            }
        }
    }
    let _ = snapshot.changed_since(0).may_touch_services();
}

fn tunnel_to<'a>(workload: &'a Workload, peer: SocketAddr, request: Request<'a>) -> admit::Query<'a> {
    let (identity, local) = (Some(&workload.identity), workload.addresses.first().copied().unwrap_or(peer.ip()));
    admit::Query { workload, peer, identity, local, request, proxy_ports: &[15008], localhost_tunnel: true }
}

fn addresses() -> impl Iterator<Item = IpAddr> {
    ADDRESSES.iter().map(|text| text.parse().expect("an address"))
}

/// Bytes as choices.
struct Dice<'b>(&'b [u8]);

impl Dice<'_> {
    fn roll(&mut self, sides: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % sides
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())]
    }

    fn change(&mut self) -> Change {
        match self.roll(8) {
            0..=2 => Change::Workload(self.workload()),
            3 => Change::WorkloadGone(self.uid()),
            4 => Change::Service(self.service()),
            5 => match self.roll(2) {
                0 => Change::ServiceGone(self.key()),
                _ => Change::PolicyGone(self.of(&POLICIES).into()),
            },
            6 => Change::Policy(self.policy()),
            _ => {
                let sought = match self.roll(2) {
                    0 => Sought::Address { network: self.network(), address: self.address() },
                    _ => Sought::Hostname(self.key()),
                };
                if self.roll(3) == 0 { Change::Unknown(sought) } else { Change::Absent(sought) }
            }
        }
    }

    /// Up to so many.
    fn few<T>(&mut self, most: usize, one: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.roll(most + 1)).map(|_| one(self)).collect()
    }

    /// None, most of the time: a field of which most resources have nothing.
    fn seldom<T>(&mut self, one: impl Fn(&mut Self) -> T) -> Vec<T> {
        if self.roll(4) == 0 { self.few(2, one) } else { Vec::new() }
    }

    fn uid(&mut self) -> Uid {
        let kind = self.of(&["/Pod", "networking.istio.io/WorkloadEntry"]);
        // Enough of them that lists split.
        format!("c/{kind}/{}/{}", self.of(&NAMESPACES), self.roll(96)).as_str().into()
    }

    fn key(&mut self) -> NamespacedHostname {
        NamespacedHostname::new(self.of(&NAMESPACES), self.of(&HOSTS))
    }

    fn network(&mut self) -> NetworkId {
        self.of(&["", "", "", "far"]).into()
    }

    fn address(&mut self) -> IpAddr {
        self.of(&ADDRESSES).parse().expect("an address")
    }

    fn gateway(&mut self) -> Option<GatewayAddress> {
        let destination = match self.roll(6) {
            0 => GatewayDestination::Address { network: self.network(), address: self.address() },
            1 => GatewayDestination::Hostname(self.key()),
            _ => return None,
        };
        Some(GatewayAddress { destination, hbone_port: 15008 })
    }

    fn workload(&mut self) -> Workload {
        let (uid, namespace) = (self.uid(), self.of(&NAMESPACES));
        let name = self.of(&["x", "y"]);
        let identity = Identity::new("td", namespace, "s").expect("valid parts");
        let mut workload = Workload::new(uid, namespace, name, identity);
        workload.addresses = match self.roll(5) {
            0 => [].into(),
            1 => [self.address(), self.address()].into(),
            _ => [self.address()].into(),
        };
        workload.network = self.network();
        workload.protocol = self.of(&[TunnelProtocol::Hbone, TunnelProtocol::None]);
        workload.network_mode = self.of(&[NetworkMode::Standard, NetworkMode::Standard, NetworkMode::HostNetwork]);
        workload.status = self.of(&[Status::Healthy, Status::Healthy, Status::Unhealthy]);
        workload.capacity = self.of(&[1, 1, 0, u32::MAX]);
        workload.waypoint = self.gateway();
        workload.network_gateway = self.gateway();
        if self.roll(6) == 0 {
            let protocol = self.of(&[ApplicationProtocol::None, ApplicationProtocol::Proxy]);
            workload.application_tunnel = Some(ApplicationTunnel { protocol, port: self.of(&[None, Some(8080)]) });
        }
        workload.cluster_id = self.of(&["c", "c", "d"]).into();
        workload.hostname = self.of(&["", "", HOSTS[0]]).into();
        let node = self.of(&["n1", "n2", ""]).into();
        let mut part = |choices: [&'static str; 2]| self.of(&choices).into();
        let locality = Locality { region: part(["", "r"]), zone: part(["", "z"]), subzone: part(["", "s"]) };
        workload.place = Arc::new(Place { node, locality: Arc::new(locality) });
        for host in &HOSTS[..self.roll(3)] {
            let ports = match self.roll(3) {
                0 => vec![PortMapping { service_port: 80, target_port: 8080 }],
                _ => Vec::new(),
            };
            workload.services.push((NamespacedHostname::new(namespace, host), ports));
        }
        workload.authorization_policies = self.seldom(|dice| dice.of(&POLICIES).into());
        workload
    }

    fn service(&mut self) -> Service {
        let key = self.key();
        let mut service = Service::new(&key.namespace, "s", &key.hostname);
        service.vips = self.few(2, |dice| {
            let address = match dice.roll(3) {
                0 => dice.of(&BLOCKS).parse().expect("a block"),
                _ => dice.address().into(),
            };
            Vip { network: dice.network(), address }
        });
        service.ports =
            self.few(2, |dice| PortMapping { service_port: dice.of(&PORTS[..2]), target_port: dice.of(&[0, 8080]) });
        service.load_balancing = LoadBalancing {
            scopes: self.few(3, |dice| {
                dice.of(&[Scope::Node, Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Cluster])
            }),
            mode: self.of(&[Mode::Unspecified, Mode::Strict, Mode::Failover, Mode::Passthrough]),
            health: self.of(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]),
        };
        service.waypoint = self.gateway();
        service.weighted_waypoints = self
            .seldom(|dice| {
                dice.gateway().map(|destination| WeightedWaypoint { destination, weight: dice.of(&[0, 1, 9]) })
            })
            .into_iter()
            .flatten()
            .collect();
        service.subject_alt_names =
            self.seldom(|dice| Identity::new("td", dice.of(&NAMESPACES), "t").expect("valid parts"));
        service.ip_families =
            self.of(&[IpFamilies::Automatic, IpFamilies::Dual, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only]);
        service.canonical = self.roll(2) == 0;
        service.visibility = self.of(&[Visibility::Public, Visibility::Namespace]);
        service
    }

    fn policy(&mut self) -> Policy {
        let key = self.of(&POLICIES);
        Policy {
            key: key.into(),
            namespace: key.split_once('/').expect("all have one").0.into(),
            scope: self.of(&[PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector]),
            action: self.of(&[Action::Allow, Action::Deny]),
            rules: self
                .few(2, |dice| Rule { clauses: dice.few(2, |dice| Clause { matches: dice.few(3, Self::condition) }) }),
            dry_run: self.roll(4) == 0,
        }
    }

    fn condition(&mut self) -> Match {
        let text = |dice: &mut Self| {
            let text = || Arc::from("td/ns/a/sa/s");
            match dice.roll(5) {
                0 => StringMatch::Exact(text()),
                1 => StringMatch::Prefix(dice.of(&["", "td/", "x"]).into()),
                2 => StringMatch::Suffix(dice.of(&["", "/s", "x"]).into()),
                3 => StringMatch::Exact(dice.of(&NAMESPACES).into()),
                _ => StringMatch::Presence,
            }
        };
        let block = |dice: &mut Self| dice.of(&BLOCKS).parse().expect("a block");
        let port = |dice: &mut Self| dice.of(&PORTS);
        let account = |dice: &mut Self| ServiceAccountMatch {
            namespace: dice.of(&NAMESPACES).into(),
            service_account: dice.of(&["s", "t"]).into(),
        };
        Match {
            namespaces: self.seldom(text),
            not_namespaces: self.seldom(text),
            principals: self.seldom(text),
            not_principals: self.seldom(text),
            source_ips: self.seldom(block),
            not_source_ips: self.seldom(block),
            destination_ips: self.seldom(block),
            not_destination_ips: self.seldom(block),
            destination_ports: self.seldom(port),
            not_destination_ports: self.seldom(port),
            service_accounts: self.seldom(account),
            not_service_accounts: self.seldom(account),
            unreadable: if self.roll(16) == 0 { vec!["x".into()] } else { Vec::new() },
        }
    }
}
