//! One copy of what many things have in common. Counts its users, so that what nobody uses is let go at once. The builder's
//! alone: a snapshot holds what came out of here and nothing of this.

use alloc::sync::Arc;
use core::hash::{BuildHasher, Hash};

use hashbrown::DefaultHashBuilder;

use crate::trie::Trie;

/// The one copy of each value in use. Not a hash map, which stops the world when it grows.
#[derive(Debug)]
pub(crate) struct Pool<T: ?Sized> {
    held: Trie<Held<T>>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Held<T: ?Sized> {
    value: Arc<T>,
    uses: usize,
}

impl<T: ?Sized> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), uses: self.uses }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { held: Trie::default(), hasher: DefaultHashBuilder::default() }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    /// The copy that is held already, if there is one.
    pub(crate) fn take_held(&mut self, value: &T) -> Option<Arc<T>> {
        let tag = self.tag(value);
        let held = self.held.find_mut(tag, |held| *held.value == *value)?;
        held.uses += 1;
        Some(held.value.clone())
    }

    /// The copy that is held, for somebody who is a user of it already.
    pub(crate) fn held(&self, value: &T) -> Option<Arc<T>> {
        self.held.find(self.tag(value), |held| *held.value == *value).map(|held| held.value.clone())
    }

    /// The one copy of a value: the one held already, or else this.
    pub(crate) fn take(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(held) = self.take_held(value) {
            return held;
        }
        self.held.insert(self.tag(value), Held { value: value.clone(), uses: 1 }, |_| true);
        value.clone()
    }

    /// One user less. Whether it was the last.
    pub(crate) fn give_back(&mut self, value: &T) -> bool {
        let tag = self.tag(value);
        let held = self.held.find_mut(tag, |held| *held.value == *value).expect("it was taken from here");
        held.uses -= 1;
        let last = held.uses == 0;
        if last {
            self.held.remove(tag, |held| *held.value == *value);
        }
        last
    }

    fn tag(&self, value: &T) -> u32 {
        tag(&self.hasher, value)
    }
}

/// The part of a hash that tries go by.
pub(crate) fn tag(hasher: &DefaultHashBuilder, key: impl Hash) -> u32 {
    (hasher.hash_one(key) >> u32::BITS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_until_the_last_user_gives_it_back() {
        let mut pool: Pool<str> = Pool::default();
        let first = pool.take(&"shop".into());
        let second = pool.take(&Arc::from("shop"));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!pool.give_back("shop"));
        assert!(pool.give_back("shop"));
        assert!(pool.held.is_empty());
        assert!(pool.take_held("shop").is_none());
    }
}
