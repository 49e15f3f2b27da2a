//! Turns changes into snapshots. The one place where indices are written; reading them is [`crate::snapshot`]'s.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::mem;
use core::net::IpAddr;

use crate::absence::Forgetting;
use crate::change::Change;
use crate::cidr::CidrVips;
use crate::claims::{of_namespace, precedence};
use crate::hash_index::HashIndex;
use crate::intern::Pool;
use crate::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use crate::pages::Numbers;
use crate::policy::Policy;
use crate::roster::{Kind, Roster, at_number, is_same_endpoint};
use crate::service::Service;
use crate::service_index::ServiceIndex;
use crate::snapshot::{Network, Snapshot, Tables, named, place_tag, tail};
use crate::touched::Touched;
use crate::wanted::Sought;
use crate::workload::{Locality, NetworkMode, Place, Profile, Workload};

/// The mesh as known so far. Changes come in any order: an endpoint may precede its service, a workload its policies.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    tables: Tables,
    numbers: Numbers,
    roster_numbers: Numbers,
    profiles: Pool<Profile>,
    places: Pool<Place>,
    localities: Pool<Locality>,
    texts: Pool<str>,
    kinds: Pool<Kind>,
    forgetting: Forgetting,
    touched: Touched,
}

impl SnapshotBuilder {
    /// A mesh of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A mesh of which the control plane sends only what it is asked for: what is not there may just not have been asked for.
    pub fn on_demand() -> Self {
        Self { tables: Tables { on_demand: true, ..Tables::default() }, ..Self::default() }
    }

    /// Whether nothing is here, and nothing is left of what was: no text, no number, no place in an index. What is known to be
    /// absent and what has changed lately is not looked at, which have limits of their own.
    pub fn is_empty(&self) -> bool {
        let Self {
            tables,
            numbers,
            roster_numbers,
            profiles,
            places,
            localities,
            texts,
            kinds,
            forgetting: _,
            touched: _,
        } = self;
        let pools =
            profiles.is_empty() && places.is_empty() && localities.is_empty() && texts.is_empty() && kinds.is_empty();
        pools && numbers.in_use() == 0 && roster_numbers.in_use() == 0 && tables.is_empty()
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
            Change::Absent(sought) => self.forgetting.add(&mut self.tables.absences, sought.canonical()),
            Change::Unknown(sought) => self.tables.absences.remove(&sought.canonical()),
        }
    }

    /// The mesh as it is now, as the next generation. Costs a few reference counts, whatever the size of the mesh.
    pub fn freeze(&mut self) -> Snapshot {
        self.tables.generation += 1;
        self.tables.log.push(mem::take(&mut self.touched));
        Snapshot::of(self.tables.clone())
    }

    /// Reads where in the indices a workload will be, all at once: one place after the other, each when its turn comes, would
    /// be a miss of the caches each.
    fn glance(&self, workload: &Workload) {
        let tables = &self.tables;
        let uid = tables.tag(tail(&workload.uid));
        let address = indexed_addresses(workload).next().map(|address| tables.address_tag(address));
        let service = workload.services.first().map(|(name, _)| tables.tag((&*name.namespace, &*name.hostname)));
        let v4 = tables.network(&workload.network).map(|network| &network.v4);
        black_box((
            tables.by_uid.glance(uid),
            v4.zip(address).map(|(v4, tag)| v4.glance(tag)),
            service.map(|tag| tables.by_service.glance(tag)),
        ));
    }

    fn insert_workload(&mut self, workload: Workload) {
        self.glance(&workload);
        let number = self.tables.number(&workload.uid);
        let held = number.map(|number| at_number(&self.tables.workloads, number).clone());
        // The control plane resends everything after a reconnect; what did not change must not copy anything.
        if held.as_deref() == Some(&workload) {
            return;
        }
        let workload = Arc::new(self.shared(workload));
        self.touched.workload(&workload);
        held.iter().for_each(|held| self.touched.workload(held));
        self.found(|| {
            let address = |address| Sought::Address { network: workload.network.clone(), address };
            let name =
                NamespacedHostname { namespace: workload.namespace.clone(), hostname: workload.hostname.clone() };
            indexed_addresses(&workload).map(address).chain([Sought::Hostname(name)])
        });
        let number = number.unwrap_or_else(|| self.numbers.take());
        let places = Places::changed(held.as_deref(), &workload);
        if let Some(held) = &held {
            self.strike_out(number, held, places);
        }
        self.tables.workloads.set(number, Some(workload.clone()));
        self.enter(number, &workload, places);
        if let Some(held) = held {
            self.give_back(&held);
        }
    }

    fn remove_workload(&mut self, uid: &Uid) {
        let Some(number) = self.tables.number(uid) else {
            return;
        };
        let held = at_number(&self.tables.workloads, number).clone();
        self.touched.workload(&held);
        self.strike_out(number, &held, Places::ALL);
        self.tables.workloads.set(number, None);
        self.numbers.give_back(number);
        self.give_back(&held);
    }

    /// The same workload, holding what others hold, too.
    fn shared(&mut self, mut workload: Workload) -> Workload {
        if workload.addresses.len() > 1 {
            let mut addresses = workload.addresses.to_vec();
            keep_first(&mut addresses, IpAddr::to_canonical);
            workload.addresses = addresses.into();
        }
        workload.profile = match self.profiles.take_held(&workload.profile) {
            Some(profile) => profile,
            None => self.first_profile(&workload.profile),
        };
        workload.place = match self.places.take_held(&workload.place) {
            Some(place) => place,
            None => {
                let Place { node, locality } = &*workload.place;
                let (node, locality) = (self.texts.take(node), self.localities.take(locality));
                self.places.take(&Arc::new(Place { node, locality }))
            }
        };
        workload
    }

    /// A profile that is not held, but perhaps is when nothing in it is said twice.
    fn first_profile(&mut self, profile: &Profile) -> Arc<Profile> {
        let mut profile = profile.clone();
        let said = (profile.services.len(), profile.authorization_policies.len());
        keep_first(&mut profile.services, |(service, _)| service.clone());
        keep_first(&mut profile.authorization_policies, PolicyKey::clone);
        if said != (profile.services.len(), profile.authorization_policies.len())
            && let Some(held) = self.profiles.take_held(&profile)
        {
            return held;
        }
        let mut glanced = 0;
        profile.texts(&mut |text| glanced ^= self.texts.glance(text));
        black_box(glanced);
        profile.texts(&mut |text| *text = self.texts.take(text));
        self.profiles.take(&Arc::new(profile))
    }

    fn give_back(&mut self, workload: &Workload) {
        if self.profiles.give_back(&workload.profile) {
            Profile::clone(&workload.profile).texts(&mut |text| {
                self.texts.give_back(text);
            });
        }
        if self.places.give_back(&workload.place) {
            self.texts.give_back(&workload.place.node);
            self.localities.give_back(&workload.place.locality);
        }
    }

    /// Enters a workload where it is to be found, as far as `places` say. It is in `workloads` already.
    fn enter(&mut self, number: u32, workload: &Workload, places: Places) {
        let tables = &mut self.tables;
        // The best of those with one key stands first among them, and so among all with one tag.
        let held = &tables.workloads;
        let better = |other| precedence(at_number(held, other), workload).is_lt();
        let (by_uid, by_name) = (tables.tag(tail(&workload.uid)), tables.tag(named(workload)));
        if places.uid || places.name {
            tables.by_uid.insert(by_uid, number, better);
        }
        if places.name && by_uid != by_name {
            tables.by_name.insert(by_name, number, better);
        }
        if places.hostname && !workload.hostname.is_empty() {
            let tag = tables.tag((&*workload.namespace, &*workload.hostname));
            tables.by_hostname.insert(tag, number, better);
        }
        if places.addresses {
            for address in indexed_addresses(workload) {
                let tag = tables.address_tag(address);
                network_mut(&mut tables.networks, &workload.network).workloads_mut(address).insert(tag, number, better);
            }
        }
        if places.rosters {
            for (service, ports) in &workload.services {
                let roster = roster_of(tables, &mut self.roster_numbers, service);
                let roster = tables.rosters.get_mut(roster).expect(ROSTER);
                Arc::make_mut(roster).insert(&tables.workloads, &mut self.kinds, number, workload, ports);
            }
        }
    }

    /// The reverse of [`SnapshotBuilder::enter`]. The workload is in `workloads` still.
    fn strike_out(&mut self, number: u32, workload: &Workload, places: Places) {
        let tables = &mut self.tables;
        let (by_uid, by_name) = (tables.tag(tail(&workload.uid)), tables.tag(named(workload)));
        if places.uid || places.name {
            tables.by_uid.remove(by_uid, number);
        }
        if places.name && by_uid != by_name {
            tables.by_name.remove(by_name, number);
        }
        if places.hostname && !workload.hostname.is_empty() {
            let tag = tables.tag((&*workload.namespace, &*workload.hostname));
            tables.by_hostname.remove(tag, number);
        }
        if places.addresses {
            for address in indexed_addresses(workload) {
                let tag = tables.address_tag(address);
                network_mut(&mut tables.networks, &workload.network).workloads_mut(address).remove(tag, number);
            }
            drop_empty_network(tables, &workload.network);
        }
        if places.rosters {
            for (service, ports) in &workload.services {
                let number = tables.roster_number(&service.namespace, &service.hostname).expect(ROSTER);
                let roster = Arc::make_mut(tables.rosters.get_mut(number).expect(ROSTER));
                roster.remove(&tables.workloads, &mut self.kinds, workload, ports);
                if roster.is_empty() {
                    drop_roster_of_nobody(tables, &mut self.roster_numbers, service);
                }
            }
        }
    }

    /// What was known to be absent is there.
    fn found<I: Iterator<Item = Sought>>(&mut self, sought: impl FnOnce() -> I) {
        if !self.tables.absences.is_empty() {
            sought().for_each(|sought| self.tables.absences.remove(&sought));
        }
    }

    fn insert_service(&mut self, mut service: Service) {
        let name = service.key();
        let held = find_service(&self.tables, &name);
        if held.is_some_and(|held| **held == service) {
            return;
        }
        self.remove_service(&name);
        service.texts(&mut |text| *text = self.texts.take(text));
        let service = Arc::new(service);
        self.touched.service(service.key());
        self.found(|| {
            let vips = service
                .vips
                .iter()
                .filter_map(|vip| Some(Sought::Address { network: vip.network.clone(), address: vip.single()? }));
            vips.chain([Sought::Hostname(service.key())])
        });
        let tables = &mut self.tables;
        for vip in &service.vips {
            let network = network_mut(&mut tables.networks, &vip.network);
            match vip.single() {
                Some(address) => network.vips.claim(address, &service),
                None => network.blocks.insert(vip.address, &service),
            }
        }
        tables.services.claim(service.hostname.clone(), &service);
        let roster = roster_of(tables, &mut self.roster_numbers, &service.key());
        tables.at_service.insert(place_tag(&service), roster, |_| true);
    }

    fn remove_service(&mut self, name: &NamespacedHostname) {
        let Some(service) = find_service(&self.tables, name).cloned() else { return };
        self.touched.service(service.key());
        let tables = &mut self.tables;
        for vip in &service.vips {
            let network = network_mut(&mut tables.networks, &vip.network);
            match vip.single() {
                Some(address) => network.vips.waive(&address, &service),
                None => network.blocks.remove(vip.address, &service),
            }
            drop_empty_network(tables, &vip.network);
        }
        tables.services.waive(&service.hostname, &service);
        let roster = tables.roster_number(&service.namespace, &service.hostname).expect(ROSTER);
        tables.at_service.remove(place_tag(&service), roster);
        drop_roster_of_nobody(tables, &mut self.roster_numbers, name);
        Service::clone(&service).texts(&mut |text| {
            self.texts.give_back(text);
        });
    }

    fn insert_policy(&mut self, policy: Policy) {
        if self.tables.policies.get(&policy.key).is_some_and(|held| *held.policy == policy) {
            return;
        }
        self.remove_policy(&policy.key);
        self.touched.policy(&policy);
        self.tables.policies.insert(policy);
    }

    fn remove_policy(&mut self, key: &PolicyKey) {
        if let Some(held) = self.tables.policies.get(key) {
            self.touched.policy(&held.policy);
            self.tables.policies.remove(key);
        }
    }
}

const ROSTER: &str = "every service that is there, or that a workload names, has a roster";

/// The number of the roster of a service, which may be new.
fn roster_of(tables: &mut Tables, numbers: &mut Numbers, service: &NamespacedHostname) -> u32 {
    if let Some(number) = tables.roster_number(&service.namespace, &service.hostname) {
        return number;
    }
    let number = numbers.take();
    let tag = tables.tag((&*service.namespace, &*service.hostname));
    tables.by_service.insert(tag, number, |_| true);
    tables.rosters.set(number, Some(Arc::new(Roster::new(service.clone()))));
    number
}

/// Lets the roster go of a service that is neither there nor named by a workload.
fn drop_roster_of_nobody(tables: &mut Tables, numbers: &mut Numbers, service: &NamespacedHostname) {
    let Some(number) = tables.roster_number(&service.namespace, &service.hostname) else { return };
    let is_empty = tables.rosters.get(number).is_some_and(|roster| roster.is_empty());
    if is_empty && find_service(tables, service).is_none() {
        let tag = tables.tag((&*service.namespace, &*service.hostname));
        tables.by_service.remove(tag, number);
        tables.rosters.set(number, None);
        numbers.give_back(number);
    }
}

/// Where a workload is to be found, and which of it a change concerns.
#[derive(Clone, Copy, Debug)]
struct Places {
    uid: bool,
    name: bool,
    hostname: bool,
    addresses: bool,
    rosters: bool,
}

impl Places {
    const ALL: Self = Self { uid: true, name: true, hostname: true, addresses: true, rosters: true };

    /// An endpoint whose health, node or labels changed is still found where it was: nothing of that is copied.
    fn changed(held: Option<&Workload>, new: &Workload) -> Self {
        let Some(held) = held else { return Self::ALL };
        // Where several share a key, the better comes first.
        let ranked = held.protocol != new.protocol;
        Self {
            uid: false,
            name: ranked || held.namespace != new.namespace || held.name() != new.name(),
            hostname: ranked || held.namespace != new.namespace || held.hostname != new.hostname,
            addresses: ranked
                || held.network != new.network
                || held.network_mode != new.network_mode
                || held.addresses != new.addresses,
            rosters: !is_same_endpoint(held, new),
        }
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

/// Drops every item with the key of an earlier one. A tenant decides how many services select its pod, so not by comparing
/// all with all.
fn keep_first<T, K: Ord>(items: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut seen = BTreeSet::new();
    items.retain(|item| seen.insert(key(item)));
}

fn find_service<'t>(tables: &'t Tables, name: &NamespacedHostname) -> Option<&'t Arc<Service>> {
    of_namespace(tables.services.get(&*name.hostname), &name.namespace)
}

fn network_mut<'n>(networks: &'n mut Arc<Vec<Network>>, name: &NetworkId) -> &'n mut Network {
    let networks = Arc::make_mut(networks);
    let at = networks.binary_search_by(|network| network.name.cmp(name)).unwrap_or_else(|at| {
        let name = name.clone();
        let (vips, blocks) = (ServiceIndex::default(), CidrVips::default());
        networks.insert(at, Network { name, v4: HashIndex::default(), v6: HashIndex::default(), vips, blocks });
        at
    });
    &mut networks[at]
}

fn drop_empty_network(tables: &mut Tables, name: &NetworkId) {
    let is_empty = |network: &Network| {
        network.v4.is_empty() && network.v6.is_empty() && network.vips.is_empty() && network.blocks.is_empty()
    };
    if tables.network(name).is_some_and(is_empty) {
        Arc::make_mut(&mut tables.networks).retain(|network| network.name != *name);
    }
}
