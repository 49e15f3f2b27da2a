//! One copy of what many things have in common. Counts its users, so that what nobody uses is let go at once. The builder's
//! alone: a snapshot holds what came out of here and nothing of this.

use alloc::sync::Arc;
use core::array;
use core::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Tables into which a pool is divided. A table that is full is moved to a larger one, all at once: of a pool of 250,000 texts it
/// is then 4,000 of them that one change waits for.
const PARTS: usize = 64;

/// The one copy of each value in use.
#[derive(Debug)]
pub(crate) struct Pool<T: ?Sized> {
    parts: [HashTable<Held<T>>; PARTS],
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Held<T: ?Sized> {
    value: Arc<T>,
    uses: u32,
    /// Held, so that moving to a larger table looks at no value.
    tag: u32,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { parts: array::from_fn(|_| HashTable::new()), hasher: DefaultHashBuilder::default() }
    }
}

impl<T: ?Sized> Pool<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.iter().all(HashTable::is_empty)
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    /// The copy that is held already, if there is one.
    pub(crate) fn take_held(&mut self, value: &T) -> Option<Arc<T>> {
        let tag = self.tag(value);
        self.use_held(tag, value)
    }

    /// Reads where a value probably is, if it is there: values looked for one after the other are otherwise waited for one after the
    /// other.
    pub(crate) fn glance(&self, value: &T) -> usize {
        let tag = self.tag(value);
        let found = self.parts[part(tag)].find(spread(tag), |held| held.tag == tag);
        // The count stands in front of the value.
        found.map_or(0, |held| Arc::strong_count(&held.value))
    }

    /// The one copy of a value: the one held already, or else this.
    pub(crate) fn take(&mut self, value: &Arc<T>) -> Arc<T> {
        let tag = self.tag(value);
        if let Some(held) = self.use_held(tag, value) {
            return held;
        }
        let held = Held { value: value.clone(), uses: 1, tag };
        self.parts[part(tag)].insert_unique(spread(tag), held, |held| spread(held.tag));
        value.clone()
    }

    /// One user less. Whether it was the last.
    pub(crate) fn give_back(&mut self, value: &T) -> bool {
        let tag = self.tag(value);
        let part = &mut self.parts[part(tag)];
        let mut held = part.find_entry(spread(tag), |held| held.is(tag, value)).ok().expect("it was taken from here");
        held.get_mut().uses -= 1;
        let last = held.get().uses == 0;
        if last {
            held.remove();
            if part.len() < part.capacity() / 8 {
                part.shrink_to(2 * part.len(), |held| spread(held.tag));
            }
        }
        last
    }

    fn use_held(&mut self, tag: u32, value: &T) -> Option<Arc<T>> {
        let held = self.parts[part(tag)].find_mut(spread(tag), |held| held.is(tag, value))?;
        held.uses = held.uses.checked_add(1).expect("four billion users do not fit in memory");
        Some(held.value.clone())
    }

    fn tag(&self, value: &T) -> u32 {
        tag(&self.hasher, value)
    }
}

impl<T: ?Sized + Eq> Held<T> {
    fn is(&self, tag: u32, value: &T) -> bool {
        self.tag == tag && *self.value == *value
    }
}

fn part(tag: u32) -> usize {
    tag as usize % PARTS
}

/// As many bits as the tables want, of those that do not tell the parts apart.
fn spread(tag: u32) -> u64 {
    u64::from(tag / PARTS as u32).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

/// The part of a hash that indices go by.
pub(crate) fn tag(hasher: &DefaultHashBuilder, key: impl Hash) -> u32 {
    (hasher.hash_one(key) >> u32::BITS) as u32
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn equal_values_are_one_until_the_last_user_gives_it_back() {
        let mut pool: Pool<str> = Pool::default();
        let first = pool.take(&"shop".into());
        let second = pool.take(&Arc::from("shop"));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!pool.give_back("shop"));
        assert!(pool.give_back("shop"));
        assert!(pool.parts.iter().all(HashTable::is_empty));
        assert!(pool.take_held("shop").is_none());
    }

    #[test]
    fn each_of_many_is_held_once_while_tables_grow_and_shrink() {
        let mut pool: Pool<u64> = Pool::default();
        let first: Vec<Arc<u64>> = (0..20_000).map(|value| pool.take(&Arc::new(value))).collect();
        for (value, first) in (0..).zip(&first) {
            assert!(pool.take_held(&value).is_some_and(|held| Arc::ptr_eq(&held, first)));
        }
        for value in 0..20_000 {
            assert!(!pool.give_back(&value));
            assert!(pool.give_back(&value));
        }
        let room: usize = pool.parts.iter().map(HashTable::capacity).sum();
        assert!(room < 2_000, "{room}");
    }
}
