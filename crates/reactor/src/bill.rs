//! Whom the time inside the kernel is charged to.
//!
//! An entry into the kernel is timed as a whole and its time divided by what it did for whom. Only relations count: the
//! entry's measured time is what is charged in the end, so that an estimate that is wrong for everybody harms nobody, and
//! an entry that worked for one tenant alone, as under contention nearly all do, is charged exactly.

use crate::tenant::Row;

/// What the kernel was asked for or has brought, as far as its cost goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A request that will wait: registered, no more.
    Armed,
    /// A request to send so many bytes, which the kernel does at once; or, into a full socket, in a later entry, whose other
    /// tenants then share what this has paid for.
    Send(usize),
    /// A request to connect.
    Connect,
    /// A connection that was accepted.
    Accepted,
    /// Any other completion.
    Completed,
}

impl Work {
    /// What it costs, roughly in nanoseconds of the machine these were measured on (docs/decisions/0010).
    pub(crate) fn cost(self) -> u64 {
        let copying = |bytes: usize| bytes as u64 / COPIED_BYTES_PER_NS;
        match self {
            Self::Armed => 300,
            Self::Send(bytes) => 6_000 + copying(bytes),
            Self::Connect => 17_000,
            Self::Accepted => 2_500,
            Self::Completed => 80,
        }
    }
}

/// One byte in a fifth of a nanosecond, with TCP's own work on it.
const COPIED_BYTES_PER_NS: u64 = 5;

/// The division of one entry's time.
#[derive(Debug, Default)]
pub(crate) struct Bill {
    items: Vec<(Row, u64)>,
}

impl Bill {
    /// Adds something that was done for `row`.
    pub(crate) fn add(&mut self, row: Row, work: Work) {
        match self.items.last_mut() {
            Some((last, cost)) if *last == row => *cost += work.cost(),
            _ => self.items.push((row, work.cost())),
        }
    }

    /// What was added, in the nanoseconds of another machine.
    pub(crate) fn sum(&self) -> u64 {
        self.items.iter().map(|(_, cost)| cost).sum()
    }

    /// Forgets what was added.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
    }

    /// Divides `took_ns` by what was added, and begins anew. An entry that did nothing for anybody was the core's own.
    pub(crate) fn settle(&mut self, took_ns: u64, mut charge: impl FnMut(Row, u64)) {
        let sum = self.sum();
        if sum == 0 {
            return charge(Row::CORE, took_ns);
        }
        let mut left = took_ns;
        for (row, cost) in self.items.drain(..) {
            let part = match took_ns.checked_mul(cost) {
                Some(product) => product / sum,
                None => u64::try_from(u128::from(took_ns) * u128::from(cost) / u128::from(sum)).expect("a part"),
            };
            charge(row, part);
            left -= part;
        }
        // What rounding has left over: less than a nanosecond for each.
        charge(Row::CORE, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(bill: &mut Bill, took_ns: u64) -> Vec<(usize, u64)> {
        let mut charged = Vec::new();
        bill.settle(took_ns, |row, ns| charged.push((row.index(), ns)));
        charged
    }

    #[test]
    fn an_entry_for_one_tenant_is_charged_to_it_whatever_it_did() {
        let mut bill = Bill::default();
        for work in [Work::Armed, Work::Send(64), Work::Send(9_000), Work::Accepted, Work::Connect] {
            bill.add(Row::at(3), work);
        }
        assert_eq!(settled(&mut bill, 12_345), [(3, 12_345), (0, 0)]);
    }

    #[test]
    fn tenants_share_an_entry_by_what_it_did_for_each_and_all_of_it_is_charged() {
        let mut bill = Bill::default();
        bill.add(Row::at(1), Work::Send(0));
        bill.add(Row::at(2), Work::Send(0));
        bill.add(Row::at(2), Work::Send(0));
        assert_eq!(settled(&mut bill, 3_001), [(1, 1_000), (2, 2_000), (0, 1)]);
        bill.add(Row::at(1), Work::Send(64));
        bill.add(Row::at(2), Work::Send(64 << 10));
        let charged = settled(&mut bill, 1_000);
        assert!(charged[1].1 > 2 * charged[0].1, "bytes count: {charged:?}");
    }

    #[test]
    fn an_entry_for_nobody_is_the_cores_own() {
        assert_eq!(settled(&mut Bill::default(), 500), [(0, 500)]);
    }
}
