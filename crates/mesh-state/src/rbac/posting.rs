//! Rules in the order of their policies' keys: a persistent sorted list, as a tree of nodes of up to [`FAN_MAX`], so that a
//! change copies one node of each level and reading allocates nothing.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::iter;
use core::slice;

use crate::arcs::{fetch_counts, is_shared};

use super::matcher::Entry;

/// A node beyond this is two; two neighbours together below half of it are one.
const FAN_MAX: usize = 64;

/// Levels of a list of four billion rules: each but the first is at least two wide, and nearly always 32.
const DEPTH_MAX: usize = 32;

/// A persistent sorted list of rules.
#[derive(Clone, Debug)]
pub(super) struct Posting(Node);

/// None below the first is empty.
#[derive(Clone, Debug)]
enum Node {
    Leaf(Arc<Vec<Entry>>),
    Branch(Arc<Vec<Node>>),
}

impl Default for Posting {
    fn default() -> Self {
        Self(Node::Leaf(Arc::default()))
    }
}

impl Posting {
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.0, Node::Leaf(rules) if rules.is_empty())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        let mut stack: [&[Node]; DEPTH_MAX] = [&[]; DEPTH_MAX];
        stack[0] = slice::from_ref(&self.0);
        let mut depth = 1;
        let leaves = iter::from_fn(move || {
            while depth > 0 {
                let [first, rest @ ..] = stack[depth - 1] else {
                    depth -= 1;
                    continue;
                };
                stack[depth - 1] = rest;
                match first {
                    Node::Leaf(rules) => return Some(rules),
                    Node::Branch(nodes) => {
                        stack[depth] = nodes;
                        depth += 1;
                    }
                }
            }
            None
        });
        leaves.flat_map(|rules| rules.iter())
    }

    /// The rule that is in the place of this one.
    pub(super) fn get(&self, rule: &Entry) -> Option<&Entry> {
        let mut node = &self.0;
        loop {
            match node {
                Node::Leaf(rules) => {
                    return rules.binary_search_by(|held| held.precedence(rule)).ok().map(|at| &rules[at]);
                }
                Node::Branch(nodes) => node = &nodes[below(nodes, rule)],
            }
        }
    }

    /// Puts a rule in its place; one that is there already is replaced.
    pub(super) fn insert(&mut self, rule: Entry) {
        if let Some(upper) = self.0.insert(rule) {
            self.0 = Node::Branch(Arc::new(vec![self.0.clone(), upper]));
        }
    }

    /// Takes a rule out, if it is there.
    pub(super) fn remove(&mut self, rule: &Entry) {
        // Looked up first: what is not there must not copy anything.
        if self.get(rule).is_none() {
            return;
        }
        self.0.remove(rule);
        while let Node::Branch(nodes) = &self.0
            && let [only] = &nodes[..]
        {
            self.0 = only.clone();
        }
    }
}

impl Node {
    fn first(&self) -> &Entry {
        let mut node = self;
        loop {
            match node {
                Node::Leaf(rules) => return &rules[0],
                Node::Branch(nodes) => node = &nodes[0],
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Node::Leaf(rules) => rules.len(),
            Node::Branch(nodes) => nodes.len(),
        }
    }

    /// The upper half, when it became too large.
    fn insert(&mut self, rule: Entry) -> Option<Self> {
        match self {
            Node::Leaf(rules) => {
                let rules = own_rules(rules);
                match rules.binary_search_by(|held| held.precedence(&rule)) {
                    Ok(at) => rules[at] = rule,
                    Err(at) => rules.insert(at, rule),
                }
                (rules.len() > FAN_MAX).then(|| Node::Leaf(Arc::new(rules.split_off(FAN_MAX / 2))))
            }
            Node::Branch(nodes) => {
                let at = below(nodes, &rule);
                let nodes = own_nodes(nodes);
                let upper = nodes[at].insert(rule)?;
                nodes.insert(at + 1, upper);
                (nodes.len() > FAN_MAX).then(|| Node::Branch(Arc::new(nodes.split_off(FAN_MAX / 2))))
            }
        }
    }

    /// Takes out what is known to be there.
    fn remove(&mut self, rule: &Entry) {
        match self {
            Node::Leaf(rules) => own_rules(rules).retain(|held| held.precedence(rule).is_ne()),
            Node::Branch(nodes) => {
                let at = below(nodes, rule);
                let nodes = own_nodes(nodes);
                nodes[at].remove(rule);
                if nodes[at].len() == 0 {
                    nodes.remove(at);
                }
                // Without this a list that shrank would stay one of tiny nodes.
                for first in [at.saturating_sub(1), at] {
                    if let Some([one, other]) = nodes.get_mut(first..first + 2)
                        && one.len() + other.len() <= FAN_MAX / 2
                    {
                        one.join(other);
                        nodes.remove(first + 1);
                        return;
                    }
                }
            }
        }
    }

    /// Takes in what a neighbour of the same level has.
    fn join(&mut self, other: &Self) {
        match (self, other) {
            (Node::Leaf(rules), Node::Leaf(others)) => own_rules(rules).extend(others.iter().cloned()),
            (Node::Branch(nodes), Node::Branch(others)) => own_nodes(nodes).extend(others.iter().cloned()),
            _ => unreachable!("all leaves are on one level"),
        }
    }
}

/// The node in which a rule is, or into which it would go.
fn below(nodes: &[Node], rule: &Entry) -> usize {
    nodes.partition_point(|node| node.first().precedence(rule).is_le()).saturating_sub(1)
}

fn own_rules(rules: &mut Arc<Vec<Entry>>) -> &mut Vec<Entry> {
    if is_shared(rules) {
        fetch_counts(rules.iter().map(Entry::policy));
    }
    Arc::make_mut(rules)
}

fn own_nodes(nodes: &mut Arc<Vec<Node>>) -> &mut Vec<Node> {
    if is_shared(nodes) {
        fetch_counts(nodes.iter().filter_map(|node| if let Node::Leaf(rules) = node { Some(rules) } else { None }));
    }
    Arc::make_mut(nodes)
}
