//! The embedded CA: one root for all who share its file, leaves that peers accept, and clear words about bad files.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use control::ca::embedded::EmbeddedCa;
use mesh_state::identity::Identity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "retail", account).expect("a good identity")
}

#[test]
fn daemons_that_start_at_once_agree_on_one_root_that_only_its_owner_reads() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("deep/root.pem");
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| EmbeddedCa::open(&file, DAY, now()).map(drop))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    let text = fs::read_to_string(&file).expect("it was made");
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
    EmbeddedCa::open(&file, DAY, now()).map(drop).expect("a root that is there is used");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), text, "and stays");
}

#[test]
fn a_root_that_is_there_is_read_without_writing_beside_it() {
    let (made, mounted) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (file, copy) = (made.path().join("root.pem"), mounted.path().join("root.pem"));
    EmbeddedCa::open(&file, DAY, now()).map(drop).expect("it is made");
    fs::copy(&file, &copy).expect("copied");
    EmbeddedCa::open(&copy, DAY, now()).map(drop).expect("a root that is there is used");
    let beside = |directory: &std::path::Path| fs::read_dir(directory).expect("listed").count();
    assert_eq!(beside(mounted.path()), 1, "a Secret's mount is read-only");
    assert_eq!(beside(made.path()), 2, "the lock of the one that made it, so that the count above can fail");
}

#[tokio::test]
async fn two_daemons_with_one_root_file_accept_each_others_leaves() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("root.pem");
    let (one, other) = (EmbeddedCa::open(&file, DAY, now()), EmbeddedCa::open(&file, DAY, now()));
    let client = one.expect("it opens").issue(&identity("web"), now()).expect("issued");
    let server = other.expect("it opens").issue(&identity("shop"), now()).expect("issued");
    let (near, far) = tokio::io::duplex(64 << 10);
    let connector = client.connector(&[identity("shop")]);
    let acceptor = server.acceptor();
    let (connected, accepted) = tokio::join!(connector.connect(near), acceptor.accept(far));
    connected.map(drop).expect("the server is who it should be");
    assert_eq!(accepted.map(|(_, peer)| peer).expect("the client is of our mesh"), identity("web"));
    let left = client.not_after_unix_s() - u64::try_from(now().unix_timestamp()).expect("after 1970");
    assert!(left.abs_diff(DAY.as_secs()) < 10, "{left}");
}

/// Each step is at some daemons before it is at others. Between the first and the last there is no trust, which is what the
/// steps between are for.
#[tokio::test]
async fn a_root_file_is_replaced_in_steps_and_daemons_at_neighbouring_steps_accept_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = |name: &str| {
        let file = directory.path().join(name);
        EmbeddedCa::open(&file, DAY, now()).map(drop).expect("it is made");
        let text = fs::read_to_string(file).expect("it is there");
        let key = text.find("-----BEGIN PRIVATE").or_else(|| text.find("-----BEGIN EC")).expect("a key");
        (text[..key].to_owned(), text[key..].to_owned())
    };
    let ((old, old_key), (new, new_key)) = (made("old"), made("new"));
    let steps = [
        format!("{old}{old_key}"),
        format!("{old}{new}{old_key}"),
        format!("{new}{old}{new_key}"),
        format!("{new}{new_key}"),
    ];
    let at = |step: usize| EmbeddedCa::from_pem(&steps[step], DAY, now()).expect("a good root");
    let shake = async |from: usize, to: usize| {
        let client = at(from).issue(&identity("web"), now()).expect("issued");
        let server = at(to).issue(&identity("shop"), now()).expect("issued");
        let (near, far) = tokio::io::duplex(64 << 10);
        let (connector, acceptor) = (client.connector(&[identity("shop")]), server.acceptor());
        let (connected, accepted) = tokio::join!(connector.connect(near), acceptor.accept(far));
        connected.is_ok() && accepted.is_ok()
    };
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)] {
        assert!(shake(from, to).await, "from a daemon at step {from} to one at {to}");
    }
    assert!(!shake(0, 3).await && !shake(3, 0).await);
}

#[test]
fn a_bad_root_file_is_named_with_what_is_wrong_and_the_cure() {
    let root = |is_ca: bool, to_year: i32| {
        let mut params = CertificateParams::default();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(to_year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
    };
    let (good, good_key) = root(true, 2099);
    let (leaf, leaf_key) = root(false, 2099);
    let (old, old_key) = root(true, 2021);
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text, says) in [
        ("empty", String::new(), "no certificate"),
        ("garbage", "not PEM at all \u{0} \u{fffd}".into(), "no certificate"),
        ("no_key", good.clone(), "no private key"),
        ("mismatch", format!("{good}{old_key}"), "not its certificate's"),
        ("leaf", format!("{leaf}{leaf_key}"), "not a CA's"),
        ("expired", format!("{old}{old_key}"), "expired"),
        ("broken", format!("-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n{good_key}"), "unreadable"),
    ] {
        let file = directory.path().join(name);
        fs::write(&file, text).expect("written");
        let error = EmbeddedCa::open(&file, DAY, now()).map(drop).expect_err(name).to_string();
        for word in [file.to_str().expect("text"), says, "give one PEM file"] {
            assert!(error.contains(word), "{word:?} is not in {error}");
        }
    }
}
