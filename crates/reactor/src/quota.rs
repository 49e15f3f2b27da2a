//! How much of a core's limit one tenant may hold: three quarters, so that whoever fills its part leaves the others some.
//! The core's own work has no part of its own and may use all.

use std::cell::RefCell;

use crate::tenant::Row;

/// Things of which a core has so many, counted by tenant.
pub(crate) struct Quota {
    tenant_max: usize,
    held: RefCell<Vec<usize>>,
}

impl Quota {
    /// For a limit of `max` on the core; a tenant gets at least one.
    pub(crate) fn of(max: usize) -> Self {
        Self { tenant_max: (max - max / 4).max(1), held: RefCell::default() }
    }

    /// What one tenant may hold.
    pub(crate) fn tenant_max(&self) -> usize {
        self.tenant_max
    }

    /// One more for `row`, unless it holds all it may.
    #[must_use]
    pub(crate) fn take(&self, row: Row) -> bool {
        let mut held = self.held.borrow_mut();
        if held.len() <= row.index() {
            held.resize(row.index() + 1, 0);
        }
        let held = &mut held[row.index()];
        let may = row == Row::CORE || *held < self.tenant_max;
        *held += usize::from(may);
        may
    }

    /// One less for `row`.
    pub(crate) fn give_back(&self, row: Row) {
        self.held.borrow_mut()[row.index()] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_gets_three_quarters_whatever_it_returns_and_the_core_gets_all() {
        let (quota, one, other) = (Quota::of(8), Row::at(2), Row::at(3));
        assert_eq!((0..9).filter(|_| quota.take(one)).count(), 6);
        assert!(quota.take(other));
        quota.give_back(one);
        assert!(quota.take(one) && !quota.take(one));
        assert!((0..8).all(|_| quota.take(Row::CORE)));
        assert!(Quota::of(1).take(one), "never nothing");
    }
}
