//! Services of many endpoints: more than fit one chunk of the list that holds them.

use std::collections::BTreeSet;

use mesh_state::builder::SnapshotBuilder;
use mesh_state::change::Change;
use mesh_state::identity::Identity;
use mesh_state::name::{NamespacedHostname, Uid};
use mesh_state::service::Service;
use mesh_state::snapshot::Snapshot;
use mesh_state::workload::Workload;
use proptest::collection::vec;
use proptest::prelude::*;

const HOST: &str = "many.example.com";

fn uid(number: u16) -> Uid {
    format!("c//Pod/a/{number:05}").as_str().into()
}

fn endpoint(number: u16, capacity: u32) -> Workload {
    let identity = Identity::new("td", "a", "s").expect("valid parts");
    let mut workload = Workload::new(uid(number), "a", "x", identity);
    workload.services = vec![(NamespacedHostname::new("a", HOST), Vec::new())];
    workload.capacity = capacity;
    workload
}

fn listed(snapshot: &Snapshot) -> Vec<Uid> {
    let service = Service::new("a", "many", HOST);
    let mut listed: Vec<Uid> = snapshot.endpoints(&service).map(|endpoint| endpoint.workload.uid.clone()).collect();
    listed.sort();
    listed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_long_list_of_endpoints_is_a_set(
        steps in vec((0..400u16, prop_oneof![3 => Just(true), 1 => Just(false)]), 0..1200),
        shrink in any::<bool>(),
    ) {
        let mut builder = SnapshotBuilder::new();
        let mut model = BTreeSet::new();
        for (step, (number, insert)) in steps.into_iter().enumerate() {
            if insert {
                builder.apply(Change::Workload(endpoint(number, u32::try_from(step).expect("few"))));
                model.insert(uid(number));
            } else {
                builder.apply(Change::WorkloadGone(uid(number)));
                model.remove(&uid(number));
            }
        }
        let full = builder.freeze();
        prop_assert_eq!(listed(&full), model.iter().cloned().collect::<Vec<_>>());
        let service = Service::new("a", "many", HOST);
        for number in 0..400 {
            prop_assert_eq!(full.endpoint(&service, &uid(number)).is_some(), model.contains(&uid(number)), "{}", number);
        }
        let before = listed(&full);
        for number in (0..400).filter(|number| shrink && number % 7 != 0) {
            builder.apply(Change::WorkloadGone(uid(number)));
            model.remove(&uid(number));
        }
        prop_assert_eq!(listed(&builder.freeze()), model.iter().cloned().collect::<Vec<_>>());
        prop_assert_eq!(listed(&full), before);
    }
}
