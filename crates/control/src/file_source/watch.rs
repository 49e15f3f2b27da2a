//! Watches a file. Kubernetes swaps a link beside the file, so it is the directory that is watched.
//!
//! Whoever waits here waits for other things as well, and comes back whenever one of them has happened. So every wait ends at
//! an instant that is remembered: one that began anew with each other event would not end where there are many.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::clocks::{now, until};

/// A change is read once nothing more has happened for this long: an editor and a ConfigMap both touch a file in steps.
const QUIET: Duration = Duration::from_millis(100);

/// It is read after this long even if its directory is never quiet: a log may be written there.
const UNREST_MAX: Duration = Duration::from_secs(2);

/// A directory that is not there cannot be watched, and may come: a ConfigMap that is made later.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// One pending event says as much as a hundred.
const EVENTS_MAX: usize = 1;

/// Tells when a file may have changed, as long as it lives.
pub(crate) struct Watch {
    directory: PathBuf,
    watching: Option<Watching>,
    look_again_at: Instant,
    unrest: Option<Unrest>,
}

struct Watching {
    events: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

/// Something has happened, and nobody was told yet.
struct Unrest {
    began: Instant,
    last: Instant,
}

impl Watch {
    /// Watches the directory of `file`.
    ///
    /// # Errors
    /// The directory is missing, or inotify watches are exhausted.
    pub(crate) fn new(file: &Path) -> notify::Result<Self> {
        let mut watch = Self::of(file);
        watch.watching = Some(Watching::of(&watch.directory)?);
        Ok(watch)
    }

    /// Watches the directory of `file` as soon as it can be watched.
    pub(crate) fn when_there(file: &Path) -> Self {
        let mut watch = Self::of(file);
        watch.watching = Watching::of(&watch.directory).ok();
        watch
    }

    fn of(file: &Path) -> Self {
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Self { directory: directory.to_owned(), watching: None, look_again_at: now() + LOOK_AGAIN, unrest: None }
    }

    /// Resolves when the file may have changed and nothing has happened since for a moment. Dropping the future before it is
    /// done loses nothing, and delays nothing.
    pub(crate) async fn changed(&mut self) {
        loop {
            let Some(Watching { events, .. }) = &mut self.watching else {
                until(Some(self.look_again_at)).await;
                self.look_again_at = now() + LOOK_AGAIN;
                self.watching = Watching::of(&self.directory).ok();
                if self.watching.is_some() {
                    return;
                }
                continue;
            };
            let due = self.unrest.as_ref().map(|unrest| (unrest.last + QUIET).min(unrest.began + UNREST_MAX));
            tokio::select! {
                Some(()) = events.recv() => {
                    let now = now();
                    self.unrest.get_or_insert(Unrest { began: now, last: now }).last = now;
                }
                () = until(due) => {
                    self.unrest = None;
                    return;
                }
            }
        }
    }
}

impl Watching {
    fn of(directory: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is an event too, and would never end.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // Full: a reading is due already.
                let _due = sender.try_send(());
            }
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self { events, _watcher: watcher })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::{sleep, timeout};

    use super::*;

    /// Waits for the file as the control thread does: something else happens again and again. False if it is not told.
    async fn told_among_others(watch: &mut Watch, within: Duration) -> bool {
        let told = async {
            loop {
                tokio::select! {
                    () = watch.changed() => return,
                    () = sleep(Duration::from_millis(20)) => {}
                }
            }
        };
        timeout(within, told).await.is_ok()
    }

    /// Negative control: with a wait that begins anew at each call, neither is told.
    #[tokio::test]
    async fn a_change_is_told_to_one_who_has_other_things_to_do_and_so_is_a_directory_that_comes() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut watch = Watch::new(&directory.path().join("file")).expect("it is there");
        fs::write(directory.path().join("file"), "new").expect("written");
        assert!(told_among_others(&mut watch, Duration::from_secs(30)).await, "a change");

        let later = directory.path().join("later");
        assert!(Watch::new(&later.join("file")).is_err());
        let mut watch = Watch::when_there(&later.join("file"));
        fs::create_dir(&later).expect("made");
        assert!(told_among_others(&mut watch, Duration::from_secs(30)).await, "a directory that came");
        fs::write(later.join("file"), "new").expect("written");
        assert!(told_among_others(&mut watch, Duration::from_secs(30)).await, "a change in it");
    }
}
