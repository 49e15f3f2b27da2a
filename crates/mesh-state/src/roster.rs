//! The endpoints of one service in the order of their keys: a persistent sorted list. Which one to take is the choice of
//! `route::balance`.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::name::Uid;
use crate::service;
use crate::workload::Workload;

/// A workload as an endpoint of one service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Which of `workload.services` this is.
    membership: usize,
}

impl Endpoint {
    /// `membership` is the position of the service in `workload.services`.
    pub(crate) fn new(workload: Arc<Workload>, membership: usize) -> Self {
        Self { workload, membership }
    }

    /// Its own port behind a port of the service; `None` when it has none of its own and the service's target port holds.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        let (_, ports) = &self.workload.services[self.membership];
        service::target_port(ports, service_port)
    }
}

/// Endpoints in chunks, so that one change copies one chunk and the list of chunks, and iterating allocates nothing
/// (the iterators of the persistent maps keep a stack on the heap).
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    chunks: Arc<Vec<Arc<Vec<Endpoint>>>>,
}

const CHUNK_LEN_MAX: usize = 64;

impl Roster {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    pub(crate) fn find(&self, uid: &Uid) -> Option<&Endpoint> {
        let chunk = self.chunks.get(self.chunk_of(uid))?;
        let at = position(chunk, uid).ok()?;
        Some(&chunk[at])
    }

    pub(crate) fn insert(&mut self, endpoint: Endpoint) {
        if self.chunks.is_empty() {
            self.chunks = Arc::new(vec![Arc::new(vec![endpoint])]);
            return;
        }
        let index = self.chunk_of(&endpoint.workload.uid);
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        match position(chunk, &endpoint.workload.uid) {
            Ok(at) => chunk[at] = endpoint,
            Err(at) => chunk.insert(at, endpoint),
        }
        if chunk.len() > CHUNK_LEN_MAX {
            let upper = chunk.split_off(CHUNK_LEN_MAX / 2);
            chunks.insert(index + 1, Arc::new(upper));
        }
    }

    pub(crate) fn remove(&mut self, uid: &Uid) {
        if self.find(uid).is_none() {
            return;
        }
        let index = self.chunk_of(uid);
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        if let Ok(at) = position(chunk, uid) {
            chunk.remove(at);
        }
        if chunk.is_empty() {
            chunks.remove(index);
            return;
        }
        // Without this a service that shrank would stay a long list of tiny chunks. Both neighbours are tried: when
        // endpoints go in the order of their keys, the next one is always still full.
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

    /// The chunk that holds `uid`, or into which it would go; 0 when there is none.
    fn chunk_of(&self, uid: &Uid) -> usize {
        self.chunks.partition_point(|chunk| chunk[0].workload.uid <= *uid).saturating_sub(1)
    }
}

fn position(chunk: &[Endpoint], uid: &Uid) -> Result<usize, usize> {
    chunk.binary_search_by(|endpoint| endpoint.workload.uid.cmp(uid))
}

#[cfg(test)]
mod tests {
    use std::format;

    use crate::identity::Identity;
    use crate::name::NamespacedHostname;

    use super::*;

    fn endpoint(number: usize) -> Endpoint {
        let identity = Identity::new("td", "a", "s").expect("valid parts");
        let mut workload = Workload::new(format!("{number:05}").as_str().into(), "a", "x", identity);
        workload.services = vec![(NamespacedHostname::new("a", "one.example.com"), Vec::new())];
        Endpoint::new(Arc::new(workload), 0)
    }

    #[test]
    fn a_service_that_shrank_has_few_chunks_whatever_went_first() {
        let ascending: Vec<usize> = (0..1000).collect();
        let descending: Vec<usize> = ascending.iter().rev().copied().collect();
        let scattered: Vec<usize> = (0..1000).map(|step| step * 377 % 1000).collect();
        for order in [ascending, descending, scattered] {
            let mut roster = Roster::default();
            for number in 0..1000 {
                roster.insert(endpoint(number));
            }
            let held = |number: &&usize| number.is_multiple_of(50);
            for number in order.iter().filter(|number| !held(number)) {
                roster.remove(&endpoint(*number).workload.uid);
            }
            let left: Vec<&str> = roster.iter().map(|endpoint| endpoint.workload.uid.as_str()).collect();
            let expected: Vec<_> =
                (0..1000).filter(|number| held(&number)).map(|number| format!("{number:05}")).collect();
            assert_eq!(left, expected);
            // 20 are left; two neighbours hold more than half a chunk together, so at most one chunk stands alone.
            assert!(roster.chunks.len() <= 2, "{} chunks, first gone {:?}", roster.chunks.len(), order.first());
        }
    }
}
