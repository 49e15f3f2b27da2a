//! The connecting side: we know whom we expect. Deadlines are the caller's.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_state::identity::Identity;
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::sign::SingleCertAndKey;
use rustls::version;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::stream::TlsStream;
use super::verify::ExpectedServer;
use super::{ALPN, Trust};
use crate::error::TlsError;
use crate::revocation::{Proof, Role};

/// Connects as one identity to any of a list of expected ones. Made by [`crate::credential::Credential::connector`].
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    trust: Trust,
}

impl Connector {
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        trust: &Trust,
        own: Arc<SingleCertAndKey>,
        expected: &[Identity],
    ) -> Self {
        let verifier = ExpectedServer {
            trust: trust.clone(),
            algorithms: provider.signature_verification_algorithms,
            expected: expected.to_vec(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .expect("both suites of the provider are TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(own);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        // A resumed session would skip the peer's certificate, and with it its expiry.
        config.resumption = Resumption::disabled();
        Self { config: Arc::new(config), trust: trust.clone() }
    }

    /// Shakes hands over `io`.
    pub fn connect<Io>(&self, io: Io) -> impl Future<Output = Result<TlsStream<Io>, TlsError>> + use<Io>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        // rustls wants a name to check; our verifier checks identities and never looks at it.
        let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let roots = self.trust.roots.clone();
        let algorithms = self.config.crypto_provider().signature_verification_algorithms;
        let handshake = TlsConnector::from(self.config.clone()).connect(name, io);
        async move {
            let stream = handshake.await.map_err(TlsError::of)?;
            let session = stream.get_ref().1;
            if session.alpn_protocol() != Some(ALPN) {
                return Err(TlsError::Alpn);
            }
            let certificates = session.peer_certificates().unwrap_or_default();
            let proof = Proof::new(certificates, Role::Server, roots, algorithms, UnixTime::now());
            Ok(TlsStream::new(stream, proof))
        }
    }
}
