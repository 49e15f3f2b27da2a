//! What control must be told once, at the start. Read from flags and environment elsewhere.

use std::{path::PathBuf, time::Duration};

/// Where things come from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name: workloads of other nodes are nobody's here. `None` takes every workload for local.
    pub node: Option<String>,
    /// The network of workloads that name none.
    pub network: String,
    /// The cluster of workloads that name none.
    pub cluster: String,
    /// The trust domain of workloads that name none, and of pods whose workload is not known yet.
    pub trust_domain: String,
    /// The YAML file that describes the mesh, watched for changes.
    pub local_file: Option<PathBuf>,
    /// The same text given directly. With both, the file is taken.
    pub local_inline: Option<String>,
    /// Who issues credentials.
    pub ca: CaSource,
    /// The CNI node agent's socket (`@name` for one in the abstract namespace). `None`: no pods.
    pub zds_socket: Option<PathBuf>,
    /// How long a changed file must be left alone before it is read again: editors write in several steps.
    pub file_settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            network: String::new(),
            cluster: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            local_file: None,
            local_inline: None,
            ca: CaSource::Embedded { root_file: PathBuf::from("root.pem"), leaf_ttl: LEAF_TTL },
            zds_socket: None,
            file_settle: Duration::from_millis(100),
        }
    }
}

/// A credential's lifetime unless told otherwise: the day that Istio's CA gives.
const LEAF_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Who issues credentials.
#[derive(Clone, Debug)]
pub enum CaSource {
    /// This process, from a root that it shares with others through a file. For tests, demos and single hosts: whoever
    /// can read the file can be anybody.
    Embedded {
        /// The root's certificate and key in one PEM file; made when missing.
        root_file: PathBuf,
        /// For how long a credential is valid.
        leaf_ttl: Duration,
    },
}
