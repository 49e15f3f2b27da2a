//! A start that does not wait for the control plane: what was known of the mesh last, with its versions, is kept in a file
//! and read at the start. Certificates and keys are never written: a daemon that starts again asks the CA.
//!
//! The file is made and written by a thread of its own, of the lowest priority; the control thread hands it a snapshot and
//! copies the versions. Why it is so: docs/decisions/0016.

mod file;
mod schedule;

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{Arc, mpsc as std_mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mesh_state::{builder::SnapshotBuilder, snapshot::Snapshot, warm::Terms};
use tokio::sync::mpsc;

use crate::xds::kept::{Kept, What};
use file::WarmFile;
use schedule::Schedule;

/// Writings that wait for the thread: the one that is due, while one is made.
const WORK_MAX: usize = 1;
/// As little of a CPU as there is where somebody else wants it.
const NICENESS: i32 = 19;

/// Where and for how long a mesh is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmStart {
    /// The directory of the file. It must be there; nobody else should be able to write in it.
    pub directory: PathBuf,
    /// How old what is read may be.
    pub age_max: Duration,
    /// The build of this program. It belongs to what is kept: what another one did not read of a resource would never be sent
    /// again.
    pub program: String,
}

/// What a file gave: the mesh, and the versions of all that is in it.
pub(crate) struct Restored {
    pub(crate) builder: SnapshotBuilder,
    pub(crate) kept: Vec<Kept>,
}

/// Keeps the mesh.
pub(crate) struct Keeper {
    /// Whatever makes a mesh another one.
    origin: String,
    age_max: Duration,
    file: WarmFile,
    schedule: Schedule,
    /// When the mesh was last known to be as the control plane has it.
    as_of_unix_s: u64,
    writer: Option<Writer>,
    written: (mpsc::Sender<Written>, mpsc::Receiver<Written>),
}

/// The thread that writes.
struct Writer {
    work: std_mpsc::SyncSender<Work>,
    thread: JoinHandle<()>,
}

struct Work {
    snapshot: Arc<Snapshot>,
    kept: Vec<Kept>,
    origin: String,
    as_of_unix_s: u64,
}

/// A writing has ended.
pub(crate) struct Written {
    took: Duration,
    result: io::Result<usize>,
}

impl Keeper {
    /// For a mesh that comes from `origin`.
    pub(crate) fn new(config: &WarmStart, origin: &[&str], now: Instant) -> Self {
        Self {
            origin: [&[&*config.program], origin].concat().join("\n"),
            age_max: config.age_max,
            file: WarmFile::new(&config.directory),
            schedule: Schedule::new(now),
            as_of_unix_s: 0,
            writer: None,
            written: mpsc::channel(WORK_MAX + 1),
        }
    }

    /// What was kept, if it is to be believed. What is wrong with it is told.
    pub(crate) fn read(&self) -> Option<Restored> {
        self.file.tidy();
        let (path, now_unix_s) = (self.file.path(), unix_s(SystemTime::now()));
        let terms = Terms { origin: &self.origin, now_unix_s, age_max_s: self.age_max.as_secs() };
        match self.file.read(&terms) {
            Ok(Some((builder, kept))) => {
                let restored = agreed(builder, kept);
                let resources = restored.kept.len();
                tracing::info!(file = %path.display(), resources, "warm start: the mesh is as it was last known");
                Some(restored)
            }
            Ok(None) => {
                tracing::info!(file = %path.display(), "no warm start: nothing was kept yet");
                None
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "no warm start: the file is passed over");
                None
            }
        }
    }

    /// The mesh is another, and as the control plane has it now.
    pub(crate) fn changed(&mut self) {
        self.as_of_unix_s = unix_s(SystemTime::now());
        self.schedule.changed();
    }

    /// When [`Keeper::write`] has something to do.
    pub(crate) fn next_due(&self, connected: bool) -> Option<Instant> {
        self.schedule.next_due(connected)
    }

    /// Has the file written, if it is due.
    pub(crate) fn write(
        &mut self,
        now: Instant,
        connected: bool,
        snapshot: &Arc<Snapshot>,
        kept: impl FnOnce() -> Vec<Kept>,
    ) {
        if self.next_due(connected).is_some_and(|due| due <= now) {
            if connected {
                self.as_of_unix_s = unix_s(SystemTime::now());
            }
            self.hand_over(snapshot, kept());
        }
    }

    /// The next end of a writing. Dropping the future before it is done loses nothing.
    pub(crate) async fn next(&mut self) -> Written {
        self.written.1.recv().await.expect("the sender is kept beside it")
    }

    /// Plans the next one.
    pub(crate) fn on_written(&mut self, written: Written, now: Instant) {
        let Written { took, result } = written;
        let file = self.file.path();
        match result {
            Ok(bytes) => tracing::debug!(file = %file.display(), bytes, ?took, "the mesh is kept for a warm start"),
            Err(error) => tracing::warn!(
                file = %file.display(), %error,
                "the mesh is not kept for a warm start; is the directory there, and writable?"
            ),
        }
        self.schedule.ended(now, took);
    }

    /// The daemon ends: what has changed since the last writing is written, and waited for.
    pub(crate) fn finish(mut self, snapshot: &Arc<Snapshot>, kept: impl FnOnce() -> Vec<Kept>) {
        if self.schedule.has_changed() {
            self.hand_over(snapshot, kept());
        }
        if let Some(Writer { work, thread }) = self.writer.take() {
            drop(work);
            // Its panic was printed; the daemon ends either way.
            drop(thread.join());
        }
    }

    fn hand_over(&mut self, snapshot: &Arc<Snapshot>, kept: Vec<Kept>) {
        if self.writer.is_none() {
            self.writer = match Writer::start(self.file.clone(), self.written.0.clone()) {
                Ok(writer) => Some(writer),
                Err(error) => {
                    tracing::warn!(%error, "no thread to keep the mesh for a warm start");
                    None
                }
            };
        }
        let work =
            Work { snapshot: snapshot.clone(), kept, origin: self.origin.clone(), as_of_unix_s: self.as_of_unix_s };
        // Without a thread nothing is written, and nothing is due any more.
        self.schedule.begun();
        if let Some(writer) = &self.writer {
            // There is room: at most one is being made, and this one.
            let _handed = writer.work.try_send(work);
        }
    }
}

impl Writer {
    fn start(file: WarmFile, written: mpsc::Sender<Written>) -> io::Result<Self> {
        let (work, to_do) = std_mpsc::sync_channel::<Work>(WORK_MAX);
        let thread = thread::Builder::new().name("warm-start".into()).spawn(move || {
            // Of this thread alone, in Linux. Without it the file is written all the same.
            let _nice = rustix::process::nice(NICENESS);
            while let Ok(Work { snapshot, kept, origin, as_of_unix_s }) = to_do.recv() {
                let begun = Instant::now();
                let content = file::content(&snapshot, &kept, &origin, as_of_unix_s);
                // A generation that the cores have replaced is freed here at the latest, and not on a core.
                drop((snapshot, kept));
                let result = file.write(&content.each_ref().map(Vec::as_slice));
                let bytes = content.iter().map(Vec::len).sum();
                let written_now = Written { took: begun.elapsed(), result: result.map(|()| bytes) };
                // Nobody listens any more when the daemon ends.
                let _told = written.try_send(written_now);
            }
        })?;
        Ok(Self { work, thread })
    }
}

/// Only what both say: what is in the mesh without a version would never be taken back, and what has a version and is not in
/// the mesh would never be sent.
fn agreed(mut builder: SnapshotBuilder, kept: Vec<Kept>) -> Restored {
    let mesh = builder.freeze();
    let mut names: HashSet<(What, Arc<str>)> = HashSet::with_capacity(kept.len());
    names.extend(mesh.workloads().map(|workload| (What::Workload, workload.uid.0.clone())));
    names.extend(mesh.services().map(|service| (What::Service, service.key().to_string().into())));
    names.extend(mesh.policies().map(|policy| (What::Policy, policy.key.0.clone())));
    // The mesh's own name, which costs nothing to hold twice.
    let kept: Vec<Kept> = kept
        .into_iter()
        .filter_map(|Kept { what, name, version }| {
            let (what, name) = names.take(&(what, name))?;
            Some(Kept { what, name, version })
        })
        .collect();
    for (what, name) in names {
        if let Some(gone) = what.gone(&name) {
            builder.apply(gone);
        }
    }
    Restored { builder, kept }
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use mesh_state::{change::Change, identity::Identity, workload::Workload};

    use super::*;

    #[test]
    fn what_only_the_mesh_or_only_the_versions_have_is_not_restored() {
        let mut builder = SnapshotBuilder::new();
        for name in ["both", "mesh-only"] {
            let identity = Identity::new("td", "shop", name).expect("valid parts");
            builder.apply(Change::Workload(Workload::new(name.into(), "shop", name, identity)));
        }
        let kept = |what, name: &str| Kept { what, name: name.into(), version: "1".into() };
        let list =
            vec![kept(What::Workload, "both"), kept(What::Workload, "version-only"), kept(What::Policy, "shop/both")];
        let Restored { mut builder, kept } = agreed(builder, list);
        let mesh = builder.freeze();
        assert_eq!(mesh.workloads().map(|workload| workload.uid.as_str()).collect::<Vec<_>>(), ["both"]);
        assert_eq!(kept.iter().map(|kept| &*kept.name).collect::<Vec<_>>(), ["both"]);
    }
}
