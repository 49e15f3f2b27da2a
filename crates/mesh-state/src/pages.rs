//! A persistent array: references by small numbers that stay theirs while they live. Cloning costs a reference count, a change
//! copies one page of each level. Indices hold these numbers, so that copying a part of an index touches no value.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::arcs::fetch_counts;

const PAGE_BITS: u32 = 5;
const PAGE: usize = 1 << PAGE_BITS;

/// A persistent array with holes.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    root: Arc<Page<T>>,
    /// Levels of branches above the values.
    height: u32,
    len: usize,
}

#[derive(Debug)]
enum Page<T> {
    Values([Option<Arc<T>>; PAGE]),
    Branch([Option<Arc<Page<T>>>; PAGE]),
}

impl<T> Clone for Pages<T> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), height: self.height, len: self.len }
    }
}

impl<T> Clone for Page<T> {
    fn clone(&self) -> Self {
        match self {
            Page::Values(values) => {
                fetch_counts(values.iter().flatten());
                Page::Values(values.clone())
            }
            Page::Branch(pages) => {
                fetch_counts(pages.iter().flatten());
                Page::Branch(pages.clone())
            }
        }
    }
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { root: Arc::new(Page::Values([const { None }; PAGE])), height: 0, len: 0 }
    }
}

impl<T> Pages<T> {
    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Arc<T>> {
        self.page(number)?[slot(number, 0)].as_ref()
    }

    /// All values, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        let end = 1_u64 << ((self.height + 1) * PAGE_BITS);
        // Page by page, so that holes are cheap.
        (0..end).step_by(PAGE).filter_map(|first| self.page(u32::try_from(first).ok()?)).flatten().flatten()
    }

    /// The page on which a number's place is.
    fn page(&self, number: u32) -> Option<&[Option<Arc<T>>; PAGE]> {
        if self.is_beyond(number) {
            return None;
        }
        let mut page = &*self.root;
        let mut shift = self.height * PAGE_BITS;
        loop {
            match page {
                Page::Values(values) => return Some(values),
                Page::Branch(pages) => page = pages[slot(number, shift)].as_ref()?,
            }
            shift -= PAGE_BITS;
        }
    }

    fn is_beyond(&self, number: u32) -> bool {
        number.checked_shr((self.height + 1) * PAGE_BITS).unwrap_or(0) != 0
    }
}

impl<T> Pages<T> {
    /// Puts a value in its place, or with `None` leaves the place empty. Pages once used stay for the next number.
    pub(crate) fn set(&mut self, number: u32, value: Option<Arc<T>>) {
        let place = self.place_mut(number);
        let came = usize::from(value.is_some());
        let went = usize::from(place.is_some());
        *place = value;
        self.len = self.len + came - went;
    }

    /// The value in a place, to be changed. The copy of it that may be needed is the caller's to make.
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut Arc<T>> {
        self.get(number)?;
        self.place_mut(number).as_mut()
    }

    fn place_mut(&mut self, number: u32) -> &mut Option<Arc<T>> {
        while self.is_beyond(number) {
            let mut pages = [const { None }; PAGE];
            pages[0] = Some(self.root.clone());
            self.root = Arc::new(Page::Branch(pages));
            self.height += 1;
        }
        let mut page = Arc::make_mut(&mut self.root);
        let mut shift = self.height * PAGE_BITS;
        loop {
            match page {
                Page::Values(values) => return &mut values[slot(number, 0)],
                Page::Branch(pages) => {
                    let below = pages[slot(number, shift)].get_or_insert_with(|| {
                        Arc::new(match shift == PAGE_BITS {
                            true => Page::Values([const { None }; PAGE]),
                            false => Page::Branch([const { None }; PAGE]),
                        })
                    });
                    page = Arc::make_mut(below);
                }
            }
            shift -= PAGE_BITS;
        }
    }
}

/// Who gives numbers out: the builder alone. The lowest free ones are not sought, only used again before new ones.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next: u32,
    free: Vec<u32>,
}

impl Numbers {
    /// How many are taken.
    pub(crate) fn in_use(&self) -> usize {
        self.next as usize - self.free.len()
    }

    pub(crate) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let number = self.next;
            self.next = number.checked_add(1).expect("four billion workloads do not fit in memory");
            number
        })
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }
}

fn slot(number: u32, shift: u32) -> usize {
    (number >> shift) as usize & (PAGE - 1)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn it_holds_what_a_map_holds_and_no_clone_of_it_changes(
            steps in vec((prop_oneof![0..40_u32, 0..5_000_u32], proptest::option::weighted(0.7, 0..9_u8)), 0..200)
        ) {
            let mut pages = Pages::default();
            let mut model = BTreeMap::new();
            let mut kept = Vec::new();
            for (step, (number, value)) in steps.into_iter().enumerate() {
                if step % 50 == 0 {
                    kept.push((pages.clone(), model.clone()));
                }
                pages.set(number, value.map(Arc::new));
                match value {
                    Some(value) => drop(model.insert(number, value)),
                    None => drop(model.remove(&number)),
                }
            }
            kept.push((pages, model));
            for (pages, model) in kept {
                prop_assert_eq!(pages.len(), model.len());
                prop_assert_eq!(pages.iter().map(|value| **value).collect::<Vec<_>>(), model.values().copied().collect::<Vec<_>>());
                for number in (0..45).chain(model.keys().copied()).chain([4_999, 5_000, 65_536, u32::MAX]) {
                    prop_assert_eq!(pages.get(number).map(|value| &**value), model.get(&number), "{}", number);
                }
            }
        }
    }

    #[test]
    fn numbers_are_used_again() {
        let mut numbers = Numbers::default();
        assert_eq!((numbers.take(), numbers.take()), (0, 1));
        numbers.give_back(0);
        assert_eq!((numbers.take(), numbers.take()), (0, 2));
    }
}
