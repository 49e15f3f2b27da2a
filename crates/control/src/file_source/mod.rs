//! The mesh from a YAML file instead of a control plane: read strictly, all or nothing, and compared with what was read
//! before. It knows of no other source, and what is done with a [`Change`] is the builder's.

mod convert;
mod schema;
pub mod watch;

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use mesh_state::{
    change::Change,
    name::{NamespacedHostname, PolicyKey, Uid},
    policy::Policy,
    service::Service,
    workload::Workload,
};
use serde::Deserialize;

/// The longest text read. A workload takes some 400 bytes, so this is room for 80 000; worst case the text and about five
/// times as much for what it says, 200 MiB, while it is read.
pub const TEXT_BYTES_MAX: u64 = 32 << 20;

/// YAML nodes of one text. A workload has some 45; a text may be all nodes, and its entries are bounded by this then.
const NODES_MAX: usize = 8_000_000;

/// What entries that do not say otherwise get.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// For an empty network.
    pub network: String,
    /// For a missing `clusterId`.
    pub cluster: String,
    /// For a missing `trustDomain`.
    pub trust_domain: String,
}

/// Everything that one text says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    workloads: BTreeMap<Uid, Workload>,
    services: BTreeMap<NamespacedHostname, Service>,
    policies: BTreeMap<PolicyKey, Policy>,
}

impl Content {
    /// Reads `text`; `origin` is what errors call it.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn parse(origin: &str, text: &str, defaults: &Defaults) -> Result<Self, FileError> {
        if text.len() as u64 > TEXT_BYTES_MAX {
            return Err(FileError::TooLong { origin: origin.to_owned() });
        }
        let wrong = |line: u64, column: u64, field: String, cause: String| {
            FileError::Wrong(Fault { origin: origin.to_owned(), line, column, field, cause })
        };
        // Nothing but comments, or nothing at all: an empty mesh.
        if text.lines().all(|line| line.trim_start().starts_with('#') || matches!(line.trim(), "" | "---")) {
            return Ok(Self::default());
        }
        let mut field = String::new();
        let read = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |yaml| {
            let mut track = serde_path_to_error::Track::new();
            let file = schema::File::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track));
            if file.is_err() {
                field = track.path().to_string();
            }
            file
        });
        let file = read.map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
            wrong(line, column, field, one_line(&error))
        })?;
        convert::content(file, defaults).map_err(|at| wrong(at.at.line(), at.at.column(), at.field, at.cause))
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It can't be read, or what it says is wrong.
    pub fn read(path: &Path, defaults: &Defaults) -> Result<Self, FileError> {
        let origin = path.display().to_string();
        let unreadable = |source| FileError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = fs::File::open(path).map_err(unreadable)?;
        file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&origin, &text, defaults)
    }

    /// What became different since `before`. What refers comes after what it refers to, though the builder needs no order.
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        differences(&before.policies, &self.policies, Change::Policy, Change::PolicyGone, &mut changes);
        differences(&before.services, &self.services, Change::Service, Change::ServiceGone, &mut changes);
        differences(&before.workloads, &self.workloads, Change::Workload, Change::WorkloadGone, &mut changes);
        changes
    }
}

fn differences<K: Ord + Clone, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
    is: fn(V) -> Change,
    gone: fn(K) -> Change,
    changes: &mut Vec<Change>,
) {
    changes.extend(before.keys().filter(|key| !now.contains_key(key)).cloned().map(gone));
    let different = now.iter().filter(|(key, value)| before.get(key) != Some(value));
    changes.extend(different.map(|(_, value)| is(value.clone())));
}

/// Why the mesh could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file itself.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said, or that it is no UTF-8.
        source: io::Error,
    },
    /// More than anybody means.
    #[error("{origin}: longer than the {TEXT_BYTES_MAX} bytes that are read")]
    TooLong {
        /// Which text.
        origin: String,
    },
    /// What it says.
    #[error(transparent)]
    Wrong(#[from] Fault),
}

/// One thing that is wrong in a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The file, or the name of what else the text came from.
    pub origin: String,
    /// From 1; 0 if it is nowhere in particular.
    pub line: u64,
    /// From 1; 0 if it is nowhere in particular.
    pub column: u64,
    /// The path of the field; empty for the text as a whole.
    pub field: String,
    /// What is wrong.
    pub cause: String,
}

/// `file:line:column: field: cause`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.cause)
    }
}

fn options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    options.strict_booleans = true;
    if let Some(budget) = &mut options.budget {
        budget.max_nodes = NODES_MAX;
        budget.max_events = 2 * NODES_MAX;
        budget.max_total_scalar_bytes = usize::try_from(TEXT_BYTES_MAX).expect("32 MiB fit");
    }
    options
}

/// Without the place, which is said in our own words before it.
fn one_line(error: &serde_saphyr::Error) -> String {
    error.without_snippet().to_string().replace('\n', " ")
}
