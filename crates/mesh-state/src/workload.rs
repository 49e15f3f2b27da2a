//! A workload as the control plane describes it: a pod, a machine, a waypoint. Not whether it is here and captured; that is a pod.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::ops::{Deref, DerefMut};

pub use crate::addresses::Addresses;
use crate::identity::Identity;
use crate::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use crate::service::PortMapping;

/// One workload: what is its own, and by reference what it has in common with its siblings. It reads as one thing: through
/// [`Deref`], `workload.namespace` is its profile's, and writing to such a field first gives it a profile of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its key.
    pub uid: Uid,
    /// Where it is reached; empty when only `hostname` says so.
    pub addresses: Addresses,
    /// Where it runs.
    pub place: Arc<Place>,
    /// What it has in common with its siblings.
    pub profile: Arc<Profile>,
}

/// Where a workload runs. A snapshot holds each place once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The node; empty when unknown.
    pub node: Arc<str>,
    /// Where the node is.
    pub locality: Arc<Locality>,
}

/// What the replicas of one deployment have in common. A snapshot holds each profile once: a mesh has many times more
/// workloads than profiles, and of a workload's many facts only its key, its addresses and its place are its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The name of a workload whose key does not end with it; see [`Workload::name`].
    pub given_name: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Who it is.
    pub identity: Identity,
    /// The network of its addresses.
    pub network: NetworkId,
    /// How it is spoken to.
    pub protocol: TunnelProtocol,
    /// Whether its addresses are its own or its node's.
    pub network_mode: NetworkMode,
    /// The waypoint that traffic addressed to it must pass.
    pub waypoint: Option<GatewayAddress>,
    /// The gateway through which it is reached from other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// The name telemetry gives its service.
    pub canonical_name: Arc<str>,
    /// The name telemetry gives its version.
    pub canonical_revision: Arc<str>,
    /// What kind of owner it has.
    pub workload_type: WorkloadType,
    /// The name of its owner: a Deployment's.
    pub workload_name: Arc<str>,
    /// Whether it terminates HBONE itself, without a node proxy.
    pub native_tunnel: bool,
    /// Its cluster.
    pub cluster_id: Arc<str>,
    /// A name to resolve when it has no addresses; empty when it has none.
    pub hostname: Arc<str>,
    /// How its application wants tunnelled traffic delivered.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Policies attached to it by name, beside those of its namespace and the mesh.
    pub authorization_policies: Vec<PolicyKey>,
    /// The services it is an endpoint of, each with its own target ports where they differ from the service's.
    pub services: Vec<(NamespacedHostname, Vec<PortMapping>)>,
    /// Whether it is fit to be an endpoint.
    pub status: Status,
    /// Its weight among the endpoints of a service.
    pub capacity: u32,
}

impl Workload {
    /// A healthy workload with the control plane's defaults: no address, plain TCP, weight 1, its own canonical name.
    pub fn new(uid: Uid, namespace: &str, name: &str, identity: Identity) -> Self {
        let empty: Arc<str> = "".into();
        let given_name = (tail(uid.as_str()) != name).then(|| name.into());
        let locality = Locality { region: empty.clone(), zone: empty.clone(), subzone: empty.clone() };
        Self {
            uid,
            addresses: Addresses::default(),
            place: Arc::new(Place { node: empty.clone(), locality: Arc::new(locality) }),
            profile: Arc::new(Profile {
                given_name,
                namespace: namespace.into(),
                identity,
                network: NetworkId(empty.clone()),
                protocol: TunnelProtocol::None,
                network_mode: NetworkMode::Standard,
                waypoint: None,
                network_gateway: None,
                canonical_name: empty.clone(),
                canonical_revision: empty.clone(),
                workload_type: WorkloadType::Deployment,
                workload_name: empty.clone(),
                native_tunnel: false,
                cluster_id: "Kubernetes".into(),
                hostname: empty,
                application_tunnel: None,
                authorization_policies: Vec::new(),
                services: Vec::new(),
                status: Status::Healthy,
                capacity: 1,
            }),
        }
    }

    /// Its name: a pod's. Nearly always what its key ends with, and then it is not held a second time.
    pub fn name(&self) -> &str {
        self.given_name.as_deref().unwrap_or_else(|| tail(self.uid.as_str()))
    }

    /// Whether the control plane made it from a Kubernetes pod, which its key tells.
    pub fn is_pod(&self) -> bool {
        self.uid.as_str().contains("//Pod/")
    }
}

impl Profile {
    /// Shows every text in it to `visit`, to be replaced by an equal one that others hold, too.
    pub(crate) fn texts(&mut self, visit: &mut dyn FnMut(&mut Arc<str>)) {
        // Taken apart in full, so that a field added to the type cannot be forgotten here.
        let Self {
            given_name,
            namespace,
            identity,
            network,
            protocol: _,
            network_mode: _,
            waypoint,
            network_gateway,
            canonical_name,
            canonical_revision,
            workload_type: _,
            workload_name,
            native_tunnel: _,
            cluster_id,
            hostname,
            application_tunnel: _,
            authorization_policies,
            services,
            status: _,
            capacity: _,
        } = self;
        given_name.iter_mut().for_each(&mut *visit);
        visit(identity.text_mut());
        for text in [namespace, &mut network.0, canonical_name, canonical_revision, workload_name, cluster_id, hostname]
        {
            visit(text);
        }
        for gateway in [waypoint, network_gateway].into_iter().flatten() {
            gateway.texts(visit);
        }
        authorization_policies.iter_mut().for_each(|key| visit(&mut key.0));
        services.iter_mut().for_each(|(name, _)| name.texts(visit));
    }
}

impl GatewayAddress {
    pub(crate) fn texts(&mut self, visit: &mut dyn FnMut(&mut Arc<str>)) {
        match &mut self.destination {
            GatewayDestination::Address { network, address: _ } => visit(&mut network.0),
            GatewayDestination::Hostname(name) => name.texts(visit),
        }
    }
}

impl Deref for Workload {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

impl DerefMut for Workload {
    fn deref_mut(&mut self) -> &mut Profile {
        Arc::make_mut(&mut self.profile)
    }
}

/// `NAME` of `CLUSTER/GROUP/KIND/NAMESPACE/NAME`.
fn tail(uid: &str) -> &str {
    uid.rsplit_once('/').map_or(uid, |(_, name)| name)
}

/// How a workload is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Plain TCP.
    None,
    /// HBONE: CONNECT over HTTP/2 over mutual TLS.
    Hbone,
}

/// Whose addresses a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// Its own.
    Standard,
    /// Its node's, shared with others: such a workload cannot be found by address.
    HostNetwork,
}

/// Whether a workload is fit to be an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It is ready.
    Healthy,
    /// It is not.
    Unhealthy,
}

/// What kind of owner a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    /// A Deployment, or anything not named here.
    Deployment,
    /// A CronJob.
    CronJob,
    /// None: a pod by itself.
    Pod,
    /// A Job.
    Job,
}

/// Where a workload is; each part is empty when unknown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// The region.
    pub region: Arc<str>,
    /// The zone.
    pub zone: Arc<str>,
    /// The part of the zone.
    pub subzone: Arc<str>,
}

/// A reference to a waypoint or network gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// What it refers to.
    pub destination: GatewayDestination,
    /// The gateway's HBONE port.
    pub hbone_port: u16,
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.destination, self.hbone_port)
    }
}

/// What a gateway reference refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// A workload's address, or a service's VIP.
    Address {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        address: IpAddr,
    },
    /// A service, or a workload with this hostname.
    Hostname(NamespacedHostname),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GatewayDestination::Address { network, address } => write!(f, "{network}/{address}"),
            GatewayDestination::Hostname(name) => name.fmt(f),
        }
    }
}

/// How an application wants tunnelled traffic delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// What precedes the bytes.
    pub protocol: ApplicationProtocol,
    /// The port that takes all of it, in place of the one asked for.
    pub port: Option<u16>,
}

/// What precedes the bytes delivered to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol header, version 2.
    Proxy,
}
