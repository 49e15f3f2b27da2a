//! The endpoints of one service: groups of those that are alike in everything by which one is chosen, but for weight and node.
//! Choosing is `route::balance`'s, which judges a group by any one of its members.
//!
//! Everything here is ordered by what the endpoints are and not by how they came, so that one mesh has one order.

use alloc::sync::Arc;
use core::cmp::Ordering;
use core::iter;

use crate::members::{Member, Members};
use crate::name::NamespacedHostname;
use crate::pages::Pages;
use crate::service::{self, PortMapping};
use crate::workload::{Status, Workload};

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
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    pub(crate) service: NamespacedHostname,
    /// In the order of their kinds; never an empty one.
    groups: Arc<[Members]>,
}

impl Roster {
    pub(crate) fn new(service: NamespacedHostname) -> Self {
        Self { service, groups: Arc::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Endpoints that differ in nothing but their weight, their node and who they are.
    pub(crate) fn groups(&self) -> &[Members] {
        &self.groups
    }

    /// The endpoints, group by group, by node and key in each.
    pub(crate) fn iter<'s>(&'s self, workloads: &'s Pages<Arc<Workload>>) -> impl Iterator<Item = Endpoint<'s>> {
        self.groups.iter().flat_map(Members::iter).map(move |member| {
            let workload = workloads.get(member.number).expect(PRESENT);
            Endpoint::of(workload, &self.service.namespace, &self.service.hostname)
                .expect("it is here because it names the service")
        })
    }

    /// Enters a workload that is in `workloads` under `number` and not here yet.
    pub(crate) fn insert(&mut self, workloads: &Pages<Arc<Workload>>, number: u32, workload: &Workload) {
        let member = Member { number, weight: workload.capacity };
        match self.group(workloads, workload) {
            Ok(at) => {
                let place = |held| place(at_number(workloads, held), workload);
                Arc::make_mut(&mut self.groups)[at].insert(member, &place);
            }
            Err(at) => {
                let (before, after) = self.groups.split_at(at);
                let new = iter::once(Members::one(member));
                self.groups = before.iter().cloned().chain(new).chain(after.iter().cloned()).collect();
            }
        }
    }

    /// Strikes a workload out that is still in `workloads` as it was entered.
    pub(crate) fn remove(&mut self, workloads: &Pages<Arc<Workload>>, workload: &Workload) {
        let at = self.group(workloads, workload).expect("entered as it is, so its kind has a group");
        if self.groups[at].len() == 1 {
            self.groups = self.groups[..at].iter().chain(&self.groups[at + 1..]).cloned().collect();
            return;
        }
        let place = |held| place(at_number(workloads, held), workload);
        let removed = Arc::make_mut(&mut self.groups)[at].remove(&place);
        assert!(removed, "entered as it is, so it is found where it was entered");
    }

    fn group(&self, workloads: &Pages<Arc<Workload>>, workload: &Workload) -> Result<usize, usize> {
        let sought = Kind::of(workload, &self.service);
        self.groups.binary_search_by(|group| Kind::of(at_number(workloads, group.first()), &self.service).cmp(&sought))
    }
}

const PRESENT: &str = "a roster names only workloads of its own generation";

pub(crate) fn at_number(workloads: &Pages<Arc<Workload>>, number: u32) -> &Arc<Workload> {
    workloads.get(number).expect(PRESENT)
}

/// Everything by which an endpoint is chosen, except its weight and node. What `route::balance` asks of an endpoint must be
/// here, or it will answer for a whole group by one member.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind<'w> {
    unhealthy: bool,
    /// It has neither an address nor a hostname.
    nowhere: bool,
    network: &'w str,
    behind_gateway: bool,
    cluster: &'w str,
    locality: [&'w str; 3],
    takes_any_port: bool,
    ports: &'w [PortMapping],
}

impl<'w> Kind<'w> {
    fn of(workload: &'w Workload, service: &NamespacedHostname) -> Self {
        let Workload { addresses, locality, status, profile, .. } = workload;
        Self {
            unhealthy: *status == Status::Unhealthy,
            nowhere: addresses.is_empty() && profile.hostname.is_empty(),
            network: profile.network.as_str(),
            behind_gateway: profile.network_gateway.is_some(),
            cluster: &profile.cluster_id,
            locality: [&locality.region, &locality.zone, &locality.subzone],
            takes_any_port: profile.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some()),
            ports: own_ports(workload, &service.namespace, &service.hostname)
                .expect("only its endpoints are asked about"),
        }
    }
}

/// Whether a change of a workload leaves its place in every roster as it is.
pub(crate) fn is_same_endpoint(one: &Workload, other: &Workload) -> bool {
    let alike = |one: &Workload| {
        let nowhere = one.addresses.is_empty() && one.profile.hostname.is_empty();
        let any_port = one.profile.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some());
        (one.status, one.capacity, nowhere, any_port, one.profile.network_gateway.is_some())
    };
    let names = |one: &Workload| (one.node.clone(), one.locality.clone());
    alike(one) == alike(other)
        && names(one) == names(other)
        && (Arc::ptr_eq(&one.profile, &other.profile)
            || (one.profile.network == other.profile.network
                && one.profile.cluster_id == other.profile.cluster_id
                && one.profile.services == other.profile.services))
}

/// Within a group by node, so that the endpoints of one node stand together; then by key.
fn place(held: &Workload, sought: &Workload) -> Ordering {
    held.node.cmp(&sought.node).then_with(|| held.uid.cmp(&sought.uid))
}
