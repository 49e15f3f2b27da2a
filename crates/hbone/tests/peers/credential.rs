//! What `Credential::from_pem` takes and refuses, with certificates of a real CA.

use super::fixture::{ALICE, BOB, Ca, Issued, Leaf, MALLORY, identity, now_unix_s};
use hbone::credential::{Credential, CredentialError, PEM_BYTES_MAX, Part};

#[test]
fn what_a_ca_issues_is_taken() {
    let ca = Ca::new();
    let issued = ca.issue(&Leaf::of(ALICE));
    let credential = ca.try_credential(ALICE, &issued).expect("good");
    assert_eq!(credential.identity(), &identity(ALICE));
    assert_eq!(credential.not_before_unix_s(), 1_577_836_800);
    assert_eq!(credential.not_after_unix_s(), 3_786_912_000);
    assert!(!format!("{credential:?}").contains("key"), "a key must not reach a log");
}

#[test]
fn it_is_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Credential>();
}

#[test]
fn a_chain_with_an_intermediate_and_several_roots_are_taken() {
    let (root, other) = (Ca::new(), Ca::new());
    let middle = root.intermediate();
    let issued = middle.issue(&Leaf::of(ALICE));
    let chain = issued.chain + &middle.pem;
    let roots = other.pem + &root.pem;
    Credential::from_pem(&identity(ALICE), &chain, &issued.key, &roots, now_unix_s()).expect("good");
}

#[test]
fn the_first_spiffe_name_is_the_identity() {
    let ca = Ca::new();
    let issued = ca.issue(&Leaf { uris: vec!["https://not.spiffe", ALICE, BOB], ..Leaf::of(ALICE) });
    ca.try_credential(ALICE, &issued).expect("first of two");
    let error = ca.try_credential(BOB, &issued).expect_err("only the second");
    assert_eq!(error, CredentialError::Identity { wanted: identity(BOB), got: ALICE.into() });
}

#[test]
fn a_leaf_that_is_not_the_pods_is_refused_by_name() {
    let ca = Ca::new();
    let rows = [
        (vec![BOB], BOB),
        (vec![MALLORY], MALLORY),
        (vec![], "nobody (no SPIFFE name)"),
        (vec!["https://cluster.local/ns/shop/sa/alice"], "nobody (no SPIFFE name)"),
    ];
    for (uris, got) in rows {
        let issued = ca.issue(&Leaf { uris, ..Leaf::of(ALICE) });
        let error = ca.try_credential(ALICE, &issued).expect_err(got);
        assert_eq!(error, CredentialError::Identity { wanted: identity(ALICE), got: got.into() });
        assert!(error.to_string().contains(got) && error.to_string().contains(ALICE), "{error}");
    }
}

#[test]
fn a_leaf_out_of_its_time_is_refused_with_how_far() {
    let ca = Ca::new();
    let issued = ca.issue(&Leaf { years: (2020, 2021), ..Leaf::of(ALICE) });
    let made = |now| Credential::from_pem(&identity(ALICE), &issued.chain, &issued.key, &ca.pem, now).map(|_| ());
    let (begin, end) = (1_577_836_800, 1_609_459_200);
    assert_eq!(made(begin), Ok(()));
    assert_eq!(made(end), Ok(()));
    assert_eq!(made(end + 7), Err(CredentialError::Expired { seconds_ago: 7 }));
    assert_eq!(made(begin - 9), Err(CredentialError::NotValidYet { seconds_ahead: 9 }));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let ca = Ca::new();
    let (issued, other) = (ca.issue(&Leaf::of(ALICE)), ca.issue(&Leaf::of(ALICE)));
    let mixed = Issued { chain: issued.chain, key: other.key };
    assert_eq!(ca.try_credential(ALICE, &mixed).expect_err("mixed up"), CredentialError::KeyMismatch);
}

#[test]
fn garbage_says_which_of_the_three_it_is() {
    let ca = Ca::new();
    let good = ca.issue(&Leaf::of(ALICE));
    let not_base64 = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cut = &good.chain[..good.chain.len() / 2];
    let not_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let long = "x".repeat(PEM_BYTES_MAX + 1);
    let rows: [(&str, &str, &str, Part, &str); 12] = [
        ("", &good.key, &ca.pem, Part::Chain, "holds none"),
        ("hello", &good.key, &ca.pem, Part::Chain, "holds none"),
        (not_base64, &good.key, &ca.pem, Part::Chain, "not readable as PEM"),
        (not_der, &good.key, &ca.pem, Part::Chain, "certificate 0"),
        (cut, &good.key, &ca.pem, Part::Chain, "not readable as PEM"),
        (&long, &good.key, &ca.pem, Part::Chain, "more than"),
        (&good.key, &good.key, &ca.pem, Part::Chain, "holds none"),
        (&good.chain, "", &ca.pem, Part::Key, "holds none"),
        (&good.chain, &good.chain, &ca.pem, Part::Key, "holds none"),
        (&good.chain, not_key, &ca.pem, Part::Key, "cannot be used"),
        (&good.chain, &good.key, "", Part::Roots, "holds none"),
        (&good.chain, &good.key, not_der, Part::Roots, "certificate 0"),
    ];
    for (row, (chain, key, roots, part, what)) in rows.into_iter().enumerate() {
        let error =
            Credential::from_pem(&identity(ALICE), chain, key, roots, now_unix_s()).expect_err("garbage").to_string();
        assert!(error.contains(&part.to_string()) && error.contains(what), "row {row}: {error}");
    }
}

#[test]
fn the_second_certificate_of_a_chain_is_looked_at_too() {
    let ca = Ca::new();
    let mut issued = ca.issue(&Leaf::of(ALICE));
    issued.chain += "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let error = ca.try_credential(ALICE, &issued).expect_err("bad intermediate").to_string();
    assert!(error.contains("certificate 1"), "{error}");
}
