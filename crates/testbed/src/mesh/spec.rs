//! What a mesh is to be: its pods, its daemons and who tells them of it. Builds nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::NodeId;

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) node: NodeId,
    pub(super) captured: bool,
}

/// What a mesh is to be.
#[derive(Clone, Debug)]
pub struct MeshSpec {
    /// Cores of each daemon, as its flag takes them.
    pub cores: String,
    /// Further environment of each daemon.
    pub environment: BTreeMap<String, String>,
    /// Further flags of each daemon.
    pub arguments: Vec<String>,
    /// Whether daemons are started: a test of the testbed itself needs none.
    pub daemons: bool,
    /// Whether daemons may use io_uring; otherwise a seccomp filter refuses it to them.
    pub io_uring: bool,
    /// Whether a control plane tells them of the mesh and issues certificates, instead of files.
    pub control_plane: bool,
    /// Whether the CA is in the daemons all the same.
    pub embedded_ca: bool,
    /// Whether each daemon keeps the mesh for its next start.
    pub warm_start: bool,
    /// Whether a real istiod does. Of the mesh's model it is told the pods; all else a test writes itself.
    pub istiod: bool,
    /// The binary of another node proxy in the daemons' place. It takes no flags.
    pub peer: Option<PathBuf>,
}

impl PodSpec {
    /// A captured pod of the namespace `default` whose service account has its name.
    #[must_use]
    pub fn new(name: &str, node: NodeId) -> Self {
        Self { name: name.into(), namespace: "default".into(), service_account: name.into(), node, captured: true }
    }

    /// In another namespace, by another account.
    #[must_use]
    pub fn tenant(mut self, namespace: &str, service_account: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        service_account.clone_into(&mut self.service_account);
        self
    }

    /// Known to the mesh, but without capture rules and without HBONE.
    #[must_use]
    pub fn uncaptured(mut self) -> Self {
        self.captured = false;
        self
    }
}

impl Default for MeshSpec {
    fn default() -> Self {
        Self {
            cores: "2".into(),
            environment: BTreeMap::new(),
            arguments: Vec::new(),
            daemons: true,
            io_uring: true,
            control_plane: false,
            embedded_ca: false,
            warm_start: false,
            istiod: false,
            peer: None,
        }
    }
}

impl MeshSpec {
    /// Without daemons.
    #[must_use]
    pub fn bare() -> Self {
        Self { daemons: false, ..Self::default() }
    }

    /// With a control plane in the place of files.
    #[must_use]
    pub fn with_control_plane() -> Self {
        Self { control_plane: true, ..Self::default() }
    }

    /// With one more environment variable for each daemon.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }
}
