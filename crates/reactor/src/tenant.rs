//! Who work is done for: the tenant's key, its weight, and its row in whatever a core keeps by tenant.

/// Who a task's work is charged to. Opaque here: the data plane knows the names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey(pub u32);

impl TenantKey {
    /// The core's own work, which no tenant asked for.
    pub const CORE: Self = Self(0);
    /// Takes in the tenants beyond [`CoreConfig::tenants_max`](crate::CoreConfig::tenants_max).
    pub const OVERFLOW: Self = Self(u32::MAX);
}

/// A tenant's share of a core's time, relative to the other tenants that want some: 300 gets three times what 100 gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// What a tenant has of which nothing was said.
    pub const DEFAULT: Self = Self(100);
    /// The least.
    pub const MIN: Self = Self(1);
    /// The most.
    pub const MAX: Self = Self(10_000);

    /// A weight from [`Weight::MIN`] to [`Weight::MAX`]; `None` beyond.
    #[must_use]
    pub fn new(weight: u32) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    #[must_use]
    pub fn value(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A tenant's place on its core. Rows are numbered from 0 without gaps and never removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(u32);

impl Row {
    /// The row of [`TenantKey::CORE`].
    pub const CORE: Self = Self(0);

    /// The row at a place.
    #[must_use]
    pub fn at(index: usize) -> Self {
        Self(u32::try_from(index).expect("tenants are fewer than their keys"))
    }

    /// Its place in whatever is kept by row.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_has_bounds() {
        for (weight, valid) in [(0, false), (1, true), (100, true), (10_000, true), (10_001, false), (u32::MAX, false)]
        {
            assert_eq!(Weight::new(weight).map(Weight::value), valid.then_some(weight), "{weight}");
        }
    }
}
