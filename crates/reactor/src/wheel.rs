//! A timer wheel in coarse ticks: insert, cancel and fire in constant time, however many timers are armed.
//!
//! Hierarchical (six levels of 64 slots, as in Varghese and Lauck's paper) rather than one hashed ring: a core that
//! holds ten thousand idle connections with five-minute timeouts must be able to sleep until the first of them is due,
//! and in one ring every slot would be occupied by timers of later rounds. Knows no clock: ticks come in as numbers.

const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// The farthest a timer is filed ahead; a later one is filed again when this has passed (two years of milliseconds).
const HORIZON: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - (1 << (SLOT_BITS * (LEVELS as u32 - 1)));
const NONE: u32 = u32::MAX;

/// Names an armed timer. Outlives it harmlessly: a key is never valid again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    index: u32,
    generation: u32,
}

/// Timers by tick, each with something to hand out when it fires.
pub(crate) struct Wheel<T> {
    now: u64,
    levels: [Level; LEVELS],
    entries: Vec<Entry<T>>,
    /// First of the vacant entries, linked by `next`.
    vacant: u32,
    armed: usize,
    armed_max: usize,
}

struct Level {
    /// One bit per slot that holds a timer.
    occupied: u64,
    /// First entry of each slot, linked by `next` and `previous`.
    slots: [u32; SLOTS],
}

struct Entry<T> {
    /// `None` while vacant.
    payload: Option<T>,
    deadline: u64,
    generation: u32,
    level: u8,
    slot: u8,
    next: u32,
    previous: u32,
}

impl<T> Wheel<T> {
    /// A wheel at tick 0 with at most `armed_max` timers, each of 24 bytes and its payload.
    pub(crate) fn new(armed_max: usize) -> Self {
        Self {
            now: 0,
            levels: std::array::from_fn(|_| Level { occupied: 0, slots: [NONE; SLOTS] }),
            entries: Vec::new(),
            vacant: NONE,
            armed: 0,
            armed_max: armed_max.min(NONE as usize),
        }
    }

    /// Arms a timer for `deadline`, or for the next tick if that has passed. Gives the payload back at the limit.
    pub(crate) fn insert(&mut self, deadline: u64, payload: T) -> Result<TimerKey, T> {
        if self.armed >= self.armed_max {
            return Err(payload);
        }
        let index = match self.vacant {
            NONE => {
                let index = u32::try_from(self.entries.len()).expect("bounded by armed_max");
                self.entries.push(Entry {
                    payload: None,
                    deadline: 0,
                    generation: 0,
                    level: 0,
                    slot: 0,
                    next: NONE,
                    previous: NONE,
                });
                index
            }
            index => {
                self.vacant = self.entries[index as usize].next;
                index
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.payload = Some(payload);
        entry.deadline = deadline.max(self.now + 1);
        let generation = entry.generation;
        self.armed += 1;
        self.file(index);
        Ok(TimerKey { index, generation })
    }

    /// What an armed timer will hand out.
    pub(crate) fn payload_mut(&mut self, key: TimerKey) -> Option<&mut T> {
        self.entries.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation)?.payload.as_mut()
    }

    /// Disarms a timer; `None` if it has fired or was cancelled.
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<T> {
        self.payload_mut(key)?;
        self.unfile(key.index);
        Some(self.vacate(key.index))
    }

    /// Moves time on to `to` and hands out what is due by then, tick by tick.
    pub(crate) fn advance(&mut self, to: u64, mut fire: impl FnMut(T)) {
        while let Some((level, slot, tick)) = self.next_slot()
            && tick <= to
        {
            self.now = tick;
            let mut index = std::mem::replace(&mut self.levels[level].slots[slot], NONE);
            self.levels[level].occupied &= !(1 << slot);
            while index != NONE {
                let entry = &self.entries[index as usize];
                let (due, next) = (entry.deadline <= tick, entry.next);
                if due {
                    fire(self.vacate(index));
                } else {
                    self.file(index);
                }
                index = next;
            }
        }
        self.now = self.now.max(to);
    }

    /// The first tick at which [`Wheel::advance`] has something to do, which is not after the first deadline.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        self.next_slot().map(|(_, _, tick)| tick)
    }

    /// How many timers are armed.
    pub(crate) fn armed(&self) -> usize {
        self.armed
    }

    /// The first occupied slot and the tick at which it begins. A lower level's timers all come before a higher's:
    /// they share with `now` the part of the tick that tells the higher level's slots apart.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let level = self.levels.iter().position(|level| level.occupied != 0)?;
        let shift = SLOT_BITS * level as u32;
        let here = self.now >> shift;
        let current = (here % SLOTS as u64) as u32;
        // Strictly after the current slot, which is always empty; around the end only on the highest level.
        let ahead = self.levels[level].occupied.rotate_right((current + 1) % SLOTS as u32).trailing_zeros() + 1;
        let slot = (current + ahead) as usize % SLOTS;
        Some((level, slot, (here + u64::from(ahead)) << shift))
    }

    fn file(&mut self, index: u32) {
        let filed_for = self.entries[index as usize].deadline.min(self.now + HORIZON);
        let highest_difference = u64::BITS - 1 - (self.now ^ filed_for).leading_zeros();
        let level = ((highest_difference / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot = (filed_for >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let first = std::mem::replace(&mut self.levels[level].slots[slot], index);
        self.levels[level].occupied |= 1 << slot;
        if first != NONE {
            self.entries[first as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        (entry.level, entry.slot) = (level as u8, slot as u8);
        (entry.next, entry.previous) = (first, NONE);
    }

    fn unfile(&mut self, index: u32) {
        let Entry { level, slot, next, previous, .. } = self.entries[index as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        let level = &mut self.levels[usize::from(level)];
        level.slots[usize::from(slot)] = next;
        if next == NONE {
            level.occupied &= !(1 << slot);
        }
    }

    /// Takes an entry that is in no slot out of use.
    fn vacate(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.vacant;
        self.vacant = index;
        self.armed -= 1;
        entry.payload.take().expect("an entry in a slot is armed")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert {
            after: u64,
        },
        Cancel {
            which: usize,
        },
        Advance {
            by: u64,
        },
        /// To the tick that the wheel itself names, which must not be after the first deadline.
        AdvanceToNext,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ticks = || prop_oneof![0..3u64, 0..70u64, 0..5_000u64, 0..20_000_000u64, Just(1 << 36), 0..(1u64 << 40)];
        let step = prop_oneof![
            4 => ticks().prop_map(|after| Step::Insert { after }),
            2 => any::<usize>().prop_map(|which| Step::Cancel { which }),
            2 => ticks().prop_map(|by| Step::Advance { by }),
            2 => Just(Step::AdvanceToNext),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn the_wheel_fires_what_a_plain_list_of_deadlines_would(start in 0..(1u64 << 37), steps in steps()) {
            let mut wheel = Wheel::new(usize::MAX);
            wheel.advance(start, |_: usize| ());
            let mut now = start;
            let mut list: Vec<(u64, usize, TimerKey)> = Vec::new();
            let mut keys = Vec::new();
            for (serial, step) in steps.into_iter().enumerate() {
                let target = match step {
                    Step::Insert { after } => {
                        let key = wheel.insert(now + after, serial).unwrap();
                        list.push(((now + after).max(now + 1), serial, key));
                        keys.push(key);
                        now
                    }
                    Step::Cancel { which } => {
                        if !keys.is_empty() {
                            let key = keys[which % keys.len()];
                            let at = list.iter().position(|(_, _, armed)| *armed == key);
                            prop_assert_eq!(wheel.cancel(key), at.map(|at| list.remove(at).1));
                        }
                        now
                    }
                    Step::Advance { by } => now + by,
                    Step::AdvanceToNext => wheel.next_tick().unwrap_or(now),
                };
                let first = list.iter().map(|(deadline, ..)| *deadline).min();
                prop_assert_eq!(wheel.next_tick().is_some(), first.is_some());
                if let (Some(next), Some(first)) = (wheel.next_tick(), first) {
                    prop_assert!(now < next && next <= first, "now {} next {} first {}", now, next, first);
                }
                now = target;
                let mut fired = Vec::new();
                wheel.advance(now, |serial| fired.push(serial));
                let mut due: Vec<_> = list.extract_if(.., |(deadline, ..)| *deadline <= now).collect();
                due.sort_unstable_by_key(|(_, serial, _)| *serial);
                fired.sort_unstable();
                prop_assert_eq!(fired, due.into_iter().map(|(_, serial, _)| serial).collect::<Vec<_>>());
                prop_assert_eq!(wheel.armed(), list.len());
            }
        }
    }

    #[test]
    fn a_timer_is_as_small_as_the_limit_of_timers_says() {
        assert!(size_of::<Entry<std::task::Waker>>() <= 48);
    }

    #[test]
    fn timers_fire_in_the_order_of_their_ticks() {
        let mut wheel = Wheel::new(100);
        for deadline in [300, 5, 70, 4_097, 64, 63, 300_000] {
            wheel.insert(deadline, deadline).unwrap();
        }
        let mut fired = Vec::new();
        wheel.advance(1_000_000, |deadline| fired.push(deadline));
        assert_eq!(fired, [5, 63, 64, 70, 300, 4_097, 300_000]);
    }

    #[test]
    fn a_full_wheel_refuses_until_a_timer_is_gone() {
        let mut wheel = Wheel::new(1);
        let key = wheel.insert(10, "first").unwrap();
        assert_eq!(wheel.insert(10, "second"), Err("second"));
        assert_eq!(wheel.cancel(key), Some("first"));
        let again = wheel.insert(10, "third").unwrap();
        assert_ne!(key, again, "the entry is the same, the timer is not");
        assert_eq!(wheel.cancel(key), None);
        assert_eq!(wheel.payload_mut(again), Some(&mut "third"));
    }
}
