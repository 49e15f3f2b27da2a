//! What must hold of a mesh file, a root, a list of versions, a CA's answer and the control plane's messages, whatever is in
//! them. For the fuzz targets and the replay of their corpora.

use std::{
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use control::{
    ca::{client::Issued, embedded::EmbeddedCa},
    file_source::{Defaults, FileSource, Origin},
    grpc::frames::Frames,
    proto::{
        discovery::{DeltaDiscoveryRequest, Resource},
        well_known::Any,
    },
    xds::{Kind, convert, kept, on_demand::OnDemand, response::Response, session::Session},
};
use mesh_state::{builder::SnapshotBuilder, identity::Identity};
use prost::Message as _;
use time::OffsetDateTime;

/// A mesh that is in force before the text comes.
const BEFORE: &str = "workloads:\n- {name: before, namespace: n, workloadIps: [], services: {}}\n";

/// True if the text is a mesh. If not, it has changed nothing, and the error is one line that names the place.
pub(crate) fn of_a_mesh_file(bytes: &[u8]) -> bool {
    // Another text does not come from a file.
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let defaults = Defaults { trust_domain: "cluster.local".to_owned(), cluster: "Kubernetes".to_owned() };
    let mut source = FileSource::new(Origin::Inline(String::new()), defaults);
    assert_eq!(source.apply(BEFORE).expect("a good mesh").len(), 1);
    match source.apply(text) {
        Ok(_) => {
            assert_eq!(source.apply(text).expect("as a moment ago"), [], "the same again changes nothing");
            true
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("LOCAL_XDS:") && !error.contains('\n'), "{error:?}");
            assert_eq!(source.apply(BEFORE).expect("a good mesh"), [], "it has changed something: {error}");
            false
        }
    }
}

/// True if the text is a root that issues certificates. If not, the error says something.
pub(crate) fn of_a_root(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("the year 2027");
    match EmbeddedCa::from_pem(text, Duration::from_secs(86_400), now) {
        Ok(ca) => {
            let identity = Identity::new("cluster.local", "shop", "web").expect("a good identity");
            ca.issue(&identity, now).is_ok_and(|credential| credential.identity() == &identity)
        }
        Err(cause) => {
            assert!(!cause.is_empty());
            false
        }
    }
}

/// True if a CA's answer is a certificate for the one who asked: then it makes a credential that is theirs. If not, the error
/// says something.
pub(crate) fn of_a_ca_answer(bytes: &[u8]) -> bool {
    let identity = Identity::new("cluster.local", "shop", "alice").expect("a good identity");
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    match Issued::read(Bytes::copy_from_slice(bytes), include_str!("alice.key.pem").to_owned(), &identity, now) {
        Ok(issued) => {
            assert!(issued.chain.contains("BEGIN CERTIFICATE") && issued.roots.contains("BEGIN CERTIFICATE"));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// True if the bytes, after one that says in which pieces they come, are messages and nothing else. However they come, the
/// messages are the same, and none is longer than it may be.
pub(crate) fn of_frames(bytes: &[u8]) -> bool {
    const BYTES_MAX: usize = 1_000;
    let Some((piece, content)) = bytes.split_first() else { return false };
    let read = |piece: usize| {
        let (mut frames, mut messages) = (Frames::new(BYTES_MAX), Vec::new());
        for part in content.chunks(piece.max(1)) {
            frames.push(Bytes::copy_from_slice(part));
            loop {
                match frames.next_message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(error) => return (messages, Some(error), true),
                }
            }
        }
        (messages, None, frames.is_inside())
    };
    let whole = read(content.len());
    assert_eq!(read(usize::from(*piece)), whole);
    let (messages, error, is_inside) = whole;
    assert!(messages.iter().all(|message| message.len() <= BYTES_MAX));
    error.is_none() && !is_inside && !messages.is_empty()
}

/// True if all of a response is taken. Whatever is not, the answer says so, and the same response again changes nothing
/// that has a version; what it changes can be built, and taken back.
pub(crate) fn of_a_response(bytes: &[u8]) -> bool {
    let Ok(response) = Response::read(Bytes::copy_from_slice(bytes)) else { return false };
    let mut session = Session::new(Default::default(), Some(OnDemand::default()));
    let mut builder = SnapshotBuilder::new();
    let mut all_taken = true;
    for _ in 0..2 {
        let (mut receiving, mut changes) = (session.on_response(&response), Vec::new());
        for part in response.clone() {
            session.on_part(&mut receiving, part, Instant::now(), &mut changes);
        }
        let answer = session.on_end(receiving, Instant::now(), &mut changes);
        let answer = DeltaDiscoveryRequest::decode(answer).expect("an answer");
        changes.into_iter().for_each(|change| builder.apply(change));
        builder.freeze();
        assert_eq!(answer.response_nonce, response.nonce());
        all_taken &= answer.error_detail.is_none();
        session.on_connected(Instant::now());
    }
    all_taken && response.clone().next().is_some()
}

/// True if the bytes, after one that says which, are an address or a policy that is taken.
pub(crate) fn of_a_resource(bytes: &[u8]) -> bool {
    let Some((which, content)) = bytes.split_first() else { return false };
    let kind = Kind::ALL[usize::from(which % 2)];
    let any = Any { type_url: kind.type_url().to_owned(), value: Bytes::copy_from_slice(content) };
    let names: [Arc<str>; 2] = ["a//Pod/b/c".into(), "b/c".into()];
    names.iter().any(|name| {
        let resource = Resource { resource: Some(any.clone()), name: name.to_string(), ..Default::default() };
        match convert::change(kind, name, &resource) {
            Ok(change) => {
                let mut builder = SnapshotBuilder::new();
                builder.apply(change);
                builder.freeze();
                true
            }
            Err(refusal) => {
                assert!(!refusal.to_string().is_empty());
                false
            }
        }
    })
}

/// True if the bytes are a list of versions. Then they are what that list is written as, and a session restored with it tells
/// them; if not, the error says where.
pub(crate) fn of_versions(bytes: &[u8]) -> bool {
    match kept::decode(bytes) {
        Ok(list) => {
            assert_eq!(kept::encode(&list), bytes);
            let mut session = Session::new(Default::default(), None);
            session.restore(list.clone());
            assert!(session.is_warm() && session.kept().len() <= list.len());
            session.on_connected(Instant::now());
            true
        }
        Err(error) => {
            assert!(error.at <= bytes.len(), "{error}");
            false
        }
    }
}
