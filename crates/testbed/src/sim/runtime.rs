//! The tasks of a simulated core: run one at a time. Tenants take turns as on a real core, by the same run queue; how
//! long a poll takes, and which of a tenant's tasks is next, the seed decides.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use reactor::{
    Lease, LeaseLimits, LeasePool, Runtime, Task, TenantKey, Weight,
    task::{self, Runnable},
    tenant::Row,
    turns::{RunQueue, Turn},
};

use super::{
    clock::{Alarm, Clock},
    net::{Net, SimListener, SimSocket, SimStream, Weather},
};

/// A simulated world: hosts, their connections, and one core that runs all tasks.
pub struct World {
    pub(super) clock: Clock,
    pub(super) random: RefCell<fastrand::Rng>,
    pub(super) leases: LeasePool,
    pub(super) net: Net,
    ready: RefCell<RunQueue<Runnable>>,
    woken: (crossbeam_channel::Sender<Woken>, crossbeam_channel::Receiver<Woken>),
    polls: Cell<u64>,
    panics: Cell<u64>,
    pub(super) splices: Cell<u64>,
    /// One number for all that was decided so far: equal for equal runs.
    trace: Cell<u64>,
    seed: u64,
}

/// A task that was woken, and whose it is.
type Woken = (Row, Runnable);

/// Tenants that a simulated core tells apart.
const TENANTS_MAX: usize = 1_000;
/// As on a real core by default.
const SLICE: Duration = Duration::from_micros(50);
/// What the seed lets a poll take at most, in the time that turns go by. The world's clock stands still meanwhile.
const POLL_MAX: Duration = Duration::from_micros(60);

/// Nothing can run, nothing is due, and the awaited future is not done: somebody waits for a wake that never comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled {
    /// Runs the same world again.
    pub seed: u64,
    /// The virtual time at which it stood still.
    pub at: Duration,
}

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "everything waits for ever after {:?} (seed {})", self.at, self.seed)
    }
}

impl std::error::Error for Stalled {}

/// A handle on a world. Clones are the same world.
#[derive(Clone)]
pub struct SimRuntime(pub(super) Rc<World>);

impl SimRuntime {
    /// A world of its own, decided by `seed`.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Rc::new(World {
            clock: Clock::new(),
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            leases: LeasePool::new(LeaseLimits::default()),
            net: Net::new(weather),
            ready: RefCell::new(RunQueue::new(TENANTS_MAX, nanos(SLICE))),
            woken: crossbeam_channel::unbounded(),
            polls: Cell::default(),
            panics: Cell::default(),
            splices: Cell::default(),
            trace: Cell::new(seed),
            seed,
        }))
    }

    /// Runs the world until `future` is done.
    ///
    /// # Errors
    /// [`Stalled`], with the seed.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T, Stalled> {
        let mut future = pin!(future);
        loop {
            // Polled whenever the world has moved: the future may wait for anything in it.
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Ok(output);
            }
            if !self.turn() && !self.0.clock.jump() {
                return Err(Stalled { seed: self.0.seed, at: self.0.clock.passed() });
            }
        }
    }

    /// Virtual time since the world began.
    #[must_use]
    pub fn passed(&self) -> Duration {
        self.0.clock.passed()
    }

    /// A number that two runs share if and, as good as, only if they took the same way.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.0.trace.get()
    }

    /// Tasks that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.0.panics.get()
    }

    /// Transfers between two streams without receive and send.
    #[must_use]
    pub fn splices(&self) -> u64 {
        self.0.splices.get()
    }

    /// Bytes of buffers that somebody holds.
    #[must_use]
    pub fn lent_bytes(&self) -> usize {
        self.0.leases.lent_bytes()
    }

    /// From now on nothing answers at `address`: neither connections nor refusals.
    pub fn blackhole(&self, address: SocketAddr) {
        self.0.net.blackhole(address);
    }

    /// Takes a turn of one poll.
    fn turn(&self) -> bool {
        let world = &self.0;
        let now_ns = nanos(world.clock.passed());
        world.woken.1.try_iter().for_each(|(row, runnable)| world.ready.borrow_mut().push(row, runnable, now_ns));
        let Some(Turn { row, .. }) = world.ready.borrow_mut().begin_turn(now_ns) else {
            return false;
        };
        let chosen = world.ready.borrow_mut().pop_any(row, |ready| {
            let chosen = world.random.borrow_mut().usize(..ready);
            world.note((row.index() as u64) << 32 | chosen as u64);
            chosen
        });
        chosen.expect("a tenant waits for a turn when it has something to run").run();
        world.polls.set(world.polls.get() + 1);
        let took_ns = nanos(world.delay(POLL_MAX));
        world.ready.borrow_mut().end_turn(row, took_ns, false, now_ns);
        true
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("simulations are short")
}

impl World {
    /// Mixes a decision into the trace.
    pub(super) fn note(&self, decision: u64) {
        let mixed = (self.trace.get() ^ decision).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.trace.set(mixed ^ (mixed >> 29));
    }

    /// A random duration up to `most`.
    pub(super) fn delay(&self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).expect("delays are short");
        let drawn = self.random.borrow_mut().u64(..=micros);
        self.note(drawn);
        Duration::from_micros(drawn)
    }
}

impl Runtime for SimRuntime {
    type Socket = SimSocket;
    type Stream = SimStream;
    type Listener = SimListener;

    fn now(&self) -> Instant {
        self.0.clock.now()
    }

    fn draw(&self) -> u64 {
        let drawn = self.0.random.borrow_mut().u64(..);
        self.0.note(drawn);
        drawn
    }

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> + 'static {
        Sleep { runtime: self.clone(), deadline, alarm: None }
    }

    #[track_caller]
    fn spawn<T: 'static>(&self, tenant: TenantKey, future: impl Future<Output = T> + 'static) -> Task<T> {
        let woken = self.0.woken.0.clone();
        let row = self.0.ready.borrow_mut().row(tenant);
        let world = Rc::downgrade(&self.0);
        let schedule = move |runnable| {
            // A task that is woken after its world has ended has nobody to run it.
            let _sent = woken.send((row, runnable));
        };
        let (runnable, task) = task::prepare(future, schedule, move |done| {
            if let (task::Done::Panicked, Some(world)) = (done, world.upgrade()) {
                world.panics.set(world.panics.get() + 1);
            }
        });
        runnable.schedule();
        task
    }

    fn introduce(&self, tenant: TenantKey, _name: &str, weight: Weight) {
        let mut ready = self.0.ready.borrow_mut();
        let row = ready.row(tenant);
        ready.weigh(row, weight);
    }

    fn listen(&self, socket: SimSocket) -> io::Result<SimListener> {
        SimListener::new(self.clone(), socket)
    }

    fn connect(
        &self,
        socket: SimSocket,
        target: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<SimStream>> + 'static {
        SimStream::connect(self.clone(), socket, target, timeout)
    }

    fn lease(&self, len: usize) -> Lease {
        self.0.leases.lease(len)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        Yield(false)
    }
}

/// Resolves at a virtual time.
pub(super) struct Sleep {
    runtime: SimRuntime,
    deadline: Instant,
    alarm: Option<Alarm>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let clock = &self.runtime.0.clock;
        if let Some(alarm) = self.alarm {
            clock.disarm(alarm);
        }
        if clock.now() >= self.deadline {
            self.alarm = None;
            return Poll::Ready(());
        }
        let alarm = clock.arm(self.deadline, context.waker().clone());
        self.alarm = Some(alarm);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(alarm) = self.alarm {
            self.runtime.0.clock.disarm(alarm);
        }
    }
}

struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
