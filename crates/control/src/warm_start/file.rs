//! The file of a warm start: written whole or not at all, read only when nobody else could have written it. What is in it
//! is the mesh as `mesh_state::warm` has it, and behind it, framed alike, the versions.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mesh_state::{
    builder::SnapshotBuilder,
    snapshot::Snapshot,
    warm::{self, Refused, Terms},
};

use crate::{
    whole_file,
    xds::kept::{self, Kept, KeptError},
};

/// The name of the file in its directory.
const NAME: &str = "mesh.warm";
/// What a daemon leaves that dies while it writes is removed by the next one, when it is this old.
const LEFTOVER_AFTER: Duration = Duration::from_secs(60);

/// Why there is nothing to start from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("it cannot be read: {0}")]
    File(#[from] io::Error),
    #[error(
        "it could have been written by somebody else (owner {owner}, mode {mode:o}): whoever writes it decides who may connect"
    )]
    Owner { owner: u32, mode: u32 },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the warm start file is damaged: it is too short for what it holds")]
    Short,
    #[error(transparent)]
    Versions(#[from] KeptError),
}

/// Where the file is.
#[derive(Debug, Clone)]
pub(crate) struct WarmFile {
    directory: PathBuf,
}

impl WarmFile {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// What is in it; `None` when there is no file.
    pub(crate) fn read(&self, terms: &Terms<'_>) -> Result<Option<(SnapshotBuilder, Vec<Kept>)>, ReadError> {
        let is_ours = |metadata: &fs::Metadata| {
            let (owner, mode) = (metadata.uid(), metadata.mode() & 0o777);
            let is_ours = owner == rustix::process::geteuid().as_raw() && mode & 0o022 == 0;
            if is_ours { Ok(()) } else { Err(ReadError::Owner { owner, mode }) }
        };
        match whole_file::read_if(&self.path(), warm::BYTES_MAX as u64, is_ours) {
            Err(ReadError::File(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            content => read(&content?, terms).map(Some),
        }
    }

    /// Puts it in the place of the one before.
    pub(crate) fn write(&self, content: &[&[u8]]) -> io::Result<()> {
        // Another daemon may write at the same time, in an upgrade; whichever is later counts.
        let beside = self.directory.join(format!("{NAME}.{:016x}.new", fastrand::u64(..)));
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside)?;
        let written = content.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_data());
        let replaced = written.and_then(|()| fs::rename(&beside, self.path()));
        if replaced.is_err() {
            // What it failed for is told; that this fails as well says no more.
            drop(fs::remove_file(&beside));
        }
        replaced
    }

    /// Removes what daemons before left half written.
    pub(crate) fn tidy(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|name| name.starts_with(NAME) && name.ends_with(".new"));
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.map(|modified| SystemTime::now().duration_since(modified).unwrap_or_default());
            if is_ours && age.is_ok_and(|age| age > LEFTOVER_AFTER) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

/// The parts of the file.
pub(crate) fn content(snapshot: &Snapshot, kept: &[Kept], origin: &str, as_of_unix_s: u64) -> [Vec<u8>; 3] {
    let mesh = warm::encode(snapshot, origin, as_of_unix_s);
    let length = u64::try_from(mesh.len()).expect("memory is smaller").to_le_bytes().to_vec();
    [length, mesh, warm::framed(&kept::encode(kept), origin, as_of_unix_s)]
}

/// What the bytes of a file say.
fn read(content: &[u8], terms: &Terms<'_>) -> Result<(SnapshotBuilder, Vec<Kept>), ReadError> {
    let (length, rest) = content.split_first_chunk().ok_or(ReadError::Short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| ReadError::Short)?;
    let (mesh, versions) = rest.split_at_checked(length).ok_or(ReadError::Short)?;
    let kept = kept::decode(warm::believe(versions, terms)?)?;
    Ok((warm::decode(mesh, terms)?, kept))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mesh_state::change::Change;
    use mesh_state::{identity::Identity, workload::Workload};

    use super::*;
    use crate::xds::kept::What;

    const TERMS: Terms<'static> = Terms { origin: "istiod", now_unix_s: 1_000, age_max_s: 60 };

    fn written() -> (tempfile::TempDir, WarmFile, Vec<u8>) {
        let directory = tempfile::tempdir().expect("a directory");
        let file = WarmFile::new(directory.path());
        let identity = Identity::new("td", "shop", "web").expect("valid parts");
        let mut builder = SnapshotBuilder::new();
        builder.apply(Change::Workload(Workload::new("c//Pod/shop/web".into(), "shop", "web", identity)));
        let kept = [Kept { what: What::Workload, name: "c//Pod/shop/web".into(), version: "1".into() }];
        let content = content(&builder.freeze(), &kept, "istiod", 990);
        file.write(&content.each_ref().map(Vec::as_slice)).expect("written");
        (directory, file, content.concat())
    }

    #[test]
    fn what_is_written_is_read_by_its_owner_and_is_nobody_elses_to_read() {
        let (directory, file, _) = written();
        let (mut builder, kept) = file.read(&TERMS).expect("good").expect("there");
        assert_eq!((builder.freeze().workloads().count(), kept.len()), (1, 1));
        assert_eq!(fs::metadata(file.path()).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1, "nothing is left beside it");
        assert!(WarmFile::new(&directory.path().join("elsewhere")).read(&TERMS).expect("no file").is_none());
    }

    #[test]
    fn a_file_that_is_cut_changed_foreign_stale_or_others_to_write_is_refused_with_its_reason() {
        let (_directory, file, good) = written();
        let refused = |terms: &Terms<'_>| file.read(terms).map(drop).expect_err("refused").to_string();
        assert!(refused(&Terms { origin: "another", ..TERMS }).contains("was the file or the node moved"));
        assert!(refused(&Terms { now_unix_s: 2_000, ..TERMS }).contains("1010 s old"));
        assert!(refused(&Terms { now_unix_s: 100, ..TERMS }).contains("clock"));
        for cut in [0, 7, 8, good.len() / 2, good.len() - 1] {
            fs::write(file.path(), &good[..cut]).expect("written");
            assert!(refused(&TERMS).contains("warm start file"), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(file.path(), &bytes).expect("written");
            file.read(&TERMS).map(drop).expect_err("changed");
        }
        fs::write(file.path(), &good).expect("written");
        file.read(&TERMS).expect("the negative control: it is good again");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o620)).expect("set");
        assert!(refused(&TERMS).contains("somebody else"));
    }

    #[test]
    fn what_a_daemon_left_half_written_is_removed_when_it_is_old() {
        let (directory, file, _) = written();
        let [old, young] = ["mesh.warm.1.new", "mesh.warm.2.new"].map(|name| directory.path().join(name));
        for path in [&old, &young] {
            fs::write(path, "half").expect("written");
        }
        let before = SystemTime::now() - LEFTOVER_AFTER * 2;
        fs::File::options().write(true).open(&old).and_then(|file| file.set_modified(before)).expect("set");
        file.tidy();
        assert_eq!([old.exists(), young.exists(), file.path().exists()], [false, true, true]);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_of_the_write() {
        WarmFile::new(Path::new("/nowhere/at/all")).write(&[b"x"]).expect_err("no directory");
    }
}
