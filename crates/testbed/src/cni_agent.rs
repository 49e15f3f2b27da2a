//! The real CNI agent's ZDS server and the rules it lays in a pod. Only for `tests/interop_zds.rs`; the program is
//! `perf-tests/interop`. Its scripted counterpart, for every other test, is [`crate::zds_agent`].

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::istio_peer::{self, IstioPeer};
use crate::launcher::Launcher;
use crate::namespace::Namespace;
use crate::zds_agent::PodRecord;

/// The real agent's ZDS server. Dropping it kills it, and its connections with it.
pub struct CniAgent(IstioPeer);

impl CniAgent {
    /// How long the agent lets a connection idle before it looks whether it is still there.
    pub const KEEPALIVE: Duration = Duration::from_secs(5);

    /// Listens at `socket`, which is made, and probes idle connections every `keepalive`.
    ///
    /// # Errors
    /// When there is none (with the command that builds it) or it exits.
    pub fn start(socket: &Path, keepalive: Duration) -> Result<Self> {
        let peer = IstioPeer::start("zds", |command| {
            command.arg("-socket").arg(socket).arg("-keepalive").arg(format!("{}ms", keepalive.as_millis()));
        })?;
        Ok(Self(peer))
    }

    /// What it said last, for an error's text.
    #[must_use]
    pub fn said(&self) -> String {
        self.0.said()
    }

    /// Puts a pod where snapshots are made of it, and tells nobody.
    ///
    /// # Errors
    /// When it is gone.
    pub fn register_pod(&self, uid: &str, pod: &PodRecord) -> Result<()> {
        self.put(uid, pod, pod.netns.as_ref().map(Namespace::path).as_deref(), false)
    }

    /// The same, and tells the newest connection of it; returns with its answer.
    ///
    /// # Errors
    /// With the server's words: when there is no connection, or the daemon refuses or is silent.
    pub fn add_pod(&self, uid: &str, pod: &PodRecord) -> Result<()> {
        self.put(uid, pod, pod.netns.as_ref().map(Namespace::path).as_deref(), true)
    }

    /// The same with the namespace at `path` in the place of the pod's own.
    ///
    /// # Errors
    /// As [`Self::add_pod`].
    pub fn add_pod_of(&self, uid: &str, pod: &PodRecord, path: &Path) -> Result<()> {
        self.put(uid, pod, Some(path), true)
    }

    /// Forgets a pod and tells every connection; returns with their answers.
    ///
    /// # Errors
    /// With the server's words.
    pub fn del_pod(&self, uid: &str) -> Result<()> {
        self.0.order("DELETE", &format!("/pods/{uid}"), "").map(drop)
    }

    fn put(&self, uid: &str, pod: &PodRecord, netns: Option<&Path>, live: bool) -> Result<()> {
        let order = json!({
            "uid": uid, "name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account,
            "netns": netns.unwrap_or(Path::new("")), "live": live,
        });
        self.0.order("PUT", "/pods", &order.to_string()).map(drop)
    }
}

/// Makes `pod` a captured one by the agent's own code, as [`crate::redirect::capture`] does by ours.
///
/// # Errors
/// When it refuses, with its words.
pub fn capture(launcher: &Launcher, pod: &Namespace) -> Result<()> {
    let mut command = istio_peer::command("rules")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = launcher.spawn(pod, command)?;
    let output = child.wait_with_output().context("wait for istio's rules")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "istio's rules in {}: {}: {}", pod.name(), output.status, said.trim());
    Ok(())
}
