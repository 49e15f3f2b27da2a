//! A persistent multimap by hash: the shape of every index over the mesh. Cloning costs a reference count, a change copies the
//! path to it. It knows no keys: a value is found by its tag (32 bits of a hash) and a question that its owner answers.
//!
//! Values lie in leaves of up to [`LEAF_MAX`], sorted by tag, below branches of [`FAN`]. A hash array mapped trie with one
//! value per slot needs a node of its own for every fourth value or so and costs four times the memory (decision 0008).

use alloc::sync::Arc;
use core::array;
use core::iter;
use core::slice;

const FAN_BITS: u32 = 4;
const FAN: usize = 1 << FAN_BITS;

/// A leaf beyond this is split; 16 leaves together below half of it are one again. Values of one tag are never split.
const LEAF_MAX: usize = 32;

/// Branches from the root to the deepest leaf.
const DEPTH_MAX: usize = (u32::BITS / FAN_BITS) as usize;

/// A persistent multimap by hash.
#[derive(Clone, Debug)]
pub(crate) struct Trie<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<T> {
    Leaf(Arc<[Entry<T>]>),
    Branch(Arc<[Node<T>; FAN]>),
}

/// A value and its tag.
#[derive(Clone, Debug)]
pub(crate) struct Entry<T> {
    tag: u32,
    pub(crate) value: T,
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { root: Node::Leaf(Arc::default()), len: 0 }
    }
}

impl<T> Trie<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every value with a tag: those of the key it was made of, in their order, and now and then another key's.
    pub(crate) fn with_tag(&self, tag: u32) -> &[Entry<T>] {
        let mut node = &self.root;
        let mut shift = u32::BITS;
        loop {
            match node {
                Node::Branch(children) => {
                    shift -= FAN_BITS;
                    node = &children[slot(tag, shift)];
                }
                Node::Leaf(entries) => {
                    let rest = &entries[start(entries, tag, shift)..];
                    let count = rest.iter().take_while(|entry| entry.tag == tag).count();
                    return &rest[..count];
                }
            }
        }
    }

    /// The first value with a tag of which `is_it` holds.
    pub(crate) fn find(&self, tag: u32, is_it: impl Fn(&T) -> bool) -> Option<&T> {
        self.with_tag(tag).iter().map(|entry| &entry.value).find(|value| is_it(value))
    }

    /// All values, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let mut stack: [&[Node<T>]; DEPTH_MAX + 1] = [&[]; DEPTH_MAX + 1];
        stack[0] = slice::from_ref(&self.root);
        let mut depth = 1;
        // A stack of its own size, so that iterating allocates nothing.
        let leaves = iter::from_fn(move || {
            while depth > 0 {
                let [first, rest @ ..] = stack[depth - 1] else {
                    depth -= 1;
                    continue;
                };
                stack[depth - 1] = rest;
                match first {
                    Node::Leaf(entries) => return Some(entries),
                    Node::Branch(children) => {
                        stack[depth] = &children[..];
                        depth += 1;
                    }
                }
            }
            None
        });
        leaves.flat_map(|entries| entries.iter().map(|entry| &entry.value))
    }
}

impl<T: Clone> Trie<T> {
    /// Adds a value to those of its tag, behind the ones of which `goes_before` holds.
    pub(crate) fn insert(&mut self, tag: u32, value: T, goes_before: impl Fn(&T) -> bool) {
        self.root.insert(u32::BITS, tag, value, &goes_before);
        self.len += 1;
    }

    /// Takes out the first value with a tag of which `is_it` holds.
    pub(crate) fn remove(&mut self, tag: u32, is_it: impl Fn(&T) -> bool) {
        // Looked up first: what is not there must not copy anything.
        if self.find(tag, &is_it).is_some() {
            self.root.remove(u32::BITS, tag, &is_it);
            self.len -= 1;
        }
    }

    /// The first value with a tag of which `is_it` holds, to be changed; its place among its tag's must stay the same.
    pub(crate) fn find_mut(&mut self, tag: u32, is_it: impl Fn(&T) -> bool) -> Option<&mut T> {
        self.find(tag, &is_it)?;
        let mut node = &mut self.root;
        let mut shift = u32::BITS;
        loop {
            match node {
                Node::Branch(children) => {
                    shift -= FAN_BITS;
                    node = &mut Arc::make_mut(children)[slot(tag, shift)];
                }
                Node::Leaf(entries) => {
                    let entries = Arc::make_mut(entries);
                    let found = entries.iter_mut().find(|entry| entry.tag == tag && is_it(&entry.value));
                    return found.map(|entry| &mut entry.value);
                }
            }
        }
    }
}

impl<T: Clone> Node<T> {
    fn insert(&mut self, shift: u32, tag: u32, value: T, goes_before: &dyn Fn(&T) -> bool) {
        match self {
            Node::Branch(children) => {
                let shift = shift - FAN_BITS;
                Arc::make_mut(children)[slot(tag, shift)].insert(shift, tag, value, goes_before);
            }
            Node::Leaf(entries) => {
                let one_tag = entries.first().is_none_or(|first| first.tag == tag)
                    && entries.last().is_none_or(|last| last.tag == tag);
                if entries.len() >= LEAF_MAX && shift > 0 && !one_tag {
                    *self = split(entries, shift - FAN_BITS);
                    return self.insert(shift, tag, value, goes_before);
                }
                let at =
                    entries.partition_point(|entry| entry.tag < tag || (entry.tag == tag && goes_before(&entry.value)));
                let (before, after) = entries.split_at(at);
                let new = iter::once(Entry { tag, value });
                *entries = before.iter().cloned().chain(new).chain(after.iter().cloned()).collect();
            }
        }
    }

    /// Takes out what is known to be there.
    fn remove(&mut self, shift: u32, tag: u32, is_it: &dyn Fn(&T) -> bool) {
        match self {
            Node::Branch(children) => {
                let shift = shift - FAN_BITS;
                let children = Arc::make_mut(children);
                children[slot(tag, shift)].remove(shift, tag, is_it);
                let mut left = 0;
                for child in &*children {
                    match child {
                        Node::Leaf(entries) => left += entries.len(),
                        Node::Branch(_) => return,
                    }
                }
                if left <= LEAF_MAX / 2 {
                    let entries = children.iter().flat_map(|child| match child {
                        Node::Leaf(entries) => &entries[..],
                        Node::Branch(_) => unreachable!("returned above"),
                    });
                    *self = Node::Leaf(entries.cloned().collect());
                }
            }
            Node::Leaf(entries) => {
                let at = entries
                    .iter()
                    .position(|entry| entry.tag == tag && is_it(&entry.value))
                    .expect("looked up before anything was copied");
                *entries = entries[..at].iter().chain(&entries[at + 1..]).cloned().collect();
            }
        }
    }
}

/// Where the first entry of a tag is, or would be, in a leaf of tags that have all but the last `shift` bits in common. Tags are
/// evenly spread, so it is sought where it would stand if they were perfectly so: entries may be large, and each step of a
/// search by halves would be a line of the cache.
fn start<T>(entries: &[Entry<T>], tag: u32, shift: u32) -> usize {
    let below = |entry: &Entry<T>| entry.tag < tag;
    if entries.len() > LEAF_MAX {
        return entries.partition_point(below);
    }
    let part = u64::from(tag.checked_shl(u32::BITS - shift).unwrap_or(0));
    // Below the length, since the part is below 1.
    let mut at = ((part * entries.len() as u64) >> u32::BITS) as usize;
    while entries.get(at).is_some_and(below) {
        at += 1;
    }
    while at > 0 && !below(&entries[at - 1]) {
        at -= 1;
    }
    at
}

/// Sorted by tag, so each child gets a part of the slice.
fn split<T: Clone>(entries: &[Entry<T>], shift: u32) -> Node<T> {
    let mut rest = entries;
    Node::Branch(Arc::new(array::from_fn(|child| {
        let (own, others) = rest.split_at(rest.partition_point(|entry| slot(entry.tag, shift) <= child));
        rest = others;
        Node::Leaf(own.into())
    })))
}

/// The highest bits first, so that all of the trie is sorted by tag.
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

    /// Tags that share much, so that leaves split deep and whole leaves share one.
    fn tag() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), 0..4_u32, (0..40_u32).prop_map(|low| 0xabcd_ef00 | low), Just(7)]
    }

    fn insert(trie: &mut Trie<(u32, u16)>, tag: u32, value: u16) {
        trie.insert(tag, (tag, value), |held| held.1 < value);
    }

    fn contents(trie: &Trie<(u32, u16)>) -> BTreeSet<(u32, u16)> {
        trie.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn it_holds_what_a_sorted_set_holds_and_no_clone_of_it_changes(
            steps in vec((tag(), 0..60_u16, prop_oneof![3 => Just(true), 2 => Just(false)]), 0..600)
        ) {
            let mut trie = Trie::default();
            let mut model = BTreeSet::new();
            let middle = steps.len() / 2;
            let mut kept = None;
            for (step, (tag, value, add)) in steps.into_iter().enumerate() {
                if step == middle {
                    kept = Some((trie.clone(), model.clone()));
                }
                if add {
                    if model.insert((tag, value)) {
                        insert(&mut trie, tag, value);
                    }
                } else {
                    trie.remove(tag, |held| held.1 == value);
                    model.remove(&(tag, value));
                }
                let run: Vec<_> = trie.with_tag(tag).iter().map(|entry| entry.value).collect();
                let expected: Vec<_> = model.range((tag, 0)..=(tag, u16::MAX)).copied().collect();
                prop_assert_eq!(run, expected, "in their order");
                prop_assert_eq!(trie.len, model.len());
            }
            prop_assert_eq!(contents(&trie), model);
            if let Some((kept, then)) = kept {
                prop_assert_eq!(contents(&kept), then);
            }
        }
    }

    #[test]
    fn what_is_emptied_is_one_leaf_again() {
        let mut trie = Trie::default();
        for number in 0..10_000_u32 {
            insert(&mut trie, number.wrapping_mul(0x9e37_79b9), 0);
        }
        assert!(matches!(trie.root, Node::Branch(_)), "it was large");
        for number in 0..10_000_u32 {
            trie.remove(number.wrapping_mul(0x9e37_79b9), |held| held.1 == 0);
        }
        assert!(matches!(&trie.root, Node::Leaf(entries) if entries.is_empty()));
    }

    #[test]
    fn a_value_is_changed_where_it_stands_and_not_in_clones() {
        let mut trie = Trie::default();
        (0..100).for_each(|value| insert(&mut trie, 7, value));
        let before = trie.clone();
        *trie.find_mut(7, |held| held.1 == 99).expect("it is there") = (7, 100);
        assert!(trie.find(7, |held| held.1 == 100).is_some());
        assert!(before.find(7, |held| held.1 == 99).is_some());
        assert!(trie.find_mut(8, |_| true).is_none());
    }
}
