//! The YAML of a mesh file, field by field. Names are camelCase, unknown ones are errors. Values with a form of their
//! own are read here, so that an error carries the place in the file.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_state::{
    name::{NamespacedHostname, NetworkId},
    workload::{GatewayAddress, GatewayDestination},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_saphyr::Spanned;

/// Each knows where in the file it begins, for what only shows when all is read.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mesh {
    #[serde(default)]
    pub(super) services: Vec<Spanned<Service>>,
    #[serde(default)]
    pub(super) workloads: Vec<Spanned<Workload>>,
    #[serde(default)]
    pub(super) policies: Vec<Spanned<Policy>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Workload {
    pub(super) uid: Option<String>,
    pub(super) name: Option<String>,
    pub(super) namespace: String,
    pub(super) trust_domain: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) workload_ips: Vec<Address>,
    #[serde(default)]
    pub(super) network: String,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) network_mode: NetworkMode,
    pub(super) waypoint: Option<Gateway>,
    pub(super) network_gateway: Option<Gateway>,
    #[serde(default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) canonical_name: String,
    #[serde(default)]
    pub(super) canonical_revision: String,
    #[serde(default)]
    pub(super) workload_name: String,
    #[serde(default)]
    pub(super) workload_type: WorkloadType,
    #[serde(default)]
    pub(super) hostname: String,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<String>,
    #[serde(default)]
    pub(super) status: Status,
    pub(super) cluster_id: Option<String>,
    #[serde(default)]
    pub(super) locality: Locality,
    pub(super) services: HashMap<ServiceKey, BTreeMap<u16, u16>>,
    #[serde(default = "one")]
    pub(super) capacity: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum WorkloadType {
    #[default]
    Deployment,
    CronJob,
    Pod,
    Job,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Locality {
    #[serde(default)]
    pub(super) region: String,
    #[serde(default)]
    pub(super) zone: String,
    #[serde(default)]
    pub(super) subzone: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ApplicationTunnel {
    pub(super) protocol: TunnelProtocol,
    pub(super) port: Option<u16>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum TunnelProtocol {
    None,
    Proxy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: String,
    pub(super) vips: Vec<Vip>,
    #[serde(default)]
    pub(super) cidr_vips: Vec<CidrVip>,
    pub(super) ports: BTreeMap<u16, u16>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<Spiffe>,
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<WeightedWaypoint>,
    pub(super) load_balancer: Option<LoadBalancer>,
    pub(super) ip_families: Option<IpFamilies>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: Visibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightedWaypoint {
    pub(super) destination: Gateway,
    pub(super) weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LoadBalancer {
    pub(super) routing_preferences: Vec<Scope>,
    pub(super) mode: Mode,
    pub(super) health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum Mode {
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum HealthPolicy {
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum IpFamilies {
    Dual,
    IPv4,
    IPv6,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) enum Visibility {
    #[default]
    Public,
    Namespace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) scope: PolicyScope,
    pub(super) action: Action,
    pub(super) rules: Vec<Vec<Vec<Match>>>,
    pub(super) dry_run: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Match {
    pub(super) namespaces: Vec<StringMatch>,
    pub(super) not_namespaces: Vec<StringMatch>,
    pub(super) principals: Vec<StringMatch>,
    pub(super) not_principals: Vec<StringMatch>,
    pub(super) service_accounts: Vec<ServiceAccount>,
    pub(super) not_service_accounts: Vec<ServiceAccount>,
    pub(super) source_ips: Vec<Cidr>,
    pub(super) not_source_ips: Vec<Cidr>,
    pub(super) destination_ips: Vec<Cidr>,
    pub(super) not_destination_ips: Vec<Cidr>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
pub(super) enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence(#[expect(dead_code, reason = "the reference writes an empty list there")] Vec<()>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ServiceAccount {
    pub(super) namespace: String,
    pub(super) service_account: String,
}

/// Reads a value with a form of its own from a string; the error names the form and the value.
macro_rules! read_from_text {
    ($($(#[$doc:meta])* $name:ident($inner:ty): $form:literal, $parse:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub(super) struct $name(pub(super) $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(&text).map(Self).map_err(|cause| D::Error::custom(format!("{text:?} is no {}: {cause}", $form)))
            }
        }
    )* };
}

read_from_text! {
    Address(IpAddr): "IP address", |text| text.parse().map_err(|error: std::net::AddrParseError| error.to_string());
    Cidr(IpNet): "CIDR block or IP address", cidr;
    Vip((NetworkId, IpNet)): "VIP of the form NETWORK/IP", |text| {
        let (network, address) = text.split_once('/').ok_or("there is no slash")?;
        let address: IpAddr = address.parse().map_err(|error: std::net::AddrParseError| error.to_string())?;
        Ok((NetworkId::from(network), IpNet::from(address)))
    };
    ServiceKey(NamespacedHostname): "service key of the form NAMESPACE/HOSTNAME", |text| {
        NamespacedHostname::parse(text).map_err(|error| error.to_string())
    };
    Spiffe(mesh_state::identity::Identity): "SPIFFE identity", |text| {
        mesh_state::identity::Identity::parse(text).map_err(|error| error.to_string())
    };
    Destination(GatewayDestination): "gateway destination of the form NETWORK/IP or NAMESPACE/HOSTNAME", destination;
}

fn cidr(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().map_err(|error| error.to_string()),
    }
}

/// `NETWORK/IP` when what follows the slash is an address, else `NAMESPACE/HOSTNAME`.
fn destination(text: &str) -> Result<GatewayDestination, String> {
    let (first, second) = text.split_once('/').ok_or("there is no slash")?;
    match second.parse::<IpAddr>() {
        Ok(address) => Ok(GatewayDestination::Address { network: NetworkId::from(first), address }),
        Err(_) => NamespacedHostname::parse(text).map(GatewayDestination::Hostname).map_err(|error| error.to_string()),
    }
}

/// A VIP that is a block of addresses.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CidrVip {
    #[serde(default)]
    pub(super) network: String,
    pub(super) cidr: Cidr,
}

/// Where a waypoint or gateway is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Gateway {
    destination: Destination,
    hbone_mtls_port: u16,
}

impl Gateway {
    pub(super) fn address(self) -> GatewayAddress {
        GatewayAddress { destination: self.destination.0, hbone_port: self.hbone_mtls_port }
    }
}
