//! Handshakes between real certificates: who gets in, and what the refusal says.

use std::io::ErrorKind;
use std::sync::Arc;

use super::fixture::{ALICE, BOB, Ca, Issued, Leaf, MALLORY, identity, now_unix_s, run};
use bytes::Bytes;
use hbone::error::{CertificateProblem, TlsError};
use hbone::h2::{H2Config, client};
use hbone::tls::stream::TlsStream;
use mesh_state::identity::Identity;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

type Tls = TlsStream<DuplexStream>;

/// A handshake between `client`, which expects some names, and `server`.
async fn shake(
    client: (&Ca, &Leaf, &[&str]),
    server: (&Ca, &Leaf),
) -> (Result<Tls, TlsError>, Result<(Tls, Identity), TlsError>) {
    let expected: Vec<_> = client.2.iter().map(|name| identity(name)).collect();
    let (near, far) = duplex(64 << 10);
    let connector = client.0.credential(client.1).connector(&expected);
    let acceptor = server.0.credential(server.1).acceptor();
    tokio::join!(connector.connect(near), acceptor.accept(far))
}

#[test]
fn two_pods_of_a_mesh_know_each_other_and_exchange_bytes() {
    run(async {
        let ca = Ca::new();
        let (client, server) = shake((&ca, &Leaf::of(ALICE), &[BOB]), (&ca, &Leaf::of(BOB))).await;
        let (mut client, (mut server, peer)) = (client.expect("client"), server.expect("server"));
        assert_eq!(peer, identity(ALICE));
        client.write_all(b"ping").await.expect("write");
        client.shutdown().await.expect("close");
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.expect("a clean end");
        assert_eq!(read, b"ping");
        server.write_all(b"pong").await.expect("the other direction lives on");
        server.shutdown().await.expect("close");
        read.clear();
        client.read_to_end(&mut read).await.expect("a clean end");
        assert_eq!(read, b"pong");
    });
}

#[test]
fn a_cut_connection_is_not_a_clean_end() {
    run(async {
        let ca = Ca::new();
        let (client, server) = shake((&ca, &Leaf::of(ALICE), &[BOB]), (&ca, &Leaf::of(BOB))).await;
        let (mut client, (mut server, _)) = (client.expect("client"), server.expect("server"));
        client.write_all(b"half of it").await.expect("write");
        client.flush().await.expect("flush");
        drop(client);
        let mut read = Vec::new();
        let error = server.read_to_end(&mut read).await.expect_err("no close_notify came");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(read, b"half of it");
        let again = server.read(&mut [0; 8]).await.expect_err("it does not turn into an end later");
        assert_eq!(again.kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_chain_over_an_intermediate_is_accepted() {
    run(async {
        let root = Ca::new();
        let middle = root.intermediate();
        let made = |name| {
            let issued = middle.issue(&Leaf::of(name));
            let chain = issued.chain + &middle.pem;
            hbone::credential::Credential::from_pem(&identity(name), &chain, &issued.key, &root.pem, now_unix_s())
                .expect("a credential")
        };
        let (near, far) = duplex(64 << 10);
        let connector = made(ALICE).connector(&[identity(BOB)]);
        let acceptor = made(BOB).acceptor();
        let (client, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
        client.expect("client");
        server.expect("server");
    });
}

#[test]
fn the_client_takes_any_expected_name_and_nobody_else() {
    run(async {
        let ca = Ca::new();
        let both = Leaf { uris: vec![ALICE, BOB], ..Leaf::of(ALICE) };
        let rows: [(&Leaf, &[&str], bool); 8] = [
            (&Leaf::of(BOB), &[BOB], true),
            (&Leaf::of(BOB), &[MALLORY, BOB], true),
            (&both, &[BOB], true),
            (&both, &[ALICE], true),
            (&Leaf::of(BOB), &[ALICE], false),
            (&Leaf::of(BOB), &["spiffe://other.mesh/ns/shop/sa/bob"], false),
            (&Leaf::of(BOB), &["spiffe://cluster.local/ns/shop/sa/bob2"], false),
            (&Leaf::of(BOB), &[], false),
        ];
        for (row, (server, expected, good)) in rows.into_iter().enumerate() {
            let (client, _) = shake((&ca, &Leaf::of(ALICE), expected), (&ca, server)).await;
            assert_eq!(client.is_ok(), good, "row {row}: {:?}", client.err());
        }
    });
}

#[test]
fn a_wrong_server_is_named_with_who_was_expected() {
    run(async {
        let ca = Ca::new();
        let (client, server) = shake((&ca, &Leaf::of(ALICE), &[ALICE, MALLORY]), (&ca, &Leaf::of(BOB))).await;
        assert_eq!(
            client.expect_err("not Bob").to_string(),
            format!(
                "identity verification error: peer did not present the expected SAN ({ALICE},{MALLORY}), got {BOB}"
            )
        );
        let told = server.expect_err("the client left").to_string();
        assert!(told.contains("refused us with the alert"), "{told}");
    });
}

#[test]
fn a_client_of_another_trust_domain_is_refused() {
    run(async {
        let ca = Ca::new();
        let (_, server) = shake((&ca, &Leaf::of(MALLORY), &[BOB]), (&ca, &Leaf::of(BOB))).await;
        assert_eq!(
            server.expect_err("another mesh").to_string(),
            format!(
                "identity verification error: peer did not present the expected trustdomain (cluster.local), \
                 got {MALLORY}"
            )
        );
    });
}

#[test]
fn of_two_names_one_of_our_mesh_suffices_and_the_first_is_the_peer() {
    run(async {
        let ca = Ca::new();
        let rows = [(vec![ALICE, BOB], ALICE), (vec![MALLORY, ALICE], MALLORY)];
        for (uris, first) in rows {
            let leaf = Leaf { uris, ..Leaf::of(ALICE) };
            let (_, server) = shake((&ca, &leaf, &[BOB]), (&ca, &Leaf::of(BOB))).await;
            assert_eq!(server.expect("one name is of our mesh").1, identity(first));
        }
    });
}

#[test]
fn names_that_are_no_identity_are_skipped() {
    run(async {
        let ca = Ca::new();
        let issued = ca.issue(&Leaf {
            uris: vec!["https://a.b", "spiffe://cluster.local/ns/shop", "spiffe://cluster.local/ns//sa/x", ALICE],
            ..Leaf::of(ALICE)
        });
        let client = ca.try_credential(ALICE, &issued).expect("Alice");
        let (near, far) = duplex(64 << 10);
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        let connector = client.connector(&[identity(BOB)]);
        let (_, server) = tokio::join!(connector.connect(near), acceptor.accept(far));
        assert_eq!(server.expect("the fourth name").1, identity(ALICE));
    });
}

#[test]
fn a_bad_certificate_is_refused_by_either_side_with_its_reason() {
    run(async {
        let (ca, other) = (Ca::new(), Ca::new());
        let good = Leaf::of(ALICE);
        let leaf = |years| Leaf { years, ..Leaf::of(ALICE) };
        let only = |usage| Leaf { usages: vec![usage], ..Leaf::of(ALICE) };
        let server_only = only(ExtendedKeyUsagePurpose::ServerAuth);
        let client_only = only(ExtendedKeyUsagePurpose::ClientAuth);
        type Check = fn(&CertificateProblem) -> bool;
        let expired: Check =
            |problem| matches!(problem, CertificateProblem::Expired { seconds_ago } if *seconds_ago > 0);
        let early: Check =
            |problem| matches!(problem, CertificateProblem::NotValidYet { seconds_ahead } if *seconds_ahead > 0);
        let stranger: Check = |problem| *problem == CertificateProblem::UnknownIssuer;
        let purpose: Check = |problem| matches!(problem, CertificateProblem::WrongPurpose(_));
        let rows: [(&str, &Ca, &Leaf, &Leaf, Check); 4] = [
            ("expired", &ca, &leaf((2020, 2021)), &leaf((2020, 2021)), expired),
            ("not valid yet", &ca, &leaf((2089, 2090)), &leaf((2089, 2090)), early),
            ("unknown issuer", &other, &good, &good, stranger),
            ("wrong purpose", &ca, &client_only, &server_only, purpose),
        ];
        for (row, issuer, as_server, as_client, check) in rows {
            let (client, _) = shake((&ca, &good, &[ALICE]), (issuer, as_server)).await;
            let (_, server) = shake((issuer, as_client, &[ALICE]), (&ca, &good)).await;
            // With strangers both sides object; each row looks at the side that holds the good certificate.
            let told = [client.map(|_| ()), server.map(|_| ())];
            for told in told {
                match told {
                    Err(TlsError::Certificate(problem)) => assert!(check(&problem), "{row}: {problem}"),
                    // The other side was quicker to refuse us.
                    Err(TlsError::Handshake { problem }) if row == "unknown issuer" => {
                        assert!(problem.contains("refused us"), "{row}: {problem}");
                    }
                    told => panic!("{row}: {told:?}"),
                }
            }
        }
    });
}

/// A peer that isn't ours: believes everybody, and is set up as the test wants.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn strange_client(provider: CryptoProvider, leaf: Option<Issued>, alpn: &[&str]) -> tokio_rustls::TlsConnector {
    let provider = Arc::new(provider);
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)));
    let mut config = match leaf {
        Some(issued) => config.with_client_auth_cert(certificates(&issued.chain), key(&issued.key)).expect("a leaf"),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config).into()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("certificates")
}

fn key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key")
}

fn anywhere() -> ServerName<'static> {
    "example.com".try_into().expect("a name")
}

#[test]
fn a_strange_client_is_refused_with_its_reason() {
    run(async {
        let ca = Ca::new();
        let issue = |uris| Some(ca.issue(&Leaf { uris, ..Leaf::of(ALICE) }));
        type Check = fn(&TlsError) -> bool;
        let missing: Check = |error| matches!(error, TlsError::Certificate(CertificateProblem::Missing));
        let nobody: Check = |error| matches!(error, TlsError::Certificate(CertificateProblem::NoSpiffe));
        let alpn: Check = |error| matches!(error, TlsError::Alpn);
        let rows: [(&str, Option<Issued>, &[&str], Check); 5] = [
            ("no certificate", None, &["h2"], missing),
            ("no SPIFFE name", issue(vec!["https://cluster.local/ns/shop/sa/alice"]), &["h2"], nobody),
            ("no name at all", issue(vec![]), &["h2"], nobody),
            ("no ALPN", issue(vec![ALICE]), &[], alpn),
            ("another ALPN", issue(vec![ALICE]), &["http/1.1"], alpn),
        ];
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        for (row, leaf, protocols, check) in rows {
            let (near, far) = duplex(64 << 10);
            let client = strange_client(aws_lc_rs::default_provider(), leaf, protocols);
            let (_, server) = tokio::join!(client.connect(anywhere(), near), acceptor.accept(far));
            let error = server.map(|_| ()).expect_err(row);
            assert!(check(&error), "{row}: {error}");
        }
    });
}

#[test]
fn only_the_two_suites_of_the_mesh_are_agreed_on() {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    run(async {
        let ca = Ca::new();
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        let rows = [
            (TLS13_AES_256_GCM_SHA384, true),
            (TLS13_AES_128_GCM_SHA256, true),
            (TLS13_CHACHA20_POLY1305_SHA256, false),
        ];
        for (suite, good) in rows {
            let (near, far) = duplex(64 << 10);
            let provider = CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };
            let client = strange_client(provider, Some(ca.issue(&Leaf::of(ALICE))), &["h2"]);
            let (_, server) = tokio::join!(client.connect(anywhere(), near), acceptor.accept(far));
            assert_eq!(server.is_ok(), good, "{suite:?}: {:?}", server.err());
        }
    });
}

#[test]
fn a_strange_server_is_refused_with_its_reason() {
    run(async {
        let ca = Ca::new();
        let rows: [(&str, Vec<&'static str>, &[&str], &str); 4] = [
            ("no SPIFFE name", vec!["https://a.b"], &["h2"], "no SPIFFE identity"),
            ("no name at all", vec![], &["h2"], "no SPIFFE identity"),
            ("no ALPN", vec![BOB], &[], "ALPN h2"),
            ("another ALPN", vec![BOB], &["http/1.1"], "ALPN h2"),
        ];
        for (row, uris, alpn, told) in rows {
            let issued = ca.issue(&Leaf { uris, ..Leaf::of(BOB) });
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(&ca.pem));
            let provider = Arc::new(aws_lc_rs::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("TLS 1.3")
                .with_no_client_auth()
                .with_single_cert(certificates(&issued.chain), key(&issued.key))
                .expect("a leaf");
            config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
            let (near, far) = duplex(64 << 10);
            let (client, _) = tokio::join!(connector.connect(near), acceptor.accept(far));
            let error = client.map(|_| ()).expect_err(row).to_string();
            assert!(error.contains(told), "{row}: {error}");
        }
    });
}

#[test]
fn the_first_bytes_of_a_client_name_no_server_and_offer_h2_alone() {
    run(async {
        let ca = Ca::new();
        let connector = ca.credential(&Leaf::of(ALICE)).connector(&[identity(BOB)]);
        let (near, far) = duplex(64 << 10);
        let hello = async {
            let start = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far);
            let start = start.await.expect("a ClientHello");
            let hello = start.client_hello();
            assert_eq!(hello.server_name(), None);
            let alpn: Vec<_> = hello.alpn().expect("ALPN").map(<[u8]>::to_vec).collect();
            assert_eq!(alpn, [b"h2".to_vec()]);
            let suites: Vec<u16> = hello.cipher_suites().iter().map(|suite| u16::from(*suite)).collect();
            let of_the_mesh: Vec<_> = suites.iter().filter(|suite| **suite != 0x00ff).collect();
            assert_eq!(of_the_mesh, [&0x1302, &0x1301], "AES-256-GCM-SHA384 first, then AES-128-GCM-SHA256");
        };
        let _ = tokio::join!(connector.connect(near), hello);
    });
}

#[test]
fn what_is_not_tls_is_said_to_be_not_tls() {
    run(async {
        let ca = Ca::new();
        let acceptor = ca.credential(&Leaf::of(BOB)).acceptor();
        let rows: [(&[u8], &str); 3] = [
            (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "does not speak TLS"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "does not speak TLS"),
            (b"", "connection lost"),
        ];
        for (bytes, told) in rows {
            let (mut near, far) = duplex(64 << 10);
            near.write_all(bytes).await.expect("room for it");
            near.shutdown().await.expect("close");
            let error = acceptor.accept(far).await.map(|_| ()).expect_err("not TLS").to_string();
            assert!(error.contains(told), "{error}");
        }
    });
}

#[test]
fn a_client_that_is_refused_learns_it_with_its_first_read() {
    run(async {
        let ca = Ca::new();
        let (client, server) = shake((&ca, &Leaf::of(MALLORY), &[BOB]), (&ca, &Leaf::of(BOB))).await;
        assert!(server.is_err());
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        let mut client = client.expect("the client's half is over");
        let error = client.read(&mut [0; 8]).await.expect_err("an alert");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    });
}

#[test]
fn a_tunnel_whose_first_write_meets_a_closed_connection_says_the_alert_that_came_before() {
    run(async {
        let ca = Ca::new();
        let (client, server) = shake((&ca, &Leaf::of(MALLORY), &[BOB]), (&ca, &Leaf::of(BOB))).await;
        assert!(server.map(drop).is_err(), "another trust domain");
        let error = match client::handshake::<_, Bytes>(client.expect("its half"), &H2Config::default()).await {
            Err(error) => error,
            Ok((_tunnel, driver)) => driver.await.expect_err("nobody is there"),
        };
        let told = error.to_string();
        assert!(told.contains("alert") && !told.contains("pipe"), "{told}");
    });
}
