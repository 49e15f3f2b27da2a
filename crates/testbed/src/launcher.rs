//! Starts child processes that can't outlive this one, whatever ends it. Only starts them; what they are is `daemon`'s matter.
//!
//! The kernel's parent-death signal does it, and that signal is about the *thread* that forked. A test's thread ends with the test, so
//! one thread that lives as long as the process does all the forking.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::namespace::Namespace;

struct Order {
    command: Command,
    namespace: Namespace,
    started: mpsc::Sender<io::Result<Child>>,
}

/// Starts `command` inside `namespace`; it gets `SIGKILL` when this process ends. `command` must be made by [`command`].
///
/// # Errors
/// When it can't be started.
pub fn start(namespace: &Namespace, command: Command) -> Result<Child> {
    let program = format!("{command:?}");
    let (started, answer) = mpsc::channel();
    let orders = orders()?;
    orders
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Order { command, namespace: namespace.clone(), started })
        .map_err(|_| anyhow!("the launcher thread has ended"))?;
    answer.recv().context("the launcher thread has ended")?.with_context(|| format!("start {program}"))
}

/// A command line whose process dies with its parent, and is in a group of its own: what Ctrl-C sends is for the parent to act on.
#[must_use]
pub fn command(program: &std::path::Path) -> Command {
    let mut command = Command::new("setpriv");
    command.process_group(0).args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn orders() -> Result<&'static Mutex<mpsc::Sender<Order>>> {
    static ORDERS: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    if let Some(orders) = ORDERS.get() {
        return Ok(orders);
    }
    let (sender, receiver) = mpsc::channel::<Order>();
    let home = Namespace::current("home")?;
    thread::Builder::new().name("launcher".into()).spawn(move || {
        for mut order in receiver {
            order.namespace.enter();
            let child = order.command.spawn();
            // To stay in a test's namespace would keep that alive.
            home.enter();
            // Fails when the asker has given up; the child then dies with its dropped handle's pipes or with this process.
            let _ = order.started.send(child);
        }
    })?;
    Ok(ORDERS.get_or_init(|| Mutex::new(sender)))
}
