//! Random meshes out of few names, so that things collide: addresses held twice, hostnames in two namespaces, services
//! without endpoints and endpoints without services.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh_state::service::{
    HealthPolicy, IpFamilies, LoadBalancing, Mode, PortMapping, Scope, Service, Vip, Visibility, WeightedWaypoint,
};
use mesh_state::wanted::Sought;
use mesh_state::workload::{
    Addresses, ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Locality, NetworkMode,
    Place, Status, TunnelProtocol, Workload,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub(crate) const NETWORKS: [&str; 2] = ["", "far"];
pub(crate) const NAMESPACES: [&str; 2] = ["a", "b"];
pub(crate) const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "10.1.0.1", "fd00::1", "::ffff:10.0.0.1"];
const BLOCKS: [&str; 5] = ["10.0.0.0/24", "10.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "fd00::/16"];
/// Of which policies may be written, and no VIPs.
const MAPPED_BLOCKS: [&str; 3] = ["::ffff:10.0.0.0/120", "::/0", "10.0.0.1/32"];
const UIDS: [&str; 6] =
    ["c//Pod/a/x", "c//Pod/a/y", "c//Pod/b/x", "c//Pod/b/y", "c/n/WorkloadEntry/a/x", "c/n/WorkloadEntry/b/x"];
pub(crate) const NAMES: [&str; 2] = ["x", "y"];
pub(crate) const ACCOUNTS: [&str; 2] = ["s", "t"];
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
pub(crate) const HOSTNAMES: [&str; 3] = ["one.example.com", "two.example.com", "three.example.com"];
pub(crate) const PORTS: [u16; 4] = [80, 81, 8080, 15008];
const POLICIES: [&str; 4] = ["a/p", "a/q", "b/p", "root/p"];

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    select(&ADDRESSES[..]).prop_map(|text| text.parse().expect(text))
}

pub(crate) fn network() -> impl Strategy<Value = NetworkId> {
    // Mostly one network, or hardly anything would meet.
    prop_oneof![4 => Just(NETWORKS[0]), 1 => Just(NETWORKS[1])].prop_map(NetworkId::from)
}

pub(crate) fn identity() -> impl Strategy<Value = Identity> {
    (select(&["td", "other"][..]), select(&NAMESPACES[..]), select(&ACCOUNTS[..]))
        .prop_map(|(domain, namespace, account)| Identity::new(domain, namespace, account).expect("valid parts"))
}

pub(crate) fn key() -> impl Strategy<Value = NamespacedHostname> {
    (select(&NAMESPACES[..]), select(&HOSTNAMES[..]))
        .prop_map(|(namespace, host)| NamespacedHostname::new(namespace, host))
}

fn ports() -> impl Strategy<Value = Vec<PortMapping>> {
    let mapping = (select(&PORTS[..2]), select(&[0, 8080, 9090][..]));
    vec(mapping.prop_map(|(service_port, target_port)| PortMapping { service_port, target_port }), 0..3)
}

fn reference() -> impl Strategy<Value = GatewayAddress> {
    let by_address =
        (network(), address()).prop_map(|(network, address)| GatewayDestination::Address { network, address });
    let destination = prop_oneof![by_address, key().prop_map(GatewayDestination::Hostname)];
    (destination, select(&PORTS[..])).prop_map(|(destination, hbone_port)| GatewayAddress { destination, hbone_port })
}

fn tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    let protocol = select(&[ApplicationProtocol::None, ApplicationProtocol::Proxy][..]);
    (protocol, option::of(select(&PORTS[..]))).prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

pub(crate) fn workload() -> impl Strategy<Value = Workload> {
    let who = (select(&UIDS[..]), select(&NAMESPACES[..]), select(&NAMES[..]), identity());
    let reach = (
        vec(address(), 0..3).prop_map(Addresses::from),
        network(),
        select(&[TunnelProtocol::None, TunnelProtocol::Hbone][..]),
        prop_oneof![4 => Just(NetworkMode::Standard), 1 => Just(NetworkMode::HostNetwork)],
        prop_oneof![3 => Just(""), 1 => select(&HOSTNAMES[..])],
    );
    let role = (
        vec((key(), ports()), 0..3),
        vec(select(&POLICIES[..]), 0..3),
        (option::weighted(0.2, reference()), option::weighted(0.2, reference()), option::weighted(0.2, tunnel())),
        prop_oneof![3 => Just(Status::Healthy), 1 => Just(Status::Unhealthy)],
        0..3u32,
        (select(&NODES[..]), select(&["", "r1", "r2"][..]), select(&["c", "other"][..])),
    );
    (who, reach, role).prop_map(|(who, reach, role)| {
        let (uid, namespace, name, identity) = who;
        let mut workload = Workload::new(uid.into(), namespace, name, identity);
        let hostname;
        (workload.addresses, workload.network, workload.protocol, workload.network_mode, hostname) = reach;
        workload.hostname = hostname.into();
        let (services, policies, gateways, status, capacity, (node, region, cluster)) = role;
        let waypoint;
        (waypoint, workload.network_gateway, workload.application_tunnel) = gateways;
        workload.cluster_id = cluster.into();
        workload.services = services;
        workload.authorization_policies = policies.into_iter().map(PolicyKey::from).collect();
        (workload.waypoint, workload.status, workload.capacity) = (waypoint, status, capacity);
        let locality = Locality { region: region.into(), ..(*workload.place.locality).clone() };
        workload.place = Arc::new(Place { node: node.into(), locality: Arc::new(locality) });
        workload
    })
}

pub(crate) fn service() -> impl Strategy<Value = Service> {
    let block = prop_oneof![
        3 => address().prop_map(IpNet::from),
        1 => select(&BLOCKS[..]).prop_map(|text| text.parse().expect(text)),
    ];
    let vips = vec((network(), block).prop_map(|(network, address)| Vip { network, address }), 0..3);
    let balancing = (
        vec(select(&[Scope::Node, Scope::Network, Scope::Region][..]), 0..3),
        select(&[Mode::Unspecified, Mode::Strict, Mode::Failover, Mode::Passthrough][..]),
        select(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll][..]),
    )
        .prop_map(|(scopes, mode, health)| LoadBalancing { scopes, mode, health });
    let families = select(&[IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual][..]);
    let visibility = select(&[Visibility::Public, Visibility::Namespace][..]);
    let weighted =
        vec((reference(), 0..4u32).prop_map(|(destination, weight)| WeightedWaypoint { destination, weight }), 0..3);
    let weighted = prop_oneof![4 => Just(Vec::new()), 1 => weighted];
    let rest = ((option::weighted(0.2, reference()), weighted), families, visibility, any::<bool>());
    (key(), vips, ports(), vec(identity(), 0..2), balancing, rest).prop_map(
        |(key, vips, ports, subject_alt_names, load_balancing, rest)| {
            let ((waypoint, weighted_waypoints), ip_families, visibility, canonical) = rest;
            Service {
                vips,
                ports,
                subject_alt_names,
                waypoint,
                weighted_waypoints,
                load_balancing,
                ip_families,
                visibility,
                canonical,
                ..Service::new(&key.namespace, "s", &key.hostname)
            }
        },
    )
}

fn text() -> impl Strategy<Value = StringMatch> {
    let value = select(&["a", "b", "", "td/ns/a/sa/s", "td/", "/sa/t"][..]);
    (0..4, value).prop_map(|(kind, value)| match kind {
        0 => StringMatch::Exact(value.into()),
        1 => StringMatch::Prefix(value.into()),
        2 => StringMatch::Suffix(value.into()),
        _ => StringMatch::Presence,
    })
}

fn condition() -> impl Strategy<Value = Match> {
    fn some<T: std::fmt::Debug + Clone>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
        prop_oneof![5 => Just(Vec::new()), 3 => vec(value, 1..3)]
    }
    let net = || select([&BLOCKS[..], &MAPPED_BLOCKS].concat()).prop_map(|text| text.parse::<IpNet>().expect(text));
    let port = || select(&PORTS[..]);
    let account = || {
        (select(&NAMESPACES[..]), select(&ACCOUNTS[..])).prop_map(|(namespace, account)| ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: account.into(),
        })
    };
    let who = (some(text()), some(text()), some(text()), some(text()), some(account()), some(account()));
    let place = (some(net()), some(net()), some(net()), some(net()), some(port()), some(port()));
    (who, place, prop_oneof![9 => Just(false), 1 => Just(true)]).prop_map(|(who, place, unreadable)| {
        let (namespaces, not_namespaces, principals, not_principals, service_accounts, not_service_accounts) = who;
        let (source_ips, not_source_ips, destination_ips, not_destination_ips, ports, not_ports) = place;
        Match {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports: ports,
            not_destination_ports: not_ports,
            service_accounts,
            not_service_accounts,
            unreadable: if unreadable { vec!["?".into()] } else { Vec::new() },
        }
    })
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let clause = vec(condition(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = select(&[PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector][..]);
    let action = select(&[Action::Allow, Action::Deny][..]);
    let dry_run = prop_oneof![3 => Just(false), 1 => Just(true)];
    (select(&POLICIES[..]), scope, action, vec(rule, 0..3), dry_run).prop_map(|(key, scope, action, rules, dry_run)| {
        let (namespace, _) = key.split_once('/').expect("all keys have one");
        Policy { key: key.into(), namespace: namespace.into(), scope, action, rules, dry_run }
    })
}

pub(crate) fn sought() -> impl Strategy<Value = Sought> {
    prop_oneof![
        (network(), address()).prop_map(|(network, address)| Sought::Address { network, address }),
        key().prop_map(Sought::Hostname),
    ]
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => workload().prop_map(Change::Workload),
        2 => select(&UIDS[..]).prop_map(|uid| Change::WorkloadGone(Uid::from(uid))),
        4 => service().prop_map(Change::Service),
        1 => key().prop_map(Change::ServiceGone),
        2 => policy().prop_map(Change::Policy),
        1 => select(&POLICIES[..]).prop_map(|key| Change::PolicyGone(key.into())),
        1 => sought().prop_map(Change::Absent),
        1 => sought().prop_map(Change::Unknown),
    ]
}

/// One field of `workload` as `other` has it: what an update of a live pod usually is.
fn edited(workload: &Workload, other: &Workload, field: u8) -> Workload {
    let mut edited = workload.clone();
    match field {
        0 => edited.network = other.network.clone(),
        1 => edited.application_tunnel = other.application_tunnel,
        2 => edited.network_gateway.clone_from(&other.network_gateway),
        3 => edited.waypoint.clone_from(&other.waypoint),
        4 => edited.status = other.status,
        5 => edited.capacity = other.capacity,
        6 => edited.hostname = other.hostname.clone(),
        7 => edited.cluster_id = other.cluster_id.clone(),
        8 => edited.addresses = other.addresses.clone(),
        9 => edited.protocol = other.protocol,
        _ => edited.place = other.place.clone(),
    }
    edited
}

/// Some of the workloads are one field away from what was last said of the same one.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec((change(), option::weighted(0.5, 0..11_u8)), 0..40).prop_map(|changes| {
        let mut known = std::collections::HashMap::new();
        changes
            .into_iter()
            .map(|(change, field)| match (change, field) {
                (Change::Workload(workload), field) => {
                    let earlier = known.get(&workload.uid).zip(field);
                    let workload =
                        earlier.map_or(workload.clone(), |(earlier, field)| edited(earlier, &workload, field));
                    known.insert(workload.uid.clone(), workload.clone());
                    Change::Workload(workload)
                }
                (change, _) => change,
            })
            .collect()
    })
}
