//! Each rule of the conversation by itself.

use mesh_state::{
    name::{NamespacedHostname, NetworkId},
    wanted::Sought,
    workload::Workload,
};

use super::{
    super::withheld::{POLICY_PATIENCE, WITHHELD_MAX},
    *,
};
use crate::proto::{
    discovery::{AUTHORIZATION_TYPE, DeltaDiscoveryResponse},
    security::Authorization,
    well_known::Any,
    workload,
};

fn hearing(on_demand: bool) -> Session {
    let node = Node { id: "ztunnel~10.0.0.1~p.n~n.svc.cluster.local".into(), metadata: None };
    Session::new(node, on_demand.then(OnDemand::default))
}

fn now() -> Instant {
    Instant::now()
}

fn workload(name: &str, version: &str, protocol: i32) -> Resource {
    let workload =
        workload::Workload { uid: name.into(), namespace: "n".into(), tunnel_protocol: protocol, ..Default::default() };
    let address = workload::Address { kind: Some(workload::Kind::Workload(Box::new(workload))) };
    resource(name, version, Kind::Address, &address)
}

fn service(name: &str, version: &str) -> Resource {
    let (namespace, hostname) = name.split_once('/').expect("a key");
    let service = workload::Service { namespace: namespace.into(), hostname: hostname.into(), ..Default::default() };
    let address = workload::Address { kind: Some(workload::Kind::Service(Box::new(service))) };
    resource(name, version, Kind::Address, &address)
}

fn policy(name: &str, action: i32) -> Resource {
    resource(name, "", Kind::Authorization, &Authorization { action, ..Default::default() })
}

fn resource(name: &str, version: &str, kind: Kind, message: &impl Message) -> Resource {
    let any = Any { type_url: kind.type_url().into(), value: message.encode_to_vec().into() };
    Resource { version: version.into(), resource: Some(any), name: name.into(), aliases: vec![] }
}

fn response(kind: Kind, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

/// What a response changes, and how it is answered.
fn hear(session: &mut Session, response: &DeltaDiscoveryResponse) -> (Vec<Change>, DeltaDiscoveryRequest) {
    let response = Response::read(response.encode_to_vec().into()).expect("good");
    let (mut receiving, mut changes) = (session.on_response(&response), Vec::new());
    for part in response {
        session.on_part(&mut receiving, part, now(), &mut changes);
    }
    let answer = session.on_end(receiving, now(), &mut changes);
    (changes, decoded(&answer))
}

fn decoded(request: &[u8]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest::decode(request).expect("a request")
}

fn connect(session: &mut Session) -> Vec<DeltaDiscoveryRequest> {
    session.on_connected(now()).iter().map(|request| decoded(request)).collect()
}

fn names(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|change| match change {
            Change::Workload(Workload { uid, .. }) => format!("+{uid}"),
            Change::WorkloadGone(uid) => format!("-{uid}"),
            Change::Service(service) => format!("+{}", service.key()),
            Change::ServiceGone(key) => format!("-{key}"),
            Change::Policy(policy) => format!("+{}", policy.key),
            Change::PolicyGone(key) => format!("-{key}"),
            Change::Absent(sought) => format!("?{sought:?}"),
            Change::Unknown(sought) => format!("!{sought:?}"),
        })
        .collect()
}

#[test]
fn a_stream_begins_with_everything_of_each_type_and_who_asks() {
    let mut session = hearing(false);
    let requests = connect(&mut session);
    let urls: Vec<&str> = requests.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(urls, [Kind::Address.type_url(), Kind::Authorization.type_url()]);
    for request in requests {
        assert_eq!(request.node.as_ref(), Some(&session.node));
        let type_url = request.type_url.clone();
        let nothing_else = DeltaDiscoveryRequest { node: request.node.clone(), type_url, ..Default::default() };
        assert_eq!(request, nothing_else);
    }
}

#[test]
fn a_response_is_answered_by_its_nonce_and_without_the_node() {
    for nonce in ["1", "", "what a nonce!"] {
        let (changes, answer) =
            hear(&mut hearing(false), &response(Kind::Address, nonce, vec![workload("w", "1", 1)], &[]));
        assert_eq!(names(&changes), ["+w"]);
        let type_url = Kind::Address.type_url().into();
        let ack = DeltaDiscoveryRequest { type_url, response_nonce: nonce.into(), ..Default::default() };
        assert_eq!(answer, ack);
    }
}

#[test]
fn each_refused_resource_is_named_and_the_good_ones_apply() {
    let mut session = hearing(false);
    hear(&mut session, &response(Kind::Address, "0", vec![workload("bad/1", "1", 0)], &[]));
    let mixed =
        vec![workload("bad/1", "2", 2), workload("good", "1", 1), service("a/b", "1"), workload("bad/2", "1", 7)];
    let (changes, answer) = hear(&mut session, &response(Kind::Address, "1", mixed, &[]));
    assert_eq!(names(&changes), ["+good", "+a/b"]);
    let status = answer.error_detail.expect("refused");
    assert_eq!(status.code, 0);
    assert_eq!(
        status.message,
        "bad/1: tunnel_protocol: 2 is unknown or not supported; bad/2: tunnel_protocol: 7 is unknown or not supported"
    );
    let versions = &connect(&mut session)[0].initial_resource_versions;
    let expected = [("a/b", "1"), ("bad/1", "1"), ("good", "1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(*versions, expected.into(), "the copy held before stays, under its own version");
}

#[test]
fn a_refusal_names_no_more_than_a_server_reads() {
    let mut session = hearing(false);
    let long = "x".repeat(100_000);
    let many = (0..20).map(|n| workload(&format!("{long}{n}"), "1", 9)).collect();
    let message = hear(&mut session, &response(Kind::Address, "1", many, &[])).1.error_detail.expect("refused").message;
    assert!(message.len() < REFUSAL_BYTES_MAX + 100 && message.ends_with("; and 10 more"), "{}", message.len());
}

#[test]
fn a_new_stream_echoes_what_is_held_and_nothing_else() {
    let mut session = hearing(false);
    hear(&mut session, &response(Kind::Address, "1", vec![workload("w", "v1", 1), service("a/b", "v2")], &[]));
    hear(&mut session, &response(Kind::Address, "2", vec![workload("w", "v3", 0)], &["a/b", "never/was"]));
    hear(&mut session, &response(Kind::Authorization, "3", vec![policy("n/p", 0)], &[]));
    let [addresses, authorizations] = connect(&mut session).try_into().expect("two");
    let versions = |pair: (&str, &str)| [(pair.0.to_owned(), pair.1.to_owned())].into();
    assert_eq!(addresses.initial_resource_versions, versions(("w", "v3")));
    assert_eq!(authorizations.initial_resource_versions, versions(("n/p", "")), "named, so that its end is told");
}

#[test]
fn what_is_removed_goes_after_what_is_new_and_what_was_never_there_is_no_error() {
    let mut session = hearing(false);
    hear(&mut session, &response(Kind::Address, "1", vec![workload("w", "1", 1), service("a/b", "1")], &[]));
    let both = response(Kind::Address, "2", vec![workload("x", "1", 1)], &["w", "never", "a/b", "never/was", "x"]);
    let (changes, answer) = hear(&mut session, &both);
    assert_eq!(names(&changes), ["+x", "-w", "-a/b", "-x"]);
    assert_eq!(answer.error_detail, None);
    assert_eq!(session.held(Kind::Address), 0);
    hear(&mut session, &response(Kind::Authorization, "3", vec![policy("n/p", 0)], &[]));
    let (changes, _) = hear(&mut session, &response(Kind::Authorization, "4", vec![], &["n/p", "n/q"]));
    assert_eq!(names(&changes), ["-n/p"]);
}

#[test]
fn the_same_version_again_changes_nothing_and_no_version_is_always_taken() {
    let mut session = hearing(false);
    let same = response(Kind::Address, "1", vec![workload("w", "1", 1)], &[]);
    assert_eq!(names(&hear(&mut session, &same).0), ["+w"]);
    assert_eq!(names(&hear(&mut session, &same).0), [""; 0]);
    let unversioned = response(Kind::Authorization, "1", vec![policy("n/p", 0)], &[]);
    assert_eq!(names(&hear(&mut session, &unversioned).0), ["+n/p"]);
    assert_eq!(names(&hear(&mut session, &unversioned).0), ["+n/p"]);
}

#[test]
fn a_workload_that_becomes_a_service_of_its_name_is_taken_back_first() {
    let mut session = hearing(false);
    hear(&mut session, &response(Kind::Address, "1", vec![workload("a/b", "1", 1)], &[]));
    let (changes, _) = hear(&mut session, &response(Kind::Address, "2", vec![service("a/b", "2")], &[]));
    assert!(matches!(&changes[..], [Change::WorkloadGone(_), Change::Service(_)]), "{changes:?}");
}

#[test]
fn a_type_that_nobody_asked_for_is_answered_and_nothing_more() {
    let mut session = hearing(false);
    let mut foreign = response(Kind::Address, "1", vec![workload("w", "1", 1)], &["w"]);
    foreign.type_url = "type.googleapis.com/istio.workload.Workload".into();
    let (changes, answer) = hear(&mut session, &foreign);
    assert!(changes.is_empty());
    assert_eq!((answer.type_url, answer.response_nonce, answer.error_detail), (foreign.type_url, "1".into(), None));
}

#[test]
fn a_resource_of_another_type_than_its_response_is_refused() {
    let (changes, answer) =
        hear(&mut hearing(false), &response(Kind::Authorization, "1", vec![workload("w", "1", 1)], &[]));
    assert!(changes.is_empty());
    let message = answer.error_detail.expect("refused").message;
    assert!(message.starts_with("w: ") && message.contains(AUTHORIZATION_TYPE), "{message}");
}

#[test]
fn the_mesh_is_warm_once_a_response_of_each_type_was_taken_and_all_policies_of_one() {
    let mut session = hearing(false);
    hear(&mut session, &response(Kind::Authorization, "1", vec![], &[]));
    assert!(!session.is_warm());
    hear(&mut session, &response(Kind::Address, "2", vec![workload("good", "1", 1), workload("bad", "1", 2)], &[]));
    assert!(session.is_warm(), "a tenant that writes what is refused keeps nobody from starting");
    let mut session = hearing(false);
    hear(&mut session, &response(Kind::Address, "1", vec![], &[]));
    hear(&mut session, &response(Kind::Authorization, "2", vec![workload("no policy", "1", 1)], &[]));
    assert!(!session.is_warm(), "it may be the policy that denies");
    hear(&mut session, &response(Kind::Authorization, "3", vec![], &[]));
    assert!(!session.is_warm(), "what else comes does not make up for it");
    let mut reconnected = hearing(false);
    hear(&mut reconnected, &response(Kind::Address, "1", vec![], &[]));
    hear(&mut reconnected, &response(Kind::Authorization, "2", vec![workload("no policy", "1", 1)], &[]));
    hear(&mut session, &response(Kind::Authorization, "4", vec![], &["no policy"]));
    assert!(session.is_warm(), "it has gone");
    connect(&mut reconnected);
    hear(&mut reconnected, &response(Kind::Authorization, "3", vec![], &[]));
    assert!(reconnected.is_warm(), "another stream does not have it");
    let mut on_demand = hearing(true);
    hear(&mut on_demand, &response(Kind::Authorization, "1", vec![], &[]));
    assert!(on_demand.is_warm(), "addresses come when they are asked for");
}

#[test]
fn on_demand_begins_with_nothing_and_asks_by_name() {
    let mut session = hearing(true);
    let requests = connect(&mut session);
    assert_eq!((&requests[0].subscribe[..], &requests[0].unsubscribe[..]), (&["*".into()][..], &["*".into()][..]));
    assert!(requests[1].subscribe.is_empty() && requests[1].unsubscribe.is_empty(), "policies are wanted all");
    let wanted = [at("10.0.0.1"), wanted(Sought::Hostname(NamespacedHostname::new("a", "b")))];
    let asked = session.on_wanted(&wanted, now(), &mut Vec::new());
    assert_eq!(asked.len(), 1);
    assert_eq!(decoded(&asked[0]).subscribe, ["n/10.0.0.1", "a/b"]);
    assert_eq!(decoded(&asked[0]).node, None);
    assert!(session.on_wanted(&wanted, now(), &mut Vec::new()).is_empty(), "asked for already");
    assert!(hearing(false).on_wanted(&wanted, now(), &mut Vec::new()).is_empty(), "all is subscribed to");

    // The server answers by the workload's name, and the address is an alias.
    let answer = Resource { aliases: vec!["n/10.0.0.1".into()], ..workload("uid", "1", 1) };
    // And tells of a workload of this node that nobody asked for.
    let (changes, _) = hear(&mut session, &response(Kind::Address, "1", vec![answer, workload("node's", "1", 1)], &[]));
    assert_eq!(names(&changes), ["+uid", "+node's"]);
    let requests = connect(&mut session);
    assert_eq!(requests[0].initial_resource_versions.len(), 2);
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[2].subscribe, ["a/b"], "what has no answer is asked for again on a new stream");
}

#[test]
fn a_stream_that_has_no_room_for_all_versions_confirms_the_rest_by_sending_it_or_not() {
    let resources = || (0..50).map(|n| workload(&format!("w-{n:02}"), "1", 1)).collect::<Vec<_>>();
    let mut session = hearing(false).with_versions_limit(300);
    hear(&mut session, &response(Kind::Address, "1", resources(), &[]));
    let request = connect(&mut session).remove(0);
    assert!(request.encoded_len() < 300 + 200, "{}", request.encoded_len());
    let told = request.initial_resource_versions;
    let untold: Vec<Resource> = resources().into_iter().filter(|one| !told.contains_key(&one.name)).collect();
    assert!(told.len() >= 20 && untold.len() >= 20, "{} {}", told.len(), untold.len());
    assert_eq!(session.next_due(), None, "not before the first response");

    // All of the rest but two comes again, in two responses; and something new.
    let (first, second) = untold[2..].split_at(7);
    let (changes, _) = hear(&mut session, &response(Kind::Address, "2", first.to_vec(), &[]));
    assert_eq!(names(&changes), [""; 0], "as it was");
    hear(&mut session, &response(Kind::Address, "3", second.to_vec(), &[&untold[0].name]));
    let mut changes = Vec::new();
    session.on_time(now(), &mut changes);
    assert_eq!(names(&changes), [""; 0], "not quiet for long enough");
    let due = session.next_due().expect("one is neither told nor sent");
    // The next response is on its way, and takes long.
    session.on_bytes(due);
    session.on_time(due, &mut changes);
    assert_eq!(names(&changes), [""; 0], "not quiet: it may be in what comes");
    let due = session.next_due().expect("still neither");
    session.on_time(due, &mut changes);
    assert_eq!(names(&changes), [format!("-{}", untold[1].name)]);
    assert_eq!((session.held(Kind::Address), session.next_due()), (48, None));

    // A stream that ends before it is quiet confirms nothing.
    connect(&mut session);
    hear(&mut session, &response(Kind::Address, "4", vec![], &[]));
    assert!(session.next_due().is_some());
    session.on_lost();
    assert_eq!(session.next_due(), None);
}

#[test]
fn on_demand_asks_by_name_for_what_a_stream_has_no_room_to_be_told() {
    let mut session = hearing(true).with_versions_limit(10 * 25);
    let many = (0..50).map(|n| workload(&format!("w-{n:02}"), "1", 1)).collect();
    hear(&mut session, &response(Kind::Address, "1", many, &[]));
    let requests = connect(&mut session);
    let told = requests[0].initial_resource_versions.len();
    let asked: Vec<usize> = requests[2..].iter().map(|request| request.subscribe.len()).collect();
    assert_eq!(told + asked.iter().sum::<usize>(), 50);
    assert!(asked.len() > 2 && requests.iter().all(|request| request.encoded_len() < 10 * 25 + 200), "{asked:?}");
    hear(&mut session, &response(Kind::Address, "2", vec![], &[]));
    assert_eq!(session.next_due(), None);
}

fn wanted(sought: Sought) -> Wanted {
    Wanted::Part { sought, tenant: "tenant".into() }
}

fn at(address: &str) -> Wanted {
    wanted(Sought::Address { network: NetworkId::from("n"), address: address.parse().expect("an address") })
}

#[test]
fn what_is_not_there_is_told_by_its_key_and_not_believed_for_ever_but_without_a_stream() {
    let (mut session, start) = (hearing(true), now());
    session.on_wanted(&[at("10.0.0.9")], start, &mut Vec::new());
    let absent = hear_at(&mut session, start, Kind::Address, vec![], &["n/10.0.0.9", "n/10.0.0.8"]);
    assert_eq!(absent.len(), 1, "nobody asked for the other: {absent:?}");
    assert!(absent[0].starts_with("?Address") && absent[0].contains("10.0.0.9"), "{absent:?}");
    assert_eq!(hear_at(&mut session, start, Kind::Address, vec![], &["n/10.0.0.9"]), [""; 0], "it is known");
    let due = session.next_due().expect("not for ever");
    session.on_lost();
    assert_eq!(session.next_due(), None, "nobody would answer anew");
    session.on_connected(start);
    hear_at(&mut session, start, Kind::Address, vec![], &[]);
    let unknown = time_passes(&mut session, due);
    assert!(unknown.len() == 1 && unknown[0].starts_with("!Address"), "{unknown:?}");
    let anew: Vec<_> =
        session.on_wanted(&[at("10.0.0.9")], due, &mut Vec::new()).iter().map(|request| decoded(request)).collect();
    let key = vec!["n/10.0.0.9".to_owned()];
    assert_eq!(anew[0].unsubscribe, key, "istiod is silent on what it knows to be subscribed");
    assert_eq!(anew[0].subscribe, [NOBODY], "and removes everything when nothing is asked for");
    assert_eq!((&anew[1].subscribe, anew[1].unsubscribe.len()), (&key, 0));
}

#[test]
fn a_resource_that_is_let_go_is_unsubscribed_from_by_its_name_too() {
    let node = Node { id: "id".into(), metadata: None };
    let mut session = Session::new(node, Some(OnDemand::with_limit(1)));
    let mut changes = Vec::new();
    session.on_wanted(&[at("10.0.0.1")], now(), &mut changes);
    let answer = Resource { aliases: vec!["n/10.0.0.1".into()], ..workload("uid", "1", 1) };
    hear_at(&mut session, now(), Kind::Address, vec![answer], &[]);
    let requests: Vec<_> =
        session.on_wanted(&[at("10.0.0.2")], now(), &mut changes).iter().map(|request| decoded(request)).collect();
    assert_eq!(
        requests[0].unsubscribe,
        ["n/10.0.0.1", "uid"],
        "or its changes would go on coming, and be held for ever"
    );
    assert_eq!(requests[1].subscribe, ["n/10.0.0.2"]);
    assert_eq!(names(&changes), ["-uid"]);
}

#[test]
fn a_pod_of_this_node_outlives_those_who_asked_for_its_address() {
    let node = Node { id: "id".into(), metadata: None };
    let mut session = Session::new(node, Some(OnDemand::with_limit(1))).for_node(Some("here"));
    let mut changes = Vec::new();
    for (number, place) in ["here", "there"].into_iter().enumerate() {
        let address = format!("10.0.0.{number}");
        session.on_wanted(&[at(&address)], now(), &mut changes);
        let answer = Resource { aliases: vec![format!("n/{address}")], ..governed(place, "1", place, &[]) };
        hear_at(&mut session, now(), Kind::Address, vec![answer], &[]);
    }
    session.on_wanted(&[at("10.0.0.9")], now(), &mut changes);
    assert_eq!(names(&changes), ["-there"]);
    assert_eq!(session.held(Kind::Address), 1);
}

/// A workload of `node` that names policies.
fn governed(name: &str, version: &str, node: &str, policies: &[&str]) -> Resource {
    let workload = workload::Workload {
        uid: name.into(),
        namespace: "n".into(),
        node: node.into(),
        authorization_policies: policies.iter().map(|&key| key.into()).collect(),
        ..Default::default()
    };
    let address = workload::Address { kind: Some(workload::Kind::Workload(Box::new(workload))) };
    resource(name, version, Kind::Address, &address)
}

/// What a response changes at a time.
fn hear_at(session: &mut Session, at: Instant, kind: Kind, resources: Vec<Resource>, removed: &[&str]) -> Vec<String> {
    let response = response(kind, "1", resources, removed);
    let response = Response::read(response.encode_to_vec().into()).expect("good");
    let (mut receiving, mut changes) = (session.on_response(&response), Vec::new());
    for part in response {
        session.on_part(&mut receiving, part, at, &mut changes);
    }
    let answer = decoded(&session.on_end(receiving, at, &mut changes));
    assert_eq!(answer.error_detail, None);
    names(&changes)
}

fn time_passes(session: &mut Session, to: Instant) -> Vec<String> {
    let mut changes = Vec::new();
    session.on_time(to, &mut changes);
    names(&changes)
}

#[test]
fn a_workload_in_force_waits_for_a_policy_that_it_names_and_takes_effect_with_it() {
    let (mut session, at) = (hearing(false), now());
    let addresses = |session: &mut Session, resource| hear_at(session, at, Kind::Address, vec![resource], &[]);
    assert_eq!(addresses(&mut session, governed("w", "1", "", &[])), ["+w"]);
    assert_eq!(addresses(&mut session, governed("w", "2", "", &["n/strict"])), [""; 0]);
    let versions = &connect(&mut session)[0].initial_resource_versions;
    assert_eq!(*versions, [("w".to_owned(), String::new())].into(), "a new stream brings it again");
    let other = hear_at(&mut session, at, Kind::Authorization, vec![policy("n/other", 0)], &[]);
    assert_eq!(other, ["+n/other"], "that is not the one");
    let policies = hear_at(&mut session, at, Kind::Authorization, vec![policy("n/strict", 0)], &[]);
    assert_eq!(policies, ["+n/strict", "+w"]);
    assert_eq!(connect(&mut session)[0].initial_resource_versions, [("w".to_owned(), "2".to_owned())].into());
    assert_eq!(session.next_due(), None);
    assert_eq!(addresses(&mut session, governed("w", "3", "", &["n/strict"])), ["+w"], "it is there");
}

#[test]
fn a_workload_whose_policy_does_not_come_takes_effect_after_a_while_however_often_it_changes() {
    let (mut session, start) = (hearing(false), now());
    hear_at(&mut session, start, Kind::Address, vec![governed("w", "1", "", &[])], &[]);
    for (version, after) in [("2", 0), ("3", 1)] {
        let at = start + POLICY_PATIENCE / 2 * after;
        let heard = hear_at(&mut session, at, Kind::Address, vec![governed("w", version, "", &["n/p"])], &[]);
        assert_eq!(heard, [""; 0]);
        assert_eq!(session.next_due(), Some(start + POLICY_PATIENCE));
    }
    session.on_lost();
    assert_eq!(session.next_due(), Some(start + POLICY_PATIENCE), "without a stream, too");
    assert_eq!(time_passes(&mut session, start + POLICY_PATIENCE - Duration::from_nanos(1)), [""; 0]);
    assert_eq!(time_passes(&mut session, start + POLICY_PATIENCE), ["+w"]);
    assert_eq!(session.next_due(), None);
}

#[test]
fn what_waits_for_its_policy_is_superseded_by_what_comes_and_goes_with_what_goes() {
    let (mut session, at) = (hearing(false), now());
    let later = at + POLICY_PATIENCE * 2;
    let name = "a/b";
    let address = |session: &mut Session, resource| {
        assert_eq!(hear_at(session, at, Kind::Address, vec![governed(name, "1", "", &["n/p"])], &[]), [""; 0]);
        hear_at(session, at, Kind::Address, vec![resource], &[])
    };
    hear_at(&mut session, at, Kind::Address, vec![governed(name, "0", "", &[])], &[]);
    assert_eq!(address(&mut session, governed(name, "2", "", &[])), ["+a/b"], "the policy is not named any more");
    assert_eq!(time_passes(&mut session, later), [""; 0]);
    assert_eq!(address(&mut session, service(name, "3")), ["-a/b", "+a/b"], "it is a service now");
    assert_eq!(time_passes(&mut session, later), [""; 0]);
    hear_at(&mut session, at, Kind::Address, vec![governed(name, "4", "", &[])], &[]);
    assert_eq!(hear_at(&mut session, at, Kind::Address, vec![governed(name, "5", "", &["n/p"])], &[]), [""; 0]);
    assert_eq!(hear_at(&mut session, at, Kind::Address, vec![], &[name]), ["-a/b"]);
    assert_eq!(time_passes(&mut session, later), [""; 0]);
}

#[test]
fn only_a_bounded_number_of_workloads_of_this_node_that_were_known_wait_for_their_policies() {
    let mut session = hearing(false).for_node(Some("here"));
    let at = now();
    let all = |version: &str, policies: &[&str]| -> Vec<Resource> {
        (0..WITHHELD_MAX + 1).map(|n| governed(&format!("w{n:04}"), version, "here", policies)).collect()
    };
    hear_at(&mut session, at, Kind::Address, all("1", &[]), &[]);
    let beyond = hear_at(&mut session, at, Kind::Address, all("2", &["n/p"]), &[]);
    assert_eq!(beyond, [format!("+w{WITHHELD_MAX:04}")], "one beyond the limit takes effect at once");
    let fresh = hear_at(&mut session, at, Kind::Address, vec![governed("new", "1", "here", &["n/p"])], &[]);
    assert_eq!(fresh, ["+new"], "closed as it comes");
    for version in ["1", "2"] {
        let there = governed("there", version, "there", &["n/p"]);
        assert_eq!(hear_at(&mut session, at, Kind::Address, vec![there], &[]), ["+there"]);
    }
}
