//! The thread-per-core runtime: pinned cores, tenants that take turns, sockets on an io_uring or on epoll, timers,
//! mailboxes.
//!
//! glommio starts and pins a core's thread and hosts one task there, the driver; where io_uring is forbidden, and with it
//! glommio, a plain thread does. Everything else is this crate's own:
//!
//! | module | what |
//! |---|---|
//! | `cores` | starting and joining a core; its configuration, which names every limit |
//! | `host` | the thread: glommio's, or a plain one |
//! | `driver` | the loop: kernel, timers, wakes from elsewhere, then turns |
//! | `heartbeat` | keeps glommio's parking defect from stopping a core |
//! | [`turns`] | the run queue over tenants: whose turn it is |
//! | [`tenant`] | a tenant's key, weight and row |
//! | `accounts` | what each tenant has used, as cells that other threads read |
//! | `decisions` | the last turns of a core, for whoever asks why |
//! | `bill`, `books` | whom the time inside the kernel is charged to; how all of it is written down |
//! | `pulse`, `view`, [`watchdog`] | what a core lets others see of it, and who looks |
//! | `cpu_clock` | time worked, as against time passed |
//! | `task`, `tasks` | a task whose panic ends it alone; all tasks of a core |
//! | `gate` | how a wake reaches the run queue, from the core itself or from another thread |
//! | `submit` | what tasks ask of the kernel, by tenant, and how much of it one entry carries |
//! | `engine` | the ring or the epoll instance, and the operations under way, each owning its descriptor and buffer |
//! | `net` | sockets on it: listen, connect, receive and send, splice, the adapter for libraries, original destination |
//! | `lease`, `chunk` | buffers that go up and on without a copy |
//! | `clock`, `wheel` | timers |
//! | `mailbox` | the two ways into a core |
//! | `runtime` | the trait through which the data plane sees all this, so that a simulation can take its place |
//!
//! What it is not: a general runtime. A handle, a stream or a lease never leaves its core; only wakers, mailboxes and
//! [`CoreThread`] do, and [`CoreView`].

mod accounts;
mod bill;
mod books;
mod chunk;
mod clock;
mod cores;
mod cpu_clock;
mod decisions;
mod driver;
mod engine;
mod gate;
mod heartbeat;
mod host;
mod lease;
pub mod mailbox;
mod net;
mod pulse;
mod quota;
mod reactor;
mod runtime;
mod submit;
pub mod task;
mod tasks;
pub mod tenant;
pub mod turns;
mod view;
pub mod watchdog;
mod wheel;

pub use accounts::{Account, WAIT_BOUNDS};
pub use chunk::Chunk;
pub use cores::{CoreConfig, CoreThread, StartError, start};
pub use decisions::{Decision, TurnEnd};
pub use engine::choice::{EngineChoice, EngineChosen, EngineKind, EngineReason};
pub use lease::{Lease, LeaseLimits, LeasePool};
pub use net::{io::TcpIo, listen::TcpListener, stream::TcpStream};
pub use reactor::{Counts, Reactor};
pub use runtime::{Listener, Runtime, Spliced, Stream};
pub use task::{Task, TaskEnded};
pub use tenant::{TenantKey, Weight};
pub use view::CoreView;
