//! A server's certificate may be for its address's host or for one other name: istiod is reached by many.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Verifies as rustls does, by one name or the other.
#[derive(Debug)]
pub(super) struct EitherName {
    verifier: Arc<WebPkiServerVerifier>,
    other: ServerName<'static>,
}

impl EitherName {
    pub(super) fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        other: ServerName<'static>,
    ) -> Result<Self, VerifierBuilderError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build()?;
        Ok(Self { verifier, other })
    }
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        match self.verifier.verify_server_cert(leaf, intermediates, name, ocsp_response, now) {
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                self.verifier.verify_server_cert(leaf, intermediates, &self.other, ocsp_response, now)
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
