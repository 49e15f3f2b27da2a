//! The thread-per-core runtime: pinned cores, tenants that take turns, sockets on an io_uring, timers, mailboxes.
//!
//! glommio starts and pins a core's thread and hosts one task there, the driver. Everything else is this crate's own:
//!
//! | module | what |
//! |---|---|
//! | `cores` | starting and joining a core; its configuration, which names every limit |
//! | `driver` | the loop: kernel, timers, wakes from elsewhere, then turns |
//! | `heartbeat` | keeps glommio's parking defect from stopping a core |
//! | `tenant` | the run queue over tenants and what each is charged |
//! | `task`, `tasks` | a task whose panic ends it alone; all tasks of a core |
//! | `gate` | how a wake reaches the run queue, from the core itself or from another thread |
//! | `submit` | what tasks ask of the kernel, by tenant, and how much of it one entry carries |
//! | `engine` | the ring and the operations under way, each owning its descriptor and buffer |
//! | `net` | sockets on it: listen, connect, receive and send, the adapter for libraries, original destination |
//! | `lease`, `chunk` | buffers that go up and on without a copy |
//! | `clock`, `wheel` | timers |
//! | `mailbox` | the two ways into a core |
//! | `runtime` | the trait through which the data plane sees all this, so that a simulation can take its place |
//!
//! What it is not: a general runtime. A handle, a stream or a lease never leaves its core; only wakers, mailboxes and
//! [`CoreThread`] do.

mod chunk;
mod clock;
mod cores;
mod driver;
mod engine;
mod gate;
mod heartbeat;
mod lease;
pub mod mailbox;
mod net;
mod reactor;
mod runtime;
mod submit;
pub mod task;
mod tasks;
mod tenant;
mod wheel;

pub use chunk::Chunk;
pub use cores::{CoreConfig, CoreThread, StartError, start};
pub use lease::{Lease, LeaseLimits, LeasePool};
pub use net::{io::TcpIo, listen::TcpListener, stream::TcpStream};
pub use reactor::{Counts, Reactor};
pub use runtime::{Listener, Runtime, Stream};
pub use task::{Task, TaskEnded};
pub use tenant::{Account, TenantKey};
