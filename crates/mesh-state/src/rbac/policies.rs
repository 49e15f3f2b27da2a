//! The policies of a snapshot, filed by whom they are for. Costs as much to change as the changed policy is large.

use alloc::sync::Arc;

use hashbrown::DefaultHashBuilder;
use rpds::HashTrieMapSync;

use crate::name::PolicyKey;
use crate::policy::{Policy, PolicyScope};

use super::index::Index;
use super::matcher::Compiled;

/// All policies. Cheap to clone; clones share what they have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_key: HashTrieMapSync<PolicyKey, Arc<Compiled>, DefaultHashBuilder>,
    global: Index,
    namespaces: HashTrieMapSync<Arc<str>, Index, DefaultHashBuilder>,
    /// How many are for workloads that name them.
    selective: usize,
}

impl Policies {
    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<Compiled>> {
        self.by_key.get(key)
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Compiled>> {
        self.by_key.values()
    }

    /// Whether none is here, and nothing is left of any.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.namespaces.is_empty() && self.selective == 0 && self.global.is_vacant()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.size()
    }

    /// Of those for all workloads.
    pub(super) fn global(&self) -> &Index {
        &self.global
    }

    /// Of those for all workloads of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> Option<&Index> {
        self.namespaces.get(namespace)
    }

    /// Whether any is for workloads that name it.
    pub(crate) fn has_selective(&self) -> bool {
        self.selective > 0
    }

    /// Puts a policy in the place of whatever had its key.
    pub(crate) fn insert(&mut self, policy: Policy) {
        if self.get(&policy.key).is_some_and(|held| *held.policy == policy) {
            return;
        }
        self.remove(&policy.key);
        let compiled = Arc::new(Compiled::new(Arc::new(policy)));
        let policy = &compiled.policy;
        match policy.scope {
            PolicyScope::Global => self.global.insert(&compiled),
            PolicyScope::Namespace => match self.namespaces.get_mut(&policy.namespace) {
                Some(index) => index.insert(&compiled),
                None => {
                    let mut index = Index::default();
                    index.insert(&compiled);
                    self.namespaces.insert_mut(policy.namespace.clone(), index);
                }
            },
            PolicyScope::WorkloadSelector => self.selective += 1,
        }
        self.by_key.insert_mut(policy.key.clone(), compiled);
    }

    /// Takes a policy out, if it is there.
    pub(crate) fn remove(&mut self, key: &PolicyKey) {
        let Some(compiled) = self.get(key).cloned() else { return };
        let policy = &compiled.policy;
        match policy.scope {
            PolicyScope::Global => self.global.remove(&compiled),
            PolicyScope::Namespace => {
                if let Some(index) = self.namespaces.get_mut(&policy.namespace) {
                    index.remove(&compiled);
                    if index.is_empty() {
                        self.namespaces.remove_mut(&policy.namespace);
                    }
                }
            }
            PolicyScope::WorkloadSelector => self.selective -= 1,
        }
        self.by_key.remove_mut(key);
    }
}
