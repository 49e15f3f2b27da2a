//! A descriptor that operations and streams share, and the readiness that the epoll engine remembers of it.
//!
//! epoll tells edges, so what is known has to be kept exactly: a direction counts as ready from its edge until the
//! kernel was seen to have nothing more. Who calls the kernel past the engine and sees that has to tell it here. On
//! io_uring nothing is remembered and telling costs a branch.

use std::{
    cell::{Cell, OnceCell, RefCell},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    rc::Rc,
};

use slab::Slab;

use super::table::OpKey;

/// See the module. The last to hold it closes it.
pub(crate) struct Descriptor {
    // First: closing takes it out of the epoll instance, and only then may its watch be another's.
    descriptor: OwnedFd,
    watch: OnceCell<Watch>,
    cut: Cell<bool>,
}

/// Which of a descriptor's two directions an operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Bytes, FIN or a connection to accept.
    In,
    /// Room in the send buffer, or the outcome of a connect.
    Out,
}

/// What the epoll instance knows a descriptor by: a slot, and which of the slot's descriptors it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WatchKey {
    index: u32,
    generation: u32,
}

/// All descriptors that an epoll instance watches.
#[derive(Default)]
pub(crate) struct Watches {
    slots: RefCell<Slab<Watched>>,
    generation: Cell<u32>,
}

/// A place in [`Watches`], given back by its drop.
struct Watch {
    watches: Rc<Watches>,
    key: WatchKey,
}

/// What is known of a watched descriptor.
struct Watched {
    generation: u32,
    /// By direction.
    sides: [Side; 2],
    /// The peer has sent FIN or the connection is gone: a short read does not mean that nothing follows.
    closed: bool,
    /// Urgent data has come: a read ends before it, so a short one does not mean that nothing follows.
    urgent: bool,
}

/// What an edge tells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edge {
    /// There is something to receive.
    pub(crate) into: bool,
    /// There is room to send.
    pub(crate) out: bool,
    /// The peer has sent FIN, or the connection is gone.
    pub(crate) closed: bool,
    /// There is urgent data (TCP's out-of-band byte).
    pub(crate) urgent: bool,
}

#[derive(Clone, Copy)]
struct Side {
    ready: bool,
    waiting: Option<OpKey>,
}

impl Descriptor {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, watch: OnceCell::new(), cut: Cell::new(false) }
    }

    /// A send has failed. The kernel tells of a reset once: when a send hears of it, the next receive brings nothing, as
    /// at an orderly end. `EPIPE` is another thing: there the peer had ended its direction before.
    pub(crate) fn send_failed(&self, errno: i32) {
        if errno != libc::EPIPE {
            self.cut.set(true);
        }
    }

    /// Whether a send has heard that the connection is cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// A short read was seen: whatever comes from now on is told by a new edge.
    pub(crate) fn drained(&self) {
        if let Some(Watch { watches, key }) = self.watch.get() {
            watches.with(*key, |watched| {
                watched.sides[Direction::In as usize].ready = watched.closed || watched.urgent;
            });
        }
    }

    /// The kernel was seen to have nothing (`EAGAIN`).
    pub(crate) fn blocked(&self, direction: Direction) {
        if let Some(Watch { watches, key }) = self.watch.get() {
            watches.with(*key, |watched| {
                watched.sides[direction as usize].ready = false;
                watched.closed &= direction == Direction::Out;
                watched.urgent &= direction == Direction::Out;
            });
        }
    }

    /// Its place in the epoll instance's watches, if it is watched.
    pub(crate) fn watch_key(&self) -> Option<WatchKey> {
        self.watch.get().map(|watch| watch.key)
    }

    /// Gives it a place in `watches` if `watch` has the kernel tell of it under that name. Nothing is known yet, so both
    /// directions count as ready.
    ///
    /// # Errors
    /// Those of `watch`; then it has no place, and the next one who asks tries again.
    pub(crate) fn watched_by<E>(
        &self,
        watches: &Rc<Watches>,
        watch: impl FnOnce(WatchKey) -> Result<(), E>,
    ) -> Result<WatchKey, E> {
        if let Some(key) = self.watch_key() {
            return Ok(key);
        }
        let place = Watch { watches: watches.clone(), key: watches.add() };
        watch(place.key)?;
        Ok(self.watch.get_or_init(|| place).key)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watches.slots.borrow_mut().remove(self.key.index as usize);
    }
}

impl WatchKey {
    /// As epoll carries it. The index is never `u32::MAX`, so other names can have that.
    pub(crate) fn data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The reverse.
    pub(crate) fn of_data(data: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a u64")]
        Self { index: data as u32, generation: (data >> 32) as u32 }
    }
}

impl Watches {
    /// Whether an operation may be tried in `direction`.
    pub(crate) fn ready(&self, key: WatchKey, direction: Direction) -> bool {
        self.with(key, |watched| watched.sides[direction as usize].ready).unwrap_or(true)
    }

    /// Makes `op` the one that waits for an edge in `direction`. False if another does already.
    pub(crate) fn wait(&self, key: WatchKey, direction: Direction, op: OpKey) -> bool {
        let wait = |watched: &mut Watched| {
            let waiting = &mut watched.sides[direction as usize].waiting;
            *waiting.get_or_insert(op) == op
        };
        self.with(key, wait).unwrap_or(false)
    }

    /// `op` does not wait any more.
    pub(crate) fn leave(&self, key: WatchKey, direction: Direction, op: OpKey) {
        self.with(key, |watched| {
            watched.sides[direction as usize].waiting.take_if(|waiting| *waiting == op);
        });
    }

    /// An edge: who waited in the directions it is for. An edge of a descriptor that was closed is nobody's.
    pub(crate) fn edge(&self, key: WatchKey, edge: Edge) -> [Option<OpKey>; 2] {
        let Edge { into, out, closed, urgent } = edge;
        let edge = |watched: &mut Watched| {
            watched.closed |= closed;
            watched.urgent |= urgent;
            let mut side = |direction: Direction, told: bool| {
                let side = &mut watched.sides[direction as usize];
                side.ready |= told;
                if told { side.waiting.take() } else { None }
            };
            [side(Direction::In, into || closed || urgent), side(Direction::Out, out)]
        };
        self.with(key, edge).unwrap_or_default()
    }

    fn add(&self) -> WatchKey {
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1));
        let unknown = Side { ready: true, waiting: None };
        let index =
            self.slots.borrow_mut().insert(Watched { generation, sides: [unknown; 2], closed: false, urgent: false });
        WatchKey { index: u32::try_from(index).expect("fewer descriptors than that"), generation }
    }

    fn with<T>(&self, key: WatchKey, change: impl FnOnce(&mut Watched) -> T) -> Option<T> {
        let mut slots = self.slots.borrow_mut();
        let watched = slots.get_mut(key.index as usize).filter(|watched| watched.generation == key.generation)?;
        Some(change(watched))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: Edge = Edge { into: true, out: false, closed: false, urgent: false };

    fn watch(descriptor: &Descriptor, watches: &Rc<Watches>) -> WatchKey {
        descriptor.watched_by(watches, |_| Ok::<_, ()>(())).unwrap()
    }

    fn watched() -> (Rc<Watches>, Descriptor, WatchKey) {
        let watches = Rc::new(Watches::default());
        let descriptor = Descriptor::new(std::fs::File::open("/dev/null").unwrap().into());
        let key = watch(&descriptor, &watches);
        (watches, descriptor, key)
    }

    #[test]
    fn a_direction_is_ready_from_its_edge_until_the_kernel_had_nothing() {
        let (watches, descriptor, key) = watched();
        assert!(watches.ready(key, Direction::In), "nothing is known, so it is worth a try");
        descriptor.blocked(Direction::In);
        assert!(!watches.ready(key, Direction::In) && watches.ready(key, Direction::Out));
        watches.edge(key, IN);
        assert!(watches.ready(key, Direction::In));
        descriptor.drained();
        assert!(!watches.ready(key, Direction::In));
    }

    #[test]
    fn a_short_read_before_a_fin_that_was_told_leaves_it_ready() {
        let (watches, descriptor, key) = watched();
        watches.edge(key, Edge { closed: true, ..IN });
        descriptor.drained();
        assert!(watches.ready(key, Direction::In), "no further edge comes for the FIN");
        descriptor.blocked(Direction::In);
        assert!(!watches.ready(key, Direction::In), "the kernel knows better");
    }

    #[test]
    fn a_short_read_before_urgent_data_leaves_it_ready() {
        let (watches, descriptor, key) = watched();
        watches.edge(key, Edge { urgent: true, ..IN });
        descriptor.drained();
        assert!(watches.ready(key, Direction::In), "what came after the urgent byte has had its edge");
        descriptor.blocked(Direction::In);
        descriptor.drained();
        assert!(!watches.ready(key, Direction::In), "all of it was read");
    }

    #[test]
    fn a_descriptor_that_the_kernel_does_not_watch_has_no_place() {
        let watches = Rc::new(Watches::default());
        let descriptor = Descriptor::new(std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(descriptor.watched_by(&watches, |_| Err("no memory")), Err("no memory"));
        assert!(descriptor.watch_key().is_none() && watches.slots.borrow().is_empty());
        assert_eq!(watch(&descriptor, &watches), watch(&descriptor, &watches), "the next one does");
    }

    #[test]
    fn an_edge_hands_out_who_waited_once_and_a_second_waiter_is_refused() {
        let (watches, _descriptor, key) = watched();
        let (one, two) = (OpKey::of_user_data(1), OpKey::of_user_data(2));
        assert!(watches.wait(key, Direction::In, one) && watches.wait(key, Direction::In, one));
        assert!(!watches.wait(key, Direction::In, two));
        let both = Edge { out: true, ..IN };
        assert_eq!(watches.edge(key, both), [Some(one), None]);
        assert_eq!(watches.edge(key, both), [None, None]);
        assert!(watches.wait(key, Direction::In, two));
        watches.leave(key, Direction::In, one);
        assert_eq!(watches.edge(key, both), [Some(two), None]);
    }

    #[test]
    fn an_edge_of_a_closed_descriptor_is_nobodys() {
        let (watches, descriptor, earlier) = watched();
        drop(descriptor);
        let later = Descriptor::new(std::fs::File::open("/dev/null").unwrap().into());
        let key = watch(&later, &watches);
        assert_eq!(key.index, earlier.index);
        assert!(watches.wait(key, Direction::In, OpKey::of_user_data(1)));
        assert_eq!(watches.edge(earlier, Edge { out: true, closed: true, ..IN }), [None, None]);
        assert_eq!(WatchKey::of_data(key.data()), key);
    }
}
