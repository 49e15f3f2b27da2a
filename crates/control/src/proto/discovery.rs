//! Delta discovery, package `envoy.service.discovery.v3`: how resources are asked for, sent and answered.

use std::collections::BTreeMap;

use prost::Message;

use super::well_known::{Any, Status, Struct};

/// The path of the stream.
pub const DELTA_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// What a client asks or answers.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaDiscoveryRequest {
    /// Who asks. In the first request of a stream for a type, and then no more.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Of which type.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Further names that are wanted; nothing said in the first request is everything.
    #[prost(string, repeated, tag = "3")]
    pub subscribe: Vec<String>,
    /// Names that are wanted no more.
    #[prost(string, repeated, tag = "4")]
    pub unsubscribe: Vec<String>,
    /// What the client has already, name and version. In the first request of a stream only.
    #[prost(btree_map = "string, string", tag = "5")]
    pub initial_resource_versions: BTreeMap<String, String>,
    /// Which response this answers; empty when it answers none.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why the response, or a part of it, was refused.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// What a server sends.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaDiscoveryResponse {
    /// For people.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// What is new or different.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Of which type.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be echoed.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of what is gone.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// One thing, with its name and version.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// Of which content this is; empty when the server does not say.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The thing.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names by which it can be asked for.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}

/// Who asks.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// `ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.cluster.local`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What else there is to say.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}
