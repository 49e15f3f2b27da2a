//! The operations under way, by slot and generation: who waits for them, and whether anybody still does.
//!
//! A slot keeps what its operation holds (descriptor, buffer) until the kernel is done with it, whatever becomes of the
//! waiter. The generation is part of the name the kernel hands back, so that a completion, or a cancellation, of a slot's
//! earlier operation never touches its later one. No kernel here: completions come in as values.

use std::task::Waker;

const NONE: u32 = u32::MAX;

/// Names an operation, in `user_data` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpKey {
    index: u32,
    generation: u32,
}

impl OpKey {
    /// As the kernel carries it. The index is never `u32::MAX`, so other names can have that.
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// Where it is in the table. No other operation under way is there.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    /// The reverse of [`OpKey::user_data`].
    pub(crate) fn of_user_data(user_data: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a u64")]
        Self { index: user_data as u32, generation: (user_data >> 32) as u32 }
    }
}

/// What is to be done after a completion, or an abandonment.
#[derive(Debug)]
pub(crate) enum Settled<C> {
    /// Nobody waits for it: drop what it brought.
    Unwanted(C),
    /// It waits to be taken, by whom the waker wakes.
    Delivered(Option<Waker>),
    /// It belongs to no operation under way.
    Stale,
    /// It is still under way: ask the kernel to cancel it.
    UnderWay,
}

/// The table. `H` is held while the kernel works, `C` is what a completion makes of it.
pub(crate) struct Table<H, C> {
    slots: Vec<Slot<H, C>>,
    vacant: u32,
    live: usize,
    live_max: usize,
}

struct Slot<H, C> {
    generation: u32,
    state: State<H, C>,
}

enum State<H, C> {
    Vacant { next: u32 },
    UnderWay { held: H, waiter: Option<Waker> },
    Abandoned { held: H },
    Complete { completion: C },
}

impl<H, C> Table<H, C> {
    /// A table of at most `live_max` operations.
    pub(crate) fn new(live_max: usize) -> Self {
        Self { slots: Vec::new(), vacant: NONE, live: 0, live_max: live_max.min(NONE as usize - 1) }
    }

    /// Operations that have a slot.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// The limit of [`Table::live`].
    pub(crate) fn live_max(&self) -> usize {
        self.live_max
    }

    /// Gives an operation a slot; `None` at the limit.
    pub(crate) fn begin(&mut self, held: H) -> Option<OpKey> {
        if self.live >= self.live_max {
            return None;
        }
        self.live += 1;
        let state = State::UnderWay { held, waiter: None };
        if self.vacant == NONE {
            let index = u32::try_from(self.slots.len()).expect("bounded by live_max");
            self.slots.push(Slot { generation: 0, state });
            return Some(OpKey { index, generation: 0 });
        }
        let index = self.vacant;
        let slot = &mut self.slots[index as usize];
        let State::Vacant { next } = std::mem::replace(&mut slot.state, state) else {
            unreachable!("the list of vacant slots holds vacant slots");
        };
        self.vacant = next;
        Some(OpKey { index, generation: slot.generation })
    }

    /// What is held for an operation that is not complete; `None` if that is over.
    pub(crate) fn held_mut(&mut self, key: OpKey) -> Option<&mut H> {
        let slot = self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)?;
        match &mut slot.state {
            State::UnderWay { held, .. } | State::Abandoned { held } => Some(held),
            State::Complete { .. } | State::Vacant { .. } => None,
        }
    }

    /// The kernel is done with an operation: `complete` makes of what was held what its future gets.
    pub(crate) fn complete(&mut self, key: OpKey, complete: impl FnOnce(H) -> C) -> Settled<C> {
        let Some(slot) = self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation) else {
            return Settled::Stale;
        };
        match std::mem::replace(&mut slot.state, State::Vacant { next: NONE }) {
            State::UnderWay { held, waiter } => {
                slot.state = State::Complete { completion: complete(held) };
                Settled::Delivered(waiter)
            }
            State::Abandoned { held } => {
                self.vacate(key.index);
                Settled::Unwanted(complete(held))
            }
            settled @ (State::Complete { .. } | State::Vacant { .. }) => {
                slot.state = settled;
                Settled::Stale
            }
        }
    }

    /// What a completed operation brought, which vacates its slot; otherwise `waiter` is woken on completion.
    pub(crate) fn take(&mut self, key: OpKey, waiter: &Waker) -> Option<C> {
        let slot = self.live_slot(key);
        match &mut slot.state {
            State::UnderWay { waiter: known, .. } => {
                match known {
                    Some(known) => known.clone_from(waiter),
                    None => *known = Some(waiter.clone()),
                }
                None
            }
            State::Complete { .. } => {
                let state = std::mem::replace(&mut slot.state, State::Vacant { next: NONE });
                self.vacate(key.index);
                match state {
                    State::Complete { completion } => Some(completion),
                    State::Vacant { .. } | State::UnderWay { .. } | State::Abandoned { .. } => None,
                }
            }
            State::Vacant { .. } | State::Abandoned { .. } => {
                unreachable!("an operation's future is its only one")
            }
        }
    }

    /// Nobody will take what the operation brings.
    pub(crate) fn abandon(&mut self, key: OpKey) -> Settled<C> {
        let slot = self.live_slot(key);
        match std::mem::replace(&mut slot.state, State::Vacant { next: NONE }) {
            State::UnderWay { held, waiter: _ } => {
                slot.state = State::Abandoned { held };
                Settled::UnderWay
            }
            State::Complete { completion } => {
                self.vacate(key.index);
                Settled::Unwanted(completion)
            }
            State::Vacant { .. } | State::Abandoned { .. } => {
                unreachable!("an operation's future is its only one")
            }
        }
    }

    /// Operations that the kernel still works on.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = OpKey> {
        let under_way = |slot: &Slot<H, C>| matches!(slot.state, State::UnderWay { .. } | State::Abandoned { .. });
        self.slots.iter().enumerate().filter(move |(_, slot)| under_way(slot)).map(|(index, slot)| OpKey {
            index: u32::try_from(index).expect("bounded by live_max"),
            generation: slot.generation,
        })
    }

    fn live_slot(&mut self, key: OpKey) -> &mut Slot<H, C> {
        let slot = &mut self.slots[key.index as usize];
        assert!(slot.generation == key.generation, "an operation's slot is kept as long as its future");
        slot
    }

    fn vacate(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Vacant { next: self.vacant };
        self.vacant = index;
        self.live -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(table: &mut Table<&'static str, String>, key: OpKey, result: &str) -> Settled<String> {
        table.complete(key, |held| format!("{held}: {result}"))
    }

    fn is_unwanted(settled: Settled<String>, what: &str) -> bool {
        matches!(settled, Settled::Unwanted(brought) if brought == what)
    }

    #[test]
    fn a_completion_is_kept_until_it_is_taken() {
        let mut table = Table::new(8);
        let key = table.begin("receive").unwrap();
        assert_eq!(table.take(key, Waker::noop()), None);
        assert!(matches!(complete(&mut table, key, "5 bytes"), Settled::Delivered(Some(_))), "its future was polled");
        assert_eq!(table.live(), 1);
        assert_eq!(table.take(key, Waker::noop()).as_deref(), Some("receive: 5 bytes"));
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn what_is_held_stays_until_the_kernel_is_done_although_nobody_waits() {
        let mut table = Table::new(8);
        let key = table.begin("accept").unwrap();
        assert!(matches!(table.abandon(key), Settled::UnderWay));
        assert_eq!(table.live(), 1);
        assert_eq!(table.under_way().collect::<Vec<_>>(), [key]);
        assert!(is_unwanted(complete(&mut table, key, "fd 9"), "accept: fd 9"));
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn a_completion_that_nobody_took_is_handed_back() {
        let mut table = Table::new(8);
        let key = table.begin("accept").unwrap();
        complete(&mut table, key, "fd 9");
        assert!(is_unwanted(table.abandon(key), "accept: fd 9"));
    }

    #[test]
    fn a_completion_of_a_slots_earlier_operation_is_stale() {
        let mut table = Table::new(8);
        let earlier = table.begin("earlier").unwrap();
        complete(&mut table, earlier, "done");
        table.take(earlier, Waker::noop());
        let later = table.begin("later").unwrap();
        assert_eq!((later.index, later.generation), (earlier.index, earlier.generation + 1));
        assert!(matches!(complete(&mut table, earlier, "again"), Settled::Stale));
        assert!(matches!(complete(&mut table, OpKey { index: 7, generation: 0 }, "never begun"), Settled::Stale));
        assert!(matches!(complete(&mut table, later, "done"), Settled::Delivered(None)));
        assert!(matches!(complete(&mut table, later, "twice"), Settled::Stale));
        assert_eq!(table.take(later, Waker::noop()).as_deref(), Some("later: done"));
    }

    #[test]
    fn a_full_table_refuses_until_a_slot_is_vacant() {
        let mut table = Table::new(1);
        let key = table.begin("only").unwrap();
        assert_eq!(table.begin("more"), None);
        complete(&mut table, key, "done");
        assert_eq!(table.begin("more"), None, "not taken yet");
        table.take(key, Waker::noop());
        assert!(table.begin("more").is_some());
    }

    #[test]
    fn a_slot_is_as_small_as_the_limit_of_operations_says() {
        use crate::engine::{Held, operation::Completion};
        assert!(size_of::<Slot<Held, Completion>>() <= 96);
    }

    #[test]
    fn a_key_survives_its_way_through_the_kernel() {
        for key in [
            OpKey { index: 0, generation: 0 },
            OpKey { index: 5, generation: u32::MAX },
            OpKey { index: u32::MAX - 1, generation: 1 },
        ] {
            assert_eq!(OpKey::of_user_data(key.user_data()), key);
        }
    }
}
