//! Where the mesh comes from: a file, a text, or a control plane.

use std::time::{Instant, SystemTime};

use mesh_state::{change::Change, wanted::Wanted};

use crate::{
    Config, ControlError, MeshSource, Publish, Status,
    file_source::{Defaults, FileError, FileSource, Origin, Watch},
    mesh::Mesh,
    warm_start::{Keeper, Restored},
    xds::{
        kept::Kept,
        on_demand::OnDemand,
        session::Session,
        stream::{self, Progress, Stream},
    },
};

/// Policies that a mesh file lacks and that are named in the log each time it changes. The others are counted.
const WARNINGS_MAX: usize = 8;

/// Where the mesh comes from.
pub(crate) enum Source {
    /// Nowhere: there is none.
    Nowhere,
    /// A text that does not change, or a file that is watched.
    File(Box<File>),
    /// A control plane.
    ControlPlane(Box<Stream>),
}

/// What can happen.
pub(crate) enum Happened {
    FileChanged,
    Stream(stream::Happened),
}

impl Source {
    pub(crate) fn open(config: &Config, status: &Status) -> Result<Self, ControlError> {
        Ok(match &config.mesh {
            MeshSource::Nowhere => Self::Nowhere,
            MeshSource::File(file) => {
                let watched = Watch::new(file);
                let watch = watched.map_err(|cause| ControlError::Watch { file: file.display().to_string(), cause })?;
                Self::File(Box::new(File::new(config, Origin::File(file.clone()), Some(watch))))
            }
            MeshSource::Inline(text) => Self::File(Box::new(File::new(config, Origin::Inline(text.clone()), None))),
            MeshSource::ControlPlane(plane) => {
                let on_demand = plane.on_demand.then(OnDemand::default);
                let session = Session::new(plane.proxy.node(), on_demand).for_node(config.node.as_deref());
                Self::ControlPlane(Box::new(Stream::new(plane.server.clone(), session, status.clone())))
            }
        })
    }

    /// What is there at the start. A file that cannot be read then is an error: an operator is at hand.
    pub(crate) fn load(&mut self, mesh: &mut Mesh<impl Publish>, now: Instant) -> Result<(), FileError> {
        match self {
            Self::File(file) => file.load(mesh, now),
            Self::Nowhere | Self::ControlPlane(_) => Ok(()),
        }
    }

    /// Whether the mesh is known well enough to decide by.
    pub(crate) fn is_warm(&self) -> bool {
        match self {
            Self::Nowhere | Self::File(_) => true,
            Self::ControlPlane(stream) => stream.is_warm(),
        }
    }

    /// Whether what has been applied is whole, so that it can be published.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Nowhere | Self::File(_) => true,
            Self::ControlPlane(stream) => !stream.is_taking(),
        }
    }

    /// What keeps the mesh for a warm start, where that is asked for and can be: a file is read in full at each start, and
    /// what is fetched on demand is fetched again.
    pub(crate) fn keeper(config: &Config, now: Instant) -> Option<Keeper> {
        let warm_start = config.warm_start.as_ref()?;
        let MeshSource::ControlPlane(plane) = &config.mesh else { return None };
        if plane.on_demand {
            tracing::warn!("no warm start: the mesh is fetched on demand");
            return None;
        }
        // Not the pod and its address: they are others after each roll-out.
        let metadata = format!("{:?}", plane.proxy.metadata);
        let parts = [
            &*plane.server.address.to_string(),
            &*plane.server.cluster,
            &*config.cluster,
            &*config.trust_domain,
            &*config.network,
            &*plane.proxy.node,
            &*metadata,
        ];
        Some(Keeper::new(warm_start, &parts, now))
    }

    /// Begins with what was kept.
    pub(crate) fn restore(&mut self, restored: Restored, mesh: &mut Mesh<impl Publish>, now: Instant) {
        if let Self::ControlPlane(stream) = self {
            stream.restore(restored.kept);
            mesh.restore(restored.builder, now);
        }
    }

    /// All that is held of a control plane.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        match self {
            Self::ControlPlane(stream) => stream.kept(),
            Self::Nowhere | Self::File(_) => Vec::new(),
        }
    }

    /// Whether there is a stream that brings what is new.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self, Self::ControlPlane(stream) if stream.is_open())
    }

    /// The next thing. Dropping the future before it is done loses nothing.
    pub(crate) async fn next(&mut self) -> Happened {
        match self {
            Self::Nowhere => std::future::pending().await,
            Self::File(file) => match &mut file.watch {
                Some(watch) => {
                    watch.changed().await;
                    Happened::FileChanged
                }
                None => std::future::pending().await,
            },
            Self::ControlPlane(stream) => Happened::Stream(stream.next().await),
        }
    }

    /// Does what follows from it.
    pub(crate) fn on(&mut self, happened: Happened, mesh: &mut Mesh<impl Publish>, now: Instant) {
        match (self, happened) {
            (Self::File(file), Happened::FileChanged) => file.reload(mesh, now),
            (Self::ControlPlane(stream), Happened::Stream(happened)) => {
                let mut changes = Vec::new();
                let progress = stream.on(happened, &mut changes);
                mesh.apply(changes);
                if progress == Progress::Changed {
                    mesh.changed(now);
                }
            }
            _ => {}
        }
    }

    /// Cores lack these.
    pub(crate) fn on_wanted(&mut self, wanted: &[Wanted], mesh: &mut Mesh<impl Publish>, now: Instant) {
        // A file says all it knows; nothing can be fetched on demand.
        let Self::ControlPlane(stream) = self else { return };
        let mut changes: Vec<Change> = Vec::new();
        stream.on_wanted(wanted, &mut changes);
        if !changes.is_empty() {
            mesh.apply(changes);
            mesh.changed(now);
        }
    }
}

/// A file or a text.
pub(crate) struct File {
    file: FileSource,
    /// A text does not change.
    watch: Option<Watch>,
    /// Why the file is not in force, and of when it is.
    refused: Option<(String, Option<SystemTime>)>,
}

impl File {
    fn new(config: &Config, origin: Origin, watch: Option<Watch>) -> Self {
        let defaults = Defaults { trust_domain: config.trust_domain.clone(), cluster: config.cluster.clone() };
        Self { file: FileSource::new(origin, defaults), watch, refused: None }
    }

    fn load(&mut self, mesh: &mut Mesh<impl Publish>, now: Instant) -> Result<(), FileError> {
        let changes = self.file.load()?;
        let count = changes.len();
        if count > 0 {
            mesh.apply(changes);
            mesh.changed(now);
            tracing::info!(file = %self.file.origin(), changes = count, "mesh file loaded");
            self.warn_of_undefined_policies();
        }
        self.refused = None;
        Ok(())
    }

    /// No error: a policy may be meant to follow, and until it does it refuses.
    fn warn_of_undefined_policies(&self) {
        let undefined = self.file.undefined_policies();
        for (workload, policy) in undefined.iter().take(WARNINGS_MAX) {
            tracing::warn!(
                file = %self.file.origin(), %workload, %policy,
                "the workload names a policy that the file has not: it refuses every connection until it is defined"
            );
        }
        if let more @ 1.. = undefined.len().saturating_sub(WARNINGS_MAX) {
            tracing::warn!(file = %self.file.origin(), more, "more workloads name policies that the file has not");
        }
    }

    fn reload(&mut self, mesh: &mut Mesh<impl Publish>, now: Instant) {
        let Err(error) = self.load(mesh, now) else { return };
        if self.is_news(&error) {
            tracing::error!(%error, "mesh file refused; the last good one stays in force");
        }
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

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn a_file_that_stays_broken_is_told_once_and_again_when_it_is_written_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("mesh.yaml");
        let mut source = File::new(&Config::default(), Origin::File(file.clone()), None);
        let mut is_news = || {
            let error = source.file.load().expect_err("broken");
            source.is_news(&error)
        };
        assert!(is_news(), "missing");
        assert!(!is_news());
        fs::write(&file, "workloads: 7").expect("written");
        assert!(is_news(), "broken");
        assert!(!is_news());
        let later = SystemTime::now() + Duration::from_secs(60);
        fs::File::options().write(true).open(&file).and_then(|file| file.set_modified(later)).expect("touched");
        assert!(is_news(), "still broken");
        assert!(!is_news());
    }
}
