//! Field numbers and wire types, byte by byte: bytes written out by hand, read and written again.

use std::{collections::HashMap, fmt::Debug};

use bytes::Bytes;
use prost::Message;

use super::{certificate::*, discovery::*, security, well_known::*, workload};

/// The message of the bytes is this one, and this one's bytes are these.
fn same<M: Message + Default + PartialEq + Debug>(message: &M, bytes: &[u8]) {
    assert_eq!(&M::decode(bytes).expect("good bytes"), message, "{bytes:02x?}");
    assert_eq!(message.encode_to_vec(), bytes, "{message:?}");
}

/// One field: its key, its length and what is in it.
fn field(key: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("tests are short");
    assert!(length < 0x80, "tests are short");
    [key, &[length], content].concat()
}

#[test]
fn a_workload_is_these_bytes() {
    let gateway = |port| workload::GatewayAddress {
        destination: Some(workload::Destination::Hostname(workload::NamespacedHostname {
            namespace: "n".into(),
            hostname: "h".into(),
        })),
        hbone_mtls_port: port,
    };
    let message = workload::Workload {
        name: "a".into(),
        namespace: "b".into(),
        addresses: vec![Bytes::from_static(&[10, 0, 0, 1])],
        network: "c".into(),
        tunnel_protocol: 1,
        trust_domain: "d".into(),
        service_account: "e".into(),
        waypoint: Some(gateway(15008)),
        node: "f".into(),
        canonical_name: "g".into(),
        canonical_revision: "h".into(),
        workload_type: 2,
        workload_name: "i".into(),
        native_tunnel: true,
        authorization_policies: vec!["j/k".into()],
        status: 1,
        cluster_id: "l".into(),
        network_gateway: Some(gateway(1)),
        uid: "m".into(),
        hostname: "o".into(),
        services: HashMap::from([(
            "p/q".into(),
            workload::PortList { ports: vec![workload::Port { service_port: 80, target_port: 300 }] },
        )]),
        application_tunnel: Some(workload::ApplicationTunnel { protocol: 1, port: 7 }),
        locality: Some(workload::Locality { region: "r".into(), zone: "s".into(), subzone: "t".into() }),
        network_mode: 1,
        capacity: Some(3),
    };
    let name = b"\x0a\x06\x0a\x01n\x12\x01h";
    let bytes = [
        &b"\x0a\x01a\x12\x01b\x1a\x04\x0a\x00\x00\x01\x22\x01c\x28\x01\x32\x01d\x3a\x01e"[..],
        &field(b"\x42", &[&name[..], b"\x18\xa0\x75"].concat()),
        b"\x4a\x01f\x52\x01g\x5a\x01h\x60\x02\x6a\x01i\x70\x01\x82\x01\x03j/k\x88\x01\x01\x92\x01\x01l",
        &field(b"\x9a\x01", &[&name[..], b"\x18\x01"].concat()),
        b"\xa2\x01\x01m\xaa\x01\x01o",
        &field(b"\xb2\x01", b"\x0a\x03p/q\x12\x07\x0a\x05\x08\x50\x10\xac\x02"),
        b"\xba\x01\x04\x08\x01\x10\x07\xc2\x01\x09\x0a\x01r\x12\x01s\x1a\x01t\xc8\x01\x01\xda\x01\x02\x08\x03",
    ]
    .concat();
    same(&message, &bytes);
    let address = workload::Address { kind: Some(workload::Kind::Workload(Box::new(message))) };
    let length = u8::try_from(bytes.len() - 0x80).expect("longer than a byte of length says, and not by much");
    same(&address, &[&[0x0a, 0x80 | length, 1], &bytes[..]].concat());
}

#[test]
fn a_service_is_these_bytes() {
    let vip = workload::NetworkAddress {
        network: "n".into(),
        address: Bytes::from_static(&[10, 96, 0, 0]),
        length: Some(16),
    };
    let message = workload::Service {
        name: "a".into(),
        namespace: "b".into(),
        hostname: "c".into(),
        addresses: vec![vip.clone()],
        ports: vec![workload::Port { service_port: 1, target_port: 2 }],
        subject_alt_names: vec!["d".into()],
        waypoint: Some(workload::GatewayAddress {
            destination: Some(workload::Destination::Address(vip)),
            hbone_mtls_port: 1,
        }),
        load_balancing: Some(workload::LoadBalancing { routing_preference: vec![1, 2], mode: 3, health_policy: 1 }),
        ip_families: 3,
        canonical: true,
        weighted_waypoints: vec![workload::WeightedWaypoint { destination: None, weight: 9 }],
        visibility: 1,
    };
    let vip = b"\x0a\x01n\x12\x04\x0a\x60\x00\x00\x18\x10";
    let bytes = [
        &b"\x0a\x01a\x12\x01b\x1a\x01c"[..],
        &field(b"\x22", vip),
        b"\x2a\x04\x08\x01\x10\x02\x32\x01d",
        &field(b"\x3a", &[&field(b"\x12", vip)[..], b"\x18\x01"].concat()),
        b"\x42\x08\x0a\x02\x01\x02\x10\x03\x18\x01\x48\x03\x58\x01\x6a\x02\x10\x09\x70\x01",
    ]
    .concat();
    same(&message, &bytes);
    let address = workload::Address { kind: Some(workload::Kind::Service(Box::new(message))) };
    same(&address, &field(b"\x12", &bytes));
}

#[test]
fn a_policy_is_these_bytes() {
    let text = |kind| security::StringMatch { match_type: Some(kind) };
    let block = |last| security::Block { address: Bytes::copy_from_slice(&[10, 0, 0, last]), length: 32 };
    let account = |name: &str| security::ServiceAccountMatch { namespace: "n".into(), service_account: name.into() };
    let one = security::Match {
        namespaces: vec![text(security::MatchType::Exact("a".into()))],
        not_namespaces: vec![text(security::MatchType::Prefix("b".into()))],
        principals: vec![text(security::MatchType::Suffix("c".into()))],
        not_principals: vec![text(security::MatchType::Presence(()))],
        source_ips: vec![block(1)],
        not_source_ips: vec![block(2)],
        destination_ips: vec![block(3)],
        not_destination_ips: vec![block(4)],
        destination_ports: vec![80, 300],
        not_destination_ports: vec![1],
        service_accounts: vec![account("x")],
        not_service_accounts: vec![account("y")],
    };
    let message = security::Authorization {
        name: "p".into(),
        namespace: "q".into(),
        scope: 2,
        action: 1,
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![one] }] }],
        dry_run: true,
    };
    let block = |key: u8, last| [key, 8, 0x0a, 4, 10, 0, 0, last, 0x10, 32];
    let one = [
        &b"\x0a\x03\x0a\x01a\x12\x03\x12\x01b\x1a\x03\x1a\x01c\x22\x02\x22\x00"[..],
        &[block(0x2a, 1), block(0x32, 2), block(0x3a, 3), block(0x42, 4)].concat(),
        b"\x4a\x03\x50\xac\x02\x52\x01\x01\x5a\x06\x0a\x01n\x12\x01x\x62\x06\x0a\x01n\x12\x01y",
    ]
    .concat();
    let rule = field(b"\x2a", &field(b"\x0a", &field(b"\x12", &one)));
    same(&message, &[&b"\x0a\x01p\x12\x01q\x18\x02\x20\x01"[..], &rule, b"\x30\x01"].concat());
}

#[test]
fn a_request_is_these_bytes() {
    let node = Node { id: "i".into(), metadata: Some(Struct::of_texts([("NAME", "z")])) };
    let message = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: "t".into(),
        subscribe: vec!["*".into()],
        unsubscribe: vec!["u".into()],
        initial_resource_versions: [("n".to_owned(), "v".to_owned())].into(),
        response_nonce: "o".into(),
        error_detail: Some(Status { code: 3, message: "m".into() }),
    };
    let metadata = field(b"\x1a", &field(b"\x0a", b"\x0a\x04NAME\x12\x03\x1a\x01z"));
    let node = field(b"\x0a", &[&b"\x0a\x01i"[..], &metadata].concat());
    let rest = b"\x12\x01t\x1a\x01*\x22\x01u\x2a\x06\x0a\x01n\x12\x01v\x32\x01o\x3a\x05\x08\x03\x12\x01m";
    same(&message, &[&node[..], rest].concat());
}

#[test]
fn a_response_is_these_bytes() {
    let resource = Resource {
        version: "v".into(),
        resource: Some(Any { type_url: "t".into(), value: Bytes::from_static(b"b") }),
        name: "n".into(),
        aliases: vec!["a".into()],
    };
    let message = DeltaDiscoveryResponse {
        system_version_info: "s".into(),
        resources: vec![resource],
        type_url: "t".into(),
        nonce: "o".into(),
        removed_resources: vec!["r".into()],
    };
    let resource = field(b"\x12", b"\x0a\x01v\x12\x06\x0a\x01t\x12\x01b\x1a\x01n\x22\x01a");
    same(&message, &[&b"\x0a\x01s"[..], &resource, b"\x22\x01t\x2a\x01o\x32\x01r"].concat());
    // What is not read here is skipped: a time to live, the cache's control, the list of control planes.
    let with_more =
        field(b"\x12", b"\x0a\x01v\x12\x06\x0a\x01t\x12\x01b\x1a\x01n\x22\x01a\x32\x02\x08\x05\x3a\x02\x08\x01");
    let bytes = [&b"\x0a\x01s"[..], &with_more, b"\x22\x01t\x2a\x01o\x32\x01r\x3a\x01x"].concat();
    assert_eq!(DeltaDiscoveryResponse::decode(&bytes[..]), Ok(message));
}

#[test]
fn a_certificate_is_asked_for_and_answered_in_these_bytes() {
    let request = CertificateRequest {
        csr: "c".into(),
        validity_duration: 86_400,
        metadata: Some(Struct::of_texts([(IMPERSONATED_IDENTITY, "s")])),
    };
    let metadata = field(b"\x22", &field(b"\x0a", b"\x0a\x14ImpersonatedIdentity\x12\x03\x1a\x01s"));
    same(&request, &[&b"\x0a\x01c\x18\x80\xa3\x05"[..], &metadata].concat());
    same(&CertificateResponse { cert_chain: vec!["l".into(), "r".into()] }, b"\x0a\x01l\x0a\x01r");
}

#[test]
fn every_json_value_is_these_bytes() {
    for (kind, bytes) in [
        (Kind::Null(0), &b"\x08\x00"[..]),
        (Kind::Number(1.0), b"\x11\0\0\0\0\0\0\xf0\x3f"),
        (Kind::Text("x".into()), b"\x1a\x01x"),
        (Kind::Truth(true), b"\x20\x01"),
        (Kind::Object(Struct::default()), b"\x2a\x00"),
        (Kind::List(List { values: vec![Value::text("y")] }), b"\x32\x05\x0a\x03\x1a\x01y"),
    ] {
        same(&Value { kind: Some(kind) }, bytes);
    }
}
