//! The real daemon as a child process: how it is started, asked, signalled and observed from outside. Not what it is
//! told to do: see `mesh`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal};

use crate::launcher::Launcher;
use crate::log::Log;
use crate::metrics_page::MetricsPage;
use crate::namespace::Namespace;
use crate::{http, launcher, wait};

/// Where `/metrics` is.
pub const METRICS_PORT: u16 = 15020;
/// Where `/healthz/ready` is.
pub const READINESS_PORT: u16 = 15021;

/// Where `/status` is.
pub const ADMIN_PORT: u16 = 15000;

/// How long a start may take: the binary is built without optimisation and shares two CPUs with other tests.
pub const START_PATIENCE: Duration = Duration::from_secs(20);

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct DaemonSpec {
    /// `NODE_NAME`.
    pub node: String,
    /// Who tells it of the mesh and issues its certificates.
    pub source: Source,
    /// The ZDS socket.
    pub zds_socket: PathBuf,
    /// Cores, as the flag takes them.
    pub cores: String,
    /// More environment, for instance a deadline.
    pub environment: BTreeMap<String, String>,
    /// More flags.
    pub arguments: Vec<String>,
    /// The binary of another node proxy to start in the daemon's place, as ztunnel is started: by the environment alone.
    pub peer: Option<PathBuf>,
}

/// Who tells a daemon of the mesh and issues its certificates.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, and the CA inside it.
    File {
        /// The local workload file.
        workload_file: PathBuf,
        /// The embedded CA's root; daemons that share it trust each other.
        ca_root_file: PathBuf,
    },
    /// A control plane.
    ControlPlane {
        /// Where it is, as seen from the daemon's namespace.
        address: String,
        /// How it is proved.
        root_pem: String,
        /// What proves the daemon.
        token: String,
    },
}

/// A running daemon. Dropping it kills it.
pub struct Daemon {
    node: String,
    namespace: Namespace,
    child: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Starts the binary in `namespace`; returns at once.
    ///
    /// # Errors
    /// When there is no binary (with the command that builds it) or it can't be started.
    pub fn start(launcher: &Launcher, namespace: &Namespace, spec: &DaemonSpec) -> Result<Self> {
        let mut command = match &spec.peer {
            Some(peer) => launcher::command(peer),
            None => launcher::command(&binary()?),
        };
        command
            .env_clear()
            .envs(["PATH", "HOME", "LLVM_PROFILE_FILE"].iter().filter_map(|name| Some((name, env::var_os(name)?))))
            .env("RUST_BACKTRACE", "1")
            .env("RUST_LOG", "info")
            .env("LOG_FORMAT", "json")
            .env("NODE_NAME", &spec.node)
            .env("INPOD_UDS", &spec.zds_socket)
            .arg(if spec.peer.is_some() { "proxy" } else { "run" });
        match &spec.source {
            Source::File { workload_file, ca_root_file } => command
                .env("XDS_ADDRESS", "")
                .env("LOCAL_XDS_PATH", workload_file)
                .args(["--ca", "embedded", "--ca-root-file"])
                .arg(ca_root_file),
            Source::ControlPlane { address, root_pem, token } => command
                .env("XDS_ADDRESS", address)
                .env("CA_ADDRESS", address)
                .env("XDS_ROOT_CA", root_pem)
                .env("CA_ROOT_CA", root_pem)
                .env("AUTH_TOKEN", token)
                .env("POD_NAME", format!("coretunnel-{}", spec.node))
                .env("POD_NAMESPACE", "istio-system"),
        };
        if spec.peer.is_none() {
            command.arg("--cores").arg(&spec.cores).args(&spec.arguments);
        }
        command.envs(&spec.environment).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = launcher.spawn(namespace, command)?;
        let log = Log::default();
        let readers = vec![
            log.follow(child.stdout.take().expect("stdout was piped above"))?,
            log.follow(child.stderr.take().expect("stderr was piped above"))?,
        ];
        Ok(Self { node: spec.node.clone(), namespace: namespace.clone(), child, log, readers })
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it isn't within `patience`, or has exited; with the end of its log.
    pub fn await_ready(&mut self, patience: Duration) -> Result<()> {
        let mut last = String::from("never answered");
        let namespace = self.namespace.clone();
        let child = &mut self.child;
        let outcome = wait::until_some("readiness", patience, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Err(status));
            }
            match http::get(&namespace, local(READINESS_PORT), "/healthz/ready") {
                Ok(answer) if answer.status == 200 => return Some(Ok(())),
                Ok(answer) => last = format!("{} {}", answer.status, answer.body.trim()),
                Err(error) => last = format!("{error:#}"),
            }
            None
        });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => {
                self.finish_log();
                Err(self.telling(anyhow!("exited at its start ({status})")))
            }
            Err(error) => Err(self.telling(anyhow!("{error} (last: {last})"))),
        }
    }

    /// Whether its readiness page says yes now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http::get(&self.namespace, local(READINESS_PORT), "/healthz/ready").is_ok_and(|answer| answer.status == 200)
    }

    /// A scrape of its metrics.
    ///
    /// # Errors
    /// When it does not answer or the page can't be read.
    pub fn metrics(&self) -> Result<MetricsPage> {
        let answer = http::get(&self.namespace, local(METRICS_PORT), "/metrics")?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        MetricsPage::parse(&answer.body).with_context(|| format!("/metrics of {}", self.node))
    }

    /// How it says that it stands, as `coretunnel status --format json`.
    ///
    /// # Errors
    /// When it does not answer or the page can't be read.
    pub fn status(&self) -> Result<serde_json::Value> {
        let answer = http::get(&self.namespace, local(ADMIN_PORT), "/status")?;
        ensure!(answer.status == 200, "/status answered {}", answer.status);
        serde_json::from_str(&answer.body).with_context(|| format!("/status of {}", self.node))
    }

    /// Descriptors it holds now.
    ///
    /// # Errors
    /// When it has gone.
    pub fn open_files(&self) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.pid());
        Ok(fs::read_dir(&directory).with_context(|| format!("read {directory}"))?.count())
    }

    /// What its descriptors are, sorted: for a failing count.
    #[must_use]
    pub fn open_file_names(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .map(|link| link.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// CPU time of each of its threads so far, by thread name.
    ///
    /// # Errors
    /// When it has gone.
    pub fn thread_cpu(&self) -> Result<BTreeMap<String, Duration>> {
        let directory = format!("/proc/{}/task", self.pid());
        let mut times = BTreeMap::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("read {directory}"))?.flatten() {
            let path = entry.path();
            // A thread may end between the listing and the reading.
            let (Ok(name), Ok(stat)) =
                (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("schedstat")))
            else {
                continue;
            };
            let nanoseconds = stat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
            *times.entry(name.trim().to_owned()).or_insert(Duration::ZERO) += Duration::from_nanos(nanoseconds);
        }
        Ok(times)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().cast_signed()).context("process id 0")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("signal the daemon of {}", self.node))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `patience`; with the end of its log.
    pub fn await_exit(&mut self, patience: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let exited = wait::until_some("the daemon's exit", patience, || child.try_wait().transpose());
        let status = exited.map_err(|error| self.telling(error))?;
        self.finish_log();
        status.context("wait for the daemon")
    }

    /// Takes in what it said last. It has exited, so its pipes have an end.
    fn finish_log(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    /// An error of this daemon's, its log's end after it: in front, it would hide it.
    fn telling(&self, error: anyhow::Error) -> anyhow::Error {
        anyhow!("the daemon of {}: {error:#}\n{}", self.node, self.log.tail(Log::start()))
    }

    /// Kills it with `SIGKILL` and waits for its end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The daemon's binary: `CORETUNNEL_BIN`, else beside the running program (or its `deps` directory).
///
/// # Errors
/// When it isn't there, with the command that builds it.
pub fn binary() -> Result<PathBuf> {
    let from_environment = env::var_os("CORETUNNEL_BIN");
    let running = env::current_exe().context("find the running program")?;
    let path = locate(from_environment, &running);
    ensure!(
        path.is_file(),
        "no daemon at {}: build it with `cargo build -p coretunnel` (same profile and target directory), or set \
         CORETUNNEL_BIN",
        path.display()
    );
    Ok(path)
}

fn locate(from_environment: Option<OsString>, running: &Path) -> PathBuf {
    if let Some(path) = from_environment {
        return path.into();
    }
    let directory = running.parent().unwrap_or(Path::new("."));
    let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    directory.join("coretunnel")
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_looked_for_beside_tests_and_beside_the_demonstration() {
        for (environment, running, expected) in [
            (None, "/t/debug/deps/mesh_capture-1", "/t/debug/coretunnel"),
            (None, "/t/release/mesh-demo", "/t/release/coretunnel"),
            (Some("/opt/ct"), "/t/debug/deps/mesh_capture-1", "/opt/ct"),
        ] {
            assert_eq!(locate(environment.map(OsString::from), Path::new(running)), Path::new(expected));
        }
    }
}
