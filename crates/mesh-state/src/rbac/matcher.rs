//! One policy made ready to be asked: only its populated conditions, each in the form it is compared in. Which of many
//! policies to ask is [`super::index`]'s.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use crate::identity::Identity;
use crate::policy::{Action, Match, Policy, ServiceAccountMatch, StringMatch};

use super::{Deciding, Query};

/// What conditions are asked about, with addresses in the form that blocks have here.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) identity: Option<&'a Identity>,
    pub(super) peer: IpAddr,
    pub(super) target: SocketAddr,
}

impl<'a> Facts<'a> {
    pub(super) fn of(query: &Query<'a>) -> Self {
        let target = SocketAddr::new(query.target.ip().to_canonical(), query.target.port());
        Self { identity: query.identity, peer: query.peer.to_canonical(), target }
    }

    /// The namespace of the peer: plaintext has the empty one.
    pub(super) fn namespace(&self) -> &'a str {
        self.identity.map_or("", Identity::namespace)
    }
}

/// A policy and those of its rules that can match at all.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) policy: Arc<Policy>,
    pub(super) rules: Box<[CompiledRule]>,
}

/// Matches when all clauses do, so always when there are none: those that always match are left out.
#[derive(Debug)]
pub(super) struct CompiledRule {
    /// Its place among the policy's rules, by which a verdict names it.
    position: usize,
    pub(super) clauses: Box<[CompiledClause]>,
}

/// Matches when one of its matches does. Has at least one, and none of them is empty.
#[derive(Debug)]
pub(super) struct CompiledClause {
    pub(super) matches: Box<[Conditions]>,
}

/// Holds when all of them do. Has at least one.
pub(super) type Conditions = Box<[Condition]>;

/// A populated field: one of its values holds, or none when it is a `not_` field.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) values: Values,
    pub(super) negated: bool,
}

/// The values of a field.
#[derive(Debug)]
pub(super) enum Values {
    Namespaces(Box<[StringMatch]>),
    Principals(Box<[StringMatch]>),
    Accounts(Box<[ServiceAccountMatch]>),
    Sources(Box<[IpNet]>),
    Destinations(Box<[IpNet]>),
    Ports(Box<[u16]>),
}

impl Compiled {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        let rules = policy.rules.iter().enumerate().filter_map(|(position, rule)| {
            let mut clauses = Vec::with_capacity(rule.clauses.len());
            for clause in &rule.clauses {
                match compile_clause(&clause.matches, policy.action) {
                    Meaning::Always => {}
                    Meaning::Never => return None,
                    Meaning::When(matches) => clauses.push(CompiledClause { matches: matches.into() }),
                }
            }
            Some(CompiledRule { position, clauses: clauses.into() })
        });
        let rules = rules.collect();
        Self { policy, rules }
    }

    /// The first rule that matches.
    pub(super) fn matching(&self, facts: &Facts<'_>) -> Option<Deciding> {
        let rule = self.rules.iter().position(|rule| rule.matches(facts))?;
        Some(self.deciding(rule))
    }

    /// How a verdict names one of `rules`.
    pub(super) fn deciding(&self, rule: usize) -> Deciding {
        Deciding { policy: self.policy.key.clone(), rule: self.rules[rule].position }
    }
}

impl CompiledRule {
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        let holds = |conditions: &Conditions| conditions.iter().all(|condition| condition.holds(facts));
        self.clauses.iter().all(|clause| clause.matches.iter().any(holds))
    }
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let identity = facts.identity;
        let any = match &self.values {
            Values::Namespaces(values) => values.iter().any(|value| text_matches(value, facts.namespace())),
            Values::Principals(values) => {
                identity.is_some_and(|identity| values.iter().any(|value| text_matches(value, identity.principal())))
            }
            Values::Accounts(values) => identity.is_some_and(|identity| {
                let is_it = |value: &ServiceAccountMatch| {
                    *value.namespace == *identity.namespace() && *value.service_account == *identity.service_account()
                };
                values.iter().any(is_it)
            }),
            Values::Sources(values) => values.iter().any(|block| block.contains(&facts.peer)),
            Values::Destinations(values) => values.iter().any(|block| block.contains(&facts.target.ip())),
            Values::Ports(values) => values.contains(&facts.target.port()),
        };
        any != self.negated
    }
}

/// What is left of a clause or match.
enum Meaning<T> {
    Always,
    Never,
    When(T),
}

fn compile_clause(matches: &[Match], action: Action) -> Meaning<Vec<Conditions>> {
    if matches.is_empty() {
        return Meaning::Always;
    }
    let mut compiled = Vec::with_capacity(matches.len());
    for condition in matches {
        match compile_match(condition, action) {
            Meaning::Always => return Meaning::Always,
            Meaning::Never => {}
            Meaning::When(conditions) => compiled.push(conditions.into()),
        }
    }
    if compiled.is_empty() { Meaning::Never } else { Meaning::When(compiled) }
}

fn compile_match(condition: &Match, action: Action) -> Meaning<Vec<Condition>> {
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
    // Fails closed: it refuses nobody too few, and lets in nobody too many.
    if !unreadable.is_empty() && action == Action::Allow {
        return Meaning::Never;
    }
    let mut conditions = Vec::new();
    let mut field = |values: Values, is_empty: bool, negated: bool| {
        if !is_empty {
            conditions.push(Condition { values, negated });
        }
    };
    // Cheap and telling ones first.
    for (ports, negated) in [(destination_ports, false), (not_destination_ports, true)] {
        field(Values::Ports(ports.as_slice().into()), ports.is_empty(), negated);
    }
    for (accounts, negated) in [(service_accounts, false), (not_service_accounts, true)] {
        field(Values::Accounts(accounts.as_slice().into()), accounts.is_empty(), negated);
    }
    for (texts, negated) in [(principals, false), (not_principals, true)] {
        field(Values::Principals(texts.as_slice().into()), texts.is_empty(), negated);
    }
    for (texts, negated) in [(namespaces, false), (not_namespaces, true)] {
        field(Values::Namespaces(texts.as_slice().into()), texts.is_empty(), negated);
    }
    for (blocks, negated) in [(source_ips, false), (not_source_ips, true)] {
        field(Values::Sources(blocks.iter().map(canonical).collect()), blocks.is_empty(), negated);
    }
    for (blocks, negated) in [(destination_ips, false), (not_destination_ips, true)] {
        field(Values::Destinations(blocks.iter().map(canonical).collect()), blocks.is_empty(), negated);
    }
    match (conditions.is_empty(), unreadable.is_empty()) {
        (false, _) => Meaning::When(conditions),
        (true, false) => Meaning::Always,
        (true, true) => Meaning::Never,
    }
}

fn text_matches(value: &StringMatch, text: &str) -> bool {
    match value {
        StringMatch::Exact(exact) => text == &**exact,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence => !text.is_empty(),
    }
}

/// A block of IPv4-mapped addresses is the IPv4 block it means, since addresses arrive here as IPv4 (§3.4); otherwise a
/// deny policy written that way would deny nothing.
fn canonical(block: &IpNet) -> IpNet {
    const MAPPED_PREFIX_LEN: u8 = 96;
    let block = block.trunc();
    let IpNet::V6(v6) = block else { return block };
    let (Some(address), Some(prefix_len)) =
        (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(MAPPED_PREFIX_LEN))
    else {
        return block;
    };
    Ipv4Net::new(address, prefix_len).map_or(block, IpNet::V4)
}
