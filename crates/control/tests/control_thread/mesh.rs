//! The mesh file under a running control thread: taken, refused, and what it says of the pods that are here.

use crate::{
    log::Log,
    world::{Clock, Event, identity, with},
};

fn workload(trust_domain: &str) -> String {
    format!(
        "workloads:\n- name: web\n  namespace: shop\n  serviceAccount: web\n  trustDomain: {trust_domain}\n  workloadIps: []\n  services: {{}}\n"
    )
}

#[test]
fn a_broken_change_is_named_and_changes_nothing_and_a_good_one_is_the_next_generation() {
    with(Clock::Wall, Some(&workload("cluster.local")), async |world| {
        let mut log = Log::listen();
        let Event::Snapshot(first) = world.event().await else { panic!("the mesh comes first") };
        assert!(!world.status.pending().contains(&"state manager"));
        for (text, why) in [
            ("workloads: 7", ":1:12: workloads: a list"),
            ("workloads: [", ":1:12: workloads: unclosed"),
            ("workloads:\n- {namespace: n}", ":2:4: workloads[0]: missing field"),
        ] {
            world.replace_mesh(text);
            let named = format!("{}{why}", world.mesh_file().display());
            let line = log.line().await;
            assert!(line.contains(&named), "{named} is not in {line}");
        }
        log.nothing_more();
        world.nothing_more();
        world.replace_mesh(&workload("prod"));
        assert_eq!(world.event().await, Event::Snapshot(first + 1));
        assert_eq!(world.status.generation(), first + 1);
    });
}

#[test]
fn a_file_that_is_broken_at_the_start_ends_the_control_thread_by_name_and_field() {
    for (text, why) in [("workloads: 7", ":1:12: workloads: a list"), ("wrong", ":1:1: a mapping")] {
        with(Clock::Wall, Some(text), async |world| {
            let error = world.ended().await.expect_err(text).to_string();
            let named = format!("{}{why}", world.mesh_file().display());
            assert!(error.contains(&named), "{named} is not in {error}");
        });
    }
}

#[test]
fn a_pod_whose_identity_the_mesh_changes_has_the_new_one_and_not_the_old() {
    with(Clock::Wall, Some(&workload("cluster.local")), async |world| {
        assert!(matches!(world.event().await, Event::Snapshot(_)));
        let agent = world.agent.accept().await;
        agent.add("web", "web");
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Up("web".into()));
        assert_eq!(world.event().await, Event::Certificate(identity("web")));
        world.replace_mesh(&workload("prod"));
        assert!(matches!(world.event().await, Event::Snapshot(_)));
        assert_eq!(world.event().await, Event::Gone(identity("web")));
        assert_eq!(world.event().await, Event::Certificate("spiffe://prod/ns/shop/sa/web".into()));
    });
}
