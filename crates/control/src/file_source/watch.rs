//! Watches a mesh file. Kubernetes swaps a link beside the file, so it is the directory that is watched.

use std::{path::Path, time::Duration};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// A change is read once nothing more has happened for this long: an editor and a ConfigMap both touch a file in steps.
const QUIET: Duration = Duration::from_millis(100);

/// It is read after this long even if its directory is never quiet: a log may be written there.
const UNREST_MAX: Duration = Duration::from_secs(2);

/// One pending event says as much as a hundred.
const EVENTS_MAX: usize = 1;

/// Tells when a file may have changed, as long as it lives.
pub(crate) struct Watch {
    events: mpsc::Receiver<()>,
    /// Something happened, and whoever asked went away before it was quiet.
    due: bool,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches the directory of `file`.
    ///
    /// # Errors
    /// The directory is missing, or inotify watches are exhausted.
    pub(crate) fn new(file: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is an event too, and would never end.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // Full: a reading is due already.
                let _due = sender.try_send(());
            }
        })?;
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self { events, due: false, _watcher: watcher })
    }

    /// Resolves when the file may have changed and nothing has happened since for a moment.
    pub(crate) async fn changed(&mut self) {
        if !self.due && self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.due = true;
        let quiet = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, self.events.recv()).await {} };
        // Late is as good as quiet.
        let _late = tokio::time::timeout(UNREST_MAX, quiet).await;
        self.due = false;
    }
}
