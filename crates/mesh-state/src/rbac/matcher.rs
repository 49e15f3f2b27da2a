//! One policy made ready to be asked: only its populated conditions, each in the form it is compared in. Which of many
//! policies to ask is [`super::index`]'s.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::{IpAddr, SocketAddr};
use core::ops::Deref;

use ipnet::IpNet;

use crate::cidr::canonical;
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

/// A policy and those of its rules that can match at all, all in one piece: thousands may have to be asked, and each step
/// from one allocation to the next is a miss of the cache.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) policy: Arc<Policy>,
    rules: Box<[Span]>,
    /// Rule after rule, clause after clause, match after match. Clauses that always hold are left out, and so are matches that
    /// never do.
    conditions: Box<[Condition]>,
}

/// Which conditions are a rule.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Its place among the policy's rules, by which a verdict names it.
    position: u32,
    from: u32,
    to: u32,
}

/// A rule that can match.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    compiled: Arc<Compiled>,
    /// Its place among `compiled.rules`.
    at: u32,
    /// Where [`super::always`] has it, if it does.
    slot: u32,
}

/// A populated field: one of its values holds, or none when it is a `not_` field.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) values: Values,
    pub(super) negated: bool,
    ends: Ends,
}

/// What a condition is the last of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Nothing,
    Match,
    Clause,
}

/// The values of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Values {
    Namespaces(Few<StringMatch>),
    Principals(Few<StringMatch>),
    Accounts(Few<ServiceAccountMatch>),
    Sources(Few<IpNet>),
    Destinations(Few<IpNet>),
    Ports(Few<u16>),
}

/// One in place, or several elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Few<T> {
    One([T; 1]),
    Many(Box<[T]>),
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let values: Vec<T> = values.into_iter().collect();
        match <[T; 1]>::try_from(values) {
            Ok(one) => Self::One(one),
            Err(many) => Self::Many(many.into()),
        }
    }
}

impl Compiled {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        let mut rules = Vec::with_capacity(policy.rules.len());
        let mut conditions: Vec<Condition> = Vec::new();
        let in_memory = |count: usize| u32::try_from(count).expect("a policy has far fewer than 4 billion conditions");
        'rules: for (position, rule) in policy.rules.iter().enumerate() {
            let from = conditions.len();
            for clause in &rule.clauses {
                match compile_clause(&clause.matches, policy.action) {
                    Meaning::Always => {}
                    Meaning::When(clause) => conditions.extend(clause),
                    Meaning::Never => {
                        conditions.truncate(from);
                        continue 'rules;
                    }
                }
            }
            let (from, to) = (in_memory(from), in_memory(conditions.len()));
            rules.push(Span { position: in_memory(position), from, to });
        }
        Self { policy, rules: rules.into(), conditions: conditions.into() }
    }

    /// The first rule that matches.
    pub(super) fn matching(&self, facts: &Facts<'_>) -> Option<Deciding> {
        let rule = self.rules.iter().find(|rule| hold(self.conditions_of(**rule), facts))?;
        Some(self.deciding(*rule))
    }

    /// The rules one by one.
    pub(super) fn entries(self: &Arc<Self>) -> impl Iterator<Item = Entry> {
        (0..).zip(&self.rules).map(|(at, _)| Entry { compiled: self.clone(), at, slot: 0 })
    }

    fn conditions_of(&self, rule: Span) -> &[Condition] {
        &self.conditions[rule.from as usize..rule.to as usize]
    }

    fn deciding(&self, rule: Span) -> Deciding {
        Deciding { policy: self.policy.key.clone(), rule: rule.position as usize }
    }
}

impl Entry {
    pub(super) fn policy(&self) -> &Arc<Compiled> {
        &self.compiled
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot
    }

    pub(super) fn in_slot(&self, slot: u32) -> Self {
        Self { slot, ..self.clone() }
    }

    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        hold(self.compiled.conditions_of(self.span()), facts)
    }

    /// How a verdict names it.
    pub(super) fn deciding(&self) -> Deciding {
        self.compiled.deciding(self.span())
    }

    /// Whether both are of one policy.
    pub(super) fn is_sibling_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.compiled, &other.compiled)
    }

    /// The order in which a verdict prefers whom to name.
    pub(super) fn precedence(&self, other: &Self) -> Ordering {
        self.compiled.policy.key.cmp(&other.compiled.policy.key).then(self.at.cmp(&other.at))
    }

    /// The clauses, each of its matches, each of its conditions; none of them is empty.
    pub(super) fn clauses(&self) -> impl Iterator<Item = &[Condition]> {
        let conditions = self.compiled.conditions_of(self.span());
        conditions.split_inclusive(|condition| condition.ends == Ends::Clause)
    }

    fn span(&self) -> Span {
        self.compiled.rules[self.at as usize]
    }
}

/// Whether in every clause every condition of some match holds.
fn hold(conditions: &[Condition], facts: &Facts<'_>) -> bool {
    let mut clause_holds = false;
    let mut match_holds = true;
    for condition in conditions {
        match_holds = match_holds && (clause_holds || condition.holds(facts));
        if condition.ends != Ends::Nothing {
            clause_holds |= match_holds;
            match_holds = true;
        }
        if condition.ends == Ends::Clause {
            if !clause_holds {
                return false;
            }
            clause_holds = false;
        }
    }
    true
}

/// The matches of a clause.
pub(super) fn matches_of(clause: &[Condition]) -> impl Iterator<Item = &[Condition]> {
    clause.split_inclusive(|condition| condition.ends != Ends::Nothing)
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        self.values.any_holds(facts) != self.negated
    }
}

impl Values {
    /// Whether one of them does.
    pub(super) fn any_holds(&self, facts: &Facts<'_>) -> bool {
        let identity = facts.identity;
        match self {
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
        }
    }

    /// Each of them alone.
    pub(super) fn each(&self) -> Vec<Self> {
        fn alone<T: Clone>(values: &Few<T>, of: fn(Few<T>) -> Values) -> Vec<Values> {
            values.iter().map(|value| of(Few::One([value.clone()]))).collect()
        }
        match self {
            Values::Namespaces(values) => alone(values, Values::Namespaces),
            Values::Principals(values) => alone(values, Values::Principals),
            Values::Accounts(values) => alone(values, Values::Accounts),
            Values::Sources(values) => alone(values, Values::Sources),
            Values::Destinations(values) => alone(values, Values::Destinations),
            Values::Ports(values) => alone(values, Values::Ports),
        }
    }
}

/// What is left of a clause or match.
enum Meaning<T> {
    Always,
    Never,
    When(T),
}

fn compile_clause(matches: &[Match], action: Action) -> Meaning<Vec<Condition>> {
    if matches.is_empty() {
        return Meaning::Always;
    }
    let mut compiled: Vec<Condition> = Vec::new();
    for condition in matches {
        match compile_match(condition, action) {
            Meaning::Always => return Meaning::Always,
            Meaning::Never => {}
            Meaning::When(conditions) => compiled.extend(conditions),
        }
    }
    match compiled.last_mut() {
        None => Meaning::Never,
        Some(last) => {
            last.ends = Ends::Clause;
            Meaning::When(compiled)
        }
    }
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
            conditions.push(Condition { values, negated, ends: Ends::Nothing });
        }
    };
    // Cheap and telling ones first.
    for (ports, negated) in [(destination_ports, false), (not_destination_ports, true)] {
        field(Values::Ports(ports.iter().cloned().collect()), ports.is_empty(), negated);
    }
    for (accounts, negated) in [(service_accounts, false), (not_service_accounts, true)] {
        field(Values::Accounts(accounts.iter().cloned().collect()), accounts.is_empty(), negated);
    }
    for (texts, negated) in [(principals, false), (not_principals, true)] {
        field(Values::Principals(texts.iter().cloned().collect()), texts.is_empty(), negated);
    }
    for (texts, negated) in [(namespaces, false), (not_namespaces, true)] {
        field(Values::Namespaces(texts.iter().cloned().collect()), texts.is_empty(), negated);
    }
    for (blocks, negated) in [(source_ips, false), (not_source_ips, true)] {
        field(Values::Sources(blocks.iter().map(canonical).collect()), blocks.is_empty(), negated);
    }
    for (blocks, negated) in [(destination_ips, false), (not_destination_ips, true)] {
        field(Values::Destinations(blocks.iter().map(canonical).collect()), blocks.is_empty(), negated);
    }
    match conditions.last_mut() {
        Some(last) => {
            last.ends = Ends::Match;
            Meaning::When(conditions)
        }
        None if unreadable.is_empty() => Meaning::Never,
        None => Meaning::Always,
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
