//! What tasks have asked of the kernel and the kernel has not seen yet, by tenant, and how much of it the next entry
//! carries. Knows no engine: a request is whatever the engine can hand to the kernel later, one by one.
//!
//! A tenant's requests go in the order in which they were made. But for an entry that sleeps, only those tenants' requests go
//! that had a turn since the last entry, and no more of each than [`Limit`] says, less while another tenant waits: what the
//! kernel does for a request it does inside the entry, and nobody else runs meanwhile.

use std::collections::VecDeque;

use crate::tenant::Row;

/// How much of one tenant's requests one entry into the kernel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What the kernel takes for them by estimate, in nanoseconds: the request that reaches it is the last.
    pub(crate) cost_max_ns: u64,
    /// Bytes that the kernel may move for them. A first request that alone is larger is to be cut to it.
    pub(crate) bytes_max: usize,
}

impl Limit {
    /// Nobody else waits now, but somebody may wake while the kernel works, and then waits for all of it: about 100 us.
    pub(crate) const ALONE: Self = Self { cost_max_ns: 96_000, bytes_max: 256 << 10 };
    /// All there is.
    pub(crate) const NONE: Self = Self { cost_max_ns: u64::MAX, bytes_max: usize::MAX };
    /// Somebody else waits. 64 KiB are about 15 us of copying, and eight small sends about 50 us of TCP.
    pub(crate) const CONTENDED: Self = Self { cost_max_ns: 48_000, bytes_max: 64 << 10 };

    /// Whether one entry could not carry more than `load`.
    pub(crate) fn reached(self, load: Load) -> bool {
        load.cost_ns >= self.cost_max_ns || load.bytes >= self.bytes_max
    }

    /// Whether one entry carries all of `load`.
    pub(crate) fn holds(self, load: Load) -> bool {
        load.cost_ns <= self.cost_max_ns && load.bytes <= self.bytes_max
    }
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests, among them perhaps some that were withdrawn.
    pub(crate) requests: usize,
    /// What the kernel takes for them by estimate, in nanoseconds.
    pub(crate) cost_ns: u64,
    /// Bytes that the kernel may move for them.
    pub(crate) bytes: usize,
}

impl Load {
    /// Both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            cost_ns: self.cost_ns.saturating_add(other.cost_ns),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// See the module.
pub(crate) struct Submissions<T> {
    /// By row; rows are few and are never removed.
    queues: Vec<Queue<T>>,
    /// Rows with something in their queue, the longest waiting first.
    waiting: Vec<Row>,
    total: Load,
}

/// Of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// What the kernel takes for it besides the bytes, in nanoseconds.
    pub(crate) cost_ns: u64,
    /// Bytes that the kernel may move for it.
    pub(crate) bytes: usize,
}

struct Queue<T> {
    requests: VecDeque<(T, Size)>,
    load: Load,
    /// Whether the tenant had a turn since its last requests went.
    due: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { requests: VecDeque::new(), load: Load::default(), due: false }
    }
}

impl<T> Submissions<T> {
    pub(crate) fn new() -> Self {
        Self { queues: Vec::new(), waiting: Vec::new(), total: Load::default() }
    }

    /// Queues a request of `row`.
    pub(crate) fn add(&mut self, row: Row, request: T, size: Size) {
        if self.queues.len() <= row.index() {
            self.queues.resize_with(row.index() + 1, Queue::default);
        }
        let queue = &mut self.queues[row.index()];
        if queue.requests.is_empty() {
            self.waiting.push(row);
        }
        queue.requests.push_back((request, size));
        for load in [&mut queue.load, &mut self.total] {
            load.requests += 1;
            load.cost_ns += size.cost_ns;
            load.bytes += size.bytes;
        }
    }

    /// What waits of `row`.
    pub(crate) fn load(&self, row: Row) -> Load {
        self.queues.get(row.index()).map_or_else(Load::default, |queue| queue.load)
    }

    /// What waits of all rows.
    pub(crate) fn total(&self) -> Load {
        self.total
    }

    /// `row` had a turn: the next entry carries something of it, whoever waits.
    pub(crate) fn had_a_turn(&mut self, row: Row) {
        if let Some(queue) = self.queues.get_mut(row.index()) {
            queue.due = true;
        }
    }

    /// Takes out what the next entry carries, within `limit` of each row, which had a turn if there is one. `hand_over` gets a request and the bytes it may
    /// move at most, and says how many that are; `None` is a request that was withdrawn and takes no room.
    pub(crate) fn carry(
        &mut self,
        limit: impl Fn(Row) -> Limit,
        mut hand_over: impl FnMut(Row, T, usize) -> Option<usize>,
    ) {
        let Self { queues, waiting, total } = self;
        waiting.retain(|row| {
            let queue = &mut queues[row.index()];
            let limit = limit(*row);
            if limit != Limit::NONE && !std::mem::take(&mut queue.due) {
                return true;
            }
            let mut carried = Load::default();
            while let Some((_, Size { cost_ns, bytes })) = queue.requests.front() {
                let (cost_ns, bytes, room) = (*cost_ns, *bytes, limit.bytes_max.saturating_sub(carried.bytes));
                let fits = carried.requests == 0 || bytes <= room;
                if !fits || carried.cost_ns >= limit.cost_max_ns {
                    return true;
                }
                let (request, _) = queue.requests.pop_front().expect("it was just looked at");
                for load in [&mut queue.load, &mut *total] {
                    load.requests -= 1;
                    load.cost_ns -= cost_ns;
                    load.bytes -= bytes;
                }
                if let Some(moved) = hand_over(*row, request, room) {
                    carried.requests += 1;
                    carried.cost_ns += cost_ns;
                    carried.bytes += moved;
                }
            }
            queue.due = false;
            false
        });
    }

    /// Rows of which something still waits.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Row> {
        self.waiting.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three requests of the usual cost.
    const LIMIT: Limit = Limit { cost_max_ns: 3 * COST, bytes_max: 100 };
    const COST: u64 = 7;

    /// What an entry carries: row, request and bytes that it may move.
    fn entry(submissions: &mut Submissions<&'static str>, limit: Limit) -> Vec<(usize, &'static str, usize)> {
        let mut carried = Vec::new();
        submissions.carry(
            |_| limit,
            |row, request, room| {
                let withdrawn = request == "withdrawn";
                carried.push((row.index(), request, room.min(1000)));
                (!withdrawn).then_some(room.min(40))
            },
        );
        carried
    }

    fn of(rows: &[(usize, &'static str, usize)]) -> Submissions<&'static str> {
        let mut submissions = Submissions::new();
        for (row, request, bytes) in rows {
            submissions.add(Row::at(*row), *request, Size { cost_ns: COST, bytes: *bytes });
        }
        submissions
    }

    #[test]
    fn everything_goes_in_order_while_nobody_else_waits() {
        let mut submissions = of(&[(1, "a", 70), (2, "b", 70), (1, "c", 70), (1, "d", 0)]);
        assert_eq!(
            entry(&mut submissions, Limit::NONE),
            [(1, "a", 1000), (1, "c", 1000), (1, "d", 1000), (2, "b", 1000)]
        );
        assert_eq!(submissions.waiting().count(), 0);
        assert_eq!((submissions.load(Row::at(1)), submissions.total()), (Load::default(), Load::default()));
    }

    #[test]
    fn a_row_without_a_turn_waits_while_somebody_else_does() {
        let mut submissions = of(&[(1, "a", 0), (2, "b", 0)]);
        submissions.had_a_turn(Row::at(2));
        assert_eq!(entry(&mut submissions, LIMIT), [(2, "b", 100)]);
        assert_eq!(submissions.waiting().collect::<Vec<_>>(), [Row::at(1)]);
        assert_eq!(entry(&mut submissions, LIMIT), []);
    }

    #[test]
    fn one_turn_carries_no_more_than_the_limits_and_the_next_goes_on() {
        let mut submissions = of(&[(1, "a", 0), (1, "b", 0), (1, "c", 0), (1, "d", 0), (1, "e", 30), (1, "f", 40)]);
        assert!(LIMIT.reached(submissions.load(Row::at(1))));
        submissions.had_a_turn(Row::at(1));
        assert_eq!(entry(&mut submissions, LIMIT), [(1, "a", 100), (1, "b", 60), (1, "c", 20)], "three requests");
        assert_eq!(submissions.load(Row::at(1)), Load { requests: 3, cost_ns: 3 * COST, bytes: 70 });
        submissions.had_a_turn(Row::at(1));
        assert_eq!(entry(&mut submissions, LIMIT), [(1, "d", 100), (1, "e", 60)], "40 bytes find room for 20");
        submissions.had_a_turn(Row::at(1));
        assert_eq!(entry(&mut submissions, LIMIT), [(1, "f", 100)]);
    }

    #[test]
    fn dear_requests_fill_an_entry_sooner_than_cheap_ones() {
        let mut submissions = Submissions::new();
        for (request, cost_ns) in [("arm", 1), ("connect", 2 * COST), ("connect", 2 * COST), ("arm", 1)] {
            submissions.add(Row::at(1), request, Size { cost_ns, bytes: 0 });
        }
        submissions.had_a_turn(Row::at(1));
        assert_eq!(entry(&mut submissions, LIMIT).len(), 3);
        assert_eq!(submissions.load(Row::at(1)), Load { requests: 1, cost_ns: 1, bytes: 0 });
    }

    #[test]
    fn what_is_larger_than_the_limit_goes_alone_and_is_cut() {
        let mut submissions = of(&[(1, "huge", 5000), (1, "next", 90)]);
        submissions.had_a_turn(Row::at(1));
        assert_eq!(entry(&mut submissions, LIMIT), [(1, "huge", 100)]);
    }

    #[test]
    fn withdrawn_requests_take_no_room() {
        let mut submissions = of(&[(1, "withdrawn", 90), (1, "withdrawn", 90), (1, "a", 90)]);
        submissions.had_a_turn(Row::at(1));
        assert_eq!(entry(&mut submissions, LIMIT), [(1, "withdrawn", 100), (1, "withdrawn", 100), (1, "a", 100)]);
        assert_eq!(submissions.waiting().count(), 0);
    }
}
