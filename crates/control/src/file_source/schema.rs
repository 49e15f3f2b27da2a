//! The YAML file's shape, key by key. What a single value says is checked here, where its line is known; what values
//! say together is `convert`'s.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use mesh_state::{
    identity::Identity,
    name::{NamespacedHostname, PolicyKey},
};
use serde::Deserialize;
use serde_saphyr::Spanned;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) services: Vec<ServiceEntry>,
    pub(super) workloads: Vec<WorkloadEntry>,
    pub(super) policies: Vec<PolicyEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct WorkloadEntry {
    pub(super) uid: Option<Spanned<String>>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) namespace: Spanned<String>,
    pub(super) trust_domain: Option<Spanned<String>>,
    pub(super) service_account: Option<Spanned<String>>,
    pub(super) workload_ips: Vec<IpAddr>,
    #[serde(default)]
    pub(super) network: String,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) network_mode: NetworkMode,
    #[serde(default)]
    pub(super) status: Status,
    pub(super) waypoint: Option<Gateway>,
    pub(super) network_gateway: Option<Gateway>,
    #[serde(default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) canonical_name: String,
    #[serde(default)]
    pub(super) canonical_revision: String,
    #[serde(default)]
    pub(super) workload_type: WorkloadType,
    #[serde(default)]
    pub(super) workload_name: String,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    pub(super) cluster_id: Option<String>,
    #[serde(default)]
    pub(super) locality: Locality,
    #[serde(default)]
    pub(super) hostname: String,
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<PolicyName>,
    pub(super) services: BTreeMap<ServiceName, BTreeMap<Port, Port>>,
    pub(super) capacity: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ServiceEntry {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: Spanned<String>,
    pub(super) vips: Vec<NetworkBlock>,
    pub(super) ports: BTreeMap<Port, Port>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<SpiffeId>,
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<WeightedGateway>,
    pub(super) load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub(super) ip_families: IpFamilies,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: Visibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct PolicyEntry {
    pub(super) name: Spanned<String>,
    pub(super) namespace: String,
    pub(super) scope: PolicyScope,
    pub(super) action: Action,
    pub(super) dry_run: bool,
    pub(super) rules: Vec<Vec<Vec<Match>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Match {
    pub(super) namespaces: Vec<StringMatch>,
    pub(super) not_namespaces: Vec<StringMatch>,
    pub(super) principals: Vec<StringMatch>,
    pub(super) not_principals: Vec<StringMatch>,
    pub(super) source_ips: Vec<Block>,
    pub(super) not_source_ips: Vec<Block>,
    pub(super) destination_ips: Vec<Block>,
    pub(super) not_destination_ips: Vec<Block>,
    pub(super) destination_ports: Vec<Port>,
    pub(super) not_destination_ports: Vec<Port>,
    pub(super) service_accounts: Vec<ServiceAccount>,
    pub(super) not_service_accounts: Vec<ServiceAccount>,
}

#[derive(Debug, Deserialize)]
pub(super) enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ServiceAccount {
    pub(super) namespace: String,
    pub(super) service_account: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Action {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum WorkloadType {
    #[default]
    #[serde(alias = "deployment")]
    Deployment,
    #[serde(alias = "cronjob")]
    CronJob,
    #[serde(alias = "pod")]
    Pod,
    #[serde(alias = "job")]
    Job,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Locality {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) subzone: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ApplicationTunnel {
    pub(super) protocol: ApplicationProtocol,
    pub(super) port: Option<Port>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum ApplicationProtocol {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "PROXY")]
    Proxy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Gateway {
    pub(super) destination: GatewayName,
    pub(super) hbone_mtls_port: Port,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct WeightedGateway {
    pub(super) destination: GatewayName,
    pub(super) hbone_mtls_port: Port,
    pub(super) weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LoadBalancer {
    pub(super) mode: Mode,
    pub(super) routing_preferences: Vec<Scope>,
    pub(super) health_policy: HealthPolicy,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Mode {
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum HealthPolicy {
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum IpFamilies {
    #[default]
    Automatic,
    #[serde(rename = "IPv4")]
    Ipv4,
    #[serde(rename = "IPv6")]
    Ipv6,
    Dual,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) enum Visibility {
    #[default]
    Public,
    Namespace,
}

/// A port that exists: not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u16")]
pub(super) struct Port(pub(super) u16);

impl TryFrom<u16> for Port {
    type Error = &'static str;

    fn try_from(port: u16) -> Result<Self, Self::Error> {
        if port == 0 { Err("0 is no port") } else { Ok(Self(port)) }
    }
}

/// `network/address`, or `namespace/hostname`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum GatewayName {
    Address { network: String, address: IpAddr },
    Hostname(NamespacedHostname),
}

impl TryFrom<String> for GatewayName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if let Some((network, address)) = text.split_once('/')
            && let Ok(address) = address.parse()
        {
            return Ok(Self::Address { network: network.to_owned(), address });
        }
        NamespacedHostname::parse(&text)
            .map(Self::Hostname)
            .map_err(|_| format!("{text:?} is neither \"network/address\" nor \"namespace/hostname\""))
    }
}

/// `network/address`, where the address may be a block; the network may be empty.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct NetworkBlock {
    pub(super) network: String,
    pub(super) block: IpNet,
}

impl TryFrom<String> for NetworkBlock {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.split_once('/')
            .and_then(|(network, block)| Some(Self { network: network.to_owned(), block: block_of(block)? }))
            .ok_or_else(|| format!("{text:?} is no \"network/address\"; without a network write \"/10.0.0.1\""))
    }
}

/// An address or a block of them.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Block(pub(super) IpNet);

impl TryFrom<String> for Block {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        block_of(&text).map(Self).ok_or_else(|| format!("{text:?} is neither an address nor a block like 10.0.0.0/8"))
    }
}

fn block_of(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// `spiffe://trust-domain/ns/namespace/sa/service-account`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct SpiffeId(pub(super) Identity);

impl TryFrom<String> for SpiffeId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Identity::parse(&text).map(Self).map_err(|error| error.to_string())
    }
}

/// `namespace/hostname`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ServiceName(pub(super) NamespacedHostname);

impl TryFrom<String> for ServiceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        NamespacedHostname::parse(&text).map(Self).map_err(|error| error.to_string())
    }
}

/// `namespace/name`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct PolicyName(pub(super) PolicyKey);

impl TryFrom<String> for PolicyName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once('/') {
            Some((namespace, name)) if !name.is_empty() && !name.contains('/') => {
                Ok(Self(PolicyKey::new(namespace, name)))
            }
            _ => Err(format!("{text:?} is no \"namespace/name\" of a policy")),
        }
    }
}
