//! Turns changes into snapshots. The one place where indices are written; reading them is [`crate::snapshot`]'s.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::hash::Hash;
use core::net::IpAddr;

use crate::change::Change;
use crate::cidr::CidrVips;
use crate::claims::{Claimant, Claims};
use crate::name::{NamespacedHostname, PolicyKey, Uid};
use crate::policy::{Policy, PolicyScope};
use crate::roster::{Endpoint, Roster};
use crate::service::{Service, Vip};
use crate::snapshot::{Map, Nested, Snapshot, Tables};
use crate::workload::{NetworkMode, Workload};

/// The mesh as known so far. Changes come in any order: an endpoint may precede its service, a workload its policies.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    tables: Tables,
}

impl SnapshotBuilder {
    /// A mesh of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one change into account. Costs no more than the change is large; snapshots already frozen stay as they are.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Workload(workload) => self.insert_workload(workload),
            Change::WorkloadGone(uid) => self.remove_workload(&uid),
            Change::Service(service) => self.insert_service(service),
            Change::ServiceGone(name) => self.remove_service(&name),
            Change::Policy(policy) => self.insert_policy(policy),
            Change::PolicyGone(key) => self.remove_policy(&key),
        }
    }

    /// The mesh as it is now, as the next generation. Costs a few reference counts, whatever the size of the mesh.
    pub fn freeze(&mut self) -> Snapshot {
        self.tables.generation += 1;
        Snapshot::of(self.tables.clone())
    }

    fn insert_workload(&mut self, workload: Workload) {
        // The control plane resends everything after a reconnect; what did not change must not copy anything.
        if self.tables.workloads.get(&workload.uid).is_some_and(|held| **held == workload) {
            return;
        }
        self.remove_workload(&workload.uid);
        let workload = Arc::new(workload);
        let tables = &mut self.tables;
        for address in indexed_addresses(&workload) {
            claim_under(&mut tables.addresses, &workload.network, address, &workload);
        }
        claim_under(&mut tables.names, &workload.namespace, workload.name.clone(), &workload);
        if !workload.hostname.is_empty() {
            claim(&mut tables.workload_hostnames, workload.hostname.clone(), &workload);
        }
        // In reverse, so that of a service named twice the first mention is what stays.
        for (membership, (service, _)) in workload.services.iter().enumerate().rev() {
            let rosters = inner(&mut tables.rosters, &service.hostname);
            let endpoint = Endpoint::new(workload.clone(), membership);
            match rosters.get_mut(&service.namespace) {
                Some(roster) => roster.insert(endpoint),
                None => {
                    let mut roster = Roster::default();
                    roster.insert(endpoint);
                    rosters.insert_mut(service.namespace.clone(), roster);
                }
            }
        }
        tables.workloads.insert_mut(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &Uid) {
        let Some(workload) = self.tables.workloads.get(uid).cloned() else {
            return;
        };
        let tables = &mut self.tables;
        for address in indexed_addresses(&workload) {
            waive_under(&mut tables.addresses, &workload.network, &address, &workload);
        }
        waive_under(&mut tables.names, &workload.namespace, &workload.name, &workload);
        waive(&mut tables.workload_hostnames, &workload.hostname, &workload);
        for (service, _) in &workload.services {
            let Some(rosters) = tables.rosters.get_mut(&service.hostname) else {
                continue;
            };
            let Some(roster) = rosters.get_mut(&service.namespace) else {
                continue;
            };
            roster.remove(uid);
            if roster.is_empty() {
                rosters.remove_mut(&service.namespace);
            }
            if rosters.is_empty() {
                tables.rosters.remove_mut(&service.hostname);
            }
        }
        tables.workloads.remove_mut(uid);
    }

    fn insert_service(&mut self, service: Service) {
        let name = service.key();
        let held = self.tables.services.get(&name.hostname).and_then(|held| find_service(held, &name));
        if held.is_some_and(|held| **held == service) {
            return;
        }
        self.remove_service(&name);
        let service = Arc::new(service);
        let tables = &mut self.tables;
        for vip in &service.vips {
            match single(vip) {
                Some(address) => claim_under(&mut tables.vips, &vip.network, address, &service),
                None => match tables.cidr_vips.get_mut(&vip.network) {
                    Some(blocks) => blocks.insert(vip.address, service.clone()),
                    None => {
                        let mut blocks = CidrVips::default();
                        blocks.insert(vip.address, service.clone());
                        tables.cidr_vips.insert_mut(vip.network.clone(), blocks);
                    }
                },
            }
        }
        claim(&mut tables.services, service.hostname.clone(), &service);
    }

    fn remove_service(&mut self, name: &NamespacedHostname) {
        let held = self.tables.services.get(&name.hostname).and_then(|held| find_service(held, name));
        let Some(service) = held.cloned() else { return };
        let tables = &mut self.tables;
        for vip in &service.vips {
            if let Some(address) = single(vip) {
                waive_under(&mut tables.vips, &vip.network, &address, &service);
            } else if let Some(blocks) = tables.cidr_vips.get_mut(&vip.network) {
                blocks.remove(vip.address, &service);
                if blocks.is_empty() {
                    tables.cidr_vips.remove_mut(&vip.network);
                }
            }
        }
        waive(&mut tables.services, &service.hostname, &service);
    }

    fn insert_policy(&mut self, policy: Policy) {
        if self.tables.policies.get(&policy.key).is_some_and(|held| **held == policy) {
            return;
        }
        self.remove_policy(&policy.key);
        let policy = Arc::new(policy);
        match policy.scope {
            PolicyScope::Global => insert_sorted(&mut self.tables.global_policies, &policy),
            PolicyScope::Namespace => match self.tables.namespace_policies.get_mut(&policy.namespace) {
                Some(policies) => insert_sorted(policies, &policy),
                None => {
                    let policies = Arc::new(vec![policy.clone()]);
                    self.tables.namespace_policies.insert_mut(policy.namespace.clone(), policies);
                }
            },
            PolicyScope::WorkloadSelector => {}
        }
        self.tables.policies.insert_mut(policy.key.clone(), policy);
    }

    fn remove_policy(&mut self, key: &PolicyKey) {
        let Some(policy) = self.tables.policies.get(key).cloned() else {
            return;
        };
        match policy.scope {
            PolicyScope::Global => remove_sorted(&mut self.tables.global_policies, key),
            PolicyScope::Namespace => {
                if let Some(policies) = self.tables.namespace_policies.get_mut(&policy.namespace) {
                    remove_sorted(policies, key);
                    if policies.is_empty() {
                        self.tables.namespace_policies.remove_mut(&policy.namespace);
                    }
                }
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.tables.policies.remove_mut(key);
    }
}

/// The addresses a workload can be found by: none of its node's, which it shares with everything else there.
fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    let own: &[_] = match workload.network_mode {
        NetworkMode::Standard => &workload.addresses,
        NetworkMode::HostNetwork => &[],
    };
    own.iter().map(|address| address.to_canonical())
}

fn single(vip: &Vip) -> Option<IpAddr> {
    (vip.address.prefix_len() == vip.address.max_prefix_len()).then(|| vip.address.addr().to_canonical())
}

fn find_service<'a>(held: &'a Claims<Arc<Service>>, name: &NamespacedHostname) -> Option<&'a Arc<Service>> {
    held.as_slice().iter().find(|service| service.namespace == name.namespace)
}

fn inner<'a, K, J, V>(map: &'a mut Nested<K, J, V>, outer: &K) -> &'a mut Map<J, V>
where
    K: Clone + Eq + Hash,
    J: Clone + Eq + Hash,
    V: Clone,
{
    if !map.contains_key(outer) {
        map.insert_mut(outer.clone(), Map::default());
    }
    map.get_mut(outer).expect("inserted above if it was missing")
}

fn claim<K: Eq + Hash + Clone, T: Claimant>(map: &mut Map<K, Claims<T>>, key: K, claimant: &T) {
    let claims = match map.get(&key) {
        Some(held) => held.with(claimant.clone()),
        None => Claims::One(claimant.clone()),
    };
    map.insert_mut(key, claims);
}

fn waive<K: Eq + Hash + Clone, T: Claimant>(map: &mut Map<K, Claims<T>>, key: &K, claimant: &T) {
    let Some(held) = map.get(key) else { return };
    match held.without(claimant) {
        Some(rest) => map.insert_mut(key.clone(), rest),
        None => {
            map.remove_mut(key);
        }
    }
}

fn claim_under<K, J, T>(map: &mut Nested<K, J, Claims<T>>, outer: &K, key: J, claimant: &T)
where
    K: Eq + Hash + Clone,
    J: Eq + Hash + Clone,
    T: Claimant,
{
    claim(inner(map, outer), key, claimant);
}

fn waive_under<K, J, T>(map: &mut Nested<K, J, Claims<T>>, outer: &K, key: &J, claimant: &T)
where
    K: Eq + Hash + Clone,
    J: Eq + Hash + Clone,
    T: Claimant,
{
    let Some(inner) = map.get_mut(outer) else {
        return;
    };
    waive(inner, key, claimant);
    if inner.is_empty() {
        map.remove_mut(outer);
    }
}

fn insert_sorted(policies: &mut Arc<Vec<Arc<Policy>>>, policy: &Arc<Policy>) {
    let policies = Arc::make_mut(policies);
    match policies.binary_search_by(|held| held.key.cmp(&policy.key)) {
        Ok(at) => policies[at] = policy.clone(),
        Err(at) => policies.insert(at, policy.clone()),
    }
}

fn remove_sorted(policies: &mut Arc<Vec<Arc<Policy>>>, key: &PolicyKey) {
    if let Ok(at) = policies.binary_search_by(|held| held.key.cmp(key)) {
        Arc::make_mut(policies).remove(at);
    }
}
