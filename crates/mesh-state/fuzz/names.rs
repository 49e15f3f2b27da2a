//! What must hold of the answer to any name, for the fuzzer and for the replay of its corpus.

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::dns::{Answer, ENDPOINTS_MAX, Naming, Query, RecordKind, answer};
use mesh_state::identity::Identity;
use mesh_state::name::NetworkId;
use mesh_state::service::{Service, Vip};
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::Workload;

/// Whether the name is the mesh's.
pub(crate) fn check(name: &str) -> bool {
    let snapshot = mesh();
    let identity = Identity::new("cluster.local", "web", "client").expect("good parts");
    let client = Workload::new("Kubernetes//Pod/web/client-0".into(), "web", "client-0", identity);
    let naming = Naming { cluster_domain: "cluster.local", preferred_namespace: None, ipv6: true };
    let ask = |name: &str, kind| answer(&snapshot, &Query { client: &client, name, kind, naming: &naming }, 7);
    assert_eq!(ask(name, RecordKind::Other), Answer::Forward);
    let answered = ask(name, RecordKind::A);
    assert_eq!(ask(&name.to_ascii_uppercase(), RecordKind::A), answered, "{name:?}");
    if !name.ends_with('.') {
        assert_eq!(ask(&format!("{name}."), RecordKind::A), answered, "{name:?}");
    }
    match answered {
        Answer::Forward => false,
        Answer::Local(records) => {
            assert!((1..=ENDPOINTS_MAX).contains(&records.addresses.len()), "{name:?}: each service here has some");
            if let Some(owner) = records.canonical_name {
                // What the resolver had appended, and nothing else.
                let asked = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                let appended = asked.strip_prefix(&*owner).unwrap_or_else(|| panic!("{owner:?} of {name:?}"));
                assert!(appended.ends_with(".cluster.local"), "{owner:?} of {name:?}");
            }
            true
        }
    }
}

fn mesh() -> Snapshot {
    let mut builder = SnapshotBuilder::new();
    for (namespace, hostname, address) in [
        ("web", "front.web.svc.cluster.local", [10, 96, 0, 1]),
        ("retail", "shop.retail.svc.cluster.local", [10, 96, 0, 2]),
        ("outside", "api.example.com", [240, 0, 0, 1]),
        ("outside", "*.example.com", [240, 0, 0, 2]),
    ] {
        let mut service = Service::new(namespace, "s", hostname);
        let address = std::net::IpAddr::from(address).into();
        service.vips = vec![Vip { network: NetworkId::from(""), address }];
        builder.apply(Change::Service(service));
    }
    builder.freeze()
}
