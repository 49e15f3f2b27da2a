//! Runs one fact about a mesh: brings it up, asks the question, then checks what must hold after every test. Says what
//! the daemons said when it fails.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;

use crate::log::Log;
use crate::mesh::{Mesh, MeshSpec, NodeId, PodSpec};
use crate::wait;

/// How long daemons may take to let go of what a test's connections held: tunnels are idle for a second first.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// Who opens and closes nothing for so long is at rest.
const REST: Duration = Duration::from_millis(200);
/// How long an idle daemon may take from SIGTERM to its exit.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Descriptors of each daemon: what must be reached again after a test.
pub type Descriptors = BTreeMap<NodeId, usize>;

/// Brings up a mesh with `pods`, runs `fact`, and then checks that each daemon still there has as many descriptors as
/// at its start, that none panicked, that the node agents saw no protocol error, and that SIGTERM ends each with
/// success.
///
/// # Errors
/// When the fact or one of these does not hold; with the ends of the daemons' logs.
pub fn run(spec: MeshSpec, pods: &[PodSpec], fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    let mut mesh = Mesh::start(spec, pods)?;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let before = descriptors(&mesh)?;
        fact(&mut mesh)?;
        await_descriptors(&mesh, &before)?;
        finish(&mut mesh)
    }));
    match outcome {
        // One text, the cause first: as a chain, the logs would hide it.
        Ok(result) => result.map_err(|error| anyhow!("{error:#}\n{}", logs(&mesh))),
        Err(panic) => {
            let report = logs(&mesh);
            drop(mesh);
            // The panic's own message was printed by then; the logs would be lost.
            #[expect(clippy::print_stderr, reason = "a panicking test has no other way to show the daemons' logs")]
            {
                eprintln!("{report}");
            }
            resume_unwind(panic)
        }
    }
}

/// Descriptors each daemon holds at rest: one that was just started still connects to its CA.
///
/// # Errors
/// When a daemon has gone unasked, or does not come to rest.
pub fn descriptors(mesh: &Mesh) -> Result<Descriptors> {
    let (mut last, mut since) = (held(mesh)?, Instant::now());
    wait::until_ok("daemons to come to rest", RELEASE_PATIENCE, || {
        let now = held(mesh)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() >= REST, "they hold {last:?} now");
        Ok(last.clone())
    })
}

fn held(mesh: &Mesh) -> Result<Descriptors> {
    mesh.nodes_with_daemon().into_iter().map(|id| Ok((id, mesh.daemon(id).open_files()?))).collect()
}

/// Waits until each daemon holds no more descriptors than `before`. A daemon that was restarted since has to come down
/// to the same.
///
/// # Errors
/// When one does not; with the descriptors it has.
pub fn await_descriptors(mesh: &Mesh, before: &Descriptors) -> Result<()> {
    for id in mesh.nodes_with_daemon() {
        let daemon = mesh.daemon(id);
        let limit = before.get(&id).copied().unwrap_or(usize::MAX);
        wait::until("descriptors to come home", RELEASE_PATIENCE, || {
            daemon.open_files().is_ok_and(|count| count <= limit)
        })
        .with_context(|| {
            format!("the daemon of {id} began with {limit} and has now: {:?}", daemon.open_file_names())
        })?;
    }
    Ok(())
}

fn finish(mesh: &mut Mesh) -> Result<()> {
    for id in NodeId::ALL {
        let complaints = mesh.node(id).agent.complaints();
        ensure!(complaints.is_empty(), "the agent of {id} saw protocol errors: {complaints:?}");
    }
    for id in mesh.nodes_with_daemon() {
        let daemon = mesh.daemon_mut(id);
        ensure!(daemon.is_running(), "the daemon of {id} has exited during the test");
        daemon.signal(Signal::TERM)?;
        let status = daemon.await_exit(EXIT_PATIENCE)?;
        ensure!(status.success(), "the daemon of {id} ended with {status} after SIGTERM");
        let panics: Vec<String> = daemon
            .log()
            .all()
            .iter()
            .filter(|line| line.text().contains("panicked"))
            .map(ToString::to_string)
            .collect();
        ensure!(panics.is_empty(), "the daemon of {id} panicked: {panics:?}");
    }
    Ok(())
}

fn logs(mesh: &Mesh) -> String {
    let each = mesh
        .nodes_with_daemon()
        .into_iter()
        .map(|id| format!("--- the daemon of {id} said:\n{}", mesh.daemon(id).log().tail(Log::start())));
    each.collect::<Vec<_>>().join("\n")
}
