//! Starts child processes that can't outlive this one, whatever ends it. Only starts them; what they are is `daemon`'s
//! matter.
//!
//! The kernel's parent-death signal does it, and that signal is about the *thread* that forked. So one thread forks for
//! a whole mesh and lives as long as the mesh does.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::seccomp;

/// The forking thread. When it is dropped, what it has started is killed.
pub struct Launcher {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    command: Command,
    namespace: Namespace,
    started: mpsc::Sender<io::Result<Child>>,
}

impl Launcher {
    /// Starts the thread. With `io_uring` false it and all that it starts are refused io_uring, as most container runtimes
    /// do by default.
    ///
    /// # Errors
    /// When no thread can be had, or the kernel has no seccomp filters.
    pub fn start(io_uring: bool) -> Result<Self> {
        let (orders, taken) = mpsc::channel::<Order>();
        let home = Namespace::current("home")?;
        let filter = if io_uring { None } else { Some(seccomp::without_io_uring()?) };
        let thread = thread::Builder::new().name("launcher".into()).spawn(move || {
            if let Some(filter) = filter {
                seccompiler::apply_filter(&filter).expect("the kernel takes filters");
            }
            for mut order in taken {
                order.namespace.enter();
                let child = order.command.spawn();
                // To stay in a test's namespace would keep that alive.
                home.enter();
                // Fails when the asker has given up; the child then dies with this thread.
                let _ = order.started.send(child);
            }
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Starts `command`, made by [`command`], inside `namespace`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, namespace: &Namespace, command: Command) -> Result<Child> {
        let program = format!("{command:?}");
        let (started, answer) = mpsc::channel();
        let orders = self.orders.as_ref().context("the launcher is on its way out")?;
        let order = Order { command, namespace: namespace.clone(), started };
        orders.send(order).ok().context("the launcher thread has ended")?;
        answer.recv().context("the launcher thread has ended")?.with_context(|| format!("start {program}"))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A command line whose process dies with its parent, and is in a group of its own: what Ctrl-C sends is for the parent
/// to act on.
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.process_group(0).args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::wait;

    #[test]
    fn a_child_dies_with_the_launcher() {
        let launcher = Launcher::start(true).unwrap();
        let mut sleeping = command(Path::new("sleep"));
        sleeping.arg("60");
        let mut child = launcher.spawn(&Namespace::create("bedroom").unwrap(), sleeping).unwrap();
        let name = format!("/proc/{}/comm", child.id());
        let asleep = || std::fs::read_to_string(&name).is_ok_and(|name| name.trim() == "sleep");
        wait::until("the child to sleep", Duration::from_secs(10), asleep).unwrap();
        drop(launcher);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
