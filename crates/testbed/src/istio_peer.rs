//! A process of `perf-tests/interop`'s program, which is made of istio's own packages: how it is found, started and
//! given orders. What the orders are is the matter of [`crate::istiod`] and [`crate::cni_agent`].

use std::env;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::launcher::{self, Launcher};
use crate::log::Log;
use crate::namespace::Namespace;
use crate::wait;

/// A start takes a second or two: istio waits for its informers. Shared CPUs make it longer.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// An order to the ZDS server may wait for a daemon's answer, for which that has 5 s.
const ORDER_PATIENCE: Duration = Duration::from_secs(15);
/// The longest answer read: an index of some thousands of workloads.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A running peer. Dropping it kills it.
pub(crate) struct IstioPeer {
    name: &'static str,
    child: Child,
    log: Log,
    socket: PathBuf,
    // After the child, which would otherwise be killed by its launcher's end rather than by `drop`.
    _launcher: Launcher,
    // Last, so that the process is gone before its socket is.
    _directory: TempDir,
}

impl IstioPeer {
    /// Starts the peer `name` with what `prepare` adds to its command, and waits until it takes orders.
    pub(crate) fn start(name: &'static str, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("coretunnel-istio-").tempdir()?;
        let socket = directory.path().join("control.sock");
        let launcher = Launcher::start(true)?;
        let mut command = command(name)?;
        command.arg("-control").arg(&socket).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = launcher.spawn(&Namespace::current("the test's own")?, command)?;
        let log = Log::default();
        log.follow(child.stdout.take().expect("stdout was piped above"))?;
        log.follow(child.stderr.take().expect("stderr was piped above"))?;
        let mut peer = Self { name, child, log, socket, _launcher: launcher, _directory: directory };
        peer.await_start()?;
        Ok(peer)
    }

    /// One order and its answer.
    ///
    /// # Errors
    /// When it refuses (with its words) or is gone.
    pub(crate) fn order(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let describe = || format!("{method} {path} to {}", self.name);
        let (status, text) = self.exchange(method, path, body).with_context(describe)?;
        ensure!(status == 200, "{}: {status}: {}", describe(), text.trim());
        serde_json::from_str(&text).with_context(|| format!("{}: {text:?} is no JSON", describe()))
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ORDER_PATIENCE))?;
        stream.set_write_timeout(Some(ORDER_PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: peer\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer but {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.with_context(|| format!("no status in {head:?}"))?, text.to_owned()))
    }

    fn await_start(&mut self) -> Result<()> {
        let (child, log) = (&mut self.child, &self.log);
        let started = |log: &Log| log.all().iter().any(|line| line.text().starts_with("orders are taken at"));
        let exit = wait::until_some("it to take orders", START_PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Some(Some(status)),
            _ => started(log).then_some(None),
        })
        .with_context(|| format!("istio's {} said:\n{}", self.name, log.tail(Log::start())))?;
        if let Some(status) = exit {
            bail!("istio's {} exited at its start ({status}); it said:\n{}", self.name, log.tail(Log::start()));
        }
        Ok(())
    }

    /// What it said last, for an error's text.
    pub(crate) fn said(&self) -> String {
        self.log.tail(Log::start())
    }
}

impl Drop for IstioPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program as the peer `name`, with nothing of this process's environment but what finds programs.
///
/// # Errors
/// When it isn't built.
pub(crate) fn command(name: &str) -> Result<Command> {
    let mut command = launcher::command(&binary()?);
    command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path))).arg(name);
    Ok(command)
}

fn binary() -> Result<PathBuf> {
    let path = match env::var_os("ISTIO_PEERS_BIN") {
        Some(path) => path.into(),
        None => {
            // <target>/<profile>/deps/<the test>
            let running = env::current_exe().context("find the running program")?;
            running.ancestors().nth(3).unwrap_or(Path::new("target")).join("interop/istio-peers")
        }
    };
    ensure!(
        path.is_file(),
        "no istio peers at {}: run perf-tests/interop/build-istio-peers, with the same CARGO_TARGET_DIR, or set \
         ISTIO_PEERS_BIN",
        path.display()
    );
    Ok(path)
}
