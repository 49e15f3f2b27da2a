//! Endpoints alike in all but their weight, as a persistent sorted list with sums: finding the one at which the weights before
//! it reach a number takes as many steps as the list has levels, and so does a change. Who stands before whom is the caller's
//! to say; the list holds numbers of workloads, not workloads.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::iter;

use crate::arcs::{fetch_counts, is_shared};

/// Members of a leaf: 12 bytes each.
const LEAF_MAX: usize = 32;
/// Nodes below a branch: 40 bytes each.
const FAN_MAX: usize = 16;

/// An endpoint's workload by its number, with its weight, and what its place is first told by without looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) number: u32,
    pub(crate) weight: u32,
    pub(crate) rank: u32,
}

/// A persistent sorted list of members. The `place` of its functions says where a member stands, seen from what is sought.
#[derive(Clone, Debug)]
pub(crate) enum Members {
    Leaf(Arc<[Member]>),
    Branch(Arc<[Below]>),
}

/// A node below a branch, with what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    weight: u64,
    len: u32,
    first: Member,
    node: Members,
}

impl Members {
    pub(crate) fn one(member: Member) -> Self {
        Members::Leaf(Arc::new([member]))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Members::Leaf(members) => members.len(),
            Members::Branch(nodes) => nodes.iter().map(|below| below.len as usize).sum(),
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        match self {
            Members::Leaf(members) => members.iter().map(|member| u64::from(member.weight)).sum(),
            Members::Branch(nodes) => nodes.iter().map(|below| below.weight).sum(),
        }
    }

    fn first(&self) -> Option<Member> {
        match self {
            Members::Leaf(members) => members.first().copied(),
            Members::Branch(nodes) => nodes.first().map(|below| below.first),
        }
    }

    /// The member at which the weights, added up in order, exceed `left`; none when they never do.
    pub(crate) fn at_weight(&self, mut left: u64) -> Option<Member> {
        let mut node = self;
        loop {
            match node {
                Members::Leaf(members) => {
                    return members.iter().copied().find(|member| {
                        let weight = u64::from(member.weight);
                        let is_it = left < weight;
                        left = left.saturating_sub(weight);
                        is_it
                    });
                }
                Members::Branch(nodes) => {
                    let below = nodes.iter().find(|below| {
                        let is_it = left < below.weight;
                        if !is_it {
                            left -= below.weight;
                        }
                        is_it
                    })?;
                    node = &below.node;
                }
            }
        }
    }

    /// How much the members weigh that stand before what is sought, and how many they are.
    pub(crate) fn before(&self, place: &dyn Fn(&Member) -> Ordering) -> (u64, usize) {
        let mut node = self;
        let (mut weight, mut count) = (0, 0);
        loop {
            match node {
                Members::Leaf(members) => {
                    let at = members.partition_point(|member| place(member).is_lt());
                    weight += members[..at].iter().map(|member| u64::from(member.weight)).sum::<u64>();
                    return (weight, count + at);
                }
                Members::Branch(nodes) => {
                    // Of the node whose first is the last one before it, some members may still stand behind it.
                    let at = nodes.partition_point(|below| place(&below.first).is_lt()).saturating_sub(1);
                    weight += nodes[..at].iter().map(|below| below.weight).sum::<u64>();
                    count += nodes[..at].iter().map(|below| below.len as usize).sum::<usize>();
                    node = &nodes[at].node;
                }
            }
        }
    }

    /// The members in their order. Allocates nothing.
    pub(crate) fn iter(&self) -> Iter<'_> {
        let mut iter = Iter { stack: [&[]; DEPTH_MAX], depth: 0, leaf: &[] };
        iter.enter(self);
        iter
    }

    /// With a member that is not there yet.
    pub(crate) fn insert(&mut self, member: Member, place: &dyn Fn(&Member) -> Ordering) {
        if let Some(right) = self.inserted(member, place) {
            let left = self.clone();
            *self = Members::Branch([Below::of(left), Below::of(right)].into());
        }
    }

    /// Without the member that stands at `place`; whether there was one. Leaves nothing usable of a list of one.
    pub(crate) fn remove(&mut self, place: &dyn Fn(&Member) -> Ordering) -> bool {
        let removed = self.removed(place);
        while let Members::Branch(nodes) = self
            && let [only] = &nodes[..]
        {
            *self = only.node.clone();
        }
        removed
    }

    /// The upper half, when there is no room for one more.
    fn inserted(&mut self, member: Member, place: &dyn Fn(&Member) -> Ordering) -> Option<Self> {
        match self {
            Members::Leaf(members) => {
                let at = members.partition_point(|held| place(held).is_lt());
                let all = members[..at].iter().copied().chain(iter::once(member)).chain(members[at..].iter().copied());
                if members.len() < LEAF_MAX {
                    *self = Members::Leaf(all.collect());
                    return None;
                }
                let all: Vec<Member> = all.collect();
                let (left, right) = all.split_at(all.len() / 2);
                let right = Members::Leaf(right.into());
                *self = Members::Leaf(left.into());
                Some(right)
            }
            Members::Branch(nodes) => {
                let at = nodes.partition_point(|below| place(&below.first).is_lt()).saturating_sub(1);
                let below = &mut own(nodes)[at];
                let upper = below.node.inserted(member, place);
                below.count();
                let upper = upper?;
                let (before, after) = nodes.split_at(at + 1);
                let all = before.iter().cloned().chain(iter::once(Below::of(upper))).chain(after.iter().cloned());
                let all: Arc<[Below]> = all.collect();
                if all.len() <= FAN_MAX {
                    *self = Members::Branch(all);
                    return None;
                }
                let (left, right) = all.split_at(all.len() / 2);
                let right = Members::Branch(right.into());
                *self = Members::Branch(left.into());
                Some(right)
            }
        }
    }

    fn removed(&mut self, place: &dyn Fn(&Member) -> Ordering) -> bool {
        match self {
            Members::Leaf(members) => {
                let at = members.partition_point(|held| place(held).is_lt());
                if members.get(at).is_none_or(|held| place(held).is_ne()) {
                    return false;
                }
                *members = members[..at].iter().chain(&members[at + 1..]).copied().collect();
                true
            }
            Members::Branch(nodes) => {
                let at = nodes.partition_point(|below| place(&below.first).is_le()).saturating_sub(1);
                let below = &mut own(nodes)[at];
                if !below.node.removed(place) {
                    return false;
                }
                below.count();
                if below.len == 0 {
                    *nodes = nodes[..at].iter().chain(&nodes[at + 1..]).cloned().collect();
                }
                // Two neighbours that fit into half of one are one, so that what shrank is not a long list of tiny leaves.
                // Both neighbours are tried: when members go in their order, the next one is always still full.
                for first in [at.saturating_sub(1), at] {
                    if let Some([one, other]) = nodes.get(first..first + 2)
                        && let Some(joined) = one.node.joined(&other.node)
                    {
                        let (before, after) = (&nodes[..first], &nodes[first + 2..]);
                        let joined = iter::once(Below::of(joined));
                        *nodes = before.iter().cloned().chain(joined).chain(after.iter().cloned()).collect();
                        break;
                    }
                }
                true
            }
        }
    }

    fn joined(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Members::Leaf(one), Members::Leaf(other)) if one.len() + other.len() <= LEAF_MAX / 2 => {
                Some(Members::Leaf(one.iter().chain(&other[..]).copied().collect()))
            }
            (Members::Branch(one), Members::Branch(other)) if one.len() + other.len() <= FAN_MAX / 2 => {
                Some(Members::Branch(one.iter().chain(&other[..]).cloned().collect()))
            }
            _ => None,
        }
    }
}

impl Below {
    fn of(node: Members) -> Self {
        let first = node.first().expect("no node of a list is made empty");
        let mut below = Self { weight: 0, len: 0, first, node };
        below.count();
        below
    }

    fn count(&mut self) {
        self.weight = self.node.weight();
        self.len = u32::try_from(self.node.len()).expect("numbers of workloads are u32");
        self.first = self.node.first().unwrap_or(self.first);
    }
}

/// The nodes below a branch, to be changed.
fn own(nodes: &mut Arc<[Below]>) -> &mut [Below] {
    if is_shared(nodes) {
        let leaves = nodes.iter().filter_map(|below| match &below.node {
            Members::Leaf(members) => Some(members),
            Members::Branch(_) => None,
        });
        fetch_counts(leaves);
    }
    Arc::make_mut(nodes)
}

/// Levels of a list of four billion members: each but the first is at least two wide, and nearly always eight.
const DEPTH_MAX: usize = 32;

/// The members of a list in their order.
#[derive(Clone)]
pub(crate) struct Iter<'a> {
    stack: [&'a [Below]; DEPTH_MAX],
    depth: usize,
    leaf: &'a [Member],
}

impl<'a> Iter<'a> {
    fn enter(&mut self, mut node: &'a Members) {
        loop {
            match node {
                Members::Leaf(members) => {
                    self.leaf = members;
                    return;
                }
                Members::Branch(nodes) => {
                    let Some((first, rest)) = nodes.split_first() else { return };
                    self.stack[self.depth] = rest;
                    self.depth += 1;
                    node = &first.node;
                }
            }
        }
    }
}

impl Iterator for Iter<'_> {
    type Item = Member;

    fn next(&mut self) -> Option<Member> {
        loop {
            if let Some((first, rest)) = self.leaf.split_first() {
                self.leaf = rest;
                return Some(*first);
            }
            let above = self.depth.checked_sub(1)?;
            match self.stack[above].split_first() {
                Some((first, rest)) => {
                    self.stack[above] = rest;
                    self.enter(&first.node);
                }
                None => self.depth = above,
            }
        }
    }
}
