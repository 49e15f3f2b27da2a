//! The handle on a core that its tasks hold: the real [`Runtime`].

use std::{
    cell::RefCell,
    future::Future,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    Account, CoreConfig, CoreView, EngineKind, Lease, LeasePool, Runtime, StartError, Task, TcpListener, TcpStream,
    TenantKey, Weight,
    clock::{Sleep, Timers},
    engine::Engine,
    gate::{self, Inside},
    net::{connect, splice::Pipes, stream::StreamParts},
    tasks::{self, Tasks},
};

/// A core as seen by what runs on it. Clones are the same core; it never leaves its thread.
#[derive(Clone)]
pub struct Reactor(pub(crate) Rc<Core>);

/// The parts of a core.
pub(crate) struct Core {
    pub(crate) inside: Rc<Inside>,
    pub(crate) tasks: Rc<Tasks>,
    pub(crate) timers: Rc<Timers>,
    pub(crate) engine: Rc<Engine>,
    pub(crate) stream_parts: Rc<StreamParts>,
    random: RefCell<fastrand::Rng>,
}

/// What a core holds now and has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Tasks there are.
    pub tasks: usize,
    /// Tasks refused at [`CoreConfig::tasks_max`].
    pub tasks_refused: u64,
    /// Tasks that panicked.
    pub tasks_panicked: u64,
    /// Socket operations under way.
    pub ops: usize,
    /// Socket operations refused at [`CoreConfig::ops_max`].
    pub ops_refused: u64,
    /// Completions that belonged to no operation; always 0.
    pub ops_stale: u64,
    /// Socket operations completed.
    pub ops_completed: u64,
    /// Timers armed.
    pub timers: usize,
    /// Times that a sleep had to poll because of [`CoreConfig::timers_max`].
    pub timers_over_limit: u64,
    /// Bytes of buffers lent out.
    pub lent_bytes: usize,
    /// Bytes of buffers that wait to be lent.
    pub free_bytes: usize,
    /// Pipes there are.
    pub pipes: usize,
    /// Times that a receive waited because its tenant's share of buffers was out.
    pub share_waits: u64,
    /// Times the core entered the kernel for its ring.
    pub enters: u64,
    /// Times of those that it was ready to sleep.
    pub parks: u64,
}

impl Counts {
    /// How many numbers they are.
    pub(crate) const NUMBERS: usize = 15;

    pub(crate) fn numbers(&self) -> [u64; Self::NUMBERS] {
        [
            self.tasks as u64,
            self.tasks_refused,
            self.tasks_panicked,
            self.ops as u64,
            self.ops_refused,
            self.ops_stale,
            self.ops_completed,
            self.timers as u64,
            self.timers_over_limit,
            self.lent_bytes as u64,
            self.free_bytes as u64,
            self.pipes as u64,
            self.share_waits,
            self.enters,
            self.parks,
        ]
    }

    #[expect(clippy::cast_possible_truncation, reason = "they were made from sizes")]
    pub(crate) fn of_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [
            tasks,
            tasks_refused,
            tasks_panicked,
            ops,
            ops_refused,
            ops_stale,
            ops_completed,
            timers,
            timers_over_limit,
            lent_bytes,
            free_bytes,
            pipes,
            share_waits,
            enters,
            parks,
        ] = numbers;
        Self {
            tasks: tasks as usize,
            tasks_refused,
            tasks_panicked,
            ops: ops as usize,
            ops_refused,
            ops_stale,
            ops_completed,
            timers: timers as usize,
            timers_over_limit,
            lent_bytes: lent_bytes as usize,
            free_bytes: free_bytes as usize,
            pipes: pipes as usize,
            share_waits,
            enters,
            parks,
        }
    }
}

impl Reactor {
    /// A core with nothing to do, for the calling thread.
    pub(crate) fn new(kind: EngineKind, config: &CoreConfig) -> Result<Self, StartError> {
        let no_descriptor = |source| StartError::Descriptors { core: config.name.clone(), source };
        let no_ring = |source| StartError::Ring { core: config.name.clone(), source };
        let inside = gate::open(config).map_err(no_descriptor)?;
        let engine = Engine::new(kind, config.ring_entries, config.ops_max, inside.gate.bell()).map_err(no_ring)?;
        let engine = Rc::new(engine);
        let stream_parts = StreamParts {
            inside: inside.clone(),
            engine: engine.clone(),
            leases: LeasePool::new(config.leases.clone()),
            pipes: Rc::new(Pipes::new(config.pipes_max)),
            io_room: config.io_room,
        };
        Ok(Self(Rc::new(Core {
            tasks: Tasks::new(inside.clone(), config.tasks_max),
            inside,
            timers: Rc::new(Timers::new(config.timers_max)),
            engine,
            stream_parts: Rc::new(stream_parts),
            random: RefCell::new(fastrand::Rng::new()),
        })))
    }

    /// What each tenant has used of this core so far.
    pub fn accounts(&self) -> Vec<Account> {
        self.view().accounts()
    }

    /// What other threads can see of this core.
    pub fn view(&self) -> CoreView {
        self.0.inside.view.clone()
    }

    /// Lets other threads know the counts.
    pub(crate) fn tell(&self) {
        self.0.inside.view.counts.write(&self.counts());
    }

    /// What this core holds and has done so far.
    pub fn counts(&self) -> Counts {
        let Core { tasks, timers, engine, stream_parts, .. } = &*self.0;
        let StreamParts { leases, pipes, .. } = &**stream_parts;
        let engine_counts = engine.counts();
        Counts {
            tasks: tasks.live(),
            tasks_refused: tasks.refused(),
            tasks_panicked: tasks.panicked(),
            ops: engine.live(),
            ops_refused: engine_counts.refused,
            ops_stale: engine_counts.stale,
            ops_completed: engine_counts.completions,
            timers: timers.armed(),
            timers_over_limit: timers.over_limit(),
            lent_bytes: leases.lent_bytes(),
            free_bytes: leases.free_bytes(),
            pipes: pipes.made(),
            share_waits: leases.waits(),
            enters: engine_counts.enters,
            parks: engine_counts.parks,
        }
    }
}

impl Runtime for Reactor {
    type Socket = OwnedFd;
    type Stream = TcpStream;
    type Listener = TcpListener;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn draw(&self) -> u64 {
        self.0.random.borrow_mut().u64(..)
    }

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static {
        Sleep::new(self.0.timers.clone(), deadline)
    }

    #[track_caller]
    fn spawn<T: 'static>(&self, tenant: TenantKey, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.0.tasks.spawn(tenant, future)
    }

    fn introduce(&self, tenant: TenantKey, name: &str, weight: Weight) {
        self.0.inside.introduce(tenant, name, weight);
    }

    fn listen(&self, socket: OwnedFd) -> io::Result<TcpListener> {
        TcpListener::adopt(self.0.stream_parts.clone(), socket)
    }

    fn connect(
        &self,
        socket: OwnedFd,
        target: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<TcpStream>> + 'static {
        connect::connect(self.0.stream_parts.clone(), socket, target, timeout, self.sleep(timeout))
    }

    fn lease(&self, len: usize) -> Lease {
        self.0.stream_parts.leases.lease_of(self.0.inside.payer(), len)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        tasks::yield_now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_their_way_through_cells() {
        let numbers = std::array::from_fn(|number| number as u64 + 1);
        assert_eq!(Counts::of_numbers(numbers).numbers(), numbers);
    }
}
