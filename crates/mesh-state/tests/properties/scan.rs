//! Every index gives what a scan over everything gives, after any changes; and no snapshot changes once it is frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use mesh_state::policy::Policy;
use mesh_state::service::{Service, Visibility};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::{NetworkMode, TunnelProtocol, Workload};
use proptest::prelude::*;

use crate::order::decisions;
use crate::universe::{ACCOUNTS, ADDRESSES, HOSTNAMES, NAMES, NAMESPACES, NETWORKS, NODES, changes};

/// The mesh without any index.
#[derive(Default)]
struct Scan {
    workloads: BTreeMap<Uid, Workload>,
    services: BTreeMap<NamespacedHostname, Service>,
    policies: BTreeMap<PolicyKey, Policy>,
}

impl Scan {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Workload(mut workload) => {
                // What is named twice is held once, as it was named first.
                let mut seen = BTreeSet::new();
                workload.services.retain(|(service, _)| seen.insert(service.clone()));
                let mut seen = BTreeSet::new();
                let addresses = workload.addresses.iter().copied();
                workload.addresses = addresses.filter(|address| seen.insert(address.to_canonical())).collect();
                let mut seen = BTreeSet::new();
                workload.authorization_policies.retain(|key| seen.insert(key.clone()));
                drop(self.workloads.insert(workload.uid.clone(), workload));
            }
            Change::WorkloadGone(uid) => drop(self.workloads.remove(&uid)),
            Change::Service(service) => drop(self.services.insert(service.key(), service)),
            Change::ServiceGone(key) => drop(self.services.remove(&key)),
            Change::Policy(policy) => drop(self.policies.insert(policy.key.clone(), policy)),
            Change::PolicyGone(key) => drop(self.policies.remove(&key)),
            Change::Absent(_) | Change::Unknown(_) => {}
        }
    }

    fn workload_by_address(&self, network: &NetworkId, address: IpAddr) -> Option<&Workload> {
        let rank = |workload: &&Workload| match (workload.uid.as_str().contains("//Pod/"), workload.protocol) {
            (true, TunnelProtocol::Hbone) => 0,
            (true, TunnelProtocol::None) => 1,
            (false, TunnelProtocol::Hbone) => 2,
            (false, TunnelProtocol::None) => 3,
        };
        let held = self.workloads.values().filter(|workload| {
            workload.network_mode == NetworkMode::Standard
                && workload.network == *network
                && workload.addresses.iter().any(|own| own.to_canonical() == address.to_canonical())
        });
        held.min_by_key(rank)
    }

    fn service_by_vip(&self, network: &NetworkId, address: IpAddr, namespace: &str) -> Option<&Service> {
        let address = address.to_canonical();
        let mut best = None;
        for service in self.services.values() {
            if service.visibility == Visibility::Namespace && &*service.namespace != namespace {
                continue;
            }
            for vip in service.vips.iter().filter(|vip| vip.network == *network) {
                let single = vip.address.prefix_len() == vip.address.max_prefix_len();
                let has = match single {
                    true => vip.address.addr().to_canonical() == address,
                    false => vip.address.contains(&address),
                };
                if !has {
                    continue;
                }
                // Single before block, own namespace, longest, canonical; then the first, which the keys' order gives.
                let length = if single { 255 } else { vip.address.prefix_len() };
                let rank = (single, &*service.namespace == namespace, length, service.canonical);
                if best.is_none_or(|(held, _)| rank > held) {
                    best = Some((rank, service));
                }
            }
        }
        best.map(|(_, service)| service)
    }

    fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Service> {
        let mut best = None;
        for service in self.services.values().filter(|service| &*service.hostname == hostname) {
            if service.visibility == Visibility::Namespace && &*service.namespace != namespace {
                continue;
            }
            let rank = (&*service.namespace == namespace, service.canonical);
            if best.is_none_or(|(held, _)| rank > held) {
                best = Some((rank, service));
            }
        }
        best.map(|(_, service)| service)
    }

    fn endpoints(&self, key: &NamespacedHostname) -> Vec<&Uid> {
        let serves = |workload: &&Workload| workload.services.iter().any(|(service, _)| service == key);
        self.workloads.values().filter(serves).map(|workload| &workload.uid).collect()
    }

    fn local_workload(&self, node: Option<&str>, namespace: &str, name: &str, account: &str) -> Vec<&Workload> {
        let is_it = |workload: &&Workload| {
            node.is_none_or(|node| &*workload.place.node == node)
                && &*workload.namespace == namespace
                && workload.name() == name
                && workload.identity.service_account() == account
        };
        self.workloads.values().filter(is_it).collect()
    }
}

fn assert_agrees(snapshot: &Snapshot, scan: &Scan) -> Result<(), TestCaseError> {
    for uid in scan.workloads.keys() {
        prop_assert_eq!(snapshot.workload(uid).map(|found| &**found), scan.workloads.get(uid));
    }
    prop_assert_eq!(snapshot.workloads().count(), scan.workloads.len());
    prop_assert_eq!(snapshot.services().count(), scan.services.len());
    prop_assert_eq!(snapshot.policies().count(), scan.policies.len());
    for network in NETWORKS.map(NetworkId::from) {
        for address in ADDRESSES.map(|text| text.parse::<IpAddr>().expect(text)) {
            let found = snapshot.workload_by_address(&network, address).map(|found| &**found);
            prop_assert_eq!(found, scan.workload_by_address(&network, address), "{}/{}", network, address);
            for namespace in NAMESPACES {
                let found = snapshot.service_by_vip(&network, address, namespace).map(|found| &**found);
                let expected = scan.service_by_vip(&network, address, namespace);
                prop_assert_eq!(found, expected, "{}/{} for {}", network, address, namespace);
            }
        }
    }
    for namespace in NAMESPACES {
        for hostname in HOSTNAMES {
            let key = NamespacedHostname::new(namespace, hostname);
            let found = snapshot.service(&key);
            prop_assert_eq!(found.map(|found| &**found), scan.services.get(&key));
            // Asked as of a service that is not there, too: endpoints may come first.
            let asked = Service::new(namespace, "", hostname);
            let mut endpoints: Vec<&Uid> = snapshot.endpoints(&asked).map(|endpoint| &endpoint.workload.uid).collect();
            endpoints.sort();
            prop_assert_eq!(endpoints, scan.endpoints(&key), "{}", key);
            let found = snapshot.service_by_hostname(hostname, namespace).map(|found| &**found);
            prop_assert_eq!(found, scan.service_by_hostname(hostname, namespace), "{} for {}", hostname, namespace);
            let found = snapshot.workload_by_hostname(&key).map(|found| &**found);
            let named = |workload: &&Workload| &*workload.hostname == hostname && &*workload.namespace == namespace;
            prop_assert_eq!(found.is_some(), scan.workloads.values().any(|workload| named(&workload)));
            prop_assert!(found.is_none_or(|found| named(&found)));
        }
        for name in NAMES {
            for account in ACCOUNTS {
                for node in [None, Some(NODES[0]), Some(NODES[1])] {
                    let found = snapshot.local_workload(node, namespace, name, account).map(|found| &**found);
                    let expected = scan.local_workload(node, namespace, name, account);
                    prop_assert_eq!(found.is_some(), !expected.is_empty());
                    prop_assert!(found.is_none_or(|found| expected.contains(&found)));
                }
            }
        }
    }
    for key in scan.policies.keys() {
        prop_assert_eq!(snapshot.policy(key).map(|found| &**found), scan.policies.get(key));
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_index_gives_what_a_scan_gives(changes in changes()) {
        let mut builder = SnapshotBuilder::new();
        let mut scan = Scan::default();
        for change in changes {
            builder.apply(change.clone());
            scan.apply(change);
            assert_agrees(&builder.freeze(), &scan)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_frozen_snapshot_never_changes(before in changes(), after in changes()) {
        let mut builder = SnapshotBuilder::new();
        let mut scan = Scan::default();
        for change in before {
            builder.apply(change.clone());
            scan.apply(change);
        }
        let frozen = builder.freeze();
        let decided = decisions(&frozen);
        for change in after {
            builder.apply(change);
        }
        drop(builder);
        assert_agrees(&frozen, &scan)?;
        prop_assert_eq!(decisions(&frozen), decided);
    }
}
