//! Workloads and services, package `istio.workload`. Their meaning is `mesh_state`'s.

use std::collections::HashMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

/// A workload or a service: what [`super::discovery::ADDRESS_TYPE`] carries.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    /// Which.
    #[prost(oneof = "Kind", tags = "1, 2")]
    pub kind: Option<Kind>,
}

/// What an address can be.
#[derive(Clone, PartialEq, Oneof)]
pub enum Kind {
    /// A workload.
    #[prost(message, tag = "1")]
    Workload(Box<Workload>),
    /// A service.
    #[prost(message, tag = "2")]
    Service(Box<Service>),
}

/// A pod, a machine, a waypoint.
#[derive(Clone, PartialEq, Message)]
pub struct Workload {
    /// A pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// 4 or 16 bytes each.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    /// The network of the addresses.
    #[prost(string, tag = "4")]
    pub network: String,
    /// A [`TunnelProtocol`].
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    /// Empty is `cluster.local`.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// Empty is `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// The waypoint before it.
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    /// Its node.
    #[prost(string, tag = "9")]
    pub node: String,
    /// The name of its service in telemetry.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// The name of its version in telemetry.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// A [`WorkloadType`].
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// Its owner's name.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// It terminates HBONE itself.
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    /// `NAMESPACE/NAME` of policies attached to it.
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    /// A [`WorkloadStatus`].
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    pub status: i32,
    /// Its cluster.
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    /// The gateway of its network.
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    /// Its key.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// To be resolved where it has no addresses.
    #[prost(string, tag = "21")]
    pub hostname: String,
    /// `NAMESPACE/HOSTNAME` of the services it serves, each with its ports.
    #[prost(map = "string, message", tag = "22")]
    pub services: HashMap<String, PortList>,
    /// How its application wants tunnelled traffic.
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it is.
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    /// A [`NetworkMode`].
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    /// Its weight (a `google.protobuf.UInt32Value`); nothing is 1.
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<u32>,
}

/// A service. Its key is its namespace and hostname.
#[derive(Clone, PartialEq, Message)]
pub struct Service {
    /// Its short name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Who defines it.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its full name.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Its virtual addresses, or blocks of them.
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    /// Its ports.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    /// SPIFFE identities its endpoints may have beside their own.
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    /// The waypoint before it.
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    /// How an endpoint is chosen.
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    /// An [`IpFamilies`].
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    /// Preferred among those of the same hostname.
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    /// Waypoints that share its traffic.
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// A [`Visibility`].
    #[prost(enumeration = "Visibility", tag = "14")]
    pub visibility: i32,
}

/// Where a waypoint or gateway is.
#[derive(Clone, PartialEq, Message)]
pub struct GatewayAddress {
    /// What it refers to.
    #[prost(oneof = "Destination", tags = "1, 2")]
    pub destination: Option<Destination>,
    /// Its HBONE port.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// What a gateway reference refers to.
#[derive(Clone, PartialEq, Oneof)]
pub enum Destination {
    /// A service, or a workload by its hostname.
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    /// An address.
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

/// A name and who defines it.
#[derive(Clone, PartialEq, Message)]
pub struct NamespacedHostname {
    /// Who defines it.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The name.
    #[prost(string, tag = "2")]
    pub hostname: String,
}

/// An address of a network.
#[derive(Clone, PartialEq, Message)]
pub struct NetworkAddress {
    /// The network.
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// The prefix's length, where it is a block.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

/// One of the waypoints that share a service's traffic.
#[derive(Clone, PartialEq, Message)]
pub struct WeightedWaypoint {
    /// The waypoint.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Its share.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// A port of a service and what is behind it.
#[derive(Clone, PartialEq, Message)]
pub struct Port {
    /// The service's.
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    /// The endpoint's; 0 when it is not said.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
}

/// Ports, as a map's value.
#[derive(Clone, PartialEq, Message)]
pub struct PortList {
    /// The ports.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

/// Where a workload is.
#[derive(Clone, PartialEq, Message)]
pub struct Locality {
    /// The region.
    #[prost(string, tag = "1")]
    pub region: String,
    /// The zone.
    #[prost(string, tag = "2")]
    pub zone: String,
    /// A part of the zone.
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// How an application wants tunnelled traffic.
#[derive(Clone, PartialEq, Message)]
pub struct ApplicationTunnel {
    /// A [`ApplicationProtocol`].
    #[prost(enumeration = "ApplicationProtocol", tag = "1")]
    pub protocol: i32,
    /// The port that takes all of it; 0 is the one asked for.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// How an endpoint is chosen.
#[derive(Clone, PartialEq, Message)]
pub struct LoadBalancing {
    /// [`Scope`]s, most important first.
    #[prost(enumeration = "Scope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// A [`Mode`].
    #[prost(enumeration = "Mode", tag = "2")]
    pub mode: i32,
    /// A [`HealthPolicy`].
    #[prost(enumeration = "HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

/// How a workload is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum TunnelProtocol {
    /// Plain TCP.
    None = 0,
    /// HBONE.
    Hbone = 1,
    /// What sidecars speak. Not spoken here.
    LegacyIstioMtls = 2,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum NetworkMode {
    /// Its own.
    Standard = 0,
    /// Its node's.
    HostNetwork = 1,
}

/// Whether a workload is fit to be an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum WorkloadStatus {
    /// It is.
    Healthy = 0,
    /// It is not.
    Unhealthy = 1,
}

/// What kind of owner a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum WorkloadType {
    /// A Deployment, or anything else.
    Deployment = 0,
    /// A CronJob.
    CronJob = 1,
    /// None.
    Pod = 2,
    /// A Job.
    Job = 3,
}

/// Which addresses of its endpoints a service uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum IpFamilies {
    /// All.
    Automatic = 0,
    /// IPv4 ones.
    Ipv4Only = 1,
    /// IPv6 ones.
    Ipv6Only = 2,
    /// All.
    Dual = 3,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Visibility {
    /// All.
    Public = 0,
    /// Its namespace.
    Namespace = 1,
}

/// What precedes the bytes delivered to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum ApplicationProtocol {
    /// Nothing.
    None = 0,
    /// A PROXY header.
    Proxy = 1,
}

/// What a client and an endpoint may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// Not said, which is refused.
    Unspecified = 0,
    /// The region.
    Region = 1,
    /// The zone.
    Zone = 2,
    /// The part of the zone.
    Subzone = 3,
    /// The node.
    Node = 4,
    /// The cluster.
    Cluster = 5,
    /// The network.
    Network = 6,
}

/// What the scopes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// Nothing.
    Unspecified = 0,
    /// Only endpoints that share all.
    Strict = 1,
    /// Those that share most.
    Failover = 2,
    /// No endpoint is chosen.
    Passthrough = 3,
}

/// Whether unhealthy endpoints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum HealthPolicy {
    /// They do not.
    OnlyHealthy = 0,
    /// They do.
    AllowAll = 1,
}
