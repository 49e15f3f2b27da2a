//! Revocation lists in handshakes and over live tunnels: who is refused, by which list, and by which not.

use std::sync::Arc;

use super::fixture::{ALICE, BOB, Ca, Leaf, identity, now_unix_s, run};
use hbone::credential::Credential;
use hbone::error::{CertificateProblem, TlsError};
use hbone::revocation::{LISTS_BYTES_MAX, Proof, Revocations};
use rcgen::SerialNumber;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::duplex;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A mesh whose CA is below its root, and a pod of it.
struct Mesh {
    root: Ca,
    middle: Ca,
}

impl Mesh {
    fn new() -> Self {
        let root = Ca::new();
        Self { middle: root.intermediate(), root }
    }

    fn pod(&self, name: &'static str) -> (Credential, SerialNumber) {
        let issued = self.middle.issue(&Leaf::of(name));
        let serial = serial(&issued.chain);
        let chain = issued.chain + &self.middle.pem;
        let made = Credential::from_pem(&identity(name), &chain, &issued.key, &self.root.pem, now_unix_s());
        (made.expect("a credential"), serial)
    }
}

fn serial(pem: &str) -> SerialNumber {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let (_, parsed) = X509Certificate::from_der(&der).expect("a certificate");
    SerialNumber::from_slice(parsed.raw_serial())
}

fn lists(pem: &str) -> Arc<Revocations> {
    Arc::new(Revocations::read(pem.as_bytes()).expect("lists"))
}

/// A handshake from alice to bob; what each says, and how each proved itself to the other.
async fn shake(
    alice: &Credential,
    bob: &Credential,
) -> (Result<Option<Proof>, TlsError>, Result<Option<Proof>, TlsError>) {
    let (near, far) = duplex(64 << 10);
    let (connector, acceptor) = (alice.connector(&[identity(BOB)]), bob.acceptor());
    let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
    (client.map(|mut tls| tls.take_proof()), server.map(|(mut tls, _)| tls.take_proof()))
}

fn is_revoked<T>(result: &Result<T, TlsError>, at: usize) -> bool {
    matches!(result, Err(TlsError::Certificate(CertificateProblem::Revoked { at: named, .. })) if *named == at)
}

#[test]
fn a_revoked_leaf_or_intermediate_is_refused_by_either_side_and_everybody_else_is_not() {
    run(async {
        let mesh = Mesh::new();
        let ((alice, of_alice), (bob, of_bob)) = (mesh.pod(ALICE), mesh.pod(BOB));
        let of_middle = serial(&mesh.middle.pem);
        let stranger = SerialNumber::from(4_711_u64);
        let of_leaves = |serials: &[SerialNumber]| lists(&mesh.middle.list(serials).pem().expect("PEM"));

        let (client, server) = shake(&alice, &bob.clone().with_revocations(of_leaves(&[of_alice]))).await;
        assert!(is_revoked(&server, 0), "the server refuses its client: {server:?}");
        // TLS 1.3: the client is done before the server has looked at it, and learns of it by its first read.
        assert!(client.is_ok());
        let told = server.expect_err("revoked").to_string();
        assert!(told.contains("revoked") && told.contains("serial"), "{told}");

        let (client, _) = shake(&alice.clone().with_revocations(of_leaves(&[of_bob])), &bob).await;
        assert!(is_revoked(&client, 0), "the client refuses its server: {client:?}");

        let of_middle = lists(&mesh.root.list(&[of_middle]).pem().expect("PEM"));
        let (client, _) = shake(&alice.clone().with_revocations(of_middle), &bob).await;
        assert!(is_revoked(&client, 1), "the CA of the server is revoked: {client:?}");

        // The negative control: lists that name others, and none.
        for others in [of_leaves(&[stranger]), of_leaves(&[]), Arc::default()] {
            let both = (alice.clone().with_revocations(others.clone()), bob.clone().with_revocations(others));
            let (client, server) = shake(&both.0, &both.1).await;
            assert!(client.is_ok() && server.is_ok(), "{client:?} {server:?}");
        }
    });
}

#[test]
fn any_of_several_lists_of_an_issuer_revokes_and_a_list_of_another_key_never_lets_in() {
    run(async {
        let mesh = Mesh::new();
        let ((alice, _), (bob, of_bob)) = (mesh.pod(ALICE), mesh.pod(BOB));
        let pem = |serials: &[SerialNumber]| mesh.middle.list(serials).pem().expect("PEM");
        let two = pem(&[]) + &mesh.middle.pem + &pem(std::slice::from_ref(&of_bob));
        assert_eq!(lists(&two).len(), 2, "the certificate between them is passed over");
        let (client, _) = shake(&alice.clone().with_revocations(lists(&two)), &bob).await;
        assert!(is_revoked(&client, 0), "{client:?}");
        // Of the same name, and signed with another key: it names bob, and nobody can tell whether rightly.
        let namesake = mesh.root.intermediate().list(&[of_bob]).pem().expect("PEM");
        let (client, _) = shake(&alice.with_revocations(lists(&namesake)), &bob).await;
        let problem = client.expect_err("not to be told").to_string();
        assert!(problem.contains("cannot be verified"), "{problem}");
    });
}

#[test]
fn a_tunnel_that_is_up_is_known_for_revoked_and_those_of_others_are_not() {
    run(async {
        let mesh = Mesh::new();
        let ((alice, of_alice), (bob, of_bob)) = (mesh.pod(ALICE), mesh.pod(BOB));
        let (client, server) = shake(&alice, &bob).await;
        let (bobs, alices) = (client.expect("up").expect("taken once"), server.expect("up").expect("taken once"));
        let of = |serial: &SerialNumber| Revocations::read(mesh.middle.list(std::slice::from_ref(serial)).der());
        let (of_alice, of_bob) = (of(&of_alice).expect("DER"), of(&of_bob).expect("DER"));
        assert_eq!(
            [bobs.check(&of_bob), bobs.check(&of_alice), alices.check(&of_alice), alices.check(&of_bob)]
                .map(|checked| matches!(checked, Err(CertificateProblem::Revoked { at: 0, .. }))),
            [true, false, true, false]
        );
        assert_eq!(bobs.check(&Revocations::default()), Ok(()));
    });
}

#[test]
fn what_is_no_list_is_refused_by_its_place_and_nothing_is_no_list() {
    let ca = Ca::new();
    let good = ca.list(&[]).pem().expect("PEM");
    for empty in ["", " \n", &*ca.pem] {
        assert!(Revocations::read(empty.as_bytes()).expect("none").is_empty(), "{empty:?}");
    }
    let long = vec![b' '; LISTS_BYTES_MAX + 1];
    let junk = "-----BEGIN X509 CRL-----\nQUJD\n-----END X509 CRL-----\n";
    let cut = &good[..good.len() - 30];
    for (bytes, complaint) in [
        (b"junk".as_slice(), "list 0"),
        (&[0x30, 0x82], "list 0"),
        ((good.clone() + junk).as_bytes(), "list 1"),
        ((good.clone() + cut).as_bytes(), "list 1"),
        (&long, "more than"),
    ] {
        let error = Revocations::read(bytes).expect_err(complaint).to_string();
        assert!(error.contains(complaint), "{error}");
    }
}
