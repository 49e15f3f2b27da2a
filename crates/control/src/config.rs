//! What the control thread is told at its start. Plain values: the daemon merges files, environment and flags into them.

use std::{path::PathBuf, time::Duration};

/// Everything [`crate::run`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name: which workloads are this node's. Unknown: a pod's workload is looked for on all nodes.
    pub node: Option<String>,
    /// The cluster of workloads that do not name theirs.
    pub cluster: String,
    /// The trust domain of workloads that do not name theirs, and of pods whose workload is not known yet.
    pub trust_domain: String,
    /// The part of the mesh that is described locally.
    pub local: LocalMesh,
    /// Who issues certificates.
    pub ca: CaSource,
    /// The CNI agent's socket, a path or `@name` of an abstract one. None: no pods come.
    pub zds_socket: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            cluster: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            local: LocalMesh::None,
            ca: CaSource::default(),
            zds_socket: Some(PathBuf::from("/var/run/ztunnel/ztunnel.sock")),
        }
    }
}

/// Where the locally described part of the mesh is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalMesh {
    /// There is none.
    #[default]
    None,
    /// In a YAML file, read again whenever it changes (`LOCAL_XDS_PATH`).
    File(PathBuf),
    /// In this YAML text (`LOCAL_XDS`).
    Inline(String),
}

/// Who issues certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaSource {
    /// This process itself, with a root that it shares with other daemons through a file.
    Embedded {
        /// The root's certificate and key; made when missing.
        root_file: PathBuf,
        /// How long a leaf is valid.
        leaf_lifetime: Duration,
    },
}

impl Default for CaSource {
    fn default() -> Self {
        Self::Embedded {
            root_file: PathBuf::from("./var/run/secrets/coretunnel/root.pem"),
            leaf_lifetime: Duration::from_secs(24 * 60 * 60),
        }
    }
}
