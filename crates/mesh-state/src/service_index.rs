//! Services by something several of them may claim: a hostname, a virtual address, a block of them.

use alloc::sync::Arc;
use core::borrow::Borrow;
use core::hash::Hash;

use hashbrown::DefaultHashBuilder;

use crate::claims::Claims;
use crate::intern::tag;
use crate::service::Service;
use crate::trie::Trie;

/// Services by a key.
#[derive(Clone, Debug)]
pub(crate) struct ServiceIndex<K> {
    held: Trie<Held<K>>,
    hasher: DefaultHashBuilder,
}

#[derive(Clone, Debug)]
struct Held<K> {
    key: K,
    claims: Claims<Arc<Service>>,
}

impl<K> Default for ServiceIndex<K> {
    fn default() -> Self {
        Self { held: Trie::default(), hasher: DefaultHashBuilder::default() }
    }
}

impl<K> ServiceIndex<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Those who claim a key, best first.
    pub(crate) fn get<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> &[Arc<Service>]
    where
        K: Borrow<Q>,
    {
        let held = self.held.find(tag(&self.hasher, key), |held| held.key.borrow() == key);
        held.map_or(&[], |held| held.claims.as_slice())
    }

    /// All of them, in no order; one that claims several keys comes several times.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.held.iter().flat_map(|held| held.claims.as_slice())
    }
}

impl<K: Clone + Eq + Hash> ServiceIndex<K> {
    /// Enters a service as one who claims `key`; one with its name that does so already is replaced.
    pub(crate) fn claim(&mut self, key: K, service: &Arc<Service>) {
        let tag = tag(&self.hasher, &key);
        match self.held.find_mut(tag, |held| held.key == key) {
            Some(held) => held.claims = held.claims.with(service.clone()),
            None => self.held.insert(tag, Held { key, claims: Claims::One(service.clone()) }, |_| true),
        }
    }

    /// Strikes a service out under `key`.
    pub(crate) fn waive(&mut self, key: &K, service: &Arc<Service>) {
        let tag = tag(&self.hasher, key);
        let Some(held) = self.held.find_mut(tag, |held| held.key == *key) else { return };
        match held.claims.without(service) {
            Some(rest) => held.claims = rest,
            None => self.held.remove(tag, |held| held.key == *key),
        }
    }
}
