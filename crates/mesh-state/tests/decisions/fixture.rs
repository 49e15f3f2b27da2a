//! A small vocabulary for meshes: a row of a table should read as the fact it states.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::{Authority, NamespacedHostname, NetworkId, PolicyKey};
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};
use mesh_state::service::{PortMapping, Service, Vip};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::{GatewayAddress, GatewayDestination, TunnelProtocol, Workload};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

pub(crate) fn authority(text: &str) -> Authority {
    Authority::parse(text).expect(text)
}

pub(crate) fn network(text: &str) -> NetworkId {
    NetworkId::from(text)
}

/// `spiffe://cluster.local/ns/NS/sa/SA` of `NS/SA`.
pub(crate) fn id(text: &str) -> Identity {
    let (namespace, account) = text.split_once('/').expect(text);
    Identity::new("cluster.local", namespace, account).expect(text)
}

/// A captured pod `NS/NAME` with an address, of the service account that is its name without what follows the last `-`.
pub(crate) fn pod(text: &str, address: &str) -> Workload {
    let (namespace, name) = text.split_once('/').expect(text);
    let account = name.rsplit_once('-').map_or(name, |(account, _)| account);
    let identity = Identity::new("cluster.local", namespace, account).expect(text);
    let mut workload = Workload::new(format!("Kubernetes//Pod/{text}").as_str().into(), namespace, name, identity);
    workload.protocol = TunnelProtocol::Hbone;
    workload.addresses = [ip(address)].into();
    workload
}

/// A workload with something else about it.
pub(crate) fn edited(mut workload: Workload, edit: impl FnOnce(&mut Workload)) -> Workload {
    edit(&mut workload);
    workload
}

/// The same, not captured.
pub(crate) fn plain_pod(text: &str, address: &str) -> Workload {
    edited(pod(text, address), |workload| workload.protocol = TunnelProtocol::None)
}

pub(crate) fn hostname(text: &str) -> NamespacedHostname {
    let (namespace, name) = text.split_once('/').expect(text);
    NamespacedHostname::new(namespace, &format!("{name}.{namespace}.svc.cluster.local"))
}

/// A service `NS/NAME` with a VIP on the default network, or a block of them, and ports behind ports.
pub(crate) fn service(text: &str, vip: &str, ports: &[(u16, u16)]) -> Service {
    let key = hostname(text);
    let (_, name) = text.split_once('/').expect(text);
    let mut service = Service::new(&key.namespace, name, &key.hostname);
    service.ports = mappings(ports);
    let address: IpNet = vip.parse().unwrap_or_else(|_| ip(vip).into());
    service.vips = vec![Vip { network: network(""), address }];
    service
}

pub(crate) fn mappings(ports: &[(u16, u16)]) -> Vec<PortMapping> {
    ports
        .iter()
        .map(|(service_port, target_port)| PortMapping { service_port: *service_port, target_port: *target_port })
        .collect()
}

/// The workload as an endpoint of service `NS/NAME`, with ports of its own where given.
pub(crate) fn endpoint_of(mut workload: Workload, text: &str, ports: &[(u16, u16)]) -> Workload {
    workload.services.push((hostname(text), mappings(ports)));
    workload
}

/// A reference to a waypoint: `NS/NAME` of a service, or an address on the default network.
pub(crate) fn waypoint(text: &str) -> Option<GatewayAddress> {
    let destination = match text.parse() {
        Ok(address) => GatewayDestination::Address { network: network(""), address },
        Err(_) => GatewayDestination::Hostname(hostname(text)),
    };
    Some(GatewayAddress { destination, hbone_port: 15008 })
}

pub(crate) fn policy(text: &str, scope: PolicyScope, action: Action, rules: Vec<Rule>) -> Policy {
    let (namespace, name) = text.split_once('/').expect(text);
    Policy { key: PolicyKey::new(namespace, name), namespace: namespace.into(), scope, action, rules, dry_run: false }
}

/// A rule of one clause of these matches.
pub(crate) fn any_of(matches: Vec<Match>) -> Rule {
    Rule { clauses: vec![Clause { matches }] }
}

pub(crate) fn principal(text: &str) -> Match {
    Match { principals: vec![StringMatch::Exact(text.into())], ..Match::default() }
}

#[derive(Default)]
pub(crate) struct Mesh {
    builder: SnapshotBuilder,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn workload(mut self, workload: Workload) -> Self {
        self.builder.apply(Change::Workload(workload));
        self
    }

    pub(crate) fn service(mut self, service: Service) -> Self {
        self.builder.apply(Change::Service(service));
        self
    }

    pub(crate) fn policy(mut self, policy: Policy) -> Self {
        self.builder.apply(Change::Policy(policy));
        self
    }

    pub(crate) fn freeze(mut self) -> Snapshot {
        self.builder.freeze()
    }
}
