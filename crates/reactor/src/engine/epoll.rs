//! A core's epoll instance: for hosts where io_uring is forbidden.
//!
//! It behaves as the ring does. Tasks only queue operations; an enter makes the system calls of those queued, keeps the
//! ones that would block until an edge says that they need not, and is where the core sleeps. So turns, batches and
//! accounts are the same above either. A direction known to be empty or full is not tried in vain.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};

use super::{
    Held, Reaped,
    attempt::{Attempt, Progress},
    descriptor::{Descriptor, Direction, Edge, WatchKey, Watches},
    operation::{Completion, Operation},
    table::{OpKey, Table},
};

/// Edges taken in one enter; more come with the next.
const EVENTS_MAX: usize = 256;
/// The bell's name. No [`WatchKey`] has an index of all ones.
const BELL: u64 = u32::MAX as u64;

/// See the module.
pub(crate) struct Poller {
    epoll: OwnedFd,
    bell: OwnedFd,
    watches: Rc<Watches>,
    /// To be tried by the next enter.
    queued: VecDeque<OpKey>,
    /// How far each has come, by the same index as the next.
    progress: Vec<Progress>,
    /// Where each operation under way is, by the index of its key.
    places: Vec<Place>,
    /// To be completed as cancelled by the next enter.
    cancelled: Vec<OpKey>,
    events: Vec<Event>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Queued,
    Waiting(WatchKey, Direction),
}

impl Poller {
    /// An epoll instance that `bell` can call back from its sleep.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub(crate) fn new(bell: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, bell, EventData::new_u64(BELL), EventFlags::IN)?;
        Ok(Self {
            epoll,
            bell: bell.try_clone_to_owned()?,
            watches: Rc::default(),
            queued: VecDeque::new(),
            progress: Vec::new(),
            places: Vec::new(),
            cancelled: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
        })
    }

    /// Has an operation tried with the next enter; it moves no more than `bytes_max`.
    pub(crate) fn push(&mut self, key: OpKey, bytes_max: usize) {
        let index = key.index();
        if index >= self.places.len() {
            self.places.resize(index + 1, Place::Nowhere);
            self.progress.resize(index + 1, Progress::default());
        }
        self.progress[index] = Progress { bytes_max, sent: 0 };
        self.places[index] = Place::Queued;
        self.queued.push_back(key);
    }

    /// Ends an operation early. It completes with the next enter.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        match std::mem::replace(&mut self.places[key.index()], Place::Nowhere) {
            Place::Nowhere => return,
            Place::Queued => {}
            Place::Waiting(watch, direction) => self.watches.leave(watch, direction, key),
        }
        self.cancelled.push(key);
    }

    /// Tries what is queued, and what waited and can go on. With `park`, waits that long unless there is a completion;
    /// the bell ends it too.
    ///
    /// # Errors
    /// Only what makes the instance useless.
    pub(crate) fn enter(
        &mut self,
        park: Option<Duration>,
        operations: &mut Table<Held, Completion>,
        reaped: &mut Vec<Reaped>,
    ) -> io::Result<()> {
        while let Some(key) = self.queued.pop_front() {
            if self.places[key.index()] == Place::Queued {
                self.attempt(key, operations, reaped);
            }
        }
        reaped.extend(self.cancelled.drain(..).map(|key| Reaped { key, result: -libc::ECANCELED }));
        self.wait(park.filter(|_| reaped.is_empty()).unwrap_or_default())?;
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.edge(event, operations, reaped);
        }
        self.events = events;
        Ok(())
    }

    /// Sleeps until there is an edge, or for as long as that.
    fn wait(&mut self, at_most: Duration) -> io::Result<()> {
        let at_most = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&at_most)) {
            // A signal ended it.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn edge(&mut self, event: Event, operations: &mut Table<Held, Completion>, reaped: &mut Vec<Reaped>) {
        let (data, flags) = (event.data.u64(), event.flags);
        if data == BELL {
            // Only this thread reads it, so it does not block. What it says is that it was rung.
            let _rung = rustix::io::read(&self.bell, &mut [0; 8]);
            return;
        }
        let gone = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let closed = gone || flags.contains(EventFlags::RDHUP);
        let edge = Edge {
            into: flags.contains(EventFlags::IN),
            out: gone || flags.contains(EventFlags::OUT),
            closed,
            urgent: flags.contains(EventFlags::PRI),
        };
        let waited = self.watches.edge(WatchKey::of_data(data), edge);
        for key in waited.into_iter().flatten() {
            self.attempt(key, operations, reaped);
        }
    }

    fn attempt(&mut self, key: OpKey, operations: &mut Table<Held, Completion>, reaped: &mut Vec<Reaped>) {
        self.places[key.index()] = Place::Nowhere;
        let Some(Held { operation, .. }) = operations.held_mut(key) else { return };
        let (descriptor, direction) = operation.side();
        let known = descriptor.watch_key();
        let worth_it = known.is_none_or(|watch| self.watches.ready(watch, direction));
        let attempt = if worth_it { operation.attempt(&mut self.progress[key.index()]) } else { Attempt::Blocked };
        let outcome = match attempt {
            Attempt::Done(result) => Err(result),
            // It goes at once, or it is news.
            Attempt::Blocked if matches!(operation, Operation::Post { .. }) => Err(-libc::EAGAIN),
            Attempt::Blocked => self.watch(operation, key),
        };
        match outcome {
            Ok(place) => self.places[key.index()] = place,
            Err(result) => reaped.push(Reaped { key, result }),
        }
    }

    /// Has an operation that would block wait for its edge; otherwise what it completes with.
    fn watch(&self, operation: &Operation, key: OpKey) -> Result<Place, i32> {
        let (descriptor, direction) = operation.side();
        let watch = match descriptor.watch_key() {
            Some(watch) => watch,
            None => self.add(descriptor, direction).map_err(|errno| -errno.raw_os_error())?,
        };
        if self.watches.wait(watch, direction, key) { Ok(Place::Waiting(watch, direction)) } else { Err(-libc::EBUSY) }
    }

    /// Watches a descriptor that would block in `direction`. If it does not any more, that is the first edge.
    fn add(&self, descriptor: &Descriptor, direction: Direction) -> Result<WatchKey, Errno> {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        let watch = descriptor.watched_by(&self.watches, |watch| {
            let data = EventData::new_u64(watch.data());
            match epoll::add(&self.epoll, descriptor.as_fd(), data, edges) {
                // Whoever watched it before has not let go of all its duplicates.
                Err(Errno::EXIST) => epoll::modify(&self.epoll, descriptor.as_fd(), data, edges),
                added => added,
            }
        })?;
        descriptor.blocked(direction);
        Ok(watch)
    }
}
