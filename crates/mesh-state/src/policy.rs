//! An authorization policy as the control plane describes it. What it decides is [`crate::rbac`]'s.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ipnet::IpNet;

use crate::name::PolicyKey;

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its key.
    pub key: PolicyKey,
    /// Its namespace: whose workloads it is for when its scope is [`PolicyScope::Namespace`].
    pub namespace: Arc<str>,
    /// Which workloads it is for.
    pub scope: PolicyScope,
    /// What it does to connections it matches.
    pub action: Action,
    /// It matches when one of these does; so never when there are none.
    pub rules: Vec<Rule>,
    /// Report what it would do instead of doing it.
    pub dry_run: bool,
}

/// Which workloads a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// All.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those that name it among their `authorization_policies`.
    WorkloadSelector,
}

/// What a policy does to connections it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allows them, and by being there refuses those that no allow policy matches.
    Allow,
    /// Refuses them.
    Deny,
}

/// Matches when all clauses do; so always when there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// Matches when one of its matches does, or when it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// Matches when every populated field does; so never when none is. Values within a field are alternatives, and a `not_`
/// field matches when none of its values does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The namespace of the peer's identity; empty without identity.
    pub namespaces: Vec<StringMatch>,
    /// Not these.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity without `spiffe://`. Without identity no value matches.
    pub principals: Vec<StringMatch>,
    /// Not these: so true of every plaintext connection.
    pub not_principals: Vec<StringMatch>,
    /// The peer's address.
    pub source_ips: Vec<IpNet>,
    /// Not these.
    pub not_source_ips: Vec<IpNet>,
    /// The address the application is reached at.
    pub destination_ips: Vec<IpNet>,
    /// Not these.
    pub not_destination_ips: Vec<IpNet>,
    /// The port the application is reached at, never a tunnel's.
    pub destination_ports: Vec<u16>,
    /// Not these.
    pub not_destination_ports: Vec<u16>,
    /// The peer's namespace and service account, in whatever trust domain. Without identity no value matches.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Conditions that could not be read: a malformed CIDR, a string match of no known kind, a port beyond 65535. They
    /// count as a populated field that fails closed: it matches everything in a deny policy and nothing in an allow
    /// policy. (The reference drops such values, which can turn a narrow allow into a wide one.) Whoever fills this in
    /// leaves the field that held the value empty.
    pub unreadable: Vec<Arc<str>>,
}

/// A condition on a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// The text is this.
    Exact(Arc<str>),
    /// The text starts with this.
    Prefix(Arc<str>),
    /// The text ends with this.
    Suffix(Arc<str>),
    /// The text is not empty.
    Presence,
}

/// A condition on a service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service_account: Arc<str>,
}
