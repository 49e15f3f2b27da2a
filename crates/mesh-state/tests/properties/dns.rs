//! DNS answers are those of an evaluator that looks at every service for every reading of a name; and what cannot matter
//! does not: case, the final dot, the draw, and whatever search domain a resolver appends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::dns::{Answer, Naming, Query, RecordKind, answer};
use mesh_state::identity::Identity;
use mesh_state::name::{NamespacedHostname, NetworkId};
use mesh_state::service::{HealthPolicy, IpFamilies, Service, Vip, Visibility};
use mesh_state::workload::{Status, Workload};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::universe::{NAMESPACES, NETWORKS, address, network, workload};

const DOMAIN: &str = "d.e";
const LABELS: [&str; 6] = ["x", "y", "a", "b", "svc", "*"];
const HOSTNAMES: [&str; 10] = [
    "x.a.svc.d.e",
    "x.b.svc.d.e",
    "y.a.svc.d.e",
    "y.x.a.svc.d.e",
    "*.a.svc.d.e",
    "x.y",
    "*.y",
    "*.x.y",
    "x.a",
    "a.svc",
];

fn service() -> impl Strategy<Value = Service> {
    let vip = (network(), address()).prop_map(|(network, address)| Vip { network, address: address.into() });
    let block = network().prop_map(|network| Vip { network, address: "10.9.0.0/16".parse().expect("a block") });
    let vips = vec(prop_oneof![5 => vip, 1 => block], 0..3);
    let families = select(&[IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual][..]);
    let visibility = prop_oneof![4 => Just(Visibility::Public), 1 => Just(Visibility::Namespace)];
    let allow_all = any::<bool>();
    let who = (select(&NAMESPACES[..]), select(&HOSTNAMES[..]), any::<bool>());
    (who, vips, families, visibility, allow_all).prop_map(|(who, vips, ip_families, visibility, allow_all)| {
        let (namespace, hostname, canonical) = who;
        let mut service =
            Service { vips, ip_families, visibility, canonical, ..Service::new(namespace, "s", hostname) };
        if allow_all {
            service.load_balancing.health = HealthPolicy::AllowAll;
        }
        service
    })
}

fn endpoint() -> impl Strategy<Value = Workload> {
    let service = (select(&NAMESPACES[..]), select(&HOSTNAMES[..]));
    (workload(), vec(service, 0..3)).prop_map(|(mut workload, services)| {
        let key = |(namespace, hostname): &(&str, &str)| NamespacedHostname::new(namespace, hostname);
        workload.services = services.iter().map(|service| (key(service), Vec::new())).collect();
        workload
    })
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        3 => service().prop_map(Change::Service),
        1 => service().prop_map(|service| Change::ServiceGone(service.key())),
        3 => endpoint().prop_map(Change::Workload),
        1 => endpoint().prop_map(|workload| Change::WorkloadGone(workload.uid)),
    ];
    vec(change, 0..30)
}

/// Names that may be somebody's, and search domains after them.
fn name() -> impl Strategy<Value = String> {
    let of_labels = vec(select(&LABELS[..]), 1..6).prop_map(|labels| labels.join("."));
    let base = prop_oneof![3 => of_labels, 2 => select(&HOSTNAMES[..]).prop_map(str::to_owned)];
    (base, select(&["", "", ".d.e", ".svc.d.e", ".a.svc.d.e", ".b.svc.d.e"][..])).prop_map(|(base, end)| base + end)
}

fn client(namespace: &str, network: &str) -> Workload {
    let identity = Identity::new("td", namespace, "s").expect("good parts");
    let mut client = Workload::new("c//Pod/a/client".into(), namespace, "client", identity);
    client.network = NetworkId::from(network);
    client
}

/// The readings of a name, as §10.3 tells them, over lists of labels: each with the stripped name it is a reading of.
fn readings(name: &str, namespace: &str) -> Vec<(Vec<String>, Option<String>)> {
    let labels = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let join = |parts: &[&[String]]| parts.concat();
    let (svc, domain, own) = (labels("svc"), labels(DOMAIN), labels(namespace));
    let completed = |name: &[String]| -> Vec<Vec<String>> {
        let in_svc = name.last().is_some_and(|last| last == "svc");
        match name.len() {
            1 => vec![join(&[name, &own, &svc, &domain])],
            2 => vec![join(&[name, &svc, &domain]), join(&[name, &own, &svc, &domain])],
            3 if in_svc => vec![join(&[name, &domain]), join(&[name, &svc, &domain])],
            3 => vec![join(&[name, &svc, &domain])],
            4 if in_svc => vec![join(&[name, &domain])],
            _ => vec![],
        }
    };
    let asked = labels(name);
    let mut readings: Vec<(Vec<String>, Option<String>)> = vec![(asked.clone(), None)];
    readings.extend(completed(&asked).into_iter().map(|reading| (reading, None)));
    for searched in [join(&[&own, &svc, &domain]), join(&[&svc, &domain]), domain.clone()] {
        if asked.len() > searched.len() && asked.ends_with(&searched) {
            let stripped = &asked[..asked.len() - searched.len()];
            let of = Some(stripped.join("."));
            readings.push((stripped.to_vec(), of.clone()));
            readings.extend(completed(stripped).into_iter().map(|reading| (reading, of.clone())));
        }
    }
    readings
}

/// The owner when it is another name, the addresses, and whose they are; `None` for what is forwarded.
type Told = Option<(Option<String>, BTreeSet<IpAddr>, NamespacedHostname)>;

fn naive(
    services: &[Service],
    workloads: &[Workload],
    client: &Workload,
    name: &str,
    ipv4: bool,
    naming: &Naming<'_>,
) -> Told {
    let exact = |service: &Service| {
        service.vips.iter().filter(|vip| vip.address.prefix_len() == vip.address.max_prefix_len()).count()
    };
    let is_known = |service: &&Service| {
        let visible = service.visibility == Visibility::Public || service.namespace == client.namespace;
        visible && (exact(service) > 0 || service.hostname.ends_with(".svc.d.e"))
    };
    let mut meant = None;
    'found: for (reading, stripped) in readings(name, &client.namespace) {
        for dropped in 0..reading.len() {
            let pattern = match dropped {
                0 => reading.join("."),
                _ => format!("*.{}", reading[dropped..].join(".")),
            };
            let mut candidates: Vec<&Service> =
                services.iter().filter(is_known).filter(|service| *service.hostname == *pattern).collect();
            candidates.sort_by_key(|service| {
                let rank = |yes: bool| u8::from(!yes);
                let preferred = naming.preferred_namespace == Some(&*service.namespace);
                (
                    rank(service.namespace == client.namespace),
                    rank(service.canonical),
                    rank(preferred),
                    service.namespace.clone(),
                )
            });
            if let Some(service) = candidates.first() {
                meant = Some((*service, stripped.filter(|_| dropped == 0)));
                break 'found;
            }
        }
    }
    let (service, owner) = meant?;
    let family_refused = match service.ip_families {
        IpFamilies::Ipv4Only => !ipv4,
        IpFamilies::Ipv6Only => ipv4,
        IpFamilies::Automatic | IpFamilies::Dual => false,
    };
    let mut addresses = BTreeSet::new();
    if !family_refused && (ipv4 || naming.ipv6) {
        if exact(service) > 0 {
            for vip in service.vips.iter().filter(|vip| vip.network == client.network) {
                if vip.address.prefix_len() == vip.address.max_prefix_len() {
                    addresses.insert(vip.address.addr().to_canonical());
                }
            }
        } else {
            for workload in workloads.iter().filter(|workload| workload.network == client.network) {
                let serves = workload.services.iter().any(|(key, _)| *key == service.key());
                let fit = workload.status == Status::Healthy || service.load_balancing.health == HealthPolicy::AllowAll;
                let own = workload.addresses.iter().map(|address| address.to_canonical());
                if serves && fit {
                    addresses.extend(own.filter(|address| address.is_ipv4() == ipv4).take(1));
                }
            }
        }
        addresses.retain(|address| address.is_ipv4() == ipv4);
    }
    Some((owner.filter(|_| !addresses.is_empty()), addresses, service.key()))
}

fn told(answer: Answer) -> Told {
    match answer {
        Answer::Forward => None,
        Answer::Local(records) => {
            Some((records.canonical_name, records.addresses.into_iter().collect(), records.service.key()))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn names_are_answered_as_a_naive_evaluator_does(
        changes in changes(),
        names in vec(name(), 8),
        // One more than have services, so that a client of it has to choose between theirs.
        namespace in select(&["a", "b", "c"][..]),
        network in select(&NETWORKS[..]),
        preferred in proptest::option::of(select(&NAMESPACES[..])),
        ipv6 in any::<bool>(),
        draw in any::<u64>(),
    ) {
        let mut builder = SnapshotBuilder::new();
        changes.into_iter().for_each(|change| builder.apply(change));
        let snapshot = builder.freeze();
        let services: Vec<Service> = snapshot.services().map(|service| (**service).clone()).collect();
        let workloads: Vec<Workload> = snapshot.workloads().map(|workload| (**workload).clone()).collect();
        let client = client(namespace, network);
        let naming = Naming { cluster_domain: DOMAIN, preferred_namespace: preferred, ipv6 };
        for name in names.iter().map(String::as_str).chain(HOSTNAMES) {
            for kind in [RecordKind::A, RecordKind::Aaaa] {
                let ask = |name: &str, draw: u64| {
                    told(answer(&snapshot, &Query { client: &client, name, kind, naming: &naming }, draw))
                };
                let expected = naive(&services, &workloads, &client, name, kind == RecordKind::A, &naming);
                prop_assert_eq!(&ask(name, draw), &expected, "{} {:?}", name, kind);
                prop_assert_eq!(&ask(&format!("{}.", name.to_uppercase()), !draw), &expected, "{} in capitals", name);
            }
        }
    }

    #[test]
    fn any_text_is_a_name_or_forwarded(text in "(\\PC|\\.){0,300}", domain in "[a-z.]{0,12}", kind in 0..3) {
        let kind = [RecordKind::A, RecordKind::Aaaa, RecordKind::Other][usize::try_from(kind).unwrap_or(0)];
        let naming = Naming { cluster_domain: &domain, preferred_namespace: None, ipv6: true };
        let client = client("a", "");
        let query = Query { client: &client, name: &text, kind, naming: &naming };
        prop_assert_eq!(answer(&mesh_state::snapshot::Snapshot::empty(), &query, 0), Answer::Forward);
    }
}
