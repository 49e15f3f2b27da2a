//! Which rules of many policies can match a connection, without asking all of them.
//!
//! Each rule is filed under keys of which a connection that it matches has at least one: a principal, a namespace, a block,
//! a port. A connection is looked up by each kind of key in use, and the rules found are asked in full. So an evaluation
//! costs one lookup per kind and length in use, plus the rules that name something of the connection. Those that name nothing a
//! key can be made of (only `not_` fields, or nothing at all) are [`super::always`]'s.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::BuildHasher;
use core::net::IpAddr;

use hashbrown::DefaultHashBuilder;
use ipnet::IpNet;
use rpds::HashTrieMapSync;

use crate::identity::Identity;
use crate::policy::{Action, Policy, StringMatch};

use super::Deciding;
use super::always::{ALTERNATIVES_MAX, Always, Exclusion};
use super::matcher::{Compiled, Condition, Entry, Facts, Values, matches_of};
use super::posting::Posting;

/// The rules of the policies of one scope. Cheap to clone; clones share what they have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    // A key is held as its hash alone: when two collide, a rule is asked in vain.
    hasher: DefaultHashBuilder,
    postings: HashTrieMapSync<u64, Posting, DefaultHashBuilder>,
    /// The kinds of keys in use, sorted, with how many times each is. Some tens in a mesh of people: those of lengths that
    /// somebody writes. Only the policies' own texts bound them: 3,000 prefixes of 3,000 lengths are as many kinds, each looked
    /// up for a verdict.
    kinds: Arc<Vec<(Role, Kind, u32)>>,
    /// The rules under no key, by the role's number.
    always: Arc<[Always; 4]>,
    /// How many policies have each role, by the role's number.
    policies: [u32; 4],
}

/// What a policy does to whom it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    Deny,
    DenyDryRun,
    Allow,
    AllowDryRun,
}

impl Role {
    pub(super) fn of(policy: &Policy) -> Self {
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) => Self::Deny,
            (Action::Deny, true) => Self::DenyDryRun,
            (Action::Allow, false) => Self::Allow,
            (Action::Allow, true) => Self::AllowDryRun,
        }
    }
}

/// How a key is made of a connection. Lengths are in bytes of text and bits of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// The same for all without identity.
    Plaintext,
    /// The same for all with one.
    Identified,
    Principal,
    PrincipalPrefix(usize),
    PrincipalSuffix(usize),
    Namespace,
    NamespacePrefix(usize),
    NamespaceSuffix(usize),
    Account,
    Source {
        is_ipv4: bool,
        prefix_len: u8,
    },
    Destination {
        is_ipv4: bool,
        prefix_len: u8,
    },
    Port,
}

impl Index {
    pub(super) fn is_empty(&self) -> bool {
        self.policies == [0; 4]
    }

    /// Whether it is empty, and nothing is left of what was in it.
    pub(super) fn is_vacant(&self) -> bool {
        let nothing_filed = self.postings.is_empty() && self.kinds.is_empty();
        self.is_empty() && nothing_filed && self.always.iter().all(Always::is_empty)
    }

    /// Whether policies of this role are here, whatever they match.
    pub(super) fn has(&self, role: Role) -> bool {
        self.policies[role as usize] > 0
    }

    /// Files a policy that is not here yet.
    pub(super) fn insert(&mut self, compiled: &Arc<Compiled>) {
        let role = Role::of(&compiled.policy);
        self.policies[role as usize] += 1;
        for rule in compiled.entries() {
            let Some(keys) = self.keys(role, &rule) else {
                let (alternatives, exclusions) = self.exclusions(role, &rule);
                Arc::make_mut(&mut self.always)[role as usize].insert(&rule, alternatives, exclusions);
                continue;
            };
            for (kind, key) in keys {
                self.count(role, kind, 1);
                if let Some(posting) = self.postings.get_mut(&key) {
                    posting.insert(rule.clone());
                    continue;
                }
                let mut posting = Posting::default();
                posting.insert(rule.clone());
                self.postings.insert_mut(key, posting);
            }
        }
    }

    /// Takes out a policy that is here.
    pub(super) fn remove(&mut self, compiled: &Arc<Compiled>) {
        let role = Role::of(&compiled.policy);
        self.policies[role as usize] -= 1;
        for rule in compiled.entries() {
            let Some(keys) = self.keys(role, &rule) else {
                let (alternatives, exclusions) = self.exclusions(role, &rule);
                Arc::make_mut(&mut self.always)[role as usize].remove(&rule, alternatives, exclusions);
                continue;
            };
            for (kind, key) in keys {
                self.count(role, kind, -1);
                // Gone already when a rule names the same thing twice.
                let Some(posting) = self.postings.get_mut(&key) else { continue };
                posting.remove(&rule);
                if posting.is_empty() {
                    self.postings.remove_mut(&key);
                }
            }
        }
    }

    /// Of the rules of a role that match, the first in the order of their policies' keys.
    pub(super) fn first(&self, role: Role, facts: &Facts<'_>) -> Option<Deciding> {
        let mut first: Option<&Entry> = None;
        for posting in self.candidates(role, facts) {
            let before = |rule: &&Entry| first.is_none_or(|first| rule.precedence(first).is_lt());
            let found = posting.iter().take_while(before).find(|rule| rule.matches(facts));
            first = found.or(first);
        }
        let always = &self.always[role as usize];
        if !always.is_empty() {
            first = always.first(facts, first, |kind| self.key_of(role, kind, facts)).or(first);
        }
        first.map(|rule| rule.deciding())
    }

    /// Of each policy of a role, the first rule that matches, in the order of the policies' keys.
    pub(super) fn all(&self, role: Role, facts: &Facts<'_>) -> Vec<Deciding> {
        let mut found: Vec<&Entry> = Vec::new();
        for posting in self.candidates(role, facts) {
            found.extend(posting.iter().filter(|rule| rule.matches(facts)));
        }
        found.extend(self.always[role as usize].all(facts, |kind| self.key_of(role, kind, facts)));
        found.sort_by(|one, other| one.precedence(other));
        found.dedup_by(|one, other| one.is_sibling_of(other));
        found.into_iter().map(|rule| rule.deciding()).collect()
    }

    fn candidates<'s>(&'s self, role: Role, facts: &Facts<'_>) -> impl Iterator<Item = &'s Posting> {
        let from = self.kinds.partition_point(|(held, ..)| *held < role);
        let of_role = self.kinds[from..].iter().take_while(move |(held, ..)| *held == role);
        of_role.filter_map(move |(_, kind, _)| self.postings.get(&self.key_of(role, *kind, facts)?))
    }

    /// The key of a kind that a connection has.
    fn key_of(&self, role: Role, kind: Kind, facts: &Facts<'_>) -> Option<u64> {
        let principal = || facts.identity.map(Identity::principal);
        match kind {
            Kind::Plaintext => facts.identity.is_none().then(|| self.hash(role, kind, ())),
            Kind::Identified => facts.identity.is_some().then(|| self.hash(role, kind, ())),
            Kind::Principal => Some(self.hash(role, kind, principal()?)),
            Kind::PrincipalPrefix(len) => Some(self.hash(role, kind, prefix(principal()?, len)?)),
            Kind::PrincipalSuffix(len) => Some(self.hash(role, kind, suffix(principal()?, len)?)),
            Kind::Namespace => Some(self.hash(role, kind, facts.namespace())),
            Kind::NamespacePrefix(len) => Some(self.hash(role, kind, prefix(facts.namespace(), len)?)),
            Kind::NamespaceSuffix(len) => Some(self.hash(role, kind, suffix(facts.namespace(), len)?)),
            Kind::Account => {
                let identity = facts.identity?;
                Some(self.hash(role, kind, (identity.namespace(), identity.service_account())))
            }
            Kind::Source { is_ipv4, prefix_len } => {
                Some(self.hash(role, kind, network(facts.peer, is_ipv4, prefix_len)?))
            }
            Kind::Destination { is_ipv4, prefix_len } => {
                Some(self.hash(role, kind, network(facts.target.ip(), is_ipv4, prefix_len)?))
            }
            Kind::Port => Some(self.hash(role, kind, facts.target.port())),
        }
    }

    fn hash(&self, role: Role, kind: Kind, value: impl core::hash::Hash) -> u64 {
        self.hasher.hash_one((role, kind, value))
    }

    fn count(&mut self, role: Role, kind: Kind, by: i32) {
        let kinds = Arc::make_mut(&mut self.kinds);
        let at = match kinds.binary_search_by_key(&(role, kind), |(role, kind, _)| (*role, *kind)) {
            Ok(at) => at,
            Err(at) => {
                kinds.insert(at, (role, kind, 0));
                at
            }
        };
        let (.., count) = &mut kinds[at];
        *count = count.checked_add_signed(by).expect("a kind is counted out as often as it was counted in");
        if *count == 0 {
            kinds.remove(at);
        }
    }

    /// The keys under which a rule is filed; `None` when a connection may match it without any.
    fn keys(&self, role: Role, rule: &Entry) -> Option<Vec<(Kind, u64)>> {
        let mut keys = Vec::new();
        for conditions in matches_of(most_telling(rule)?) {
            let (_, condition) = best_of(conditions).expect("checked of every match by `most_telling`");
            match condition.negated {
                // Only `not_principals` of everything tells anything, see `telling`.
                true => keys.push((Kind::Plaintext, self.hash(role, Kind::Plaintext, ()))),
                false => self.each_key_of(role, &condition.values, &mut |kind, key| keys.push((kind, key))),
            }
        }
        Some(keys)
    }

    /// Into how many alternatives a rule is taken apart, all of which must be excluded for it not to match, and the values each of
    /// which excludes one. Clauses of one match all say the same: one value in a `not_` field of any of them is enough. Without
    /// such a clause the first that can be excluded at all is taken.
    fn exclusions(&self, role: Role, rule: &Entry) -> (u32, Vec<Exclusion>) {
        let mut exclusions = Vec::new();
        let mut add = |alternative: u32, conditions: &[Condition]| {
            for value in conditions.iter().filter(|condition| condition.negated).flat_map(|held| held.values.each()) {
                self.each_key_of(role, &value, &mut |kind, key| {
                    exclusions.push(Exclusion { alternative, kind, key, value: value.clone() });
                });
            }
        };
        let excludable = |clause: &&[Condition]| {
            matches_of(clause).all(|conditions| conditions.iter().any(|condition| condition.negated))
                && matches_of(clause).count() <= ALTERNATIVES_MAX
        };
        let of_one = |clause: &&[Condition]| matches_of(clause).count() == 1;
        let mut alternatives = 1;
        if rule.clauses().any(|clause| of_one(&clause) && excludable(&clause)) {
            rule.clauses().filter(of_one).for_each(|clause| add(0, clause));
        } else if let Some(clause) = rule.clauses().find(excludable) {
            alternatives = 0;
            for conditions in matches_of(clause) {
                add(alternatives, conditions);
                alternatives += 1;
            }
        }
        exclusions.sort_by_key(|one| (one.alternative, one.key));
        exclusions.dedup_by_key(|one| (one.alternative, one.key));
        (alternatives, exclusions)
    }

    fn each_key_of(&self, role: Role, values: &Values, file: &mut impl FnMut(Kind, u64)) {
        // Presence: no identity has an empty principal or namespace, and plaintext has neither.
        let mut text = |value: &StringMatch, kinds: [Kind; 3]| {
            let [exact, prefix, suffix] = kinds;
            match value {
                StringMatch::Exact(text) => file(exact, self.hash(role, exact, &**text)),
                StringMatch::Prefix(text) => file(prefix, self.hash(role, prefix, &**text)),
                StringMatch::Suffix(text) => file(suffix, self.hash(role, suffix, &**text)),
                StringMatch::Presence => file(Kind::Identified, self.hash(role, Kind::Identified, ())),
            }
        };
        match values {
            Values::Principals(values) => values.iter().for_each(|value| {
                let len = len_of(value);
                text(value, [Kind::Principal, Kind::PrincipalPrefix(len), Kind::PrincipalSuffix(len)]);
            }),
            Values::Namespaces(values) => values.iter().for_each(|value| {
                let len = len_of(value);
                text(value, [Kind::Namespace, Kind::NamespacePrefix(len), Kind::NamespaceSuffix(len)]);
            }),
            Values::Accounts(values) => values.iter().for_each(|value| {
                let key = self.hash(role, Kind::Account, (&*value.namespace, &*value.service_account));
                file(Kind::Account, key);
            }),
            Values::Sources(blocks) => blocks.iter().for_each(|block| {
                let kind = Kind::Source { is_ipv4: block.addr().is_ipv4(), prefix_len: block.prefix_len() };
                let key = self.hash(role, kind, block.network());
                file(kind, key);
            }),
            Values::Destinations(blocks) => blocks.iter().for_each(|block| {
                let kind = Kind::Destination { is_ipv4: block.addr().is_ipv4(), prefix_len: block.prefix_len() };
                let key = self.hash(role, kind, block.network());
                file(kind, key);
            }),
            Values::Ports(ports) => ports.iter().for_each(|port| {
                let key = self.hash(role, Kind::Port, *port);
                file(Kind::Port, key);
            }),
        }
    }
}

/// The clause whose keys tell most connections apart; `None` when a connection may match without any key.
fn most_telling(rule: &Entry) -> Option<&[Condition]> {
    let weakest = |clause: &[Condition]| matches_of(clause).map(|one| best_of(one).map_or(0, |(told, _)| told)).min();
    let best = rule.clauses().max_by_key(|clause| weakest(clause))?;
    weakest(best).filter(|told| *told > 0).map(|_| best)
}

/// The condition that tells most connections apart, and how much it tells.
fn best_of(conditions: &[Condition]) -> Option<(u8, &Condition)> {
    let told = conditions.iter().map(|condition| (telling(condition), condition));
    told.max_by_key(|(told, _)| *told).filter(|(told, _)| *told > 0)
}

/// How few connections a condition holds for, as a guess; 0 when no key can be made of it.
fn telling(condition: &Condition) -> u8 {
    let of_texts = |values: &[StringMatch], exact: u8| {
        let weakest = values.iter().map(|value| match value {
            StringMatch::Exact(_) => exact,
            StringMatch::Prefix(text) | StringMatch::Suffix(text) if !text.is_empty() => exact - 1,
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => 1,
        });
        weakest.min().unwrap_or(0)
    };
    let of_blocks = |blocks: &[IpNet], exact: u8| {
        let weakest = blocks.iter().map(|block| if block.prefix_len() == block.max_prefix_len() { exact } else { 5 });
        weakest.min().unwrap_or(0)
    };
    match (&condition.values, condition.negated) {
        (Values::Accounts(_), false) => 9,
        (Values::Principals(values), false) => of_texts(values, 9),
        (Values::Destinations(blocks), false) => of_blocks(blocks, 7),
        (Values::Sources(blocks), false) => of_blocks(blocks, 7),
        (Values::Namespaces(values), false) => of_texts(values, 6),
        (Values::Ports(_), false) => 3,
        // The idiom of STRICT (§7.4), which is in every mesh: true of plaintext alone.
        (Values::Principals(values), true) if values.contains(&StringMatch::Presence) => 2,
        (_, true) => 0,
    }
}

fn len_of(value: &StringMatch) -> usize {
    match value {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => text.len(),
        StringMatch::Presence => 0,
    }
}

fn prefix(text: &str, len: usize) -> Option<&str> {
    text.get(..len)
}

fn suffix(text: &str, len: usize) -> Option<&str> {
    text.get(text.len().checked_sub(len)?..)
}

/// The block of a length that has an address.
fn network(address: IpAddr, is_ipv4: bool, prefix_len: u8) -> Option<IpAddr> {
    let block = IpNet::new(address, prefix_len).ok().filter(|_| address.is_ipv4() == is_ipv4)?;
    Some(block.network())
}
