//! The last turns of a core, kept for whoever asks afterwards why somebody waited.
//!
//! A ring with one writer, the core, and readers anywhere. An entry that is being overwritten while it is read is left
//! out: its serial number, written before and after, tells.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::tenant::TenantKey;

/// Entries kept: of a busy core about the last 50 ms. 48 KiB.
const KEPT: usize = 1024;

/// One turn, as it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// Which turn of the core it was, counted from 1.
    pub serial: u64,
    /// When it began, in nanoseconds since the core did.
    pub began_ns: u64,
    /// Whose it was.
    pub tenant: TenantKey,
    /// How long the tenant had waited for it.
    pub waited_ns: u64,
    /// How long it was to last while others wait.
    pub length_ns: u64,
    /// How long it lasted; what the kernel did for it afterwards is not in it.
    pub used_ns: u64,
    /// How many tasks were polled.
    pub polls: u32,
    /// Why it ended.
    pub end: TurnEnd,
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TurnEnd {
    /// The tenant had nothing more to run.
    Idle,
    /// Its time was over.
    Time,
    /// It had asked the kernel for as much as it may while others wait.
    Requests,
}

impl TurnEnd {
    const ALL: [Self; 3] = [Self::Idle, Self::Time, Self::Requests];

    /// In a word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Time => "time",
            Self::Requests => "requests",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Decisions {
    entries: Box<[Entry]>,
    /// Turns written so far.
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct Entry {
    /// 0 while it is being written.
    serial: AtomicU64,
    words: [AtomicU64; 5],
}

impl Decisions {
    pub(crate) fn new() -> Self {
        Self { entries: (0..KEPT).map(|_| Entry::default()).collect(), written: AtomicU64::new(0) }
    }

    /// Writes a turn down; its serial number is given here. Only the core's thread may.
    pub(crate) fn write(&self, decision: &Decision) {
        let serial = self.written.load(Ordering::Relaxed) + 1;
        let entry = &self.entries[serial as usize % KEPT];
        entry.serial.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        let small = |ns: u64| ns.min(u64::from(u32::MAX));
        let words = [
            decision.began_ns,
            u64::from(decision.tenant.0) << 32 | u64::from(decision.polls),
            decision.waited_ns,
            small(decision.length_ns) << 8 | decision.end as u64,
            decision.used_ns,
        ];
        for (cell, word) in entry.words.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        entry.serial.store(serial, Ordering::Release);
        self.written.store(serial, Ordering::Relaxed);
    }

    /// The turns that are kept, the earliest first. From any thread.
    pub(crate) fn read(&self) -> Vec<Decision> {
        let mut decisions: Vec<_> = self.entries.iter().filter_map(Entry::read).collect();
        decisions.sort_unstable_by_key(|decision| decision.serial);
        decisions
    }
}

impl Entry {
    fn read(&self) -> Option<Decision> {
        let serial = self.serial.load(Ordering::Acquire);
        let [began_ns, who, waited_ns, length, used_ns] =
            std::array::from_fn(|word| self.words[word].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = serial != 0 && self.serial.load(Ordering::Relaxed) == serial;
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a u64")]
        let (tenant, polls) = (TenantKey((who >> 32) as u32), who as u32);
        let end = *TurnEnd::ALL.get(length as usize & 0xff)?;
        whole.then_some(Decision { serial, began_ns, tenant, waited_ns, length_ns: length >> 8, used_ns, polls, end })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A decision whose numbers all follow from one.
    fn decision(number: u64) -> Decision {
        Decision {
            serial: number,
            began_ns: number * 3,
            tenant: TenantKey(number as u32),
            waited_ns: number * 5,
            length_ns: number * 7,
            used_ns: number * 11,
            polls: number as u32,
            end: TurnEnd::ALL[number as usize % 3],
        }
    }

    #[test]
    fn the_last_turns_are_kept_in_order() {
        let decisions = Decisions::new();
        assert_eq!(decisions.read(), []);
        (1..=5).for_each(|number| decisions.write(&decision(number)));
        assert_eq!(decisions.read(), (1..=5).map(decision).collect::<Vec<_>>());
        (6..=3 * KEPT as u64).for_each(|number| decisions.write(&decision(number)));
        let kept = decisions.read();
        assert_eq!(kept, (2 * KEPT as u64 + 1..=3 * KEPT as u64).map(decision).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_beside_the_writer_sees_whole_turns_only() {
        let decisions = Decisions::new();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) || seen == 0 {
                    for read in decisions.read() {
                        assert_eq!(read, decision(read.serial));
                        seen += 1;
                    }
                }
            });
            (1..=300_000).for_each(|number| decisions.write(&decision(number)));
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }
}
