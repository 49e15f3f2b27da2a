//! What the control thread can be told.

use std::{path::PathBuf, time::Duration};

use crate::{WarmStart, grpc::Server, xds::proxy::Proxy};

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
    /// Where the mesh comes from.
    pub mesh: MeshSource,
    /// Who issues certificates.
    pub ca: CaSource,
    /// Revocation lists, watched; `None` revokes nobody.
    pub revocation_file: Option<PathBuf>,
    /// Where the mesh of a control plane is kept for a start that does not wait for it; `None` keeps none.
    pub warm_start: Option<WarmStart>,
    /// The CNI agent's socket; `None` serves no pods.
    pub zds_socket: Option<PathBuf>,
}

/// Where the mesh comes from.
#[derive(Debug, Clone)]
pub enum MeshSource {
    /// Nowhere.
    Nowhere,
    /// A file, watched.
    File(PathBuf),
    /// A text, read once.
    Inline(String),
    /// A control plane, by delta xDS.
    ControlPlane(Box<ControlPlane>),
}

impl MeshSource {
    /// Whether it says only what it is asked for.
    pub(crate) fn is_on_demand(&self) -> bool {
        matches!(self, Self::ControlPlane(plane) if plane.on_demand)
    }
}

/// A control plane.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlPlane {
    /// Where it is.
    pub server: Server,
    /// Who asks.
    pub proxy: Proxy,
    /// Workloads and services are asked for when a connection needs them, instead of all at once.
    pub on_demand: bool,
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
    /// A CA over gRPC.
    Server {
        /// Where it is.
        server: Box<Server>,
        /// How long a leaf is to be valid; it may grant less.
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
            mesh: MeshSource::Nowhere,
            ca: CaSource::Embedded {
                root_file: "./var/run/secrets/coretunnel/root.pem".into(),
                leaf_ttl: Duration::from_secs(86_400),
            },
            revocation_file: None,
            warm_start: None,
            zds_socket: None,
        }
    }
}
