//! The file of revocation lists: read at the start and whenever it changes. One that cannot be read leaves the last good
//! lists in force, and at the start none: as the reference, which would rather serve than not. It is an error in the log
//! either way.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use hbone::revocation::{LISTS_BYTES_MAX, Revocations, RevocationsError};

use crate::{file_source::Watch, whole_file};

/// Why lists are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevocationFileError {
    /// It cannot be read.
    #[error("{file}: {cause}; is the ConfigMap with the mesh's revocation lists mounted there?")]
    File {
        /// Which.
        file: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// What is there are no lists.
    #[error("{file}: {cause}")]
    Lists {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        cause: RevocationsError,
    },
}

/// The file.
pub(crate) struct RevocationFile {
    file: PathBuf,
    /// From before the first reading, so that no change is missed.
    watch: Watch,
    /// What was read last, and of when: a directory changes for other reasons, too.
    seen: Option<Seen>,
}

#[derive(PartialEq)]
struct Seen {
    modified: Option<SystemTime>,
    result: Result<Vec<u8>, String>,
}

impl RevocationFile {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), watch: Watch::when_there(file), seen: None }
    }

    /// The lists, if they are others than before. What is wrong with them is told once.
    pub(crate) fn read(&mut self) -> Option<Arc<Revocations>> {
        let modified = fs::metadata(&self.file).and_then(|metadata| metadata.modified()).ok();
        let read = read(&self.file);
        let result = read.as_ref().map_err(ToString::to_string).cloned();
        let seen = Seen { modified, result };
        if self.seen.as_ref() == Some(&seen) {
            return None;
        }
        let is_same = |old: &Seen| matches!((&old.result, &seen.result), (Ok(old), Ok(new)) if old == new);
        let is_touched = self.seen.as_ref().is_some_and(is_same);
        self.seen = Some(seen);
        if is_touched {
            return None;
        }
        let parsed = read.and_then(|bytes| {
            let refused = |cause| RevocationFileError::Lists { file: self.file.clone(), cause };
            Revocations::read(&bytes).map_err(refused)
        });
        match parsed {
            Ok(lists) => {
                tracing::info!(file = %self.file.display(), lists = lists.len(), "revocation lists read");
                Some(Arc::new(lists))
            }
            Err(error) => {
                tracing::error!(%error, "revocation lists refused; the last good ones stay in force, if there were any");
                None
            }
        }
    }

    /// Resolves when it may have changed.
    pub(crate) async fn changed(&mut self) {
        self.watch.changed().await;
    }
}

fn read(file: &Path) -> Result<Vec<u8>, RevocationFileError> {
    whole_file::read(file, LISTS_BYTES_MAX as u64)
        .map_err(|cause| RevocationFileError::File { file: file.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] = include_bytes!("../../hbone/fuzz/corpus/revocation_list/good");
    const TWO: &[u8] = include_bytes!("../../hbone/fuzz/corpus/revocation_list/between_others");

    #[test]
    fn lists_are_read_when_they_change_and_the_last_good_ones_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca-crl.pem");
        let mut file = RevocationFile::new(&path);
        let mut lists = |bytes: Option<&[u8]>| {
            match bytes {
                Some(bytes) => fs::write(&path, bytes).expect("written"),
                None => drop(fs::remove_file(&path)),
            }
            file.read().map(|lists| lists.len())
        };
        // What there is, and what is told: `None` says that what was told before stays.
        for (bytes, expected) in [
            (None, None),
            (Some(GOOD), Some(1)),
            (Some(GOOD), None),
            (Some(b"junk"), None),
            (Some(GOOD), Some(1)),
            (Some(&TWO[..400]), None),
            (Some(TWO), Some(2)),
            (None, None),
            (Some(b"".as_slice()), Some(0)),
        ] {
            assert_eq!(lists(bytes), expected, "{:?} bytes", bytes.map(<[u8]>::len));
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_the_file_and_a_file_without_end_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca-crl.pem");
        let missing = read(&path).expect_err("missing").to_string();
        assert!(missing.contains("ca-crl.pem") && missing.contains("ConfigMap"), "{missing}");
        let long = fs::File::create(&path).expect("made");
        long.set_len(LISTS_BYTES_MAX as u64 + 1).expect("made long");
        assert!(read(&path).expect_err("too long").to_string().contains("more than"));
    }
}
