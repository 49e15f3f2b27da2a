//! The mesh at one moment, immutable: what every decision reads. Lookups take no lock and allocate nothing.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hash;
use core::net::IpAddr;
use core::ptr;

use hashbrown::DefaultHashBuilder;

use crate::absence::Absences;
use crate::cidr::CidrVips;
use crate::claims::{of_namespace, precedence, visible};
use crate::hash_index::HashIndex;
use crate::intern::tag;
use crate::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use crate::pages::Pages;
use crate::policy::Policy;
use crate::rbac::policies::Policies;
pub use crate::roster::Endpoint;
use crate::roster::{Roster, at_number};
use crate::service::Service;
use crate::service_index::ServiceIndex;
use crate::touched::{Changed, Log};
use crate::wanted::{Knowledge, Sought};
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
/// shop.addresses = [[10, 40, 0, 9].into()].into();
///
/// let mut builder = SnapshotBuilder::new();
/// builder.apply(Change::Workload(shop));
/// let snapshot = builder.freeze();
///
/// let found = snapshot.workload_by_address(&NetworkId::from(""), [10, 40, 0, 9].into()).unwrap();
/// assert_eq!(found.name(), "shop-0");
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

    /// What changed since a generation of the same builder.
    pub fn changed_since(&self, generation: u64) -> Changed<'_> {
        let past = self.tables.generation.checked_sub(generation);
        Changed::new(past.and_then(|count| self.tables.log.last(count)))
    }

    /// Whether its control plane sends only what it is asked for.
    pub fn is_on_demand(&self) -> bool {
        self.tables.on_demand
    }

    /// What is known of a part of the mesh: whether it is there, is not, or has to be asked for.
    pub fn knowledge(&self, sought: &Sought) -> Knowledge {
        let present = match sought {
            Sought::Address { network, address } => {
                self.workload_by_address(network, *address).is_some()
                    || !self.services_by_vip(network, *address).is_empty()
                    || self.tables.network(network).is_some_and(|network| network.blocks.covers(address.to_canonical()))
            }
            Sought::Hostname(name) => self.service(name).is_some() || self.workload_by_hostname(name).is_some(),
        };
        match present {
            true => Knowledge::Present,
            false if self.tables.on_demand && !self.tables.absences.has(&sought.canonical()) => Knowledge::NotAsked,
            false => Knowledge::Absent,
        }
    }

    /// Whether there are policies that are for the workloads that name them: of a workload that is not known, nobody can say
    /// which.
    pub fn has_selective_policies(&self) -> bool {
        self.tables.policies.has_selective()
    }

    /// The workload with a key.
    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.tables.workloads.get(self.tables.number(uid)?)
    }

    /// The workload at an address. Of several it is a captured pod before any pod before anything captured (§8.4);
    /// workloads on their node's network are never found here.
    pub fn workload_by_address(&self, network: &NetworkId, address: IpAddr) -> Option<&Arc<Workload>> {
        let address = address.to_canonical();
        let network = self.tables.network(network)?;
        let tag = self.tables.address_tag(address);
        match address {
            IpAddr::V4(_) => self.tables.workload(&network.v4, tag, |_| true),
            IpAddr::V6(_) => self.tables.workload(&network.v6, tag, |workload| workload.addresses.contains(&address)),
        }
    }

    /// The workload whose `hostname` and namespace these are.
    pub fn workload_by_hostname(&self, name: &NamespacedHostname) -> Option<&Arc<Workload>> {
        let is_it = |workload: &Workload| workload.hostname == name.hostname && workload.namespace == name.namespace;
        self.tables.workload(&self.tables.by_hostname, self.tables.tag((&*name.namespace, &*name.hostname)), is_it)
    }

    /// The workload that a pod of this node is, by what the CNI agent knows of it: on `node`, or anywhere when that is not known.
    pub fn local_workload(
        &self,
        node: Option<&str>,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        let is_it = |workload: &Workload| {
            workload.name() == name
                && &*workload.namespace == namespace
                && workload.identity.service_account() == service_account
                && node.is_none_or(|node| &*workload.place.node == node)
        };
        let tag = self.tables.tag((namespace, name));
        let by_uid = self.tables.workload(&self.tables.by_uid, tag, is_it);
        let by_name = self.tables.workload(&self.tables.by_name, tag, is_it);
        match (by_uid, by_name) {
            (Some(one), Some(other)) => Some(if precedence(one, other).is_lt() { one } else { other }),
            (found, None) | (None, found) => found,
        }
    }

    /// The service with a key.
    pub fn service(&self, name: &NamespacedHostname) -> Option<&Arc<Service>> {
        of_namespace(self.services_by_hostname(&name.hostname), &name.namespace)
    }

    /// Every service with a hostname, one for each namespace that defines it.
    pub fn services_by_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.tables.services.get(hostname)
    }

    /// The service a client in `namespace` means by a hostname.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        visible(self.services_by_hostname(hostname), namespace)
    }

    /// Every service with exactly this virtual address.
    pub fn services_by_vip(&self, network: &NetworkId, address: IpAddr) -> &[Arc<Service>] {
        self.tables.network(network).map_or(&[], |network| network.vips.get(&address.to_canonical()))
    }

    /// The service a client in `namespace` means by an address: by its virtual address, else by a block that has it.
    pub fn service_by_vip(&self, network: &NetworkId, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let network = self.tables.network(network)?;
        let address = address.to_canonical();
        visible(network.vips.get(&address), namespace).or_else(|| network.blocks.find(address, namespace))
    }

    /// The endpoints of a service, whatever their health, in an order that depends on nothing but what they are.
    pub fn endpoints(&self, service: &Service) -> impl Iterator<Item = Endpoint<'_>> {
        self.roster(service).into_iter().flat_map(|roster| roster.iter(&self.tables.workloads))
    }

    /// A workload as an endpoint of a service.
    pub fn endpoint(&self, service: &Service, uid: &Uid) -> Option<Endpoint<'_>> {
        Endpoint::of(self.workload(uid)?, &service.namespace, &service.hostname)
    }

    /// The policy with a key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.tables.policies.get(key).map(|compiled| &compiled.policy)
    }

    /// The policies as [`crate::rbac`] asks them.
    pub(crate) fn compiled_policies(&self) -> &Policies {
        &self.tables.policies
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.tables.workloads.iter()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.services.iter()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.tables.policies.iter().map(|compiled| &compiled.policy)
    }

    pub(crate) fn roster(&self, service: &Service) -> Option<&Roster> {
        let tables = &self.tables;
        let here = tables
            .at_service
            .with_tag(place_tag(service))
            .find(|number| tables.is_roster_of(*number, &service.namespace, &service.hostname));
        // Who asks may hold a service of another generation.
        let number = here.or_else(|| tables.roster_number(&service.namespace, &service.hostname))?;
        tables.rosters.get(number).map(|roster| &**roster)
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// By the numbers that this generation's rosters hold.
    pub(crate) fn numbered(&self) -> &Pages<Workload> {
        &self.tables.workloads
    }
}

impl fmt::Debug for Snapshot {
    // The whole mesh would drown whatever log line holds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.tables.generation)
            .field("workloads", &self.tables.workloads.len())
            .field("policies", &self.tables.policies.len())
            .finish_non_exhaustive()
    }
}

/// The indices. Each is a function of the workloads, services and policies alone, not of how they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) generation: u64,
    /// By the numbers that the indices hold.
    pub(crate) workloads: Pages<Workload>,
    /// By what a key ends with, which nearly always is the workload's namespace and name.
    pub(crate) by_uid: HashIndex,
    /// By namespace and name; those whose key does not end with them.
    pub(crate) by_name: HashIndex,
    /// By hostname and namespace; those that have one.
    pub(crate) by_hostname: HashIndex,
    /// Sorted by their names; there are few.
    pub(crate) networks: Arc<Vec<Network>>,
    pub(crate) services: ServiceIndex<Arc<str>>,
    /// By numbers of their own. Has the endpoints of services that have not come yet, or are gone.
    pub(crate) rosters: Pages<Roster>,
    /// By namespace and hostname.
    pub(crate) by_service: HashIndex,
    /// By where a service of this generation is in memory, so that finding its endpoints looks at no name.
    pub(crate) at_service: HashIndex,
    pub(crate) policies: Policies,
    /// Whether the control plane sends only what it is asked for.
    pub(crate) on_demand: bool,
    pub(crate) absences: Absences,
    pub(crate) log: Log,
    pub(crate) hasher: DefaultHashBuilder,
}

/// What is found by an address of one network.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) name: NetworkId,
    pub(crate) v4: HashIndex,
    pub(crate) v6: HashIndex,
    pub(crate) vips: ServiceIndex<IpAddr>,
    pub(crate) blocks: CidrVips,
}

impl Network {
    pub(crate) fn workloads_mut(&mut self, address: IpAddr) -> &mut HashIndex {
        match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }
}

/// `(NAMESPACE, NAME)` of `CLUSTER/GROUP/KIND/NAMESPACE/NAME`: the part of a key by which it is found.
pub(crate) fn tail(uid: &Uid) -> (&str, &str) {
    let (rest, name) = uid.as_str().rsplit_once('/').unwrap_or(("", uid.as_str()));
    (rest.rsplit_once('/').map_or(rest, |(_, namespace)| namespace), name)
}

pub(crate) fn named(workload: &Workload) -> (&str, &str) {
    (&workload.namespace, workload.name())
}

impl Tables {
    /// Whether nothing is in any of them, but for what is known to be absent and what has changed.
    pub(crate) fn is_empty(&self) -> bool {
        let by_name = [&self.by_uid, &self.by_name, &self.by_hostname, &self.by_service, &self.at_service];
        by_name.into_iter().all(HashIndex::is_empty)
            && self.workloads.len() == 0
            && self.rosters.len() == 0
            && self.networks.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
    }

    pub(crate) fn tag(&self, key: impl Hash) -> u32 {
        tag(&self.hasher, key)
    }

    /// An IPv4 address is its own tag, only mixed: where it is found there is nothing to compare.
    pub(crate) fn address_tag(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(v4) => {
                let mixed = v4.to_bits().wrapping_mul(0x9e37_79b1);
                (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca77)
            }
            IpAddr::V6(v6) => self.tag(v6),
        }
    }

    /// The number of the workload with a key.
    pub(crate) fn number(&self, uid: &Uid) -> Option<u32> {
        self.by_uid.with_tag(self.tag(tail(uid))).find(|number| at_number(&self.workloads, *number).uid == *uid)
    }

    pub(crate) fn network(&self, name: &NetworkId) -> Option<&Network> {
        let at = self.networks.binary_search_by(|network| network.name.cmp(name)).ok()?;
        Some(&self.networks[at])
    }

    /// The number of the roster of a service.
    pub(crate) fn roster_number(&self, namespace: &Arc<str>, hostname: &Arc<str>) -> Option<u32> {
        let mut numbers = self.by_service.with_tag(self.tag((&**namespace, &**hostname)));
        numbers.find(|number| self.is_roster_of(*number, namespace, hostname))
    }

    fn is_roster_of(&self, number: u32, namespace: &Arc<str>, hostname: &Arc<str>) -> bool {
        self.rosters.get(number).is_some_and(|roster| {
            is_same_text(&roster.service.hostname, hostname) && is_same_text(&roster.service.namespace, namespace)
        })
    }

    fn workload(&self, index: &HashIndex, tag: u32, is_it: impl Fn(&Workload) -> bool) -> Option<&Arc<Workload>> {
        let mut workloads = index.with_tag(tag).map(|number| at_number(&self.workloads, number));
        workloads.find(|workload| is_it(workload))
    }
}

/// Of where a service is in memory. Who shares its tag is told apart by name, so it need not be a good hash.
pub(crate) fn place_tag(service: &Service) -> u32 {
    let at = ptr::from_ref(service).addr() as u64;
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> u32::BITS) as u32
}

/// Texts of one builder that are equal are one, so that nearly always none is looked at.
pub(crate) fn is_same_text(one: &Arc<str>, other: &Arc<str>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}
