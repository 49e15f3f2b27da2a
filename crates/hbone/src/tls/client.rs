//! The connecting side: we know whom we expect. Deadlines are the caller's.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_state::identity::Identity;
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::ALPN;
use super::stream::TlsStream;
use super::verify::ExpectedServer;
use crate::error::TlsError;

/// Connects as one identity to any of a list of expected ones. Made by [`crate::credential::Credential::connector`].
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
}

impl Connector {
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        roots: Arc<RootCertStore>,
        own: Arc<SingleCertAndKey>,
        expected: &[Identity],
    ) -> Self {
        let verifier = ExpectedServer {
            roots,
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
        Self { config: Arc::new(config) }
    }

    /// Shakes hands over `io`.
    pub fn connect<Io>(&self, io: Io) -> impl Future<Output = Result<TlsStream<Io>, TlsError>> + use<Io>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        // rustls wants a name to check; our verifier checks identities and never looks at it.
        let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let handshake = TlsConnector::from(self.config.clone()).connect(name, io);
        async move {
            let stream = handshake.await.map_err(TlsError::of)?;
            if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
                return Err(TlsError::Alpn);
            }
            Ok(TlsStream::new(stream))
        }
    }
}
