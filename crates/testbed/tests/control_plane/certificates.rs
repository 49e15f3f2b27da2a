//! Certificates from a CA over gRPC: for whom, with which proof, how many at once, and what a CA that is wrong or away
//! leaves in force.

use std::time::Duration;

use control::{ca::embedded::EmbeddedCa, grpc::Roots};
use mesh_state::{identity::Identity, wanted::Wanted};
use testbed::ca_server::{Act, Root};
use tonic::Status;

use crate::world::{Event, Setting, record, write};

const PATIENCE: Duration = Duration::from_secs(10);

fn setting() -> Setting {
    let mut setting = Setting::new();
    setting.embedded_ca = false;
    setting
}

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

#[test]
fn a_pods_identity_is_asked_for_with_the_token_and_the_lifetime() {
    let mut setting = setting();
    let file = setting.token_file("one");
    setting.server.cluster = "west".into();
    setting.pod("web");
    setting.ca().require_token("one");
    setting.run(async |world| {
        assert_eq!(world.certificate().await, "web");
        let asked = world.ca().asked();
        assert_eq!((&*asked[0].identity, asked[0].lifetime_s), (&*identity("web"), 86_400));
        assert_eq!(
            (asked[0].authorization.as_deref(), asked[0].cluster.as_deref()),
            (Some("Bearer one"), Some("west"))
        );
        // The connection stays, and the token is as new as each call.
        write(&file, "two");
        world.ca().require_token("two");
        world.agent(|agent| agent.add_pod("cart", record("cart"), PATIENCE)).await.expect("captured");
        assert_eq!(world.certificate().await, "cart");
    });
}

#[test]
fn what_a_ca_refuses_or_gets_wrong_is_told_and_tried_again() {
    for (act, complaint) in [
        (Act::Refuse(Status::permission_denied("not of this node")), "not of this node"),
        (Act::Name(identity("admin")), "not for"),
        (Act::NoRoots, "at least two"),
        (Act::OtherKey, "does not belong"),
    ] {
        let setting = setting();
        setting.pod("web");
        setting.ca().script([act.clone()]);
        setting.run(async |world| {
            let why = world.no_certificate().await;
            assert!(why.contains(complaint), "{act:?}: {why}");
            assert_eq!(world.certificate().await, "web", "a second later");
            assert_eq!((world.status.certificates_issued(), world.status.certificates_failed()), (1, 1));
        });
    }
}

#[test]
fn no_more_than_eight_are_asked_for_at_once_and_a_connections_comes_first() {
    let setting = setting();
    for n in 0..30 {
        setting.pod(&format!("sa-{n:02}"));
    }
    setting.ca().hold();
    setting.run(async |world| {
        world.ca().until(|ca| ca.in_flight() == 8).await;
        while world.status.pods_active() < 30 {
            world.event().await;
        }
        // The last of those that wait; a connection needs it now.
        let asked: Vec<String> = world.ca().asked().into_iter().map(|asked| asked.identity).collect();
        let waiting = (0..30).rev().map(|n| identity(&format!("sa-{n:02}"))).find(|identity| !asked.contains(identity));
        let urgent = waiting.expect("twenty-two wait");
        let wish = Wanted::Identity(Identity::parse(&urgent).expect("an identity"));
        world.wanted.send(wish).await.expect("somebody listens");
        while !world.wanted.is_empty() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        world.ca().go_on();
        for _ in 0..30 {
            world.certificate().await;
        }
        let asked: Vec<String> = world.ca().asked().into_iter().map(|asked| asked.identity).collect();
        assert_eq!((asked.len(), asked[8].as_str()), (30, urgent.as_str()), "each once");
        assert_eq!(world.ca().in_flight_max(), 8);
    });
}

#[test]
fn nobody_is_asked_for_again_who_left_while_the_ca_thought() {
    let setting = setting();
    setting.pod("web");
    setting.ca().hold();
    setting.run(async |world| {
        world.ca().until(|ca| ca.in_flight() == 1).await;
        assert!(world.agent(|agent| agent.del_pod("web")).await.expect("answered"));
        loop {
            if let Event::Gone(gone) = world.event().await {
                assert_eq!(gone.as_str(), identity("web"));
                break;
            }
        }
        world.ca().go_on();
        world.ca().until(|ca| ca.in_flight() == 0).await;
        assert_eq!(world.status.certificates_issued(), 0);
    });
}

#[test]
fn while_the_ca_is_away_the_certificate_in_use_stays_and_is_renewed_when_it_is_back() {
    let setting = setting();
    setting.pod("web");
    // Renewed within five seconds, and good for ten.
    setting.ca().set_lifetime(Duration::from_secs(10));
    setting.run(async |world| {
        assert_eq!(world.certificate().await, "web");
        let (xds, ca) = world.setting.stop_plane();
        while world.status.certificates_failed() == 0 {
            tokio::select! {
                event = world.event() => assert!(!matches!(event, Event::NoCertificate(..)), "{event:?}"),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        world.setting.start_plane(xds, ca);
        assert_eq!(world.certificate().await, "web");
    });
}

#[test]
fn a_new_root_is_believed_by_everybody_at_once() {
    let setting = setting();
    setting.pod("web");
    setting.run(async |world| {
        assert_eq!(world.certificate().await, "web");
        world.ca().rotate(Root::new("second").expect("a root"));
        world.agent(|agent| agent.add_pod("cart", record("cart"), PATIENCE)).await.expect("captured");
        let mut told = vec![world.certificate().await, world.certificate().await];
        told.sort();
        assert_eq!(told, ["cart", "web"], "web's own leaf is the old one, and it believes the new root");
        assert_eq!(world.ca().asked().len(), 2, "without a second request for web");
    });
}

#[test]
fn when_the_file_of_the_cas_roots_says_otherwise_one_certificate_is_asked_for_and_all_believe_what_it_brings() {
    let mut setting = setting();
    let file = setting.file("ca-root.pem");
    let proves = setting.identity.root_pem().to_owned();
    write(&file, &proves);
    setting.server.roots = Roots::File(file.clone());
    setting.pod("web");
    setting.pod("cart");
    setting.run(async |world| {
        for _ in 0..2 {
            world.certificate().await;
        }
        world.ca().rotate(Root::new("second").expect("a root"));
        // As the kubelet writes a ConfigMap anew; these certificates would be renewed in half a day.
        write(&file, &format!("{proves}{}", Root::new("another").expect("a root").pem()));
        let mut told = vec![world.certificate().await, world.certificate().await];
        told.sort();
        assert_eq!(told, ["cart", "web"]);
        assert_eq!(world.ca().asked().len(), 3, "one is renewed, and the other believes what that brought");
    });
}

#[test]
fn roots_by_which_the_ca_cannot_be_reached_leave_the_connection_there_is() {
    let mut setting = setting();
    let file = setting.file("ca-root.pem");
    write(&file, setting.identity.root_pem());
    setting.server.roots = Roots::File(file.clone());
    setting.pod("web");
    setting.run(async |world| {
        assert_eq!(world.certificate().await, "web");
        let another = Root::new("another").expect("a root");
        // Ahead of the CA, which does not serve by it yet; and half of one, as a writer leaves it for a moment.
        for (pod, roots) in [("cart", another.pem()), ("till", "-----BEGIN")] {
            write(&file, roots);
            world.agent(move |agent| agent.add_pod(pod, record(pod), PATIENCE)).await.expect("captured");
            while world.certificate().await != pod {}
        }
    });
}

#[test]
fn a_root_that_is_put_behind_the_embedded_cas_is_believed_at_once_and_a_bad_file_changes_nothing() {
    let mut setting = Setting::new();
    setting.embedded_ca = true;
    setting.pod("web");
    let (file, other) = (setting.file("root.pem"), setting.file("other.pem"));
    setting.run(async |world| {
        assert_eq!(world.certificate().await, "web");
        let text = std::fs::read_to_string(&file).expect("it was made");
        EmbeddedCa::open(&other, PATIENCE, time::OffsetDateTime::now_utc()).map(drop).expect("another root");
        let next = std::fs::read_to_string(&other).expect("it was made");
        write(&file, "no root");
        write(&file, &format!("{text}{next}"));
        assert_eq!(world.certificate().await, "web", "with another root beside its own");
        assert_eq!(world.status.certificates_issued(), 1, "and the same leaf");
    });
}
