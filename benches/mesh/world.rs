//! A mesh with names as long as real ones, as decoded changes that share nothing: every text in them is its own, as it is when
//! it comes out of a control plane's messages.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use mesh_state::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};
use mesh_state::service::{PortMapping, Service, Vip};
use mesh_state::workload::{Locality, Place, TunnelProtocol, Workload};

/// The name of a cluster that nobody named.
const CLUSTER: &str = "Kubernetes";
const REGION: &str = "eu-west-1";
const TEAMS: [&str; 8] =
    ["payments", "checkout", "catalogue", "identity", "logistics", "reporting", "search", "notifications"];
const PODS_PER_NODE: u32 = 30;
const SERVICES_PER_NAMESPACE: u32 = 33;

/// The port that every service has.
pub(crate) const PORT: u16 = 80;

/// Some workloads, 66 services for each thousand of them, and two kinds of larger services over the same workloads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) workloads: u32,
}

impl World {
    pub(crate) fn services(self) -> u32 {
        self.workloads / 1_000 * 66
    }

    /// Services of a thousand endpoints: every workload of the first tenth is in one.
    pub(crate) fn thousands(self) -> u32 {
        self.many() / 1_000
    }

    /// Endpoints of the one service that has a tenth of all workloads.
    pub(crate) fn many(self) -> u32 {
        self.workloads / 10
    }

    fn service_of(self, workload: u32) -> u32 {
        workload % self.services()
    }

    /// The workload with a number; another `revision` of it is another pod in its place.
    pub(crate) fn workload(self, number: u32, revision: u32) -> Workload {
        let service = self.service_of(number);
        let namespace = namespace(service);
        let app = app(service);
        let hash = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(revision);
        // What a Deployment calls its pods.
        let name = format!("{app}-{}-{}", letters(u64::from(service) * 7919, 10), letters(hash, 5));
        let uid = format!("{CLUSTER}//Pod/{namespace}/{name}{}", if revision == 0 { "" } else { "r" });
        let identity = Identity::new("cluster.local", &namespace, &app).expect("valid parts");
        let mut workload = Workload::new(Uid::from(uid.as_str()), &namespace, tail(&uid), identity);
        let node = number / PODS_PER_NODE;
        workload.addresses = [IpAddr::V4(pod_address(number))].into();
        let locality = Locality {
            region: REGION.into(),
            zone: format!("{REGION}{}", ["a", "b", "c"][node as usize % 3]).into(),
            subzone: "".into(),
        };
        workload.place = Arc::new(Place { node: self::node(node).into(), locality: locality.into() });
        workload.network = NetworkId::from("");
        workload.protocol = TunnelProtocol::Hbone;
        workload.canonical_name = app.as_str().into();
        workload.canonical_revision = "latest".into();
        workload.workload_name = app.as_str().into();
        workload.cluster_id = CLUSTER.into();
        workload.services = vec![(service_key(service), Vec::new())];
        if number < self.many() {
            workload.services.push((thousand_key(number % self.thousands()), Vec::new()));
            workload.services.push((many_key(), Vec::new()));
        }
        workload
    }

    pub(crate) fn service(self, number: u32) -> Service {
        service(service_key(number), service_address(number))
    }

    pub(crate) fn thousand(self, number: u32) -> Service {
        service(thousand_key(number), thousand_address(number))
    }

    pub(crate) fn many_service(self) -> Service {
        service(many_key(), many_address())
    }

    /// All of it, in the order in which a control plane would send it: by kind.
    pub(crate) fn changes(self) -> impl Iterator<Item = Change> {
        let services = (0..self.services()).map(move |number| self.service(number));
        let large = (0..self.thousands()).map(move |number| self.thousand(number)).chain([self.many_service()]);
        let workloads = (0..self.workloads).map(move |number| self.workload(number, 0));
        services.chain(large).map(Change::Service).chain(workloads.map(Change::Workload))
    }

    pub(crate) fn hostname(self, number: u32) -> (String, String) {
        let key = service_key(number);
        (key.hostname.to_string(), key.namespace.to_string())
    }
}

pub(crate) fn pod_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001 + number)
}

pub(crate) fn service_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0001 + number)
}

pub(crate) fn thousand_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac20_0001 + number)
}

pub(crate) fn many_address() -> Ipv4Addr {
    Ipv4Addr::from(0xac2f_0001)
}

fn service(key: NamespacedHostname, address: Ipv4Addr) -> Service {
    let name = key.hostname.split('.').next().unwrap_or_default().to_owned();
    let mut service = Service::new(&key.namespace, &name, &key.hostname);
    service.vips = vec![Vip { network: NetworkId::from(""), address: IpNet::from(IpAddr::V4(address)) }];
    service.ports = vec![
        PortMapping { service_port: PORT, target_port: 8080 },
        PortMapping { service_port: 9090, target_port: 9090 },
    ];
    service
}

fn service_key(number: u32) -> NamespacedHostname {
    key(&namespace(number), &app(number))
}

fn thousand_key(number: u32) -> NamespacedHostname {
    key("platform-shared", &format!("sidecar-metrics-{number}"))
}

fn many_key() -> NamespacedHostname {
    key("platform-shared", "node-telemetry")
}

fn key(namespace: &str, name: &str) -> NamespacedHostname {
    NamespacedHostname::new(namespace, &format!("{name}.{namespace}.svc.cluster.local"))
}

fn namespace(service: u32) -> String {
    let number = service / SERVICES_PER_NAMESPACE;
    format!("{}-prod-{number:04}", TEAMS[number as usize % TEAMS.len()])
}

fn app(service: u32) -> String {
    format!("{}-api-{service:05}", TEAMS[service as usize % TEAMS.len()])
}

fn node(number: u32) -> String {
    let [_, b, c, d] = (0x0a00_0000 + number * 7).to_be_bytes();
    format!("ip-10-{b}-{c}-{d}.{REGION}.compute.internal")
}

/// Letters as Kubernetes puts behind names.
fn letters(mut from: u64, count: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(char::from(LETTERS[(from % LETTERS.len() as u64) as usize]));
        from = (from / LETTERS.len() as u64) ^ from.rotate_left(29);
    }
    text
}

fn tail(uid: &str) -> &str {
    uid.rsplit_once('/').map_or(uid, |(_, name)| name)
}

/// What the rules of a policy are like, of which none allows the one who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Each names one service account that nobody here has.
    Principal,
    /// Only `not_` fields: all but an account of their own and, every other one, who asks; the others, the port asked for.
    Not,
    /// Only `not_` fields, in two alternatives of one clause, so that no single value excludes the rule.
    NotInAlternatives,
}

/// Who asks, and which port.
pub(crate) const ASKING: [&str; 2] = ["nobody", "stranger"];
pub(crate) const ASKED_PORT: u16 = 8080;

/// A policy of ten rules.
pub(crate) fn policy(number: u32, scope: PolicyScope, rules: Rules) -> Policy {
    let principal = |namespace: &str, account: &str| {
        StringMatch::Exact(format!("cluster.local/ns/{namespace}/sa/{account}").into())
    };
    let asking = || principal(ASKING[0], ASKING[1]);
    let rule = |rule: u32| {
        let own = principal(&namespace(number), &format!("caller-{number}-{rule}"));
        let not = |principals: Vec<StringMatch>, port: u16| Match {
            not_principals: principals,
            not_destination_ports: vec![port],
            ..Match::default()
        };
        let matches = match rules {
            Rules::Principal => vec![Match { principals: vec![own], ..Match::default() }],
            Rules::Not if rule.is_multiple_of(2) => vec![not(vec![own, asking()], 9090)],
            Rules::Not => vec![not(vec![own], ASKED_PORT)],
            Rules::NotInAlternatives => vec![not(vec![own.clone(), asking()], 9090), not(vec![own], ASKED_PORT)],
        };
        Rule { clauses: vec![Clause { matches }] }
    };
    let namespace = namespace(number);
    Policy {
        key: PolicyKey::new(&namespace, &format!("allow-{number}")),
        namespace: namespace.into(),
        scope,
        action: Action::Allow,
        rules: (0..10).map(rule).collect(),
        dry_run: false,
    }
}
