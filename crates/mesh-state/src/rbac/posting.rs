//! The rules under one key of an index, in the order of their policies' keys: a persistent sorted list in chunks, so that a
//! change copies one chunk and the list of chunks, and reading allocates nothing.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::matcher::Entry;

/// Never an empty chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct Posting {
    chunks: Arc<Vec<Arc<Vec<Entry>>>>,
}

const CHUNK_LEN_MAX: usize = 64;

impl Posting {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Puts a rule in its place; one that is there already is replaced.
    pub(super) fn insert(&mut self, rule: Entry) {
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(index) = chunk_of(chunks, &rule) else {
            chunks.push(Arc::new(vec![rule]));
            return;
        };
        let chunk = Arc::make_mut(&mut chunks[index]);
        match chunk.binary_search_by(|held| held.precedence(&rule)) {
            Ok(at) => chunk[at] = rule,
            Err(at) => chunk.insert(at, rule),
        }
        if chunk.len() > CHUNK_LEN_MAX {
            let upper = chunk.split_off(CHUNK_LEN_MAX / 2);
            chunks.insert(index + 1, Arc::new(upper));
        }
    }

    /// Takes a rule out, if it is there.
    pub(super) fn remove(&mut self, rule: &Entry) {
        let Some(index) = chunk_of(&self.chunks, rule) else { return };
        let Ok(at) = self.chunks[index].binary_search_by(|held| held.precedence(rule)) else { return };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        chunk.remove(at);
        if chunk.is_empty() {
            chunks.remove(index);
            return;
        }
        // Without this a list that shrank would stay one of tiny chunks.
        for first in [index.saturating_sub(1), index] {
            let Some([one, other]) = chunks.get(first..first + 2).and_then(|pair| pair.first_chunk()) else {
                continue;
            };
            if one.len() + other.len() <= CHUNK_LEN_MAX / 2 {
                let other = chunks.remove(first + 1);
                Arc::make_mut(&mut chunks[first]).extend(other.iter().cloned());
                return;
            }
        }
    }
}

/// The chunk that holds a rule, or into which it would go; `None` when there is no chunk.
fn chunk_of(chunks: &[Arc<Vec<Entry>>], rule: &Entry) -> Option<usize> {
    let after = chunks.partition_point(|chunk| chunk[0].precedence(rule) != Ordering::Greater);
    (!chunks.is_empty()).then(|| after.saturating_sub(1))
}
