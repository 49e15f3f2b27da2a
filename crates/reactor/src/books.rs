//! Writes down who used what: the driver's reading of the clocks becomes charges, accounts and decisions.

use crate::{
    CoreConfig, Decision,
    bill::Bill,
    cpu_clock::CpuClock,
    engine::{Aftermath, Moved},
    gate::Inside,
    tenant::Row,
    turns::Turn,
};

/// Slices after which a turn or an entry is looked at more closely. An honest one takes two or three.
const SUSPECT_SLICES: u64 = 4;

/// One sleep in so many is measured with the thread's own clock, and says what the others are charged: the clock takes
/// half a microsecond, and the shortest sleeps three.
const MEASURED_SLEEPS: u32 = 8;
/// Going to sleep and waking up, about.
const SLEEP_NS: u64 = 3_000;

/// See the module.
pub(crate) struct Books {
    /// `false` is for measuring what keeping them costs.
    kept: bool,
    clock: CpuClock,
    /// Sleeps so far.
    sleeps: u32,
    /// What sleeps take of their estimate, in parts of 1024.
    sleep_scale: u64,
    /// What takes longer is suspected of not having been worked all the time.
    suspect_ns: u64,
}

impl Books {
    pub(crate) fn new(config: &CoreConfig, now_ns: u64) -> Self {
        let slice_ns = u64::try_from(config.slice.as_nanos()).unwrap_or(u64::MAX);
        Self {
            kept: config.accounts,
            clock: CpuClock::new(now_ns),
            sleeps: 0,
            sleep_scale: 1024,
            suspect_ns: slice_ns.saturating_mul(SUSPECT_SLICES),
        }
    }

    /// What was worked of `took_ns`, until `now_ns`.
    pub(crate) fn worked_of(&mut self, took_ns: u64, now_ns: u64) -> u64 {
        if took_ns < self.suspect_ns { took_ns } else { self.clock.worked_of(took_ns, now_ns) }
    }

    /// A sleep begins; whether what is worked in it is measured.
    pub(crate) fn sleeps(&mut self, now_ns: u64) -> bool {
        self.sleeps = self.sleeps.wrapping_add(1);
        let measured = self.kept && self.sleeps % MEASURED_SLEEPS == 1;
        if measured {
            self.clock = CpuClock::new(now_ns);
        }
        measured
    }

    /// What was worked in a sleep of `took_ns` that ends: going to sleep, waking up, and what `bill` says.
    pub(crate) fn slept(&mut self, measured: bool, took_ns: u64, now_ns: u64, bill: &Bill) -> u64 {
        let estimate_ns = SLEEP_NS + bill.sum();
        let worked_ns = if measured {
            let worked_ns = self.clock.worked(now_ns);
            // A mean over some fifteen of them, in parts of 1024.
            self.sleep_scale = (self.sleep_scale * 15 + worked_ns.saturating_mul(1024) / estimate_ns) / 16;
            worked_ns
        } else {
            took_ns.min(estimate_ns * self.sleep_scale / 1024)
        };
        if !measured {
            self.clock.slept(took_ns - worked_ns);
        }
        worked_ns
    }

    /// Charges what the core did since the clock was read to the core itself.
    pub(crate) fn own(&mut self, inside: &Inside) {
        let since_ns = inside.now_ns();
        let now_ns = inside.read_clock();
        let used_ns = self.worked_of(now_ns - since_ns, now_ns);
        if self.kept {
            inside.ledger.borrow().of(Row::CORE).user_ns.add(used_ns);
        }
    }

    /// Charges an entry into the kernel.
    pub(crate) fn enter(&self, inside: &Inside, worked_ns: u64, aftermath: &mut Aftermath) {
        let Aftermath { bill, moved, .. } = aftermath;
        if !self.kept {
            moved.clear();
            return bill.clear();
        }
        let (mut queue, ledger) = (inside.queue.borrow_mut(), inside.ledger.borrow());
        bill.settle(worked_ns, |row, ns| {
            queue.charge(row, ns);
            ledger.of(row).kernel_ns.add(ns);
        });
        for Moved { row, sent_bytes } in moved.drain(..) {
            let cells = ledger.of(row);
            cells.operations.add(1);
            cells.sent_bytes.add(sent_bytes);
        }
    }

    /// Writes a turn down that was charged.
    pub(crate) fn turn(&self, inside: &Inside, turn: Turn, decision: &Decision) {
        if !self.kept {
            return;
        }
        let ledger = inside.ledger.borrow();
        let cells = ledger.of(turn.row);
        cells.user_ns.add(decision.used_ns);
        cells.turns.add(1);
        cells.polls.add(u64::from(decision.polls));
        cells.waited(decision.waited_ns);
        inside.view.decisions.write(decision);
    }
}
