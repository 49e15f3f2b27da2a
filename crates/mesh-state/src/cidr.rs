//! Services by blocks of virtual addresses. Not single addresses, which have an exact index.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::claims::visible;
use crate::service::Service;
use crate::service_index::ServiceIndex;

/// The blocks of one network, one map for each prefix length in use, longest first: a lookup costs one probe per length.
#[derive(Clone, Debug, Default)]
pub(crate) struct CidrVips {
    levels: Arc<Vec<Level>>,
}

#[derive(Clone, Debug)]
struct Level {
    prefix_len: u8,
    is_v4: bool,
    blocks: ServiceIndex<IpNet>,
}

impl CidrVips {
    pub(crate) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Whether any block has an address.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        self.levels.iter().filter(|level| level.is_v4 == address.is_ipv4()).any(|level| {
            IpNet::new(address, level.prefix_len).is_ok_and(|block| !level.blocks.get(&block.trunc()).is_empty())
        })
    }

    /// The service a client in `namespace` means by `address`: of its own namespace before the longest prefix before a
    /// canonical one (§8.4).
    pub(crate) fn find(&self, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let mut longest = None;
        for level in self.levels.iter().filter(|level| level.is_v4 == address.is_ipv4()) {
            let Ok(block) = IpNet::new(address, level.prefix_len) else {
                continue;
            };
            let Some(service) = visible(level.blocks.get(&block.trunc()), namespace) else {
                continue;
            };
            if &*service.namespace == namespace {
                return Some(service);
            }
            longest = longest.or(Some(service));
        }
        longest
    }

    pub(crate) fn insert(&mut self, block: IpNet, service: &Arc<Service>) {
        let block = canonical(&block);
        let levels = Arc::make_mut(&mut self.levels);
        let at = match position(levels, &block) {
            Ok(at) => at,
            Err(at) => {
                levels.insert(
                    at,
                    Level {
                        prefix_len: block.prefix_len(),
                        is_v4: block.addr().is_ipv4(),
                        blocks: ServiceIndex::default(),
                    },
                );
                at
            }
        };
        levels[at].blocks.claim(block, service);
    }

    pub(crate) fn remove(&mut self, block: IpNet, service: &Arc<Service>) {
        let block = canonical(&block);
        let Ok(at) = position(&self.levels, &block) else {
            return;
        };
        let levels = Arc::make_mut(&mut self.levels);
        levels[at].blocks.waive(&block, service);
        if levels[at].blocks.is_empty() {
            levels.remove(at);
        }
    }
}

fn position(levels: &[Level], block: &IpNet) -> Result<usize, usize> {
    let key = |prefix_len: u8, is_v4: bool| (u8::MAX - prefix_len, is_v4);
    let wanted = key(block.prefix_len(), block.addr().is_ipv4());
    levels.binary_search_by_key(&wanted, |level| key(level.prefix_len, level.is_v4))
}

/// A block of IPv4-mapped addresses is the IPv4 block it means, since addresses arrive here as IPv4 (§3.4); otherwise a
/// deny policy written that way would deny nothing, and a service be found by nobody.
pub(crate) fn canonical(block: &IpNet) -> IpNet {
    const MAPPED_PREFIX_LEN: u8 = 96;
    let block = block.trunc();
    let IpNet::V6(v6) = block else { return block };
    let (Some(address), Some(prefix_len)) =
        (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(MAPPED_PREFIX_LEN))
    else {
        return block;
    };
    Ipv4Net::new(address, prefix_len).map_or(block, IpNet::V4)
}
