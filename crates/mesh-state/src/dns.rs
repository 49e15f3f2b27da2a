//! What the DNS proxy answers by itself (behaviour §10.2 to §10.4): names of services, for the workload that asks. Not the
//! messages, not the resolver behind it: what is no name of the mesh is forwarded, so that NXDOMAIN is only ever the
//! upstream's word.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::name::NamespacedHostname;
use crate::route::{redraw, scale};
use crate::service::{HealthPolicy, IpFamilies, Service};
use crate::snapshot::Snapshot;
use crate::wanted::{Knowledge, Sought};
use crate::workload::{Status, Workload};

use search::Candidate;

mod search;

/// How long an answer may be kept, in seconds.
pub const TTL_S: u32 = 30;

/// The endpoints of a headless service that one answer has. So many AAAA records (28 bytes each) fit into a
/// message of 64 KiB; a service with more is answered with some of them.
pub const ENDPOINTS_MAX: usize = 2048;

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Who asks; its namespace completes names, and its network tells which addresses it can use.
    pub client: &'a Workload,
    /// The name asked for, in any case, with or without the dot at its end. A name that has no such text is no service's.
    pub name: &'a str,
    /// What is asked about it.
    pub kind: RecordKind,
    /// How names are read in this mesh.
    pub naming: &'a Naming<'a>,
}

/// What is asked about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Anything else, which is never answered here.
    Other,
}

/// How names are read in this mesh.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// The domain of the cluster, in lower case: `cluster.local`.
    pub cluster_domain: &'a str,
    /// The namespace whose service is meant when several have a name and neither is the client's own or canonical (ztunnel's
    /// `PREFERED_SERVICE_NAMESPACE`).
    pub preferred_namespace: Option<&'a str>,
    /// Whether IPv6 addresses are of any use here.
    pub ipv6: bool,
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is no name of the mesh, or no kind that is answered here. Ask upstream, and pass on what it says.
    Forward,
    /// These, with authority and without error. A name of the mesh that has no such record has none, rather than not being
    /// there: NXDOMAIN would deny its other records, too.
    Local(Records),
}

/// The records of a name of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// The name whose the addresses are, when it is not the one asked for: a CNAME from that to this goes before them. The
    /// client's resolver then knows that its search domain was not part of the name.
    pub canonical_name: Option<String>,
    /// Addresses of the kind asked for, each once, in the order of the draw.
    pub addresses: Vec<IpAddr>,
    /// Whose they are.
    pub service: Arc<Service>,
}

/// Answers a question. The same snapshot, query and draw give the same answer; the draw decides the order of the addresses.
///
/// A name is looked up as it is, then as Kubernetes completes it, then without each search domain it ends with (a client's
/// resolver appends them to any name of fewer dots than its `ndots`); each with the wildcards above it. The first that a
/// visible service has wins.
///
/// A name of 127 labels costs at most about 500 lookups.
pub fn answer(snapshot: &Snapshot, query: &Query<'_>, draw: u64) -> Answer {
    let Query { client, kind, naming, .. } = *query;
    let wants_ipv4 = match kind {
        RecordKind::A => true,
        RecordKind::Aaaa => false,
        RecordKind::Other => return Answer::Forward,
    };
    let Some(name) = search::lower_case(query.name) else {
        return Answer::Forward;
    };
    let find = |hostname: &str| meant(snapshot, hostname, client, naming);
    let found = search::candidates(&name, &client.namespace, naming.cluster_domain)
        .into_iter()
        .find_map(|candidate| find_or_wildcard(&candidate, &find).map(|found| (candidate, found)));
    let Some((candidate, Found { service, by_wildcard })) = found else {
        return Answer::Forward;
    };
    let refused = match service.ip_families {
        IpFamilies::Automatic | IpFamilies::Dual => false,
        IpFamilies::Ipv4Only => !wants_ipv4,
        IpFamilies::Ipv6Only => wants_ipv4,
    };
    let mut addresses = match refused || !(wants_ipv4 || naming.ipv6) {
        true => Vec::new(),
        false => addresses(snapshot, service, client, wants_ipv4),
    };
    shuffle(&mut addresses, draw);
    let canonical_name = candidate.stripped.filter(|_| !by_wildcard && !addresses.is_empty());
    Answer::Local(Records { canonical_name, addresses, service: service.clone() })
}

/// What has to be asked of a control plane that sends only what it is asked for, before an answer may be relied on: the service
/// of each name that is looked up, in that order. One at a time: the first that is there ends the search. A name that is not the
/// cluster's is looked for in the client's namespace only, since a service is asked for by its namespace.
pub fn lacking(snapshot: &Snapshot, query: &Query<'_>) -> Option<Sought> {
    let Query { client, kind, naming, .. } = *query;
    if kind == RecordKind::Other {
        return None;
    }
    let name = search::lower_case(query.name)?;
    let find = |hostname: &str| meant(snapshot, hostname, client, naming);
    for candidate in search::candidates(&name, &client.namespace, naming.cluster_domain) {
        let namespace = namespace_of(&candidate.hostname, naming.cluster_domain).unwrap_or(&client.namespace);
        let sought = Sought::Hostname(NamespacedHostname::new(namespace, &candidate.hostname));
        if snapshot.knowledge(&sought) == Knowledge::NotAsked {
            return Some(sought);
        }
        if find_or_wildcard(&candidate, &find).is_some() {
            return None;
        }
    }
    None
}

/// The namespace in `NAME.NAMESPACE.svc.DOMAIN`.
fn namespace_of<'h>(hostname: &'h str, domain: &str) -> Option<&'h str> {
    let name = hostname.strip_suffix(domain)?.strip_suffix(".svc.")?;
    name.rsplit_once('.').map(|(_, namespace)| namespace)
}

struct Found<'s> {
    service: &'s Arc<Service>,
    by_wildcard: bool,
}

fn find_or_wildcard<'s>(candidate: &Candidate, find: &dyn Fn(&str) -> Option<&'s Arc<Service>>) -> Option<Found<'s>> {
    if let Some(service) = find(&candidate.hostname) {
        return Some(Found { service, by_wildcard: false });
    }
    let mut wildcard = String::with_capacity(candidate.hostname.len());
    for (dot, _) in candidate.hostname.match_indices('.') {
        wildcard.clear();
        wildcard.push('*');
        wildcard.push_str(&candidate.hostname[dot..]);
        if let Some(service) = find(&wildcard) {
            return Some(Found { service, by_wildcard: true });
        }
    }
    None
}

/// The service that a client means by a full hostname: of those it may see and that have addresses to tell, its own
/// namespace's, else a canonical one, else the preferred namespace's, else the first.
fn meant<'s>(
    snapshot: &'s Snapshot,
    hostname: &str,
    client: &Workload,
    naming: &Naming<'_>,
) -> Option<&'s Arc<Service>> {
    // Of a block there is no telling which address is meant.
    let has_vip = |service: &Service| service.vips.iter().any(|vip| vip.single().is_some());
    let tells = |service: &&Arc<Service>| {
        service.is_visible_to(&client.namespace) && (has_vip(service) || is_of_kubernetes(service, naming))
    };
    let rank = |service: &&Arc<Service>| {
        let namespace = &*service.namespace;
        (namespace == &*client.namespace, service.canonical, naming.preferred_namespace == Some(namespace))
    };
    // From the end, for of equals the last is taken.
    snapshot.services_by_hostname(hostname).iter().rev().filter(tells).max_by_key(rank)
}

/// Whether a service without addresses is one of Kubernetes' headless ones, which stand for their endpoints' addresses.
fn is_of_kubernetes(service: &Service, naming: &Naming<'_>) -> bool {
    let before_domain = service.hostname.strip_suffix(naming.cluster_domain);
    before_domain.is_some_and(|rest| rest.ends_with(".svc."))
}

/// The addresses of a service that a client can use: its own, else those of its endpoints.
fn addresses(snapshot: &Snapshot, service: &Service, client: &Workload, ipv4: bool) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let vips = || service.vips.iter().filter_map(|vip| Some((&vip.network, vip.single()?)));
    if vips().next().is_some() {
        let of_network = vips().filter(|(network, _)| **network == client.network);
        addresses.extend(of_network.map(|(_, address)| address).filter(|address| address.is_ipv4() == ipv4));
    } else {
        let fit = snapshot.endpoints(service).filter_map(|endpoint| {
            let workload = endpoint.workload;
            let is_fit = workload.status == Status::Healthy || service.load_balancing.health == HealthPolicy::AllowAll;
            // An address of another network is nobody's in the client's, or somebody else's.
            let own = workload.addresses.iter().filter(|_| is_fit && workload.network == client.network);
            own.map(IpAddr::to_canonical).find(|address| address.is_ipv4() == ipv4)
        });
        // Limited after those that are of no use: they may be the first.
        addresses.extend(fit.take(ENDPOINTS_MAX));
    }
    // Several pods on one node's network have one address.
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn shuffle(addresses: &mut [IpAddr], mut draw: u64) {
    for left in (2..=addresses.len()).rev() {
        draw = redraw(draw);
        let bound = u64::try_from(left).expect("a length in memory");
        addresses.swap(left - 1, usize::try_from(scale(draw, bound)).expect("below that length"));
    }
}
