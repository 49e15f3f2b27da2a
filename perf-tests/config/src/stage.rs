//! Where it all happens: one node with one real daemon of one core, its pods, and a control plane over TLS. The core has a
//! CPU for itself; the load, the servers and the daemon's control thread share the others.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perf_tests::cpu;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use testbed::daemon::Daemon;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::xds_server::XdsServer;
use testbed::{daemon, wait};

use crate::load::go_first;

/// For whatever takes long: a million workloads by a daemon without optimisation.
const PATIENCE: Duration = Duration::from_secs(170);
/// Two generations are never further apart: what did not change for longer will not.
const QUIET: Duration = Duration::from_millis(1_100);

/// The node.
pub(crate) struct Stage {
    pub(crate) mesh: Mesh,
    /// Another proxy is in the daemon's place.
    is_peer: bool,
    /// Before this process was kept off the core's CPU.
    all: CpuSet,
}

impl Stage {
    /// Brings up the pods and a daemon for them.
    pub(crate) fn start(pods: &[PodSpec], environment: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(None, pods, environment)
    }

    /// Brings up the pods and, in the daemon's place, the node proxy whose binary is given, if one is.
    pub(crate) fn start_with(peer: Option<&Path>, pods: &[PodSpec], environment: &[(&str, &str)]) -> Result<Self> {
        let all = sched_getaffinity(None).context("ask which CPUs there are")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
        let core = cpus.next().context("no CPU")?;
        ensure!(
            cpus.next().is_some(),
            "two CPUs are needed: one for the core, the others for the load and the servers"
        );
        if peer.is_none() {
            daemon::binary()?;
        }
        // A list of one: a number alone would be how many.
        let cores = format!("{core}-{core}");
        let peer = peer.map(Path::to_owned);
        let is_peer = peer.is_some();
        let mut spec = MeshSpec { cores, daemons: false, control_plane: true, peer, ..MeshSpec::default() };
        spec.environment.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mesh = Mesh::start(spec, pods)?;
        keep_off(core, &all)?;
        let mut stage = Self { mesh, is_peer, all };
        stage.restart()?;
        Ok(stage)
    }

    /// A new daemon in the place of the old one, which has all it needs when this returns.
    pub(crate) fn restart(&mut self) -> Result<()> {
        drop(self.mesh.take_daemon(NodeId::A));
        self.mesh.launch_daemon(NodeId::A)?;
        self.mesh.daemon_mut(NodeId::A).await_ready(PATIENCE)?;
        self.shield_cores()?;
        self.settled(0)?;
        Ok(())
    }

    /// Lets no other process of this machine take a core off its CPU: that would be counted as the daemon's, and is ten times
    /// what is looked for.
    fn shield_cores(&self) -> Result<()> {
        let directory = format!("/proc/{}/task", self.daemon().pid());
        for task in fs::read_dir(&directory).with_context(|| format!("read {directory}"))? {
            let task = task?;
            if fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("core-")) {
                go_first(&task.file_name().to_string_lossy());
            }
        }
        Ok(())
    }

    /// One more pod, captured when this returns.
    pub(crate) fn add_pod(&mut self, name: &str) -> Result<Pod> {
        let pod = self.mesh.add_pod(&PodSpec::new(name, NodeId::A))?;
        // The mesh does so itself only where all its nodes have daemons.
        self.mesh.announce_again(&pod)?;
        Ok(pod)
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.mesh.daemon(NodeId::A)
    }

    pub(crate) fn xds(&self) -> &XdsServer {
        &self.mesh.control_plane().xds
    }

    /// Waits until the server had this many answers and every core has the newest generation, with nothing new to come.
    /// Returns when the cores had it.
    pub(crate) fn settled(&self, answers: usize) -> Result<Instant> {
        wait::until("the answers to all responses", PATIENCE, || self.xds().acknowledged() >= answers)?;
        let deadline = Instant::now() + PATIENCE;
        if self.is_peer {
            return self.idle(deadline);
        }
        let (mut last, mut since) = (None, Instant::now());
        loop {
            ensure!(Instant::now() < deadline, "the cores do not come to one generation: {last:?}");
            let page = self.daemon().status()?;
            let now = standing(&page);
            if now != last || now.is_none() {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() >= QUIET {
                return Ok(since);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a proxy that has no such page does nothing any more. Returns when it had done its last.
    fn idle(&self, deadline: Instant) -> Result<Instant> {
        loop {
            let (since, spent) = (Instant::now(), self.cpu()?);
            std::thread::sleep(QUIET);
            if self.cpu()? - spent < QUIET / 50 {
                return Ok(since);
            }
            ensure!(Instant::now() < deadline, "the proxy does not come to rest");
        }
    }

    /// What the daemon has spent on CPUs so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        Ok(cpu::of_process(self.daemon().pid())?)
    }

    /// A line of the kernel's account of the daemon's memory, in bytes.
    pub(crate) fn memory(&self, line: &str) -> Result<f64> {
        let path = format!("/proc/{}/status", self.daemon().pid());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kib = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next());
        let kib: f64 = kib.and_then(|number| number.parse().ok()).with_context(|| format!("no {line} in {path}"))?;
        Ok(kib * 1024.0)
    }

    /// Forgets the highest memory so far.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.daemon().pid());
        fs::write(&path, "5").with_context(|| format!("write {path}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The next stage begins with all CPUs.
        let _back = sched_setaffinity(None, &self.all);
    }
}

/// The generation that all cores have, if they have one, and the daemon is ready.
fn standing(page: &Value) -> Option<u64> {
    let newest = page["generation"].as_u64()?;
    let cores = page["cores"].as_array()?;
    let there = cores.iter().all(|core| core["standing"]["generation"].as_u64() == Some(newest));
    (there && page["pending"].as_array().is_some_and(Vec::is_empty)).then_some(newest)
}

/// Keeps every thread of this process off a CPU, but for the one that starts daemons.
fn keep_off(core: usize, all: &CpuSet) -> Result<()> {
    let mut others = *all;
    others.unset(core);
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        if name.trim() == "launcher" {
            continue;
        }
        let id = task.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(id, &others).context("keep this process off the core's CPU")?;
    }
    Ok(())
}
