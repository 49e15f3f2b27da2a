//! What the control thread can be told.

use std::{path::PathBuf, time::Duration};

/// Settings of the control thread.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node; `None` takes every workload for a local one.
    pub node: Option<String>,
    /// The network of this node.
    pub network: String,
    /// The cluster of workloads that do not name one.
    pub cluster: String,
    /// The trust domain of pods whose workload is not known yet.
    pub trust_domain: String,
    /// The local mesh file, watched.
    pub local_file: Option<PathBuf>,
    /// A mesh given inline, read once. Ignored when there is a file.
    pub local_inline: Option<String>,
    /// Who issues certificates.
    pub ca: CaSource,
    /// The CNI agent's socket; `None` serves no pods.
    pub zds_socket: Option<PathBuf>,
}

/// Who issues certificates.
#[derive(Debug, Clone)]
pub enum CaSource {
    /// A CA inside the daemon.
    Embedded {
        /// Its root, certificate and key; made when it is missing.
        root_file: PathBuf,
        /// How long a leaf is valid.
        leaf_ttl: Duration,
    },
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
            ca: CaSource::Embedded {
                root_file: "./var/run/secrets/coretunnel/root.pem".into(),
                leaf_ttl: Duration::from_secs(86_400),
            },
            zds_socket: None,
        }
    }
}
