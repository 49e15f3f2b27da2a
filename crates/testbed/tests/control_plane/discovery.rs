//! Discovery: what is asked, taken, refused, and what a broken connection costs.

use std::time::Duration;

use bytes::Bytes;
use control::{
    grpc::{Header, Roots},
    proto::{
        discovery::{AUTHORIZATION_TYPE, DeltaDiscoveryResponse, Resource},
        security::Authorization,
        well_known::Any,
        workload::Service,
    },
    token::Token,
    xds::Kind,
};
use mesh_state::{
    name::{NamespacedHostname, NetworkId, PolicyKey, Uid},
    wanted::{Knowledge, Sought, Wanted},
};
use prost::Message;
use testbed::xds_server::{self, XdsServer, policy, service};
use tokio::time::Instant;

use crate::world::{Event, Setting, World, uids, workload, write};

fn resource(name: &str, version: &str) -> Resource {
    let number = name.bytes().fold(1_u8, u8::wrapping_add);
    xds_server::workload(version, workload(name, 0, number))
}

fn deny_all() -> Authorization {
    Authorization { name: "deny".into(), namespace: "shop".into(), scope: 1, action: 1, ..Default::default() }
}

#[test]
fn a_full_push_is_one_generation_of_everything_and_makes_the_mesh_warm() {
    let setting = Setting::new();
    let shop =
        Service { name: "web".into(), namespace: "shop".into(), hostname: "web.shop.svc".into(), ..Default::default() };
    setting.xds().update([resource("a", "1"), resource("b", "1"), service("1", shop), policy(&deny_all())], &[]);
    setting.run(async |world| {
        assert!(world.status.pending().contains(&"state manager"));
        // Two types, so at most two generations; never half a response.
        let generations = world.until_mesh(|mesh| uids(mesh) == ["a", "b"] && mesh.policies().count() == 1).await;
        assert!(generations <= 2, "{generations}");
        assert!(world.mesh.service(&NamespacedHostname::new("shop", "web.shop.svc")).is_some());
        world.xds().until(|xds| xds.answers().len() == 2).await;
        assert!(!world.status.pending().contains(&"state manager"));
        let requests = world.xds().requests();
        let node = requests[0].request.node.clone().expect("told first");
        assert_eq!(node.id, "ztunnel~10.0.0.9~zt-1.istio-system~istio-system.svc.cluster.local");
        assert!(requests[2..].iter().all(|seen| seen.request.node.is_none()));
        let xds = world.status.xds();
        assert_eq!((xds.connected, xds.messages, xds.held), (true, [1, 1], [3, 1]));
        assert!(xds.message_bytes.iter().all(|bytes| *bytes > 0));
    });
}

#[test]
fn each_refused_resource_is_named_to_the_server_and_the_good_ones_apply() {
    let setting = Setting::new();
    setting.xds().update([resource("a", "1"), policy(&deny_all())], &[]);
    setting.run(async |world| {
        world.until_mesh(|mesh| uids(mesh) == ["a"] && mesh.policies().count() == 1).await;
        let mut legacy = workload("bad", 0, 9);
        legacy.tunnel_protocol = 2;
        let unknown = Authorization { scope: 7, ..deny_all() };
        world.xds().update([xds_server::workload("1", legacy), resource("b", "1"), policy(&unknown)], &[]);
        world.until_mesh(|mesh| uids(mesh) == ["a", "b"]).await;
        world.xds().until(|xds| xds.answers().iter().filter(|seen| seen.refusal().is_some()).count() == 2).await;
        let refusals: Vec<(Option<Kind>, String)> =
            world.xds().answers().iter().filter_map(|seen| Some((seen.kind(), seen.refusal()?.to_owned()))).collect();
        let [(first, addresses), (second, authorizations)] = &refusals[..] else { panic!("{refusals:?}") };
        assert_eq!((*first, *second), (Some(Kind::Address), Some(Kind::Authorization)));
        assert_eq!(addresses, "Kubernetes//Pod/shop/bad: tunnel_protocol: 2 is unknown or not supported");
        assert_eq!(authorizations, "shop/deny: scope: 7 is unknown or not supported");
        assert!(world.mesh.policy(&PolicyKey::new("shop", "deny")).is_some(), "the one before is in force");
        assert_eq!(world.status.xds().refused, [1, 1]);
        assert_eq!(world.status.xds_refused().expect("just now").why, *authorizations);
    });
}

#[test]
fn responses_are_answered_by_whatever_nonce_they_have_and_foreign_types_do_no_harm() {
    let setting = Setting::new();
    setting.run(async |world| {
        world.xds().until(|xds| xds.answers().len() == 2).await;
        let foreign = "type.googleapis.com/istio.workload.Workload";
        for (nonce, type_url) in [("", AUTHORIZATION_TYPE), ("same", foreign), ("same", AUTHORIZATION_TYPE)] {
            let removed_resources = vec!["never/was".into()];
            let (nonce, type_url) = (nonce.to_owned(), type_url.to_owned());
            world.xds().send(&DeltaDiscoveryResponse { nonce, type_url, removed_resources, ..Default::default() });
        }
        // An empty nonce makes an answer that looks like none, so all requests are looked at.
        world.xds().until(|xds| xds.requests().len() == 7).await;
        let last: Vec<(String, String)> = world.xds().requests()[4..]
            .iter()
            .map(|seen| (seen.request.response_nonce.clone(), seen.request.type_url.clone()))
            .collect();
        let expected = [("", AUTHORIZATION_TYPE), ("same", foreign), ("same", AUTHORIZATION_TYPE)];
        assert_eq!(last, expected.map(|(nonce, url)| (nonce.to_owned(), url.to_owned())));
    });
}

#[test]
fn a_server_that_comes_back_with_another_mesh_sends_the_difference_only() {
    let setting = Setting::new();
    setting.xds().update([resource("a", "1"), resource("b", "1"), resource("c", "1"), policy(&deny_all())], &[]);
    setting.run(async |world| {
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "c"] && mesh.policies().count() == 1).await;
        world.xds().until(|xds| xds.answers().len() == 2).await;
        let (_, ca) = world.setting.stop_plane();
        // Held as it was, while nobody is there.
        let other = XdsServer::default();
        other.update([resource("a", "1"), resource("b", "2"), resource("d", "1")], &[]);
        let bytes = world.status.xds().message_bytes[0];
        world.setting.start_plane(other, ca);
        world.until_mesh(|mesh| uids(mesh) == ["a", "b", "d"] && mesh.policies().count() == 0).await;
        let first = &world.xds().requests()[0].request;
        let versions: Vec<String> = first.initial_resource_versions.values().cloned().collect();
        assert_eq!(
            (first.initial_resource_versions.len(), &versions[..]),
            (3, &["1".to_owned(), "1".into(), "1".into()][..])
        );
        let difference = world.status.xds().message_bytes[0] - bytes;
        assert!(difference < bytes, "two of three and a name: {difference} of {bytes}");
    });
}

/// The server reads requests of 4 MiB and refuses longer ones, as gRPC servers do by default. A client that told of everything it holds
/// would never come back.
#[test]
fn more_than_a_server_reads_is_told_in_part_and_what_it_does_not_send_again_is_gone() {
    let long = "x".repeat(190);
    let named = |n: u32| {
        let [_, _, third, fourth] = n.to_be_bytes();
        xds_server::workload("1", workload(&format!("{long}-{n}"), third, fourth))
    };
    let setting = Setting::new();
    setting.xds().update((0..25_000).map(named), &[]);
    setting.run(async |world| {
        world.until_mesh(|mesh| mesh.workloads().count() == 25_000).await;
        let (_, ca) = world.setting.stop_plane();
        let other = XdsServer::default();
        other.update((100..25_000).map(named), &[]);
        world.setting.start_plane(other, ca);
        world.until_mesh(|mesh| mesh.workloads().count() == 24_900).await;
        let told = world.xds().requests()[0].request.initial_resource_versions.len();
        assert!((10_000..20_000).contains(&told), "{told}");
        assert_eq!(world.status.xds().held[0], 24_900);
    });
}

#[test]
fn every_end_of_a_stream_is_followed_by_a_new_one_and_counted_by_its_reason() {
    let setting = Setting::new();
    setting.run(async |world| {
        type End = fn(&World);
        let ended: [(&str, End); 4] = [
            ("Complete", |world| world.xds().end(None)),
            ("Reconnect", |world| world.xds().end(Some(&tonic::Status::unknown("max age")))),
            ("Error", |world| world.xds().end(Some(&tonic::Status::internal("broken")))),
            ("", |world| world.setting.plane().disconnect()),
        ];
        for (streams, (reason, end)) in (1..).zip(ended) {
            world.xds().until(|xds| xds.streams_ever() == streams && xds.answers().len() >= 2 * streams).await;
            let before = world.status.xds().terminations;
            end(world);
            world.xds().until(|xds| xds.streams_ever() == streams + 1).await;
            let after = world.status.xds().terminations;
            let counted: Vec<&str> = control::Termination::ALL
                .into_iter()
                .filter(|how| after[*how as usize] > before[*how as usize])
                .map(control::Termination::label)
                .collect();
            assert!(reason.is_empty() || counted == [reason], "{counted:?} is not {reason}");
        }
    });
}

/// Negative control: where each response begins the waits anew, there are hundreds of streams.
#[test]
fn a_server_that_sends_what_cannot_be_taken_behind_what_can_is_not_stormed() {
    let setting = Setting::new();
    setting.xds().update([resource("a", "1"), policy(&deny_all())], &[]);
    setting.xds().record(vec![Bytes::from_static(b"\xff\xff\xff")]);
    setting.run(async |world| {
        world.until_mesh(|mesh| uids(mesh) == ["a"]).await;
        let before = Instant::now();
        while before.elapsed() < Duration::from_secs(2) {
            tokio::select! {
                _ = world.event() => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        // 5 to 10 ms, then twice that, and so on: the ninth wait is 1.3 s at least.
        let streams = world.xds().streams_ever();
        assert!((3..=12).contains(&streams), "{streams} in two seconds");
        assert_eq!(uids(&world.mesh), ["a"], "what was good is in force");
    });
}

#[test]
fn wherever_the_connection_breaks_the_mesh_is_whole_in_the_end() {
    let setting = Setting::new();
    let names: Vec<String> = (0..60).map(|n| format!("w-{n:02}")).collect();
    setting.xds().split(7);
    setting.xds().update(names.iter().map(|name| resource(name, "1")), &[]);
    setting.run(async |world| {
        // From the middle of the TLS handshake to the middle of the last responses.
        for bytes in (300..12_000).step_by(900) {
            let version = bytes.to_string();
            world.setting.plane().wire.break_after(bytes);
            world.setting.plane().disconnect();
            let set: Vec<Resource> = names.iter().map(|name| resource(name, &version)).collect();
            world.xds().replace(set.into_iter().take(usize::try_from(bytes % 60).expect("few") + 1));
            let streams = world.status.xds().terminations.iter().sum::<u64>();
            // It has broken, or all came through.
            while world.status.xds().terminations.iter().sum::<u64>() < streams + 2
                && uids(&world.mesh).len() != usize::try_from(bytes % 60).expect("few") + 1
            {
                tokio::select! {
                    _ = world.event() => {}
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
            world.setting.plane().wire.mend();
            let expected: Vec<String> = names[..usize::try_from(bytes % 60).expect("few") + 1].to_vec();
            world.until_mesh(|mesh| uids(mesh) == expected).await;
        }
    });
}

#[test]
fn the_token_is_read_for_each_connection_and_headers_go_with_it() {
    let mut setting = Setting::new();
    let file = setting.token_file("one\n");
    setting.server.cluster = "west".into();
    setting.server.headers = vec![Header::new("x-tenant", "blue").expect("good")];
    setting.run(async |world| {
        world.xds().until(|xds| xds.answers().len() == 2).await;
        write(&file, "two");
        world.setting.plane().disconnect();
        world.xds().until(|xds| xds.streams_ever() == 2 && xds.requests().iter().any(|seen| seen.stream == 1)).await;
        for (stream, token) in [(0, "Bearer one"), (1, "Bearer two")] {
            let requests = world.xds().requests();
            let headers = &requests.iter().find(|seen| seen.stream == stream).expect("some").headers;
            assert_eq!(headers["authorization"], token);
            assert_eq!((&*headers["clusterid"], &*headers["x-tenant"]), ("west", "blue"));
        }
    });
}

#[test]
fn a_token_that_is_not_there_yet_is_waited_for() {
    let mut setting = Setting::new();
    let file = setting.file("token");
    setting.server.token = Token::File(file.clone());
    setting.run(async |world| {
        while world.status.xds().terminations[0] == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.xds().streams_ever(), 0, "nobody is asked without the token");
        write(&file, "late");
        world.xds().until(|xds| xds.answers().len() == 2).await;
    });
}

#[test]
fn a_server_is_believed_by_its_own_name_or_the_alternative_one_and_by_no_other_root() {
    // Reached as localhost, and proved as something else.
    let mut setting = Setting::proved_by(&["istiod.istio-system.svc"]);
    setting.server.alternative_name = Some("istiod.istio-system.svc".into());
    setting.run(async |world| world.xds().until(|xds| xds.answers().len() == 2).await);

    let other_root = testbed::control_plane::ServerIdentity::new(&["localhost"]).expect("a name");
    let refused: [(&str, Setting); 3] = [
        ("no alternative", Setting::proved_by(&["istiod.istio-system.svc"])),
        ("another alternative", {
            let mut setting = Setting::proved_by(&["istiod.istio-system.svc"]);
            setting.server.alternative_name = Some("istiod.other.svc".into());
            setting
        }),
        ("another root", {
            let mut setting = Setting::new();
            setting.server.roots = Roots::Given(other_root.root_pem().to_owned());
            setting
        }),
    ];
    for (which, setting) in refused {
        setting.run(async |world| {
            while world.status.xds().terminations[0] < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(world.xds().streams_ever(), 0, "{which}");
        });
    }
}

#[test]
fn roots_that_are_replaced_in_their_file_are_those_of_the_next_connection() {
    let mut setting = Setting::new();
    let file = setting.file("roots.pem");
    write(&file, setting.identity.root_pem());
    setting.server.roots = Roots::File(file.clone());
    setting.run(async |world| {
        world.xds().until(|xds| xds.answers().len() == 2).await;
        let (xds, ca) = world.setting.stop_plane();
        world.setting.identity = testbed::control_plane::ServerIdentity::new(&["localhost"]).expect("a name");
        world.setting.start_plane(xds, ca);
        while world.status.xds().terminations[0] == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write(&file, world.setting.identity.root_pem());
        world.xds().until(|xds| xds.streams_ever() == 2).await;
    });
}

#[test]
fn no_pod_is_captured_before_the_mesh_is_warm() {
    let mut setting = Setting::new();
    setting.pod("web");
    let (xds, ca) = setting.stop_plane();
    setting.run(async |world| {
        // Time in which an agent would long have been connected to: its address is there from the start.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.agent(|agent| agent.accepted()).await, 0);
        assert!(world.unread().is_empty());
        world.setting.start_plane(xds, ca);
        loop {
            if let Event::Up(uid) = world.event().await {
                assert_eq!(uid, "web");
                break;
            }
        }
        assert!(world.status.xds().messages.iter().all(|count| *count > 0));
    });
}

#[test]
fn names_are_asked_for_when_a_core_lacks_them_and_their_answers_come_by_alias() {
    let mut setting = Setting::new();
    setting.on_demand = true;
    setting
        .xds()
        .update([resource("a", "1"), xds_server::workload("1", workload("b", 3, 4)), policy(&deny_all())], &[]);
    setting.run(async |world| {
        world.until_mesh(|mesh| mesh.policies().count() == 1).await;
        assert_eq!(uids(&world.mesh), [""; 0], "nobody has asked");
        let address =
            Sought::Address { network: NetworkId::from(""), address: "10.0.3.4".parse().expect("an address") };
        let nobody = Sought::Hostname(NamespacedHostname::new("shop", "nobody.svc"));
        for sought in [&address, &nobody, &address] {
            let wish = Wanted::Part { sought: sought.clone(), tenant: "shop/web".into() };
            world.wanted.send(wish).await.expect("somebody listens");
        }
        world.until_mesh(|mesh| uids(mesh) == ["b"] && mesh.knowledge(&nobody) == Knowledge::Absent).await;
        let asked = || {
            let requests = world.xds().requests();
            let names = requests.into_iter().filter(|seen| seen.request.node.is_none());
            names.flat_map(|seen| seen.request.subscribe).collect::<Vec<_>>()
        };
        assert_eq!(asked(), ["/10.0.3.4", "shop/nobody.svc"], "once each");
        // A change of what was asked for comes by itself; a change of anything else does not.
        let mut unhealthy = workload("b", 3, 4);
        unhealthy.status = 1;
        world.xds().update([resource("a", "2"), xds_server::workload("2", unhealthy)], &[]);
        let uid = Uid::from("Kubernetes//Pod/shop/b");
        world
            .until_mesh(|mesh| mesh.workload(&uid).is_some_and(|b| b.status == mesh_state::workload::Status::Unhealthy))
            .await;
        assert_eq!(uids(&world.mesh), ["b"]);
    });
}

#[test]
fn a_storm_of_changes_goes_out_in_few_generations_and_none_is_lost() {
    let setting = Setting::new();
    setting.run(async |world| {
        world.xds().until(|xds| xds.answers().len() == 2).await;
        let begun = Instant::now();
        for n in 0..500_u32 {
            world.xds().update([resource("a", &n.to_string()), resource(&format!("n-{n:03}"), "1")], &[]);
            if n % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let generations = world.until_mesh(|mesh| uids(mesh).len() == 501).await;
        let most = begun.elapsed().as_millis() / 20 + 2;
        assert!(u128::try_from(generations).expect("few") <= most, "{generations} generations, at most {most}");
        assert!(world.status.xds().messages[0] > most as u64, "a storm of responses, or the test shows nothing");
    });
}

#[test]
fn while_a_large_push_is_taken_the_thread_answers_others() {
    let setting = Setting::new();
    setting.pod("web");
    // Warm, and then one response of 30,000 workloads.
    setting.run(async |world| {
        world.xds().until(|xds| xds.answers().len() == 2).await;
        let many: Vec<Resource> = (0..30_000_u32)
            .map(|n| {
                let [_, _, third, fourth] = n.to_be_bytes();
                xds_server::workload("1", workload(&format!("w-{n}"), third, fourth))
            })
            .collect();
        world.xds().update(many, &[]);
        // The runtime is the control thread's own: its turns between two slices are what this loop gets.
        let (mut turns, mut longest, mut before) = (0, Duration::ZERO, Instant::now());
        while world.status.xds().held[0] < 30_000 {
            tokio::task::yield_now().await;
            (turns, longest, before) = (turns + 1, longest.max(before.elapsed()), Instant::now());
        }
        assert!(turns > 30_000 / 256, "{turns} turns");
        assert!(longest < Duration::from_millis(500), "{longest:?} without a turn");
        let generations = world.until_mesh(|mesh| mesh.workloads().count() == 30_000).await;
        assert!(generations <= 3, "the push is one, with what came before it: {generations}");
    });
}

#[test]
fn a_slow_push_is_taken_when_it_has_come() {
    let setting = Setting::new();
    let many: Vec<Resource> =
        (0..200_u8).map(|n| xds_server::workload("1", workload(&format!("w-{n}"), 1, n))).collect();
    setting.xds().update(many, &[]);
    setting.plane().wire.slow_down(64);
    setting.run(async |world| {
        let generations = world.until_mesh(|mesh| mesh.workloads().count() == 200).await;
        assert_eq!(generations, 1, "never half of it");
    });
}

/// A response of exactly so many bytes, with one workload.
fn response_of(bytes: usize, name: &str) -> DeltaDiscoveryResponse {
    let mut response = DeltaDiscoveryResponse {
        type_url: Kind::Address.type_url().into(),
        nonce: name.into(),
        resources: vec![resource(name, "1")],
        ..Default::default()
    };
    let content = response.resources[0].resource.take().expect("a workload");
    // A field of the next version of the protocol, which nobody here reads.
    let padded = |padding: usize| {
        let mut value = content.value.to_vec();
        prost::encoding::bytes::encode(1000, &vec![0_u8; padding], &mut value);
        Any { value: value.into(), ..content.clone() }
    };
    let mut padding = bytes - (1 << 20);
    for _ in 0..2 {
        response.resources[0].resource = Some(padded(padding));
        padding += bytes;
        padding -= response.encoded_len();
    }
    assert_eq!(response.encoded_len(), bytes);
    response
}

#[test]
fn a_response_of_200_mib_is_taken_and_a_longer_one_ends_its_stream_and_nothing_else() {
    const LONGEST: usize = 200 << 20;
    Setting::new().run(async |world| {
        world.xds().until(|xds| xds.answers().len() == 2).await;
        world.xds().send(&response_of(LONGEST, "longest"));
        world.until_mesh(|mesh| uids(mesh) == ["longest"]).await;
        world.xds().until(|xds| xds.answers().len() == 3).await;
        assert_eq!(world.status.xds().terminations, [0; 4]);
        world.xds().send(&response_of(LONGEST + 1, "longer"));
        world.xds().until(|xds| xds.streams_ever() == 2).await;
        assert_eq!(world.status.xds().terminations[control::Termination::Error as usize], 1);
        assert_eq!(uids(&world.mesh), ["longest"]);
        world.xds().update([resource("next", "1")], &[]);
        world.until_mesh(|mesh| uids(mesh) == ["next"]).await;
    });
}
