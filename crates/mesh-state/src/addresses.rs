//! The addresses of a workload, packed: nearly every one has a single address, which needs no memory of its own.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::net::IpAddr;
use core::ops::Deref;

/// Some addresses, in their order. Reads as a slice.
#[derive(Clone, Default)]
pub struct Addresses(Packed);

#[derive(Clone, Default)]
enum Packed {
    #[default]
    None,
    One([IpAddr; 1]),
    More(Arc<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Packed::None => &[],
            Packed::One(address) => address,
            Packed::More(addresses) => addresses,
        }
    }
}

impl From<&[IpAddr]> for Addresses {
    fn from(addresses: &[IpAddr]) -> Self {
        Self(match addresses {
            [] => Packed::None,
            [address] => Packed::One([*address]),
            more => Packed::More(more.into()),
        })
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self::from(&addresses[..])
    }
}

impl<const N: usize> From<[IpAddr; N]> for Addresses {
    fn from(addresses: [IpAddr; N]) -> Self {
        Self::from(&addresses[..])
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Self::from(addresses.into_iter().collect::<Vec<_>>())
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a IpAddr;
    type IntoIter = core::slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Addresses {}

impl Hash for Addresses {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
