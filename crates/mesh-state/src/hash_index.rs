//! A persistent multimap from 32 bits of a hash (a tag) to numbers: the shape of every index over workloads. Cloning costs a
//! reference count, a change copies the path to it. It knows no keys: who asks compares what the numbers stand for.
//!
//! A trie of large leaves. Tags are evenly spread, so a leaf is searched where its tag would stand if they were perfectly so:
//! one or two lines of the cache, however large the leaf. What is left above the leaves fits into the near caches, so that
//! finding a number among a million is one miss (decision 0014).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::array;
use core::iter;

use crate::arcs::{fetch_counts, is_shared};

const FAN_BITS: u32 = 3;
const FAN: usize = 1 << FAN_BITS;

/// A leaf beyond this is split; 8 leaves together below a quarter of it are one again. Numbers of one tag are never split.
const LEAF_MAX: usize = 320;

/// Room left in a leaf that is only the builder's and fills up, so that not every insertion allocates.
const ROOM: usize = 48;

/// What stands in room not used. No number is `u32::MAX`, so it stands behind everything.
const FREE: u64 = u64::MAX;

/// A persistent multimap from tags to numbers below `u32::MAX`.
#[derive(Clone, Debug)]
pub(crate) struct HashIndex {
    root: Node,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Branch(Arc<[Node; FAN]>),
}

/// Tags in the upper half and numbers in the lower one, sorted by tag; behind `len` of them room.
#[derive(Clone, Debug)]
struct Leaf {
    places: Arc<[u64]>,
    len: u32,
}

impl Default for HashIndex {
    fn default() -> Self {
        Self { root: Node::Leaf(Leaf::of(&[], 0)), len: 0 }
    }
}

impl HashIndex {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers under a tag: those of the key it was made of, in their order, and now and then another key's.
    pub(crate) fn with_tag(&self, tag: u32) -> impl Iterator<Item = u32> {
        let (leaf, shift) = self.leaf(tag);
        leaf.held()[leaf.start(tag, shift)..]
            .iter()
            .take_while(move |place| tag_of(**place) == tag)
            .map(|place| number_of(*place))
    }

    /// Where a tag probably stands, whatever is there: read before it is needed, together with other places, it is not waited
    /// for later.
    pub(crate) fn glance(&self, tag: u32) -> u64 {
        let (leaf, shift) = self.leaf(tag);
        leaf.held().get(leaf.guess(tag, shift)).copied().unwrap_or(0)
    }

    /// The leaf in which a tag is, or would be, and how many bits of the tag are not spent on the way.
    fn leaf(&self, tag: u32) -> (&Leaf, u32) {
        let mut node = &self.root;
        let mut shift = u32::BITS;
        loop {
            match node {
                Node::Branch(children) => {
                    shift -= FAN_BITS.min(shift);
                    node = &children[slot(tag, shift)];
                }
                Node::Leaf(leaf) => return (leaf, shift),
            }
        }
    }

    /// Adds a number to those of its tag, behind the ones of which `goes_before` holds.
    pub(crate) fn insert(&mut self, tag: u32, number: u32, goes_before: impl Fn(u32) -> bool) {
        assert!(number != u32::MAX, "numbers are given out from 0");
        let mut node = &mut self.root;
        let mut shift = u32::BITS;
        loop {
            match node {
                Node::Branch(children) => {
                    shift -= FAN_BITS.min(shift);
                    node = &mut own(children)[slot(tag, shift)];
                }
                Node::Leaf(leaf) if leaf.is_to_be_split(tag, shift) => *node = split(leaf.held(), shift),
                Node::Leaf(leaf) => {
                    let start = leaf.start(tag, shift);
                    let run = leaf.held()[start..].iter();
                    let before = run.take_while(|place| tag_of(**place) == tag && goes_before(number_of(**place)));
                    leaf.insert(start + before.count(), place(tag, number));
                    break;
                }
            }
        }
        self.len += 1;
    }

    /// Takes out a number under a tag, if it is there.
    pub(crate) fn remove(&mut self, tag: u32, number: u32) {
        // Looked up first: what is not there must not copy anything.
        if self.with_tag(tag).any(|held| held == number) {
            self.root.remove(u32::BITS, place(tag, number));
            self.len -= 1;
        }
    }
}

impl Node {
    /// Takes out what is known to be there.
    fn remove(&mut self, shift: u32, gone: u64) {
        match self {
            Node::Branch(children) => {
                let shift = shift - FAN_BITS.min(shift);
                let children = own(children);
                children[slot(tag_of(gone), shift)].remove(shift, gone);
                let mut left = 0;
                for child in &*children {
                    match child {
                        Node::Leaf(leaf) => left += leaf.held().len(),
                        Node::Branch(_) => return,
                    }
                }
                if left <= LEAF_MAX / 4 {
                    let all: Vec<u64> = children.iter().flat_map(|child| child.held().iter().copied()).collect();
                    *self = Node::Leaf(Leaf::of(&all, ROOM));
                }
            }
            Node::Leaf(leaf) => {
                let from = leaf.start(tag_of(gone), shift);
                let after = leaf.held()[from..].iter().position(|held| *held == gone);
                leaf.remove(from + after.expect("looked up before anything was copied"));
            }
        }
    }

    /// What a leaf holds; of a branch nothing.
    fn held(&self) -> &[u64] {
        match self {
            Node::Leaf(leaf) => leaf.held(),
            Node::Branch(_) => &[],
        }
    }
}

impl Leaf {
    fn of(held: &[u64], room: usize) -> Self {
        Self { places: with_room(held.iter().copied(), room), len: count(held.len()) }
    }

    fn held(&self) -> &[u64] {
        &self.places[..self.len as usize]
    }

    fn is_to_be_split(&self, tag: u32, shift: u32) -> bool {
        let held = self.held();
        let one_tag = held.first().is_none_or(|first| tag_of(*first) == tag)
            && held.last().is_none_or(|last| tag_of(*last) == tag);
        held.len() >= LEAF_MAX && shift > 0 && !one_tag
    }

    /// Where the first place of a tag is, or would be, in a leaf of the tags that have all but the last `shift` bits in common.
    fn start(&self, tag: u32, shift: u32) -> usize {
        let held = self.held();
        let below = |place: &u64| tag_of(*place) < tag;
        // Longer than that when it is all of one tag, and a walk through it is then a tenant's to make long.
        if held.len() > LEAF_MAX {
            return held.partition_point(below);
        }
        let mut at = self.guess(tag, shift);
        while held.get(at).is_some_and(below) {
            at += 1;
        }
        while at > 0 && !below(&held[at - 1]) {
            at -= 1;
        }
        at
    }

    /// Where a tag would be if all were perfectly even. Below the length, if there is one.
    fn guess(&self, tag: u32, shift: u32) -> usize {
        let part = u64::from(tag.checked_shl(u32::BITS - shift).unwrap_or(0));
        ((part * u64::from(self.len)) >> u32::BITS) as usize
    }

    fn insert(&mut self, at: usize, new: u64) {
        let len = self.len as usize;
        match Arc::get_mut(&mut self.places) {
            Some(places) if len < places.len() => {
                places.copy_within(at..len, at + 1);
                places[at] = new;
            }
            own => {
                let room = if own.is_some() { ROOM } else { 0 };
                let (before, after) = self.held().split_at(at);
                let all = before.iter().copied().chain(iter::once(new)).chain(after.iter().copied());
                self.places = with_room(all, room);
            }
        }
        self.len += 1;
    }

    fn remove(&mut self, at: usize) {
        let len = self.len as usize;
        match Arc::get_mut(&mut self.places) {
            Some(places) if places.len() < len + 2 * ROOM => {
                places.copy_within(at + 1..len, at);
                places[len - 1] = FREE;
            }
            _ => {
                let (before, after) = (&self.held()[..at], &self.held()[at + 1..]);
                self.places = with_room(before.iter().chain(after).copied(), 0);
            }
        }
        self.len -= 1;
    }
}

/// A child for each value of the next bits. Sorted by tag, so each gets a part of the slice.
fn split(held: &[u64], shift: u32) -> Node {
    let shift = shift - FAN_BITS.min(shift);
    let mut rest = held;
    Node::Branch(Arc::new(array::from_fn(|child| {
        let (own, others) = rest.split_at(rest.partition_point(|place| slot(tag_of(*place), shift) <= child));
        rest = others;
        Node::Leaf(Leaf::of(own, ROOM))
    })))
}

/// The children, to be changed.
fn own(children: &mut Arc<[Node; FAN]>) -> &mut [Node; FAN] {
    if is_shared(children) {
        let leaves = children.iter().filter_map(|child| match child {
            Node::Leaf(leaf) => Some(&leaf.places),
            Node::Branch(_) => None,
        });
        fetch_counts(leaves);
    }
    Arc::make_mut(children)
}

fn with_room(held: impl Iterator<Item = u64> + Clone, room: usize) -> Arc<[u64]> {
    held.chain(iter::repeat_n(FREE, room)).collect()
}

fn place(tag: u32, number: u32) -> u64 {
    u64::from(tag) << u32::BITS | u64::from(number)
}

fn tag_of(place: u64) -> u32 {
    (place >> u32::BITS) as u32
}

fn number_of(place: u64) -> u32 {
    place as u32
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("there are fewer numbers than u32 has")
}

/// The highest bits first, so that all of the index is sorted by tag. The last bits are fewer than the others.
fn slot(tag: u32, shift: u32) -> usize {
    (tag >> shift) as usize & (FAN - 1)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Tags that share much, so that leaves split deep, whole leaves share one, and places are not where even ones would be.
    fn tag() -> impl Strategy<Value = u32> {
        prop_oneof![
            4 => any::<u32>(),
            2 => (0..400_u32).prop_map(|low| 0xabcd_e000 | low),
            1 => 0..4_u32,
            1 => Just(7),
            1 => Just(u32::MAX),
        ]
    }

    fn insert(index: &mut HashIndex, tag: u32, number: u32) {
        index.insert(tag, number, |held| held < number);
    }

    fn contents(index: &HashIndex) -> BTreeSet<(u32, u32)> {
        fn walk(node: &Node, into: &mut BTreeSet<(u32, u32)>) {
            match node {
                Node::Leaf(leaf) => into.extend(leaf.held().iter().map(|place| (tag_of(*place), number_of(*place)))),
                Node::Branch(children) => children.iter().for_each(|child| walk(child, into)),
            }
        }
        let mut into = BTreeSet::new();
        walk(&index.root, &mut into);
        into
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_holds_what_a_sorted_set_holds_and_no_clone_of_it_changes(
            steps in vec((tag(), 0..60_u32, prop_oneof![4 => Just(true), 1 => Just(false)]), 0..3_000),
            keep_every in 1..400_usize,
        ) {
            let mut index = HashIndex::default();
            let mut model = BTreeSet::new();
            let mut kept = Vec::new();
            for (step, (tag, number, add)) in steps.iter().copied().enumerate() {
                if step % keep_every == 0 {
                    kept.truncate(4);
                    kept.push((index.clone(), model.clone()));
                }
                if add {
                    if model.insert((tag, number)) {
                        insert(&mut index, tag, number);
                    }
                } else {
                    index.remove(tag, number);
                    model.remove(&(tag, number));
                }
                let run: Vec<_> = index.with_tag(tag).map(|number| (tag, number)).collect();
                let expected: Vec<_> = model.range((tag, 0)..=(tag, u32::MAX)).copied().collect();
                prop_assert_eq!(run, expected, "in their order");
                prop_assert_eq!(index.len, model.len());
            }
            for (tag, ..) in &steps {
                let expected: Vec<_> = model.range((*tag, 0)..=(*tag, u32::MAX)).map(|(_, number)| *number).collect();
                prop_assert_eq!(index.with_tag(*tag).collect::<Vec<_>>(), expected);
            }
            kept.push((index, model));
            for (index, model) in kept {
                prop_assert_eq!(contents(&index), model);
            }
        }
    }

    #[test]
    fn what_is_emptied_is_one_leaf_again() {
        let mut index = HashIndex::default();
        for number in 0..10_000_u32 {
            insert(&mut index, number.wrapping_mul(0x9e37_79b9), number);
        }
        assert!(matches!(index.root, Node::Branch(_)), "it was large");
        for number in 0..10_000_u32 {
            index.remove(number.wrapping_mul(0x9e37_79b9), number);
        }
        assert!(matches!(&index.root, Node::Leaf(leaf) if leaf.held().is_empty()));
        assert!(index.is_empty());
    }

    #[test]
    fn a_change_of_what_is_shared_copies_a_path_and_not_more() {
        let mut index = HashIndex::default();
        for number in 0..50_000_u32 {
            insert(&mut index, number.wrapping_mul(0x9e37_79b9), number);
        }
        let before = index.clone();
        insert(&mut index, 12_345, 70_000);
        let leaves = |index: &HashIndex| {
            fn walk(node: &Node, into: &mut BTreeSet<usize>) {
                match node {
                    Node::Leaf(leaf) => drop(into.insert(Arc::as_ptr(&leaf.places).addr())),
                    Node::Branch(children) => children.iter().for_each(|child| walk(child, into)),
                }
            }
            let mut into = BTreeSet::new();
            walk(&index.root, &mut into);
            into
        };
        assert_eq!(leaves(&index).difference(&leaves(&before)).count(), 1);
    }
}
