//! A service as the control plane describes it. Not its endpoints: workloads name the services they serve.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::name::{NamespacedHostname, NetworkId};
use crate::workload::GatewayAddress;

/// One service. Its key is its namespace and hostname.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its short name.
    pub name: Arc<str>,
    /// The namespace that defines it.
    pub namespace: Arc<str>,
    /// Its fully qualified name.
    pub hostname: Arc<str>,
    /// Its virtual addresses.
    pub vips: Vec<Vip>,
    /// Its ports.
    pub ports: Vec<PortMapping>,
    /// Identities its endpoints may have beside their own.
    pub subject_alt_names: Vec<Identity>,
    /// The waypoint that traffic addressed to it must pass.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints among which traffic is split; when they have no weight at all, `waypoint` holds.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How one of its endpoints is chosen.
    pub load_balancing: LoadBalancing,
    /// Which addresses of its endpoints are used.
    pub ip_families: IpFamilies,
    /// Preferred among services with the same hostname or VIP.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with the control plane's defaults: no address, no port, any endpoint alike, visible to all.
    pub fn new(namespace: &str, name: &str, hostname: &str) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            hostname: hostname.into(),
            vips: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: Visibility::Public,
        }
    }

    /// Its key.
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname { namespace: self.namespace.clone(), hostname: self.hostname.clone() }
    }

    /// Shows every text in it to `visit`, to be replaced by an equal one that others hold, too.
    pub(crate) fn texts(&mut self, visit: &mut dyn FnMut(&mut Arc<str>)) {
        // Taken apart in full, so that a field added to the type cannot be forgotten here.
        let Self {
            name,
            namespace,
            hostname,
            vips,
            ports: _,
            subject_alt_names,
            waypoint,
            weighted_waypoints,
            load_balancing: _,
            ip_families: _,
            canonical: _,
            visibility: _,
        } = self;
        [name, namespace, hostname].into_iter().for_each(&mut *visit);
        vips.iter_mut().for_each(|vip| visit(&mut vip.network.0));
        subject_alt_names.iter_mut().for_each(|identity| visit(identity.text_mut()));
        waypoint.iter_mut().for_each(|gateway| gateway.texts(visit));
        weighted_waypoints.iter_mut().for_each(|weighted| weighted.destination.texts(visit));
    }

    /// Whether a workload of `namespace` may see it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => &*self.namespace == namespace,
        }
    }
}

/// A virtual address, or a block of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vip {
    /// The network of the address.
    pub network: NetworkId,
    /// The address; one with a prefix shorter than full stands for the whole block.
    pub address: IpNet,
}

impl Vip {
    /// The address, when it is one and not a block.
    pub(crate) fn single(&self) -> Option<IpAddr> {
        (self.address.prefix_len() == self.address.max_prefix_len()).then(|| self.address.addr().to_canonical())
    }
}

/// A port of a service and the port of its endpoints behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMapping {
    /// The service's port.
    pub service_port: u16,
    /// The endpoint's port; 0 when the service does not say.
    pub target_port: u16,
}

/// The target port behind a service port, if `ports` say. A target port of 0 says nothing.
pub(crate) fn target_port(ports: &[PortMapping], service_port: u16) -> Option<u16> {
    let mapping = ports.iter().find(|mapping| mapping.service_port == service_port)?;
    (mapping.target_port != 0).then_some(mapping.target_port)
}

/// One of the waypoints among which a service's traffic is split.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share, relative to the others'.
    pub weight: u32,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// What endpoints should share with the client, most important first.
    pub scopes: Vec<Scope>,
    /// What the scopes do.
    pub mode: Mode,
    /// Whether unhealthy endpoints count.
    pub health: HealthPolicy,
}

/// Something a client and an endpoint may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The part of the zone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What a service's scopes do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing: all endpoints are alike.
    #[default]
    Unspecified,
    /// Only endpoints that share all scopes.
    Strict,
    /// The endpoints that share most.
    Failover,
    /// No endpoint is chosen: traffic goes to the address it was sent to.
    Passthrough,
}

/// Whether unhealthy endpoints count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    /// They do not.
    #[default]
    OnlyHealthy,
    /// They do.
    AllowAll,
}

/// Which addresses of a service's endpoints are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpFamilies {
    /// All.
    #[default]
    Automatic,
    /// IPv4 ones.
    Ipv4Only,
    /// IPv6 ones.
    Ipv6Only,
    /// All.
    Dual,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// All.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}
