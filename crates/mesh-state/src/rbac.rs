//! Whether policy allows a connection (behaviour §7). Knows nothing of tunnels: it is asked about a peer and a target.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;

use crate::identity::Identity;
use crate::name::PolicyKey;
use crate::policy::{Action, Clause, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// A connection, as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Whom it is for.
    pub workload: &'a Workload,
    /// Who it is from, as proved by TLS; `None` for plaintext.
    pub identity: Option<&'a Identity>,
    /// Where it is from.
    pub peer: IpAddr,
    /// Where the application is reached: never a tunnel's address.
    pub target: SocketAddr,
}

/// What policy says of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What holds.
    pub decision: Result<Allowance, Denial>,
    /// What dry-run policies would have added.
    pub dry_run: Vec<DryRun>,
}

/// Why a connection is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// No allow policy is for this workload, so whatever is not denied is allowed.
    NoAllowPolicies,
    /// An allow policy matches.
    Matched(Deciding),
}

/// The policy that decided, and which of its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deciding {
    /// The policy.
    pub policy: PolicyKey,
    /// The position of the rule in the policy.
    pub rule: usize,
}

/// Why a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// A deny policy matches.
    #[error("explicitly denied by: {}", .0.policy)]
    Explicit(Deciding),
    /// Allow policies are for this workload, and none matches.
    #[error("allow policies exist, but none allowed")]
    NoneAllowed,
    /// A policy is attached to the workload that nobody has sent, or that could not be read.
    #[error(
        "unknown policy attached to the workload: {0}; the control plane has not sent it, or it was rejected as invalid"
    )]
    UnknownPolicy(PolicyKey),
}

/// What a dry-run policy would have done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DryRun {
    /// A deny policy would have denied.
    #[error("dry-run: would be explicitly denied by: {}", .0.policy)]
    Denied(Deciding),
    /// An allow policy would have allowed.
    #[error("dry-run: would be allowed by: {}", .0.policy)]
    Allowed(Deciding),
    /// The only allow policies are dry-run ones, and none matches.
    #[error("dry-run: no allow policies match")]
    NoneAllowed,
}

/// Decides a connection, in the order of §7.2.
///
/// A policy attached by name that is not known denies: the reference skips it and lets in what it should have stopped,
/// which with STRICT mutual TLS (itself such a policy) is all plaintext.
pub fn evaluate(snapshot: &Snapshot, query: &Query<'_>) -> Verdict {
    let mut dry_run = Vec::new();
    let mut denied = None;
    for policy in selecting(snapshot, query.workload, Action::Deny) {
        let Some(deciding) = matching(policy, query) else {
            continue;
        };
        if policy.dry_run {
            dry_run.push(DryRun::Denied(deciding));
        } else if denied.is_none() {
            denied = Some(Denial::Explicit(deciding));
        }
    }
    let denied = denied.or_else(|| unknown(snapshot, query.workload).map(Denial::UnknownPolicy));
    if let Some(denial) = denied {
        return Verdict { decision: Err(denial), dry_run };
    }

    let mut matched = None;
    let mut refuses_others = false;
    let mut refuses_others_dry = false;
    for policy in selecting(snapshot, query.workload, Action::Allow) {
        if policy.dry_run {
            refuses_others_dry = true;
            dry_run.extend(matching(policy, query).map(DryRun::Allowed));
        } else if matched.is_none() {
            refuses_others = true;
            matched = matching(policy, query);
        }
    }
    let allowed_dry = dry_run.iter().any(|report| matches!(report, DryRun::Allowed(_)));
    if refuses_others_dry && !allowed_dry && !refuses_others {
        dry_run.push(DryRun::NoneAllowed);
    }
    let decision = match matched {
        Some(deciding) => Ok(Allowance::Matched(deciding)),
        None if refuses_others => Err(Denial::NoneAllowed),
        None => Ok(Allowance::NoAllowPolicies),
    };
    Verdict { decision, dry_run }
}

/// The policies for a workload (§7.1): the mesh's, its namespace's, those attached to it. A policy both attached and in
/// scope comes once.
fn selecting<'a>(
    snapshot: &'a Snapshot,
    workload: &'a Workload,
    action: Action,
) -> impl Iterator<Item = &'a Arc<Policy>> {
    let attached = workload.authorization_policies.iter().filter_map(|key| snapshot.policy(key));
    let attached = attached.filter(|policy| match policy.scope {
        PolicyScope::Global => false,
        PolicyScope::Namespace => policy.namespace != workload.namespace,
        PolicyScope::WorkloadSelector => true,
    });
    let in_scope = snapshot.global_policies().iter().chain(snapshot.namespace_policies(&workload.namespace));
    in_scope.chain(attached).filter(move |policy| policy.action == action)
}

fn unknown(snapshot: &Snapshot, workload: &Workload) -> Option<PolicyKey> {
    workload.authorization_policies.iter().find(|key| snapshot.policy(key).is_none()).cloned()
}

/// The first rule of a policy that matches: all its clauses must, and in each clause one match.
fn matching(policy: &Policy, query: &Query<'_>) -> Option<Deciding> {
    let holds = |clause: &Clause| {
        clause.matches.is_empty() || clause.matches.iter().any(|condition| satisfied(condition, query, policy.action))
    };
    let rule = policy.rules.iter().position(|rule| rule.clauses.iter().all(holds))?;
    Some(Deciding { policy: policy.key.clone(), rule })
}

/// Whether every populated field of a match holds, and there is one.
fn satisfied(condition: &Match, query: &Query<'_>, action: Action) -> bool {
    // Taken apart in full, so that a field added to the type cannot be forgotten here.
    let Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
        unreadable,
    } = condition;

    let namespace = |value: &StringMatch| text_matches(value, query.identity.map_or("", Identity::namespace));
    let principal =
        |value: &StringMatch| query.identity.is_some_and(|identity| text_matches(value, identity.principal()));
    let source = |value: &IpNet| covers(value, query.peer);
    let destination = |value: &IpNet| covers(value, query.target.ip());
    let port = |value: &u16| *value == query.target.port();
    let account = |value: &ServiceAccountMatch| {
        query.identity.is_some_and(|identity| {
            identity.namespace() == &*value.namespace && identity.service_account() == &*value.service_account
        })
    };

    let mut populated = false;
    let mut field = |is_empty: bool, holds: &dyn Fn() -> bool| {
        populated |= !is_empty;
        is_empty || holds()
    };
    field(namespaces.is_empty(), &|| namespaces.iter().any(namespace))
        && field(not_namespaces.is_empty(), &|| !not_namespaces.iter().any(namespace))
        && field(principals.is_empty(), &|| principals.iter().any(principal))
        && field(not_principals.is_empty(), &|| !not_principals.iter().any(principal))
        && field(source_ips.is_empty(), &|| source_ips.iter().any(source))
        && field(not_source_ips.is_empty(), &|| !not_source_ips.iter().any(source))
        && field(destination_ips.is_empty(), &|| destination_ips.iter().any(destination))
        && field(not_destination_ips.is_empty(), &|| !not_destination_ips.iter().any(destination))
        && field(destination_ports.is_empty(), &|| destination_ports.iter().any(port))
        && field(not_destination_ports.is_empty(), &|| !not_destination_ports.iter().any(port))
        && field(service_accounts.is_empty(), &|| service_accounts.iter().any(account))
        && field(not_service_accounts.is_empty(), &|| !not_service_accounts.iter().any(account))
        && field(unreadable.is_empty(), &|| action == Action::Deny)
        && populated
}

fn text_matches(value: &StringMatch, text: &str) -> bool {
    match value {
        StringMatch::Exact(exact) => text == &**exact,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence => !text.is_empty(),
    }
}

/// Whether a block has an address. A block of IPv4-mapped addresses is the IPv4 block it means, since addresses arrive here
/// as IPv4 (§3.4); otherwise a deny policy written that way would deny nothing.
fn covers(block: &IpNet, address: IpAddr) -> bool {
    const MAPPED_PREFIX_LEN: u8 = 96;
    match (block, address.to_canonical()) {
        (IpNet::V6(block), IpAddr::V4(address)) => {
            block.prefix_len() >= MAPPED_PREFIX_LEN && block.contains(&address.to_ipv6_mapped())
        }
        (block, address) => block.contains(&address),
    }
}
