//! Certificates: for the pods that are here and nobody else, renewed in time, taken back with the last pod.

use mesh_state::{identity::Identity, wanted::Wanted};
use tokio::time::Instant;

use crate::{
    agent::{SNAPSHOT, del},
    world::{Clock, Event, TTL, identity, with},
};

/// Its connections may be there before the word of its core that it is captured.
#[test]
fn a_pod_that_is_being_started_is_given_what_its_connections_wait_for() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        world.answers([None]);
        agent.add("web", "web");
        assert_eq!(world.event().await, Event::Up("web".into()));
        let wish = Wanted::Identity(Identity::parse(&identity("web")).expect("a good identity"));
        world.wanted.send(wish).await.expect("somebody listens");
        assert_eq!(world.event().await, Event::Certificate(identity("web")));
    });
}

#[test]
fn nobody_but_the_pods_that_are_here_gets_a_certificate() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        agent.add("web", "web");
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Up("web".into()));
        assert_eq!(world.event().await, Event::Certificate(identity("web")));
        for foreign in [identity("admin"), "spiffe://elsewhere/ns/shop/sa/web".into(), identity("web")] {
            let wish = Wanted::Identity(Identity::parse(&foreign).expect("a good identity"));
            world.wanted.send(wish).await.expect("somebody listens");
        }
        // An answer to what was asked after them.
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        while !world.wanted.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(agent.send(&del("nobody")));
        agent.hear_ack().await;
        world.nothing_more();
    });
}

#[test]
fn an_identity_goes_with_its_last_pod() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        assert!(agent.send(SNAPSHOT));
        agent.hear_ack().await;
        for uid in ["web-0", "web-1"] {
            agent.add(uid, "web");
            agent.hear_ack().await;
        }
        assert_eq!(world.event().await, Event::Up("web-0".into()));
        assert_eq!(world.event().await, Event::Certificate(identity("web")));
        assert_eq!(world.event().await, Event::Up("web-1".into()), "and needs no second certificate");
        for (uid, gone) in [("web-0", false), ("web-1", true)] {
            assert!(agent.send(&del(uid)));
            agent.hear_ack().await;
            assert_eq!(world.event().await, Event::Down(uid.into()));
            if gone {
                assert_eq!(world.event().await, Event::Gone(identity("web")));
            }
            world.nothing_more();
        }
        let wish = Wanted::Identity(Identity::parse(&identity("web")).expect("a good identity"));
        world.wanted.send(wish).await.expect("somebody listens");
        assert!(agent.send(&del("nobody")));
        agent.hear_ack().await;
        world.nothing_more();
    });
}

#[test]
fn a_certificate_is_renewed_halfway_as_long_as_its_pod_is_here() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        agent.add("web", "web");
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Up("web".into()));
        for renewals in 0..3 {
            let before = Instant::now();
            assert_eq!(world.event().await, Event::Certificate(identity("web")));
            let of_its_life = before.elapsed().as_secs_f64() / TTL.as_secs_f64();
            // The first is renewed at any time before, so that those of many pods are not all renewed at one time.
            let expected = [0.0..0.01, 0.01..0.51, 0.44..0.51][renewals].clone();
            assert!(expected.contains(&of_its_life), "{renewals}: {of_its_life}");
        }
    });
}

#[test]
fn a_pod_whose_names_make_no_identity_is_served_without_a_certificate() {
    with(Clock::Jumping, None, async |world| {
        let agent = world.agent.accept().await;
        agent.add("web", "../admin");
        agent.hear_ack().await;
        assert_eq!(world.event().await, Event::Up("web".into()));
        assert!(agent.send(&del("nobody")));
        agent.hear_ack().await;
        world.nothing_more();
    });
}
