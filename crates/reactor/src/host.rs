//! The thread that a core lives on: one that glommio starts, or a plain one for a core that must do without io_uring.
//!
//! glommio itself needs three rings, so where io_uring is forbidden nothing of it can be used. What it does for a core,
//! starting and pinning a thread, is little enough to be done here.

use std::{future::Future, io, pin::pin, task::Context, task::Poll, task::Waker, thread};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{CoreConfig, EngineKind};

/// What glommio may keep for file I/O, which nobody does here; its default of 10 MiB per core is for databases.
const HOST_MEMORY_BYTES: usize = 64 << 10;
/// glommio's rings carry its timers and its wake-ups.
const HOST_RING_ENTRIES: usize = 128;

/// A core's thread.
#[derive(Debug)]
pub(crate) enum Host {
    Glommio(ExecutorJoinHandle<()>),
    Plain(thread::JoinHandle<io::Result<()>>),
}

impl Host {
    /// Starts a thread for a core of `kind` and runs what `main` makes there.
    ///
    /// # Errors
    /// Why there is no thread.
    pub(crate) fn start<F, Fut>(kind: EngineKind, config: &CoreConfig, main: F) -> Result<Self, String>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        match kind {
            EngineKind::Uring => {
                let builder = LocalExecutorBuilder::new(config.cpu.map_or(Placement::Unbound, Placement::Fixed))
                    .name(&config.name)
                    .io_memory(HOST_MEMORY_BYTES)
                    .ring_depth(HOST_RING_ENTRIES)
                    .preempt_timer(config.host_preempt);
                builder.spawn(main).map(Self::Glommio).map_err(|error| error.to_string())
            }
            EngineKind::Epoll => {
                let cpu = config.cpu;
                let body = move || {
                    cpu.map_or(Ok(()), pin_to)?;
                    run(main());
                    Ok(())
                };
                let thread = thread::Builder::new().name(config.name.clone()).spawn(body);
                thread.map(Self::Plain).map_err(|error| error.to_string())
            }
        }
    }

    /// Waits for the thread's end.
    ///
    /// # Errors
    /// Why it did not get as far as running its core.
    pub(crate) fn join(self) -> Result<(), String> {
        match self {
            Self::Glommio(thread) => thread.join().map_err(|error| error.to_string()),
            Self::Plain(thread) => match thread.join() {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(_panic) => Err("it panicked".to_owned()),
            },
        }
    }
}

/// The core sleeps in its own engine, so whatever it returns from it wants to go on.
fn run(core: impl Future<Output = ()>) {
    let mut core = pin!(core);
    while core.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Pending {}
}

fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("CPUs end at {}", CpuSet::MAX_CPU - 1)));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
