//! The mesh at one moment, immutable: what every decision reads. Lookups take no lock and allocate nothing.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use hashbrown::DefaultHashBuilder;
use rpds::HashTrieMapSync;

use crate::cidr::CidrVips;
use crate::claims::{Claims, visible};
use crate::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use crate::policy::Policy;
pub use crate::roster::Endpoint;
use crate::roster::Roster;
use crate::service::Service;
use crate::workload::Workload;

/// A generation of the mesh. Cheap to clone, safe to share between threads; generations share what they have in common.
///
/// ```
/// use mesh_state::builder::SnapshotBuilder;
/// use mesh_state::change::Change;
/// use mesh_state::identity::Identity;
/// use mesh_state::name::NetworkId;
/// use mesh_state::workload::Workload;
///
/// let identity = Identity::parse("spiffe://cluster.local/ns/retail/sa/shop").unwrap();
/// let mut shop = Workload::new("Kubernetes//Pod/retail/shop-0".into(), "retail", "shop-0", identity);
/// shop.addresses.push([10, 40, 0, 9].into());
///
/// let mut builder = SnapshotBuilder::new();
/// builder.apply(Change::Workload(shop));
/// let snapshot = builder.freeze();
///
/// let found = snapshot.workload_by_address(&NetworkId::from(""), [10, 40, 0, 9].into()).unwrap();
/// assert_eq!(&*found.name, "shop-0");
/// ```
#[derive(Clone)]
pub struct Snapshot {
    tables: Arc<Tables>,
}

impl Snapshot {
    /// A mesh of nothing, of generation 0.
    pub fn empty() -> Self {
        Self::of(Tables::default())
    }

    pub(crate) fn of(tables: Tables) -> Self {
        Self { tables: Arc::new(tables) }
    }

    /// How many times its builder had frozen when this was made; grows with each.
    pub fn generation(&self) -> u64 {
        self.tables.generation
    }

    /// The workload with a key.
    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.tables.workloads.get(uid)
    }

    /// The workload at an address. Of several it is a captured pod before any pod before anything captured (§8.4);
    /// workloads on their node's network are never found here.
    pub fn workload_by_address(&self, network: &NetworkId, address: IpAddr) -> Option<&Arc<Workload>> {
        Some(self.tables.addresses.get(network)?.get(&address.to_canonical())?.best())
    }

    /// The workload whose `hostname` and namespace these are.
    pub fn workload_by_hostname(&self, name: &NamespacedHostname) -> Option<&Arc<Workload>> {
        let claims = self.tables.workload_hostnames.get(&name.hostname)?;
        claims.as_slice().iter().find(|workload| workload.namespace == name.namespace)
    }

    /// The workload that a pod of this node is, by what the CNI agent knows of it: on `node`, or anywhere when that is not known.
    pub fn local_workload(
        &self,
        node: Option<&str>,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        let claims = self.tables.names.get(namespace)?.get(name)?;
        claims.as_slice().iter().find(|workload| {
            workload.identity.service_account() == service_account && node.is_none_or(|node| &*workload.node == node)
        })
    }

    /// The service with a key.
    pub fn service(&self, name: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services_by_hostname(&name.hostname).iter().find(|service| service.namespace == name.namespace)
    }

    /// Every service with a hostname, one for each namespace that defines it.
    pub fn services_by_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.tables.services.get(hostname).map_or(&[], Claims::as_slice)
    }

    /// The service a client in `namespace` means by a hostname.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        visible(self.services_by_hostname(hostname), namespace)
    }

    /// Every service with exactly this virtual address.
    pub fn services_by_vip(&self, network: &NetworkId, address: IpAddr) -> &[Arc<Service>] {
        let claims = self.tables.vips.get(network).and_then(|vips| vips.get(&address.to_canonical()));
        claims.map_or(&[], Claims::as_slice)
    }

    /// The service a client in `namespace` means by an address: by its virtual address, else by a block that has it.
    pub fn service_by_vip(&self, network: &NetworkId, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        visible(self.services_by_vip(network, address), namespace)
            .or_else(|| self.tables.cidr_vips.get(network)?.find(address.to_canonical(), namespace))
    }

    /// The endpoints of a service, in the order of their keys, whatever their health.
    pub fn endpoints(&self, service: &Service) -> impl Iterator<Item = &Endpoint> {
        self.roster(&service.namespace, &service.hostname).into_iter().flat_map(Roster::iter)
    }

    /// A workload as an endpoint of a service.
    pub fn endpoint(&self, service: &Service, uid: &Uid) -> Option<&Endpoint> {
        self.roster(&service.namespace, &service.hostname)?.find(uid)
    }

    /// The policy with a key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.tables.policies.get(key)
    }

    /// The policies for all workloads, in the order of their keys.
    pub fn global_policies(&self) -> &[Arc<Policy>] {
        &self.tables.global_policies
    }

    /// The policies for all workloads of a namespace, in the order of their keys.
    pub fn namespace_policies(&self, namespace: &str) -> &[Arc<Policy>] {
        self.tables.namespace_policies.get(namespace).map_or(&[], |policies| policies)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.tables.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.services.values().flat_map(Claims::as_slice)
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.tables.policies.values()
    }

    fn roster(&self, namespace: &str, hostname: &str) -> Option<&Roster> {
        self.tables.rosters.get(hostname)?.get(namespace)
    }
}

impl fmt::Debug for Snapshot {
    // The whole mesh would drown whatever log line holds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.tables.generation)
            .field("workloads", &self.tables.workloads.size())
            .field("policies", &self.tables.policies.size())
            .finish_non_exhaustive()
    }
}

/// A persistent map: cloning costs a reference count, a change copies the path to it.
// Keyed by hashes an outsider could collide only through the control plane, which has easier ways to do harm.
pub(crate) type Map<K, V> = HashTrieMapSync<K, V, DefaultHashBuilder>;

/// A map under each key of a map, where a key has two parts: a flat map could be asked only with an owned pair, and making
/// one bumps reference counts that all cores share.
pub(crate) type Nested<K, J, V> = Map<K, Map<J, V>>;

/// The indices. Each is a function of the workloads, services and policies alone, not of how they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) generation: u64,
    pub(crate) workloads: Map<Uid, Arc<Workload>>,
    pub(crate) addresses: Nested<NetworkId, IpAddr, Claims<Arc<Workload>>>,
    /// Namespace, then name.
    pub(crate) names: Nested<Arc<str>, Arc<str>, Claims<Arc<Workload>>>,
    pub(crate) workload_hostnames: Map<Arc<str>, Claims<Arc<Workload>>>,
    pub(crate) services: Map<Arc<str>, Claims<Arc<Service>>>,
    pub(crate) vips: Nested<NetworkId, IpAddr, Claims<Arc<Service>>>,
    pub(crate) cidr_vips: Map<NetworkId, CidrVips>,
    /// Hostname, then namespace. Has the endpoints of services that have not come yet, or are gone.
    pub(crate) rosters: Nested<Arc<str>, Arc<str>, Roster>,
    pub(crate) policies: Map<PolicyKey, Arc<Policy>>,
    pub(crate) global_policies: Arc<Vec<Arc<Policy>>>,
    pub(crate) namespace_policies: Map<Arc<str>, Arc<Vec<Arc<Policy>>>>,
}
