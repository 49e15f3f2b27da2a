//! Rules under no key that a connection must have: those with only `not_` fields, or nothing at all. They match unless a
//! connection has what they exclude, so they are filed under that: whoever has it needs not ask them.
//!
//! Each rule has a slot, or one for each alternative of a clause of several matches, and each value excluded has a set of slots.
//! Which rules are left for a connection is then a matter of a few bits per rule, in memory that is read in order, and only
//! they are asked, in full.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::DefaultHashBuilder;
use rpds::HashTrieMapSync;
use smallvec::SmallVec;

use crate::pages::Pages;

use super::index::Kind;
use super::matcher::{Entry, Facts, Values};
use super::posting::Posting;

/// Values of one connection by which rules are excluded; of more of them the others are not used, and rules asked in vain.
const HITS_MAX: usize = 32;

/// So many rules that are left are asked in no order, and the first of those that match is sought; more in their order, until
/// one matches.
const FEW: usize = 64;

/// Alternatives of a clause that can be excluded one by one. A rule of more of them is always asked.
pub(super) const ALTERNATIVES_MAX: usize = 8;

/// A value that excludes one alternative of a rule, and how it is filed.
#[derive(Clone, Debug)]
pub(super) struct Exclusion {
    pub(super) alternative: u32,
    pub(super) kind: Kind,
    pub(super) key: u64,
    /// Alone.
    pub(super) value: Values,
}

/// Rules of one role that are under no key.
#[derive(Clone, Debug, Default)]
pub(super) struct Always {
    rules: Posting,
    by_slot: Pages<Entry>,
    taken: Slots,
    /// Those behind which the next slot is of the same rule.
    continued: Slots,
    excluded: HashTrieMapSync<u64, Arc<Excluded>, DefaultHashBuilder>,
    /// The kinds of values excluded, each with how many times it is. As few as the kinds of keys.
    kinds: Arc<Vec<(Kind, u32)>>,
}

/// The rules that do not match whoever has a value.
#[derive(Clone, Debug)]
struct Excluded {
    /// Alone. Asked before the rules are passed over: the hash under which this is filed may be of another value, too.
    value: Values,
    rules: Slots,
}

impl Always {
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Files a rule that is not here yet, under each of the values that exclude one of its alternatives.
    pub(super) fn insert(&mut self, rule: &Entry, alternatives: u32, exclusions: Vec<Exclusion>) {
        let slot = self.taken.free_run(alternatives);
        let rule = rule.in_slot(slot);
        for slot in slot..slot + alternatives {
            self.taken.insert(slot);
            self.by_slot.set(slot, Some(Arc::new(rule.clone())));
        }
        (slot..slot + alternatives - 1).for_each(|slot| self.continued.insert(slot));
        self.rules.insert(rule);
        for Exclusion { alternative, kind, key, value } in exclusions {
            match self.excluded.get_mut(&key) {
                // Under the hash of another value: the rule is asked in vain.
                Some(held) if held.value != value => continue,
                Some(held) => Arc::make_mut(held).rules.insert(slot + alternative),
                None => {
                    let mut rules = Slots::default();
                    rules.insert(slot + alternative);
                    self.excluded.insert_mut(key, Arc::new(Excluded { value, rules }));
                }
            }
            self.count(kind, 1);
        }
    }

    /// Takes a rule out that is here, with what it was filed under.
    pub(super) fn remove(&mut self, rule: &Entry, alternatives: u32, exclusions: Vec<Exclusion>) {
        let slot = self.rules.get(rule).expect("filed when its policy came").slot();
        self.rules.remove(rule);
        for slot in slot..slot + alternatives {
            self.by_slot.set(slot, None);
            self.taken.remove(slot);
            self.continued.remove(slot);
        }
        for Exclusion { alternative, kind, key, value } in exclusions {
            let Some(held) = self.excluded.get_mut(&key) else { continue };
            // Not filed when the hash was another value's then, whatever it is now.
            if held.value != value || !held.rules.has(slot + alternative) {
                continue;
            }
            let held = Arc::make_mut(held);
            held.rules.remove(slot + alternative);
            if held.rules.is_empty() {
                self.excluded.remove_mut(&key);
            }
            self.count(kind, -1);
        }
    }

    /// Of the rules that match, the first in the order of their policies' keys, if it is before `bound`. `key_of` is the key of
    /// a kind that the connection has.
    pub(super) fn first<'s>(
        &'s self,
        facts: &Facts<'_>,
        bound: Option<&'s Entry>,
        key_of: impl Fn(Kind) -> Option<u64>,
    ) -> Option<&'s Entry> {
        let before = |rule: &&Entry| bound.is_none_or(|bound| rule.precedence(bound).is_lt());
        let hits = self.hits(facts, key_of);
        if let Some(left) = self.few_left(&hits) {
            let asked = left.iter().filter_map(|slot| self.by_slot.get(*slot)).map(|rule| &**rule);
            return asked.filter(before).filter(|rule| rule.matches(facts)).min_by(|one, other| one.precedence(other));
        }
        self.rules.iter().take_while(before).find(|rule| !self.is_excluded(&hits, rule) && rule.matches(facts))
    }

    /// The rules that match, in no order; one of several alternatives may be among them several times.
    pub(super) fn all(&self, facts: &Facts<'_>, key_of: impl Fn(Kind) -> Option<u64>) -> Vec<&Entry> {
        let hits = self.hits(facts, key_of);
        if let Some(left) = self.few_left(&hits) {
            let asked = left.iter().filter_map(|slot| self.by_slot.get(*slot)).map(|rule| &**rule);
            return asked.filter(|rule| rule.matches(facts)).collect();
        }
        self.rules.iter().filter(|rule| !self.is_excluded(&hits, rule) && rule.matches(facts)).collect()
    }

    /// The rules that each value excludes which the connection has.
    fn hits(&self, facts: &Facts<'_>, key_of: impl Fn(Kind) -> Option<u64>) -> SmallVec<[&Slots; HITS_MAX]> {
        let keys = self.kinds.iter().filter_map(|(kind, _)| key_of(*kind));
        let excluded = keys.filter_map(|key| self.excluded.get(&key)).filter(|held| held.value.any_holds(facts));
        excluded.map(|held| &held.rules).take(HITS_MAX).collect()
    }

    /// Whether each of a rule's alternatives is.
    fn is_excluded(&self, hits: &[&Slots], rule: &Entry) -> bool {
        let mut slot = rule.slot();
        loop {
            if !hits.iter().any(|slots| slots.has(slot)) {
                return false;
            }
            if !self.continued.has(slot) {
                return true;
            }
            slot += 1;
        }
    }

    /// The slots of alternatives that are not excluded, if they are few.
    fn few_left(&self, hits: &[&Slots]) -> Option<SmallVec<[u32; FEW]>> {
        let mut left = SmallVec::new();
        for (number, taken) in &self.taken.chunks {
            let hit: SmallVec<[&Words; HITS_MAX]> = hits.iter().filter_map(|slots| slots.chunk(*number)).collect();
            for (at, word) in (0..).zip(taken.iter()) {
                let mut word = hit.iter().fold(*word, |word, hit| word & !hit[at as usize]);
                while word != 0 {
                    if left.len() == FEW {
                        return None;
                    }
                    left.push(number * CHUNK + at * u64::BITS + word.trailing_zeros());
                    word &= word - 1;
                }
            }
        }
        Some(left)
    }

    fn count(&mut self, kind: Kind, by: i32) {
        let kinds = Arc::make_mut(&mut self.kinds);
        let at = kinds.binary_search_by_key(&kind, |(kind, _)| *kind).unwrap_or_else(|at| {
            kinds.insert(at, (kind, 0));
            at
        });
        let (_, count) = &mut kinds[at];
        *count = count.checked_add_signed(by).expect("a kind is counted out as often as it was counted in");
        if *count == 0 {
            kinds.remove(at);
        }
    }
}

const WORDS: usize = 16;
const CHUNK: u32 = WORDS as u32 * u64::BITS;
type Words = [u64; WORDS];

/// A persistent set of slots, as bits: a change copies one chunk of them and the list of chunks.
#[derive(Clone, Debug, Default)]
struct Slots {
    /// By the number of the chunk; never one without a bit.
    chunks: SmallVec<[(u32, Arc<Words>); 1]>,
}

impl Slots {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn chunk(&self, number: u32) -> Option<&Words> {
        // Where it is when every chunk before it is there, as in large sets.
        let guess = self.chunks.get(number as usize).filter(|(held, _)| *held == number);
        let found = guess.or_else(|| Some(&self.chunks[self.position(number).ok()?]));
        found.map(|(_, words)| &**words)
    }

    fn has(&self, slot: u32) -> bool {
        let (number, at, bit) = place(slot);
        self.chunk(number).is_some_and(|words| words[at] & bit != 0)
    }

    fn insert(&mut self, slot: u32) {
        let (number, at, bit) = place(slot);
        let position = self.position(number).unwrap_or_else(|position| {
            self.chunks.insert(position, (number, Arc::new([0; WORDS])));
            position
        });
        Arc::make_mut(&mut self.chunks[position].1)[at] |= bit;
    }

    fn remove(&mut self, slot: u32) {
        let (number, at, bit) = place(slot);
        let Ok(position) = self.position(number) else { return };
        let words = Arc::make_mut(&mut self.chunks[position].1);
        words[at] &= !bit;
        if words.iter().all(|word| *word == 0) {
            self.chunks.remove(position);
        }
    }

    /// The first of so many slots next to each other that are not in the set.
    fn free_run(&self, count: u32) -> u32 {
        let mut expected = 0;
        for (number, words) in &self.chunks {
            if *number != expected {
                break;
            }
            // Not across words, which is simpler and wastes little: runs are short.
            let starts = |word: &u64| (1..count).fold(!word, |starts, at| starts & (!word >> at));
            if let Some((at, word)) = (0..).zip(words.iter()).find(|(_, word)| starts(word) != 0) {
                return number * CHUNK + at * u64::BITS + starts(word).trailing_zeros();
            }
            expected += 1;
        }
        expected * CHUNK
    }

    fn position(&self, number: u32) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&number, |(number, _)| *number)
    }
}

fn place(slot: u32) -> (u32, usize, u64) {
    (slot / CHUNK, (slot % CHUNK / u64::BITS) as usize, 1 << (slot % u64::BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_are_a_set_and_no_clone_of_it_changes(
            steps in vec((prop_oneof![0..200_u32, 0..9_000_u32], prop_oneof![3 => Just(true), 1 => Just(false)]), 0..600),
            count in 1..=ALTERNATIVES_MAX as u32,
        ) {
            let (mut slots, mut model) = (Slots::default(), BTreeSet::new());
            let mut kept = None;
            let middle = steps.len() / 2;
            for (step, (slot, insert)) in steps.into_iter().enumerate() {
                if step == middle {
                    kept = Some((slots.clone(), model.clone()));
                }
                match insert {
                    true => {
                        slots.insert(slot);
                        model.insert(slot);
                    }
                    false => {
                        slots.remove(slot);
                        model.remove(&slot);
                    }
                }
            }
            prop_assert_eq!(slots.is_empty(), model.is_empty());
            let run = slots.free_run(count);
            prop_assert!((run..run + count).all(|slot| !slots.has(slot)), "{} {}", run, count);
            prop_assert!(count > 1 || (0..run).all(|slot| slots.has(slot)), "the first: {}", run);
            for (slots, model) in [Some((slots, model)), kept].into_iter().flatten() {
                prop_assert_eq!((0..9_000).filter(|slot| slots.has(*slot)).collect::<BTreeSet<_>>(), model);
            }
        }
    }
}
