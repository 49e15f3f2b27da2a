//! Pods: captured, answered for, tried again, kept over a new connection and stopped.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    agent::{SNAPSHOT, add_without_info, del, keep},
    world::{Clock, Event, World, identity, with},
};

const SOON: Duration = Duration::ZERO;

fn failed() -> Result<(), String> {
    Err("port 15008 is taken".to_owned())
}

/// Reads the events of a pod that is captured and of a service account that no other has.
async fn captured(world: &mut World, uid: &str, service_account: &str) {
    assert_eq!(world.event().await, Event::Up(uid.into()));
    assert_eq!(world.event().await, Event::Certificate(identity(service_account)));
}

#[test]
fn a_pod_is_captured_acked_and_has_a_certificate_and_the_snapshot_makes_ready() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        agent.add("web", "web");
        agent.hear_ack().await;
        captured(world, "web", "web").await;
        assert!(!world.is_ready(), "the agent may name more pods");
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        assert_eq!(world.status.pending(), Vec::<&str>::new());
        assert_eq!((world.status.pods_active(), world.status.proxies_started()), (1, 1));
        assert!(agent.send(&del("web")));
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Down("web".into()));
        assert_eq!(world.event().await, Event::Gone(identity("web")));
        assert_eq!((world.status.pods_active(), world.status.proxies_stopped()), (0, 1));
        world.shut_down().await.expect("as asked");
    });
}

#[test]
fn a_pod_that_fails_is_nacked_and_tried_every_5_s_and_readiness_waits_for_it_without_flicker() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        let second = Duration::from_secs(1);
        world.answers([Some((SOON, failed())), Some((second, failed())), Some((second, Ok(())))]);
        agent.add("web", "web");
        agent.hear_nack("failure to start proxy : port 15008 is taken").await;
        assert_eq!(world.event().await, Event::Up("web".into()));
        let failed_at = Instant::now();
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        assert_eq!((world.is_ready(), world.status.pods_pending()), (false, 1));
        let pending = world.status.pending_pods();
        assert!(pending[0].uid == "web" && pending[0].why.contains("port 15008 is taken"), "{pending:?}");
        for seconds in [5, 11] {
            assert_eq!(world.event().await, Event::Up("web".into()));
            // The timer counts in whole milliseconds.
            assert_eq!(failed_at.elapsed().as_millis().div_ceil(10) / 100, seconds);
            assert!(!world.is_ready(), "it is being tried, and that is all");
        }
        assert_eq!(world.event().await, Event::Certificate(identity("web")));
        assert_eq!((world.is_ready(), world.status.pods_pending(), world.status.pods_active()), (true, 0, 1));
    });
}

#[test]
fn a_pod_that_cannot_be_captured_and_is_deleted_holds_nobody_up() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        assert!(world.is_ready());
        world.answers([Some((SOON, failed()))]);
        agent.add("web", "web");
        agent.hear_nack("port 15008 is taken").await;
        assert!(!world.is_ready());
        assert!(agent.send(&del("web")));
        agent.hear_ack().await;
        assert!(world.is_ready());
    });
}

#[test]
fn a_pod_that_starts_late_does_not_take_readiness_and_is_nacked_before_the_agent_gives_up() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        world.answers([None]);
        let asked_at = Instant::now();
        agent.add("web", "web");
        assert_eq!(world.event().await, Event::Up("web".into()));
        assert!(world.is_ready());
        agent.hear_nack("not finished after 4 s").await;
        assert!(asked_at.elapsed() < Duration::from_millis(4_100), "{:?}", asked_at.elapsed());
        agent.add("other", "other");
        agent.hear_ack().await;
    });
}

#[test]
fn a_stop_that_overtakes_its_start_leaves_no_pod_behind() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        world.answers([Some((Duration::from_secs(1), Ok(())))]);
        agent.add("web", "web");
        assert_eq!(world.event().await, Event::Up("web".into()));
        assert!(agent.send(&del("web")));
        agent.hear_nack("the pod was deleted").await;
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Down("web".into()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((world.status.pods_active(), world.status.proxies_started()), (0, 0));
        world.nothing_more();
    });
}

#[test]
fn pods_outlive_their_agent_and_the_next_snapshot_stops_those_it_does_not_name() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        for uid in ["kept", "added", "forgotten"] {
            agent.add(uid, uid);
            agent.hear_ack().await;
            captured(world, uid, uid).await;
        }
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        assert!(world.is_ready());
        drop(agent);
        let agent = world.agent.accept().await;
        assert_eq!((world.is_ready(), world.status.pods_active()), (false, 3), "until the agent has named them anew");
        assert!(agent.send(&keep("kept")));
        agent.hear_ack().await;
        agent.add("added", "added");
        agent.hear_ack().await;
        world.nothing_more();
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Down("forgotten".into()));
        assert_eq!(world.event().await, Event::Gone(identity("forgotten")));
        assert_eq!((world.is_ready(), world.status.pods_active()), (true, 2));
    });
}

#[test]
fn an_agent_of_another_protocol_is_told_and_ends_the_control_thread() {
    for (packet, has_netns, why) in [
        (SNAPSHOT.to_vec(), false, "a second time"),
        (keep("u"), false, "after the snapshot"),
        (add_without_info("u"), true, "no workload_info"),
    ] {
        with(Clock::Jumping, None, async |world| {
            let agent = world.agent.accept().await;
            assert!(agent.send(SNAPSHOT));
            agent.hear_ack().await;
            match has_netns {
                true => agent.send_with_netns(&packet),
                false => assert!(agent.send(&packet)),
            }
            agent.hear_nack("protocol error").await;
            let error = world.ended().await.expect_err(why).to_string();
            assert!(error.contains("CNI agent") && error.contains(why), "{error}");
        });
    }
}

#[test]
fn an_unreadable_packet_costs_the_connection_and_nothing_else() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        agent.add("web", "web");
        agent.hear_ack().await;
        captured(world, "web", "web").await;
        assert!(agent.send(b"\x22\x00"));
        agent.hear_nack("failure to read message").await;
        agent.hear_the_end().await;
        world.agent.accept().await;
        world.nothing_more();
    });
}

#[test]
fn an_agent_that_reads_no_answers_is_hung_up_on_and_holds_nothing_up() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        let mut sent = 0;
        while agent.send(&del("nobody")) {
            sent += 1;
            assert!(sent < 10_000, "answers go somewhere");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.agent.accept().await;
    });
}
