//! The accepting side: the client must prove a name of our mesh. Deadlines are the caller's.

use std::sync::Arc;

use mesh_state::identity::Identity;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::stream::TlsStream;
use super::verify::{ClientOfMesh, identities};
use super::{ALPN, Trust};
use crate::error::{CertificateProblem, TlsError};
use crate::revocation::{Proof, Role};

/// Accepts as one identity. Made by [`crate::credential::Credential::acceptor`].
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    trust: Trust,
}

impl Acceptor {
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        trust: Trust,
        own: Arc<SingleCertAndKey>,
        identity: Identity,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        let chain = WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), provider.clone())
            .build()
            .expect("the roots are not empty and revocation is checked beside it");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .expect("both suites of the provider are TLS 1.3")
            .with_client_cert_verifier(Arc::new(ClientOfMesh {
                chain,
                trust: trust.clone(),
                algorithms,
                own: identity,
            }))
            .with_cert_resolver(own);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would skip the peer's certificate, and with it its expiry. Tickets cost 11 to 17 us each.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Self { config: Arc::new(config), trust }
    }

    /// Shakes hands over `io`, and says who is there: the first SPIFFE name of the peer's leaf.
    pub fn accept<Io>(&self, io: Io) -> impl Future<Output = Result<(TlsStream<Io>, Identity), TlsError>> + use<Io>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let roots = self.trust.roots.clone();
        let algorithms = self.config.crypto_provider().signature_verification_algorithms;
        let handshake = TlsAcceptor::from(self.config.clone()).accept(io);
        async move {
            let stream = handshake.await.map_err(TlsError::of)?;
            let session = stream.get_ref().1;
            if session.alpn_protocol() != Some(ALPN) {
                return Err(TlsError::Alpn);
            }
            let certificates = session.peer_certificates().unwrap_or_default();
            let [leaf, ..] = certificates else {
                return Err(TlsError::Certificate(CertificateProblem::Missing));
            };
            let mut names = identities(leaf).map_err(TlsError::Certificate)?.into_iter();
            let Some(peer) = names.next() else {
                return Err(TlsError::Certificate(CertificateProblem::NoSpiffe));
            };
            let proof = Proof::new(certificates, Role::Client, roots, algorithms, UnixTime::now());
            Ok((TlsStream::new(stream, proof), peer))
        }
    }
}
