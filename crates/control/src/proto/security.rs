//! Policies, package `istio.security`. Their meaning is `mesh_state`'s.

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

/// A policy: what [`super::discovery::AUTHORIZATION_TYPE`] carries.
#[derive(Clone, PartialEq, Message)]
pub struct Authorization {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// A [`Scope`].
    #[prost(enumeration = "Scope", tag = "3")]
    pub scope: i32,
    /// An [`Action`].
    #[prost(enumeration = "Action", tag = "4")]
    pub action: i32,
    /// It matches when one of these does.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    /// Report only.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
}

/// Matches when all clauses do.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    /// The clauses.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// Matches when one of its matches does. Its only field is number 2.
#[derive(Clone, PartialEq, Message)]
pub struct Clause {
    /// The matches.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// Matches when every field that is there does.
#[derive(Clone, PartialEq, Message)]
pub struct Match {
    /// The namespace of the peer's identity.
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    /// Not these.
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity.
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    /// Not these.
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    /// The peer's address.
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Block>,
    /// Not these.
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Block>,
    /// The application's address.
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Block>,
    /// Not these.
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Block>,
    /// The application's port.
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    /// Not these.
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    /// The peer's service account.
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not these.
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// A block of addresses; the package calls it `Address`.
#[derive(Clone, PartialEq, Message)]
pub struct Block {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// The prefix's length.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// A service account.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub service_account: String,
}

/// A condition on a text.
#[derive(Clone, PartialEq, Message)]
pub struct StringMatch {
    /// Which.
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

/// What a condition on a text can be.
#[derive(Clone, PartialEq, Oneof)]
pub enum MatchType {
    /// It is this.
    #[prost(string, tag = "1")]
    Exact(String),
    /// It starts with this.
    #[prost(string, tag = "2")]
    Prefix(String),
    /// It ends with this.
    #[prost(string, tag = "3")]
    Suffix(String),
    /// It is not empty.
    #[prost(message, tag = "4")]
    Presence(()),
}

/// Which workloads a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Scope {
    /// All.
    Global = 0,
    /// Those of its namespace.
    Namespace = 1,
    /// Those that name it.
    WorkloadSelector = 2,
}

/// What a policy does to what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Action {
    /// Allows it.
    Allow = 0,
    /// Refuses it.
    Deny = 1,
}
