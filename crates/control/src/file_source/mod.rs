//! The mesh from a YAML file: read, compared with what was read before, and turned into changes.
//!
//! A file that cannot be read changes nothing: what was there stays in force, and the error says where and why.

mod convert;
mod schema;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mesh_state::{
    change::Change,
    name::{NamespacedHostname, PolicyKey, Uid},
    policy::Policy,
    service::Service,
    workload::Workload,
};

pub use convert::Defaults;
pub(crate) use watch::Watch;

use crate::whole_file;

/// The largest file. A workload takes about 500 bytes of YAML, so this is a mesh of 100,000.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Where a mesh comes from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A file, read anew whenever it changes.
    File(PathBuf),
    /// A text given with the settings.
    Inline(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Inline(_) => f.write_str("LOCAL_XDS"),
        }
    }
}

/// Why a mesh file is not in force.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read at all.
    #[error("{file}: {cause}")]
    Read {
        /// Which.
        file: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// There is nothing in it, which is how it looks while it is being written.
    #[error("{origin}: it is empty, perhaps while it is being written; an empty mesh is written as {{}}")]
    Empty {
        /// Which.
        origin: String,
    },
    /// Its text is not what it should be.
    #[error("{origin}:{line}:{column}: {cause}")]
    Text {
        /// Which.
        origin: String,
        /// Counted from 1; 0 when it cannot be told.
        line: u64,
        /// Counted from 1; 0 when it cannot be told.
        column: u64,
        /// The field and what is wrong with it.
        cause: String,
    },
}

/// The mesh as a file says it.
#[derive(Debug, Default, PartialEq)]
struct Contents {
    workloads: HashMap<Uid, Workload>,
    services: HashMap<NamespacedHostname, Service>,
    policies: HashMap<PolicyKey, Policy>,
}

/// A mesh file and what was last read from it.
#[derive(Debug)]
pub struct FileSource {
    origin: Origin,
    defaults: Defaults,
    current: Contents,
}

impl FileSource {
    /// Nothing is read yet.
    pub fn new(origin: Origin, defaults: Defaults) -> Self {
        Self { origin, defaults, current: Contents::default() }
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// When the file was last written, if that can be told.
    pub fn modified(&self) -> Option<SystemTime> {
        match &self.origin {
            Origin::File(path) => fs::metadata(path).and_then(|data| data.modified()).ok(),
            Origin::Inline(_) => None,
        }
    }

    /// Reads the mesh and says what has changed since the last time.
    ///
    /// # Errors
    /// [`FileError`]; nothing has changed then.
    pub fn load(&mut self) -> Result<Vec<Change>, FileError> {
        let text = match &self.origin {
            Origin::File(path) => read(path)?,
            Origin::Inline(text) => text.clone(),
        };
        self.apply(&text)
    }

    /// As [`FileSource::load`], of a text that is at hand.
    ///
    /// # Errors
    /// [`FileError`]; nothing has changed then.
    pub fn apply(&mut self, text: &str) -> Result<Vec<Change>, FileError> {
        if text.trim().is_empty() {
            return Err(FileError::Empty { origin: self.origin.to_string() });
        }
        let read = convert::parse(&self.origin.to_string(), text, &self.defaults)?;
        let old = std::mem::take(&mut self.current);
        let mut changes = Vec::new();
        changes.extend(differences(&old.services, &read.services, Change::Service, Change::ServiceGone));
        changes.extend(differences(&old.policies, &read.policies, Change::Policy, Change::PolicyGone));
        changes.extend(differences(&old.workloads, &read.workloads, Change::Workload, Change::WorkloadGone));
        self.current = read;
        Ok(changes)
    }

    /// Policies that workloads name and the file has not, by workload. Whoever names one is reached by nobody.
    pub fn undefined_policies(&self) -> BTreeSet<(&Uid, &PolicyKey)> {
        let Contents { workloads, policies, .. } = &self.current;
        let named = workloads
            .values()
            .flat_map(|workload| workload.authorization_policies.iter().map(move |policy| (&workload.uid, policy)));
        named.filter(|(_, policy)| !policies.contains_key(*policy)).collect()
    }
}

fn read(path: &Path) -> Result<String, FileError> {
    whole_file::read_text(path, FILE_BYTES_MAX).map_err(|cause| FileError::Read { file: path.to_owned(), cause })
}

fn differences<K: Clone + Eq + std::hash::Hash, V: Clone + PartialEq>(
    old: &HashMap<K, V>,
    new: &HashMap<K, V>,
    upsert: impl Fn(V) -> Change,
    gone: impl Fn(K) -> Change,
) -> Vec<Change> {
    let changed =
        new.iter().filter(|(key, value)| old.get(*key) != Some(*value)).map(|(_, value)| upsert(value.clone()));
    let removed = old.keys().filter(|key| !new.contains_key(*key)).map(|key| gone(key.clone()));
    changed.chain(removed).collect()
}
