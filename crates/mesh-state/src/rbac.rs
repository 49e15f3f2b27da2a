//! Whether policy allows a connection (behaviour §7). Knows nothing of tunnels: it is asked about a peer and a target.
//!
//! Two traps of the reference are not copied, both of which let in what policy should have stopped: a policy attached by a
//! name that nobody sent is skipped there, and a condition that cannot be read (a malformed block, say) is dropped, which
//! can make a narrow allow policy a wide one. Here the first denies, and the second matches everything in a deny policy and
//! nothing in an allow policy ([decision 0004](../../../docs/decisions/0004-fail-closed.md)).
//!
//! What an evaluation costs: a few lookups for the policies of the mesh and of the workload's namespace, however many there
//! are, as long as their rules name peers, ports or addresses; then each rule of the policies attached to the workload.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::identity::Identity;
use crate::name::PolicyKey;
use crate::policy::{Policy, PolicyScope};
use crate::snapshot::Snapshot;
use crate::workload::Workload;

use index::{Index, Role};
use matcher::Facts;

mod always;
mod index;
mod matcher;
pub(crate) mod policies;
mod posting;

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

/// Decides a connection, in the order of §7.2. Of several policies that decide alike it names the mesh's before the
/// namespace's before those attached to the workload, each in the order of their keys (attached ones: as attached).
///
/// A policy attached by name that is not known denies: the reference skips it and lets in what it should have stopped,
/// which with STRICT mutual TLS (itself such a policy) is all plaintext.
pub fn evaluate(snapshot: &Snapshot, query: &Query<'_>) -> Verdict {
    let facts = Facts::of(query);
    let policies = snapshot.compiled_policies();
    let scopes = [Some(policies.global()), policies.of_namespace(&query.workload.namespace)];
    let scopes = || scopes.into_iter().flatten();
    let attached = Attached::ask(snapshot, query.workload, &facts);
    let reported = |role| -> Vec<Deciding> { scopes().flat_map(|scope| scope.all(role, &facts)).collect() };
    let first = |role| scopes().find_map(|scope: &Index| scope.first(role, &facts));

    let mut dry_run: Vec<DryRun> = reported(Role::DenyDryRun).into_iter().map(DryRun::Denied).collect();
    dry_run.extend(attached.denied_dry.into_iter().map(DryRun::Denied));
    let denied = first(Role::Deny).or(attached.denied).map(Denial::Explicit);
    if let Some(denial) = denied.or(attached.unknown.map(Denial::UnknownPolicy)) {
        return Verdict { decision: Err(denial), dry_run };
    }

    let refuses_others = attached.has_allow || scopes().any(|scope| scope.has(Role::Allow));
    let refuses_others_dry = attached.has_allow_dry || scopes().any(|scope| scope.has(Role::AllowDryRun));
    let denials = dry_run.len();
    dry_run.extend(reported(Role::AllowDryRun).into_iter().map(DryRun::Allowed));
    dry_run.extend(attached.allowed_dry.into_iter().map(DryRun::Allowed));
    if refuses_others_dry && dry_run.len() == denials && !refuses_others {
        dry_run.push(DryRun::NoneAllowed);
    }
    let decision = match first(Role::Allow).or(attached.allowed) {
        Some(deciding) => Ok(Allowance::Matched(deciding)),
        None if refuses_others => Err(Denial::NoneAllowed),
        None => Ok(Allowance::NoAllowPolicies),
    };
    Verdict { decision, dry_run }
}

/// What the policies say that are for a workload because they are attached to it (§7.1), and for no other reason.
#[derive(Default)]
struct Attached {
    denied: Option<Deciding>,
    denied_dry: Vec<Deciding>,
    has_allow: bool,
    allowed: Option<Deciding>,
    has_allow_dry: bool,
    allowed_dry: Vec<Deciding>,
    unknown: Option<PolicyKey>,
}

impl Attached {
    fn ask(snapshot: &Snapshot, workload: &Workload, facts: &Facts<'_>) -> Self {
        let mut said = Self::default();
        for key in &workload.authorization_policies {
            let Some(compiled) = snapshot.compiled_policies().get(key) else {
                said.unknown.get_or_insert_with(|| key.clone());
                continue;
            };
            if is_in_scope(&compiled.policy, workload) {
                continue;
            }
            match Role::of(&compiled.policy) {
                Role::Deny if said.denied.is_none() => said.denied = compiled.matching(facts),
                Role::Deny => {}
                Role::DenyDryRun => said.denied_dry.extend(compiled.matching(facts)),
                Role::Allow => {
                    said.has_allow = true;
                    said.allowed = said.allowed.or_else(|| compiled.matching(facts));
                }
                Role::AllowDryRun => {
                    said.has_allow_dry = true;
                    said.allowed_dry.extend(compiled.matching(facts));
                }
            }
        }
        said
    }
}

/// Whether a policy is for a workload without being attached to it; such a policy counts once.
fn is_in_scope(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope {
        PolicyScope::Global => true,
        PolicyScope::Namespace => policy.namespace == workload.namespace,
        PolicyScope::WorkloadSelector => false,
    }
}
