//! The endpoints of one service: groups of those that are alike in everything by which one is chosen, but for weight and node.
//! Choosing is `route::balance`'s, which judges a group by its kind.
//!
//! Everything here is ordered by what the endpoints are and not by how they came, so that one mesh has one order.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use smallvec::SmallVec;

use crate::arcs::fetch_counts;
use crate::intern::Pool;
use crate::members::{Member, Members};
use crate::name::{NamespacedHostname, NetworkId, Uid};
use crate::pages::Pages;
use crate::service::{self, PortMapping};
use crate::workload::{Locality, Status, Workload};

/// A workload as an endpoint of one service.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'s> {
    /// The workload.
    pub workload: &'s Arc<Workload>,
    ports: &'s [PortMapping],
}

impl<'s> Endpoint<'s> {
    /// A workload as an endpoint of a service, if it is one.
    pub(crate) fn of(workload: &'s Arc<Workload>, namespace: &str, hostname: &str) -> Option<Self> {
        let ports = own_ports(workload, namespace, hostname)?;
        Some(Self { workload, ports })
    }

    /// Its own port behind a port of the service; `None` when it has none of its own and the service's target port holds.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        service::target_port(self.ports, service_port)
    }
}

/// The ports a workload gives a service of its own accord; `None` when it is no endpoint of it. Of a service named twice
/// the first mention holds.
pub(crate) fn own_ports<'w>(workload: &'w Workload, namespace: &str, hostname: &str) -> Option<&'w [PortMapping]> {
    let named = |(name, _): &&(NamespacedHostname, _)| &*name.hostname == hostname && &*name.namespace == namespace;
    workload.profile.services.iter().find(named).map(|(_, ports)| &ports[..])
}

/// The endpoints of one service, there or yet to come.
#[derive(Debug)]
pub(crate) struct Roster {
    pub(crate) service: NamespacedHostname,
    /// In the order of their kinds; never an empty one. Few services have more than so many, and theirs are elsewhere.
    groups: SmallVec<[Group; 4]>,
}

/// Of so many groups of a service, the first in their order, an endpoint is chosen; those behind them get no connection. Who
/// writes its endpoints decides how many there are, by giving each ports of its own, and every connection to it pays: so many
/// cost 15 us.
pub const GROUPS_MAX: usize = 1_024;

/// Endpoints that differ in nothing but their weight, their node and who they are.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) kind: Arc<Kind>,
    /// Of all members, held here so that groups not chosen are not looked into.
    pub(crate) weight: u64,
    pub(crate) members: Members,
}

impl Clone for Roster {
    fn clone(&self) -> Self {
        fetch_counts(self.groups.iter().map(|group| &group.kind));
        fetch_counts(self.groups.iter().filter_map(|group| match &group.members {
            Members::Leaf(members) => Some(members),
            Members::Branch(_) => None,
        }));
        Self { service: self.service.clone(), groups: self.groups.clone() }
    }
}

impl Roster {
    pub(crate) fn new(service: NamespacedHostname) -> Self {
        Self { service, groups: SmallVec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Those of which an endpoint is chosen.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups[..self.groups.len().min(GROUPS_MAX)]
    }

    /// The endpoints, group by group, in each by node and key as [`Place`] has it.
    pub(crate) fn iter<'s>(&'s self, workloads: &'s Pages<Workload>) -> impl Iterator<Item = Endpoint<'s>> {
        self.groups.iter().flat_map(|group| group.members.iter()).map(move |member| {
            let workload = workloads.get(member.number).expect(PRESENT);
            Endpoint::of(workload, &self.service.namespace, &self.service.hostname)
                .expect("it is here because it names the service")
        })
    }

    /// Enters a workload that is in `workloads` under `number` and not here yet. `ports` are the ones that it gives the service of
    /// its own accord.
    pub(crate) fn insert(
        &mut self,
        workloads: &Pages<Workload>,
        kinds: &mut Pool<Kind>,
        number: u32,
        workload: &Workload,
        ports: &[PortMapping],
    ) {
        let place = Place::of(workload);
        let member = Member { number, weight: workload.capacity, rank: place.rank };
        match self.position(workload, ports) {
            Ok(at) => {
                let group = &mut self.groups[at];
                group.weight += u64::from(member.weight);
                group.members.insert(member, &|held| place.order(workloads, held));
            }
            Err(at) => {
                let kind = kinds.take(&Arc::new(Kind::of(workload, ports)));
                self.groups.insert(at, Group { kind, weight: member.weight.into(), members: Members::one(member) });
            }
        }
    }

    /// Strikes a workload out that is still in `workloads` as it was entered.
    pub(crate) fn remove(
        &mut self,
        workloads: &Pages<Workload>,
        kinds: &mut Pool<Kind>,
        workload: &Workload,
        ports: &[PortMapping],
    ) {
        let at = self.position(workload, ports).expect("entered as it is, so its kind has a group");
        if self.groups[at].members.len() == 1 {
            kinds.give_back(&self.groups.remove(at).kind);
            return;
        }
        let place = Place::of(workload);
        let group = &mut self.groups[at];
        group.weight -= u64::from(workload.capacity);
        let removed = group.members.remove(&|held| place.order(workloads, held));
        assert!(removed, "entered as it is, so it is found where it was entered");
    }

    /// Where the group of a workload is, or would be.
    fn position(&self, workload: &Workload, ports: &[PortMapping]) -> Result<usize, usize> {
        self.groups.binary_search_by(|group| group.kind.order(workload, ports))
    }
}

const PRESENT: &str = "a roster names only workloads of its own generation";

pub(crate) fn at_number(workloads: &Pages<Workload>, number: u32) -> &Arc<Workload> {
    workloads.get(number).expect(PRESENT)
}

/// Everything by which an endpoint is chosen, except its weight and node. There are few: one for each place, health and
/// set of own ports that occurs in the mesh. The builder has one copy of each for all groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kind {
    pub(crate) status: Status,
    /// It has an address or a hostname.
    pub(crate) reachable: bool,
    pub(crate) network: NetworkId,
    pub(crate) has_gateway: bool,
    pub(crate) cluster_id: Arc<str>,
    pub(crate) locality: Arc<Locality>,
    /// Its application takes every port in a tunnel.
    pub(crate) takes_any_port: bool,
    /// Its own ports behind the service's.
    pub(crate) ports: Vec<PortMapping>,
}

impl Kind {
    /// `ports` are the ones that the workload gives the service of its own accord.
    pub(crate) fn of(workload: &Workload, ports: &[PortMapping]) -> Self {
        let Workload { addresses, place, profile, .. } = workload;
        Self {
            status: profile.status,
            reachable: !addresses.is_empty() || !profile.hostname.is_empty(),
            network: profile.network.clone(),
            has_gateway: profile.network_gateway.is_some(),
            cluster_id: profile.cluster_id.clone(),
            locality: place.locality.clone(),
            takes_any_port: profile.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some()),
            ports: ports.to_vec(),
        }
    }

    /// Where it stands, seen from the kind of a workload: how it compares to what [`Kind::of`] would make.
    fn order(&self, workload: &Workload, of_ports: &[PortMapping]) -> Ordering {
        // Taken apart in full, so that a field added to the type cannot be forgotten here.
        let Self { status, reachable, network, has_gateway, cluster_id, locality, takes_any_port, ports } = self;
        let Workload { addresses, place, profile, .. } = workload;
        // As derived for the type: field by field.
        let is_reachable = !addresses.is_empty() || !profile.hostname.is_empty();
        let any_port = profile.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some());
        (status.cmp(&profile.status))
            .then_with(|| reachable.cmp(&is_reachable))
            .then_with(|| order_of(&network.0, &profile.network.0))
            .then_with(|| has_gateway.cmp(&profile.network_gateway.is_some()))
            .then_with(|| order_of(cluster_id, &profile.cluster_id))
            .then_with(|| order_of(locality, &place.locality))
            .then_with(|| takes_any_port.cmp(&any_port))
            .then_with(|| ports[..].cmp(of_ports))
    }
}

/// Nearly always it is the same one, of which a mesh has one copy.
fn order_of<T: ?Sized + Ord>(one: &Arc<T>, other: &Arc<T>) -> Ordering {
    if Arc::ptr_eq(one, other) { Ordering::Equal } else { one.cmp(other) }
}

/// Whether a change of a workload leaves its place in every roster as it is.
pub(crate) fn is_same_endpoint(one: &Workload, other: &Workload) -> bool {
    let alike = |one: &Workload| {
        let nowhere = one.addresses.is_empty() && one.profile.hostname.is_empty();
        let any_port = one.profile.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some());
        (one.status, one.capacity, nowhere, any_port, one.profile.network_gateway.is_some())
    };
    alike(one) == alike(other)
        && one.place == other.place
        && (Arc::ptr_eq(&one.profile, &other.profile)
            || (one.profile.network == other.profile.network
                && one.profile.cluster_id == other.profile.cluster_id
                && one.profile.services == other.profile.services))
}

/// Where endpoints of a group stand: by node, so that those of one node stand together, then by key. Names are compared by a
/// hash first: a step through a long list then looks at no workload, of which each would be a miss of the cache.
struct Place<'w> {
    of_node: NodePlace<'w>,
    uid: &'w Uid,
    rank: u32,
}

impl<'w> Place<'w> {
    fn of(workload: &'w Workload) -> Self {
        let of_node = NodePlace::of(&workload.place.node);
        let rank = u32::from(of_node.rank) << 16 | u32::from(half_hash(workload.uid.as_str()));
        Self { of_node, uid: &workload.uid, rank }
    }

    /// Where another stands, seen from here.
    fn order(&self, workloads: &Pages<Workload>, other: &Member) -> Ordering {
        self.of_node.order(workloads, other).then_with(|| {
            let by_hash = (other.rank as u16).cmp(&(self.rank as u16));
            by_hash.then_with(|| at_number(workloads, other.number).uid.cmp(self.uid))
        })
    }
}

/// Where the endpoints of a node stand.
pub(crate) struct NodePlace<'n> {
    node: &'n Arc<str>,
    rank: u16,
}

impl<'n> NodePlace<'n> {
    pub(crate) fn of(node: &'n Arc<str>) -> Self {
        Self { node, rank: half_hash(node) }
    }

    /// Where a member stands, seen from here.
    pub(crate) fn order(&self, workloads: &Pages<Workload>, other: &Member) -> Ordering {
        let by_hash = ((other.rank >> 16) as u16).cmp(&self.rank);
        by_hash.then_with(|| {
            let other = &at_number(workloads, other.number).place.node;
            order_of(other, self.node)
        })
    }
}

/// A hash that is the same everywhere, since the order of endpoints must be. Who makes names collide under it gains nothing:
/// they are then compared in full.
fn half_hash(text: &str) -> u16 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = text.as_bytes().as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let hash = words.iter().chain([&last]).fold(text.len() as u64, |hash, word| {
        let mixed = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(ODD);
        mixed ^ (mixed >> 29)
    });
    (hash.wrapping_mul(ODD) >> 48) as u16
}
