//! The file that tells of the CA's roots, watched: that it says something else is the first sign of a root's rotation.

use std::path::{Path, PathBuf};

use crate::{file_source::Watch, whole_file};

/// The longest that is compared; more are no roots.
const BYTES_MAX: u64 = 4 << 20;

/// The file.
pub(crate) struct RootsFile {
    file: PathBuf,
    watch: Watch,
    text: Option<String>,
}

impl RootsFile {
    pub(crate) fn new(file: &Path) -> Self {
        let watch = Watch::when_there(file);
        Self { file: file.to_owned(), watch, text: read(file) }
    }

    /// Resolves when it says something else than before. One that cannot be read says nothing.
    pub(crate) async fn changed(&mut self) {
        loop {
            self.watch.changed().await;
            let text = read(&self.file);
            if text.is_some() && text != self.text {
                self.text = text;
                return;
            }
        }
    }
}

fn read(file: &Path) -> Option<String> {
    whole_file::read_text(file, BYTES_MAX).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_file_that_says_something_else_is_told_and_one_that_was_only_touched_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("root.pem");
        fs::write(&path, "one").expect("written");
        let mut file = RootsFile::new(&path);
        // A touch, and then a change: what is told is the change, once.
        for text in ["one", "two"] {
            fs::write(&path, text).expect("written");
        }
        timeout(Duration::from_secs(10), file.changed()).await.expect("it says something else");
        fs::write(&path, "two").expect("written");
        fs::remove_file(&path).expect("removed");
        assert!(timeout(Duration::from_millis(500), file.changed()).await.is_err(), "it says nothing else");
    }
}
