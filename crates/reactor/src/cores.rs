//! Starting a core, its configuration, and what can be in the way.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam_channel as channel;

use crate::{
    CoreView, EngineChoice, EngineChosen, EngineKind, LeaseLimits, Reactor, Runtime, TenantKey, driver::Driver,
    host::Host,
};

/// What glommio wants to be allowed to lock, before it starts anything.
const LOCKED_BYTES_MIN: u64 = 512 << 10;

/// After which time a core that has not begun to run never will.
const START_MAX: Duration = Duration::from_secs(5);

/// How a core is to run. All limits are per core.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Names the thread.
    pub name: String,
    /// The CPU it is pinned to; `None` leaves that to the kernel.
    pub cpu: Option<usize>,
    /// The way into the kernel.
    pub engine: EngineChoice,
    /// Requests that one entry into the kernel can carry; more take several. Worst case 64 bytes each, and 64 bytes of
    /// completions, of locked memory.
    pub ring_entries: u32,
    /// How long a tenant's turn lasts while others wait, and after what time no further turn begins before the next entry into
    /// the kernel: so two entries are at most twice as far apart, and what a single poll of a task overruns.
    pub slice: Duration,
    /// After what time glommio's park ends when it should not have parked (its defect, see `heartbeat.rs`). It costs
    /// nothing while the core sleeps in its own ring. `None` leaves the core exposed: only for showing that.
    pub heartbeat: Option<Duration>,
    /// How often glommio's own loop gets a turn.
    pub host_turn: Duration,
    /// glommio's preemption timer. It decides nothing here; the shorter it is, the likelier the parking defect.
    pub host_preempt: Duration,
    /// The longest sleep of a core with nothing to do.
    pub park_max: Duration,
    /// Tasks at once. One more is refused ([`TaskEnded::Refused`](crate::TaskEnded)). Worst case that many futures,
    /// each with some 200 bytes of its own.
    pub tasks_max: usize,
    /// Tenants that are told apart; further ones share [`TenantKey::OVERFLOW`]. Worst case 500 bytes each.
    pub tenants_max: usize,
    /// Socket operations under way at once. One more fails with [`io::ErrorKind::ResourceBusy`]. Worst case 96 bytes
    /// each and what it holds.
    pub ops_max: usize,
    /// Timers armed at once. Further sleeps end in time all the same, but by polling: the core does not park. Worst
    /// case 48 bytes each.
    pub timers_max: usize,
    /// Bytes that a [`Stream::into_io`](crate::Stream::into_io) adapter fetches at once. It holds that much only while
    /// bytes wait to be read.
    pub io_room: usize,
    /// Pipes at once, for [`Stream::splice_to`](crate::Stream::splice_to). Worst case 1 MiB each, of kernel memory that no
    /// socket accounts for, and two descriptors: reached by that many flows whose receiver has stopped to read.
    pub pipes_max: usize,
    /// Whether what each tenant uses is written down ([`CoreView`]), and the kernel's part of it charged. `false` is for
    /// measuring what that costs: turns then go by the time that tasks run.
    pub accounts: bool,
    /// Bounds of buffer memory.
    pub leases: LeaseLimits,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            name: "core".to_owned(),
            cpu: None,
            engine: EngineChoice::Auto,
            ring_entries: 1024,
            slice: Duration::from_micros(50),
            heartbeat: Some(Duration::from_millis(20)),
            host_turn: Duration::from_millis(20),
            host_preempt: Duration::from_millis(100),
            park_max: Duration::from_secs(1),
            tasks_max: 1 << 18,
            tenants_max: 1 << 14,
            ops_max: 1 << 18,
            timers_max: 1 << 20,
            io_room: 64 << 10,
            pipes_max: 128,
            accounts: true,
            leases: LeaseLimits::default(),
        }
    }
}

/// Why a core could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No ring can be made.
    #[error("core {core}: io_uring is not to be had: {source}; {}", ring_cure(.source))]
    Ring {
        /// Which.
        core: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too little memory may be locked.
    #[error(
        "core {core}: RLIMIT_MEMLOCK is {limit} bytes but has to be at least {needed}: raise it (ulimit -l, LimitMEMLOCK=)"
    )]
    LockedMemory {
        /// Which.
        core: String,
        /// What is allowed.
        limit: u64,
        /// What is needed.
        needed: u64,
    },
    /// Out of descriptors.
    #[error("core {core}: no descriptor for an eventfd: {source}; raise RLIMIT_NOFILE")]
    Descriptors {
        /// Which.
        core: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no thread for it.
    #[error("core {core}: its thread did not start: {cause}; does CPU {cpu:?} exist, and may this process use it?")]
    Host {
        /// Which.
        core: String,
        /// The CPU that was asked for.
        cpu: Option<usize>,
        /// What glommio or the kernel said.
        cause: String,
    },
}

fn ring_cure(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel is built without it, or older than 5.1",
        Some(libc::EPERM) => "seccomp or the sysctl kernel.io_uring_disabled forbids it",
        Some(libc::ENOMEM) => "RLIMIT_MEMLOCK is too low",
        Some(libc::EMFILE | libc::ENFILE) => "out of descriptors: raise RLIMIT_NOFILE",
        _ => "see io_uring_setup(2)",
    }
}

/// A core's thread. Dropping it lets the core run on.
#[derive(Debug)]
pub struct CoreThread {
    name: String,
    engine: EngineChosen,
    host: Host,
    view: CoreView,
    finished: Arc<AtomicBool>,
}

/// Starts a core and its root task, which belongs to [`TenantKey::CORE`]. When the root task ends, so does the core: all
/// other tasks are dropped, operations cancelled, sockets closed. A panic of the root task, or of the core's own loop,
/// ends the process.
///
/// # Errors
/// [`StartError`]: the core did not start, and `root` was not called.
pub fn start<F, Fut>(config: CoreConfig, root: F) -> Result<CoreThread, StartError>
where
    F: FnOnce(Reactor) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    // glommio panics somewhere inside when it is refused a ring, so this asks first.
    let engine = config.engine.resolve(&config.name)?;
    let kind = engine.kind;
    let (name, cpu) = (config.name.clone(), config.cpu);
    let finished = Arc::new(AtomicBool::new(false));
    let raised_at_the_end = Raised(finished.clone());
    let (ready, outcome) = channel::bounded(1);
    let of_thread = config.clone();
    let main = move || async move {
        let _raised_at_the_end = raised_at_the_end;
        let reactor = match Reactor::new(kind, &of_thread) {
            Ok(reactor) => reactor,
            Err(error) => return drop(ready.send(Err(error))),
        };
        if ready.send(Ok(reactor.view())).is_err() {
            // Whoever asked for the core was told that there is none.
            return;
        }
        run(reactor, kind, of_thread, root).await;
    };
    let refused = |cause| StartError::Host { core: name.clone(), cpu, cause };
    let host = Host::start(kind, &config, main).map_err(refused)?;
    match outcome.recv_timeout(START_MAX) {
        Ok(Ok(view)) => Ok(CoreThread { name, engine, host, view, finished }),
        Ok(Err(error)) => Err(error),
        // It did not get as far as calling us, and its thread's result says why.
        Err(channel::RecvTimeoutError::Disconnected) => {
            Err(refused(host.join().err().unwrap_or_else(|| "it ended at once".to_owned())))
        }
        // glommio's parking defect can strike before the heartbeat is armed, which is from the first round on.
        Err(channel::RecvTimeoutError::Timeout) => Err(refused(format!("nothing ran within {START_MAX:?}"))),
    }
}

async fn run<F, Fut>(reactor: Reactor, kind: EngineKind, mut config: CoreConfig, root: F)
where
    F: FnOnce(Reactor) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    reactor.0.inside.enter();
    let handle = reactor.clone();
    let root = reactor.spawn(TenantKey::CORE, async move { root(handle).await });
    if kind == EngineKind::Epoll {
        // There is no other loop on the thread that could stand still.
        config.heartbeat = None;
    }
    Driver::new(reactor, root, &config).await;
}

/// glommio checks the same, even for root, but buries its answer in an I/O error of its own.
pub(crate) fn locked_memory_suffices(core: &str) -> Result<(), StartError> {
    match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(limit) if limit < LOCKED_BYTES_MIN => {
            Err(StartError::LockedMemory { core: core.to_owned(), limit, needed: LOCKED_BYTES_MIN })
        }
        _ => Ok(()),
    }
}

/// Raises a flag when the thread is done with its core.
struct Raised(Arc<AtomicBool>);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl CoreThread {
    /// Waits for the core's end.
    ///
    /// # Panics
    /// If the thread ended otherwise than by its root task's end.
    pub fn join(self) {
        if let Err(cause) = self.host.join() {
            panic!("core {} did not end by itself: {cause}", self.name);
        }
    }

    /// The way into the kernel that it takes, and why.
    pub fn engine(&self) -> &EngineChosen {
        &self.engine
    }

    /// What can be seen of it from outside.
    pub fn view(&self) -> CoreView {
        self.view.clone()
    }

    /// Whether the core has ended.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}
