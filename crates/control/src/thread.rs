//! The control thread's one loop: whatever happens, it is told to the part it concerns, and what comes of it is
//! published. It waits for nothing but the next thing that happens.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use mesh_state::{builder::SnapshotBuilder, snapshot::Snapshot, wanted::Wanted};
use time::OffsetDateTime;

use crate::{
    CaSource, Config, Publish, Status,
    ca::embedded::{CaError, EmbeddedCa},
    credentials::Credentials,
    file_source::{Defaults, FileError, FileSource, Origin, Watch},
    pods::{PodEvent, Pods, PodsError},
    status::STATE_MANAGER,
};

/// Why the control thread ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The CA's root.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The mesh file, at the start. Later the last good one stays in force.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is there but cannot be watched.
    #[error("cannot watch {file}: {cause}; inotify watches may be exhausted (fs.inotify.max_user_watches)")]
    Watch {
        /// Which.
        file: String,
        /// What notify said.
        cause: notify::Error,
    },
    /// The CNI agent.
    #[error(transparent)]
    Pods(#[from] PodsError),
}

/// Runs until `shutdown` resolves. Must run inside a `LocalSet`, on a runtime with time and I/O.
///
/// # Errors
/// [`ControlError`]. Nothing that a peer or a file does later ends it, except a CNI agent of another protocol.
pub async fn run(
    config: Config,
    publish: impl Publish,
    wanted: async_channel::Receiver<Wanted>,
    status: Status,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ControlError> {
    let CaSource::Embedded { root_file, leaf_ttl } = &config.ca;
    let ca = EmbeddedCa::open(root_file, *leaf_ttl, OffsetDateTime::now_utc())?;
    let mut credentials = Credentials::new(ca, config.node.clone(), config.trust_domain.clone());
    let mut mesh = Mesh::new(publish, status.clone());
    let mut source = Source::open(&config)?;
    if let Some(source) = &mut source {
        mesh.load(source)?;
    }
    status.set_pending(STATE_MANAGER, false);
    let mut pods = Pods::new(config.zds_socket.as_deref(), status);

    let mut shutdown = pin!(shutdown);
    loop {
        let due = [credentials.next_due(), pods.next_due()].into_iter().flatten().min();
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = changed(&mut source) => {
                if let Some(source) = &mut source {
                    mesh.reload(source);
                }
                // It is the mesh that says whose workload a pod is.
                credentials.keep_to(pods.captured(), &mesh.snapshot, &mut mesh.publish);
            }
            // Closed once the cores have ended, which is before this loop does.
            Ok(wish) = wanted.recv(), if !wanted.is_closed() => match wish {
                Wanted::Identity(identity) => {
                    credentials.on_wish(&identity, pods.captured(), &mesh.snapshot, &mut mesh.publish);
                }
                // A file says all it knows; nothing can be fetched on demand.
                Wanted::Address { .. } | Wanted::Hostname(_) => {}
            },
            happened = pods.next() => match pods.on(happened, &mut mesh.publish).await? {
                PodEvent::Captured(pod) => credentials.on_captured(&pod, &mesh.snapshot, &mut mesh.publish),
                PodEvent::Released => credentials.keep_to(pods.captured(), &mesh.snapshot, &mut mesh.publish),
                PodEvent::Nothing => {}
            },
            () = until(due) => {
                credentials.renew(&mut mesh.publish);
                pods.on_time(&mut mesh.publish).await?;
            }
        }
    }
}

/// Resolves at `due`, or never.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn changed(source: &mut Option<Source>) {
    match source.as_mut().and_then(|source| source.watch.as_mut()) {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Where the mesh comes from.
struct Source {
    file: FileSource,
    /// An inline mesh does not change.
    watch: Option<Watch>,
    /// Why the file is not in force, and of when it is.
    refused: Option<(String, Option<SystemTime>)>,
}

impl Source {
    fn open(config: &Config) -> Result<Option<Self>, ControlError> {
        let defaults = Defaults { trust_domain: config.trust_domain.clone(), cluster: config.cluster.clone() };
        let watch = match &config.local_file {
            Some(file) => Some(
                Watch::new(file).map_err(|cause| ControlError::Watch { file: file.display().to_string(), cause })?,
            ),
            None => None,
        };
        let file = config.local_file.clone().map(Origin::File);
        let origin = file.or_else(|| config.local_inline.clone().map(Origin::Inline));
        Ok(origin.map(|origin| Self { file: FileSource::new(origin, defaults), watch, refused: None }))
    }

    /// Whether it has not been said yet of this version of the file. Where the log is written beside the file, saying
    /// it is a change of the directory, and would be read and said again for ever.
    fn is_news(&mut self, error: &FileError) -> bool {
        let refused = Some((error.to_string(), self.file.modified()));
        let is_news = self.refused != refused;
        self.refused = refused;
        is_news
    }
}

/// The mesh as the cores know it.
struct Mesh<P> {
    builder: SnapshotBuilder,
    snapshot: Arc<Snapshot>,
    publish: P,
    status: Status,
}

impl<P: Publish> Mesh<P> {
    fn new(publish: P, status: Status) -> Self {
        let mut builder = SnapshotBuilder::new();
        let snapshot = Arc::new(builder.freeze());
        Self { builder, snapshot, publish, status }
    }

    fn load(&mut self, source: &mut Source) -> Result<(), FileError> {
        let changes = source.file.load()?;
        let count = changes.len();
        if count > 0 {
            for change in changes {
                self.builder.apply(change);
            }
            self.snapshot = Arc::new(self.builder.freeze());
            self.status.set_generation(self.snapshot.generation());
            self.publish.snapshot(self.snapshot.clone());
            tracing::info!(
                file = %source.file.origin(), changes = count, generation = self.snapshot.generation(),
                "mesh file loaded"
            );
        }
        source.refused = None;
        Ok(())
    }

    fn reload(&mut self, source: &mut Source) {
        let Err(error) = self.load(source) else { return };
        if source.is_news(&error) {
            tracing::error!(%error, "mesh file refused; the last good one stays in force");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::*;

    #[test]
    fn a_file_that_stays_broken_is_told_once_and_again_when_it_is_written_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("mesh.yaml");
        let config = Config { local_file: Some(file.clone()), ..Config::default() };
        let mut source = Source::open(&config).expect("the directory is there").expect("there is a file");
        let mut is_news = || {
            let error = source.file.load().expect_err("broken");
            source.is_news(&error)
        };
        assert!(is_news(), "missing");
        assert!(!is_news());
        std::fs::write(&file, "workloads: 7").expect("written");
        assert!(is_news(), "broken");
        assert!(!is_news());
        let later = SystemTime::now() + Duration::from_secs(60);
        File::options().write(true).open(&file).and_then(|file| file.set_modified(later)).expect("touched");
        assert!(is_news(), "still broken");
        assert!(!is_news());
    }
}
