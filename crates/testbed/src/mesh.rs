//! Two nodes with a daemon and a node agent each, pods on them, a wire between, hosts outside. The one object a mesh
//! test holds.
//!
//! ```text
//!   pod --veth-- node-a --veth-- wire --veth-- node-b --veth-- pod
//!                  10.244.1.0/24   |   10.244.2.0/24
//!                               outside 172.30.100.0/24
//! ```
//! Each daemon runs in an empty namespace of its own, as it does in its DaemonSet pod, so that two of one node can
//! overlap in an upgrade.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::client::{self, End};
use crate::daemon::{self, Daemon, DaemonSpec, START_PATIENCE, Source};
use crate::istiod::Istiod;
use crate::launcher::Launcher;
use crate::mesh_control_plane::ControlPlaneOfMesh;
use crate::namespace::{self, Namespace};
use crate::redirect;
use crate::router::{Interface, Router};
use crate::serve::{SOCKET_PATIENCE, Server};
use crate::wire::Capture;
use crate::workload_file::{MeshModel, PolicyEntry, ServiceEntry, TRUST_DOMAIN, WorkloadEntry};
use crate::zds_agent::{PodRecord, ZdsAgent};

mod spec;

pub use spec::{MeshSpec, PodSpec};

/// How long a pod's Add may take to be answered, connection to the daemon included.
const ADD_PATIENCE: Duration = Duration::from_secs(10);
/// Idle tunnels are let go this soon, so that a test can see its descriptors come home.
const POOL_IDLE: &str = "1s";

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeId {
    /// 10.244.1.0/24.
    A,
    /// 10.244.2.0/24.
    B,
}

/// A pod, or a host outside. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, unique in the mesh.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its node; none for a host outside.
    pub node: Option<NodeId>,
    /// Whether a daemon captures its traffic.
    pub captured: bool,
    /// Its network namespace.
    pub netns: Namespace,
    interface: Interface,
}

/// A node.
pub struct Node {
    router: Router,
    /// Its CNI node agent.
    pub agent: ZdsAgent,
    workload_file: PathBuf,
    zds_socket: PathBuf,
    daemon: Option<Daemon>,
    daemons_started: usize,
    next_host: u8,
}

/// The mesh.
pub struct Mesh {
    spec: MeshSpec,
    model: MeshModel,
    pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<NodeId, Node>,
    wire: Router,
    next_outside: u8,
    /// Where the spec asks for one.
    pub(crate) control_plane: Option<ControlPlaneOfMesh>,
    /// Where the spec asks for one.
    pub(crate) istiod: Option<Istiod>,
    // After the nodes, whose daemons would otherwise be killed under their hands.
    launcher: Launcher,
    // Last, so that daemons and agents are gone before their files are.
    directory: TempDir,
}

impl NodeId {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    fn octet(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::A => "node-a",
            Self::B => "node-b",
        })
    }
}

impl Pod {
    /// Its SPIFFE identity.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("spiffe://{}", self.principal())
    }

    /// Its identity as policies name it.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{TRUST_DOMAIN}/ns/{}/sa/{}", self.namespace, self.service_account)
    }

    /// A port of its address.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// Connects from inside it, with time-outs on everything.
    ///
    /// # Errors
    /// When the connection isn't made.
    pub fn connect(&self, target: SocketAddr) -> Result<TcpStream> {
        let connected = self.netns.run(|| TcpStream::connect_timeout(&target, SOCKET_PATIENCE));
        let stream = connected.with_context(|| format!("connect from {} to {target}", self.name))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOCKET_PATIENCE))?;
        stream.set_write_timeout(Some(SOCKET_PATIENCE))?;
        Ok(stream)
    }

    /// Connects to where it will be turned away, says nothing and tells how it ended. A reset may come before connecting
    /// has returned.
    ///
    /// # Errors
    /// When it ends in another way than a connection does.
    pub fn turned_away(&self, target: SocketAddr) -> Result<End> {
        let reset = |error: &anyhow::Error| {
            error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
        };
        match self.connect(target) {
            Ok(stream) => client::await_end(&stream),
            Err(error) if reset(&error) => Ok(End::Reset(0)),
            Err(error) => Err(error),
        }
    }

    /// Serves inside it at `port`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve<H>(&self, port: u16, handler: H) -> Result<Server>
    where
        H: Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
    {
        Server::start(&self.netns, port, handler)
    }

    /// By which name its node's agent knows it.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("uid-of-{}", self.name)
    }

    fn record(&self) -> PodRecord {
        PodRecord {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            netns: Some(self.netns.clone()),
        }
    }
}

impl Mesh {
    /// Brings up two nodes with `pods` and their daemons, and waits until both are ready.
    ///
    /// # Errors
    /// When anything of it fails; with the daemon's log when it's the daemon.
    pub fn start(spec: MeshSpec, pods: &[PodSpec]) -> Result<Self> {
        namespace::require_privileges()?;
        if spec.daemons {
            daemon::binary()?;
        }
        let directory = tempfile::Builder::new().prefix("coretunnel-testbed-").tempdir()?;
        let launcher = Launcher::start(spec.io_uring)?;
        let mut wire = Router::create("wire")?;
        let mut nodes = BTreeMap::new();
        for id in NodeId::ALL {
            nodes.insert(id, Node::create(id, &mut wire, directory.path())?);
        }
        let control_plane = spec.control_plane.then(ControlPlaneOfMesh::start).transpose()?;
        let istiod = spec.istiod.then(Istiod::start).transpose()?;
        let mut mesh = Self {
            spec,
            control_plane,
            istiod,
            model: MeshModel::default(),
            pods: BTreeMap::new(),
            nodes,
            wire,
            next_outside: 1,
            launcher,
            directory,
        };
        for pod in pods {
            let pod = mesh.create_pod(pod)?;
            if let (true, Some(node)) = (pod.captured, pod.node) {
                mesh.node(node).agent.register_pod(&pod.uid(), pod.record());
            }
        }
        mesh.write_model()?;
        if mesh.spec.daemons {
            // Both at once: a start is mostly waiting.
            for id in NodeId::ALL {
                mesh.launch_daemon(id)?;
            }
            for id in NodeId::ALL {
                mesh.daemon_mut(id).await_ready(START_PATIENCE)?;
            }
            if let Some(plane) = mesh.control_plane.as_ref().filter(|_| !mesh.spec.embedded_ca) {
                let captured = mesh.pods.values().filter(|pod| pod.captured).map(Pod::identity);
                plane.await_certificates(captured.collect(), START_PATIENCE)?;
            }
        }
        Ok(mesh)
    }

    /// A pod by name.
    ///
    /// # Panics
    /// When there is none: a slip in the test.
    #[must_use]
    pub fn pod(&self, name: &str) -> Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("no pod {name} in the mesh")).clone()
    }

    /// Adds a pod to the running mesh and waits for its daemon's acknowledgement.
    ///
    /// # Errors
    /// When the daemon refuses or is silent.
    pub fn add_pod(&mut self, spec: &PodSpec) -> Result<Pod> {
        let pod = self.create_pod(spec)?;
        self.write_model()?;
        if let (true, Some(node)) = (pod.captured && self.spec.daemons, pod.node) {
            self.node(node).agent.add_pod(&pod.uid(), pod.record(), ADD_PATIENCE)?;
        }
        Ok(pod)
    }

    /// Takes a pod out of the running mesh: the daemon is told first, as the kubelet does.
    ///
    /// # Errors
    /// When the daemon refuses or is silent.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        let node = pod.node.context("a host outside is no pod")?;
        if let Some(istiod) = &mut self.istiod {
            istiod.delete_pod(pod)?;
        }
        self.pods.remove(&pod.name);
        self.model.workloads.remove(&pod.name);
        if pod.captured && self.spec.daemons {
            ensure!(self.node(node).agent.del_pod(&pod.uid())?, "no daemon acknowledged the Del of {}", pod.name);
        }
        self.write_model()?;
        self.node(node).router.detach(&pod.interface)
    }

    /// Announces a pod to its daemon once more, as it is.
    ///
    /// # Errors
    /// When the daemon refuses or is silent.
    pub fn announce_again(&self, pod: &Pod) -> Result<()> {
        let node = pod.node.context("a host outside is not announced")?;
        self.node(node).agent.add_pod(&pod.uid(), pod.record(), ADD_PATIENCE)
    }

    /// Gives a pod a new network namespace under its name, address and uid, as a sandbox that was started anew has, and
    /// announces it.
    ///
    /// # Errors
    /// When `ip` or the daemon refuses.
    pub fn rebirth(&mut self, pod: &Pod) -> Result<Pod> {
        let id = pod.node.context("a host outside is not announced")?;
        let router = &mut self.node_mut(id).router;
        router.detach(&pod.interface)?;
        let (netns, interface) = router.attach(&pod.name, pod.address)?;
        if pod.captured {
            redirect::capture(&netns)?;
        }
        let reborn = Pod { netns, interface, ..pod.clone() };
        self.pods.insert(pod.name.clone(), reborn.clone());
        self.announce_again(&reborn)?;
        Ok(reborn)
    }

    /// A host outside the mesh, on the wire.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn outside(&mut self, name: &str) -> Result<Pod> {
        let address = Ipv4Addr::new(172, 30, 100, self.next_outside);
        self.next_outside += 1;
        let (netns, interface) = self.wire.attach(name, address)?;
        let (name, namespace, service_account) = (name.to_owned(), String::new(), String::new());
        Ok(Pod { name, namespace, service_account, address, node: None, captured: false, netns, interface })
    }

    /// Declares a service of the namespace `namespace` with `backends`, each with its own target port for the service
    /// port.
    ///
    /// # Errors
    /// When the workload files can't be written.
    pub fn add_service(
        &mut self,
        name: &str,
        namespace: &str,
        vip: Ipv4Addr,
        port: u16,
        backends: &[(&Pod, u16)],
    ) -> Result<SocketAddr> {
        let target = backends.first().map_or(port, |(_, target)| *target);
        let service = ServiceEntry {
            name: name.into(),
            namespace: namespace.into(),
            vip: IpAddr::V4(vip),
            ports: [(port, target)].into(),
        };
        self.edit(|model| {
            for (pod, target) in backends {
                if let Some(workload) = model.workloads.get_mut(&pod.name) {
                    workload.services.insert(service.key(), [(port, *target)].into());
                }
            }
            model.services.insert(service.hostname(), service);
        })?;
        Ok((vip, port).into())
    }

    /// Declares a policy and, if its scope is `WorkloadSelector`, attaches it to `pods`.
    ///
    /// # Errors
    /// When the workload files can't be written.
    pub fn add_policy(&mut self, policy: PolicyEntry, pods: &[&Pod]) -> Result<()> {
        self.edit(|model| {
            for pod in pods {
                if let Some(workload) = model.workloads.get_mut(&pod.name) {
                    workload.policies.push(policy.key());
                }
            }
            model.policies.insert(policy.key(), policy);
        })
    }

    /// Changes what the mesh contains and tells both daemons.
    ///
    /// # Errors
    /// When the workload files can't be written.
    pub fn edit(&mut self, change: impl FnOnce(&mut MeshModel)) -> Result<()> {
        change(&mut self.model);
        self.write_model()
    }

    /// What the daemons are told at present.
    #[must_use]
    pub fn model(&self) -> &MeshModel {
        &self.model
    }

    /// The workload file of one node's daemon.
    #[must_use]
    pub fn workload_file(&self, node: NodeId) -> &Path {
        &self.node(node).workload_file
    }

    /// The embedded CA's root certificate and key, in one PEM file.
    #[must_use]
    pub fn ca_root_file(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    /// A node.
    ///
    /// # Panics
    /// Never: both exist.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(&id).expect("both nodes are made with the mesh")
    }

    /// A node, to restart its agent.
    ///
    /// # Panics
    /// Never: both exist.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("both nodes are made with the mesh")
    }

    /// The daemon of a node.
    ///
    /// # Panics
    /// When it was taken away or never started: a slip in the test.
    #[must_use]
    pub fn daemon(&self, id: NodeId) -> &Daemon {
        self.node(id).daemon.as_ref().expect("the test has left this node its daemon")
    }

    /// The daemon of a node, to wait for it.
    ///
    /// # Panics
    /// When it was taken away or never started: a slip in the test.
    pub fn daemon_mut(&mut self, id: NodeId) -> &mut Daemon {
        self.node_mut(id).daemon.as_mut().expect("the test has left this node its daemon")
    }

    /// Takes a node's daemon out of the mesh's hands; it keeps running.
    pub fn take_daemon(&mut self, id: NodeId) -> Option<Daemon> {
        self.node_mut(id).daemon.take()
    }

    /// Starts a daemon on a node that has none (or whose daemon was taken), and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_daemon(&mut self, id: NodeId) -> Result<()> {
        self.launch_daemon(id)?;
        self.daemon_mut(id).await_ready(START_PATIENCE)
    }

    /// Where a node's daemon keeps the mesh.
    #[must_use]
    pub fn warm_start_file(&self, id: NodeId) -> PathBuf {
        self.node(id).zds_socket.with_file_name("warm").join("mesh.warm")
    }

    /// How many cores the daemons started from now on are told to use.
    pub fn set_cores(&mut self, cores: &str) {
        cores.clone_into(&mut self.spec.cores);
    }

    /// The nodes that have a daemon now.
    #[must_use]
    pub fn nodes_with_daemon(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.daemon.is_some()).map(|(id, _)| *id).collect()
    }

    /// Starts to record what crosses the wire between the nodes.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(self.wire.namespace())
    }

    /// Starts a daemon on a node that has none (or whose daemon was taken), and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_daemon(&mut self, id: NodeId) -> Result<()> {
        let (ca_root_file, spec) = (self.ca_root_file(), self.spec.clone());
        let node = self.nodes.get_mut(&id).expect("both nodes are made with the mesh");
        node.daemons_started += 1;
        let namespace = Namespace::create(&format!("daemon-{}-of-{id}", node.daemons_started))?;
        let mut environment = BTreeMap::from([("POOL_UNUSED_RELEASE_TIMEOUT".to_owned(), POOL_IDLE.to_owned())]);
        environment.extend(spec.environment);
        if spec.warm_start {
            let directory = node.zds_socket.with_file_name("warm");
            std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
            environment.insert("CORETUNNEL_WARM_START_DIR".to_owned(), directory.display().to_string());
        }
        let mut arguments = spec.arguments;
        if spec.embedded_ca {
            let root = ca_root_file.display().to_string();
            arguments.extend(["--ca".into(), "embedded".into(), "--ca-root-file".into(), root]);
        }
        let source = match (&mut self.control_plane, &mut self.istiod) {
            (Some(plane), _) => plane.reached_from(&namespace)?,
            (None, Some(istiod)) => istiod.reached_from(&namespace, &id.to_string())?,
            (None, None) => Source::File { workload_file: node.workload_file.clone(), ca_root_file },
        };
        let spec = DaemonSpec {
            node: id.to_string(),
            source,
            zds_socket: node.zds_socket.clone(),
            cores: spec.cores,
            environment,
            arguments,
            peer: spec.peer,
        };
        node.daemon = Some(Daemon::start(&self.launcher, &namespace, &spec)?);
        Ok(())
    }

    /// The address that the next pod of a node will have.
    #[must_use]
    pub fn next_address(&self, node: NodeId) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, node.octet(), self.node(node).next_host)
    }

    fn create_pod(&mut self, spec: &PodSpec) -> Result<Pod> {
        ensure!(!self.pods.contains_key(&spec.name), "a pod {} exists already", spec.name);
        let address = self.next_address(spec.node);
        let node = self.node_mut(spec.node);
        node.next_host = node.next_host.checked_add(1).context("a node has 253 addresses")?;
        let (netns, interface) = node.router.attach(&spec.name, address)?;
        if spec.captured {
            redirect::capture(&netns)?;
        }
        let pod = Pod {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
            address,
            node: Some(spec.node),
            captured: spec.captured,
            netns,
            interface,
        };
        let workload = WorkloadEntry {
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
            address: IpAddr::V4(address),
            captured: spec.captured,
            node: Some(spec.node.to_string()),
            services: BTreeMap::new(),
            policies: Vec::new(),
        };
        if let Some(istiod) = &mut self.istiod {
            istiod.put_pod(&pod)?;
        }
        self.model.workloads.insert(spec.name.clone(), workload);
        self.pods.insert(spec.name.clone(), pod.clone());
        Ok(pod)
    }

    fn write_model(&self) -> Result<()> {
        if let Some(plane) = &self.control_plane {
            plane.xds.set_addresses(self.model.to_resources()?);
        }
        self.nodes.values().try_for_each(|node| self.model.write_to(&node.workload_file))
    }
}

impl Node {
    fn create(id: NodeId, wire: &mut Router, directory: &Path) -> Result<Self> {
        let mut router = Router::create(&id.to_string())?;
        let octet = id.octet();
        let (own, gateway) = (Ipv4Addr::new(172, 30, octet, 2), Ipv4Addr::new(172, 30, octet, 1));
        router.link(own, wire, gateway)?;
        router.namespace().ip(&format!("route add default via {gateway}\n"))?;
        wire.namespace().ip(&format!("route add 10.244.{octet}.0/24 via {own}\n"))?;
        // A directory each: the daemon watches the one its file is in.
        let directory = directory.join(id.to_string());
        std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let zds_socket = directory.join("zds.sock");
        let agent = ZdsAgent::start(&zds_socket)?;
        let workload_file = directory.join("mesh.yaml");
        Ok(Self { router, agent, workload_file, zds_socket, daemon: None, daemons_started: 0, next_host: 2 })
    }

    /// The node's own namespace, which routes for its pods.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.router.namespace()
    }
}
