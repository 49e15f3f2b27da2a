//! Who a peer is, and whether it may be. A chain to our roots first (rustls-webpki's work), then the SPIFFE names of
//! the leaf; host names play no part. Whether a known peer is *allowed* is policy, decided later in `mesh-state`.

use std::fmt;
use std::io;
use std::sync::Arc;

use mesh_state::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Trust;
use crate::error::{CertificateProblem, TlsError};
use crate::revocation::{Chain, Role};

/// The SPIFFE identities in a leaf's URI names, in their order. Other URIs are skipped.
pub fn identities(leaf: &CertificateDer<'_>) -> Result<Vec<Identity>, CertificateProblem> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|problem| CertificateProblem::Unreadable(problem.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|problem| CertificateProblem::Unreadable(format!("subject alternative name: {problem}")))?;
    let Some(names) = names else {
        return Ok(Vec::new());
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Identity::parse(uri).ok(),
        _ => None,
    });
    Ok(uris.collect())
}

/// A client's check of the server: chain for server use, then any of the leaf's names is one of the expected.
pub(crate) struct ExpectedServer {
    pub(crate) trust: Trust,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    /// Empty expects nobody: the handshake fails.
    pub(crate) expected: Vec<Identity>,
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.trust.roots, intermediates, now, self.algorithms.all)?;
        self.trust.check_revoked(leaf, intermediates, Role::Server, &self.algorithms, now)?;
        let got = identities(leaf).map_err(NameRefusal::Certificate)?;
        if got.is_empty() {
            return Err(NameRefusal::Certificate(CertificateProblem::NoSpiffe).into());
        }
        if !got.iter().any(|name| self.expected.contains(name)) {
            return Err(NameRefusal::Identity { expected: self.expected.clone(), got }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server's check of the client: chain for client use (the inner verifier), then at least one name of our mesh.
pub(crate) struct ClientOfMesh {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
    pub(crate) trust: Trust,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    pub(crate) own: Identity,
}

impl ClientCertVerifier for ClientOfMesh {
    /// None: a list of our roots would tell a stranger about us, and mesh peers have one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        self.trust.check_revoked(leaf, intermediates, Role::Client, &self.algorithms, now)?;
        let got = identities(leaf).map_err(NameRefusal::Certificate)?;
        if got.is_empty() {
            return Err(NameRefusal::Certificate(CertificateProblem::NoSpiffe).into());
        }
        if !got.iter().any(|name| name.trust_domain() == self.own.trust_domain()) {
            return Err(NameRefusal::TrustDomain { expected: self.own.trust_domain().to_owned(), got }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl Trust {
    /// Of a chain that was verified a moment ago.
    fn check_revoked(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        algorithms: &WebPkiSupportedAlgorithms,
        at: UnixTime,
    ) -> Result<(), Error> {
        if self.revocations.is_empty() {
            return Ok(());
        }
        let certificates: Vec<_> = std::iter::once(leaf).chain(intermediates).map(borrowed).collect();
        let chain = Chain { certificates: &certificates, role, roots: &self.roots, algorithms, at };
        self.revocations.check(&chain).map_err(|problem| NameRefusal::Certificate(problem).into())
    }
}

impl fmt::Debug for ExpectedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpectedServer").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientOfMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOfMesh").field("own", &self.own).finish_non_exhaustive()
    }
}

fn borrowed<'a>(certificate: &'a CertificateDer<'_>) -> CertificateDer<'a> {
    CertificateDer::from(certificate.as_ref())
}

/// Our own objection on its way through rustls, which carries strangers' errors as `Other`.
#[derive(Clone, Debug)]
enum NameRefusal {
    Certificate(CertificateProblem),
    Identity { expected: Vec<Identity>, got: Vec<Identity> },
    TrustDomain { expected: String, got: Vec<Identity> },
}

impl fmt::Display for NameRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        TlsError::from(self.clone()).fmt(f)
    }
}

impl std::error::Error for NameRefusal {}

impl From<NameRefusal> for Error {
    fn from(refusal: NameRefusal) -> Self {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

impl From<NameRefusal> for TlsError {
    fn from(refusal: NameRefusal) -> Self {
        match refusal {
            NameRefusal::Certificate(problem) => TlsError::Certificate(problem),
            NameRefusal::Identity { expected, got } => TlsError::Identity { expected, got },
            NameRefusal::TrustDomain { expected, got } => TlsError::TrustDomain { expected, got },
        }
    }
}

impl TlsError {
    /// Says in our words what rustls found, as tokio-rustls hands it on inside an I/O error.
    pub(crate) fn of(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(found) => Self::of_rustls(found),
            None => Self::Io(error),
        }
    }

    fn of_rustls(error: &Error) -> Self {
        let problem = match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                return match inner.downcast_ref::<NameRefusal>() {
                    Some(refusal) => refusal.clone().into(),
                    None => Self::Certificate(CertificateProblem::Other(inner.to_string())),
                };
            }
            Error::InvalidCertificate(problem) => {
                return Self::Certificate(certificate_problem(problem));
            }
            Error::NoCertificatesPresented => {
                return Self::Certificate(CertificateProblem::Missing);
            }
            Error::NoApplicationProtocol => return Self::Alpn,
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) => return Self::Alpn,
            Error::AlertReceived(alert) => {
                format!("the peer refused us with the alert {alert:?}; its log says why")
            }
            Error::InvalidMessage(_) => {
                format!("the peer does not speak TLS here ({error}); is it in the mesh?")
            }
            other => other.to_string(),
        };
        Self::Handshake { problem }
    }
}

fn certificate_problem(problem: &CertificateError) -> CertificateProblem {
    match problem {
        CertificateError::BadEncoding => CertificateProblem::Unreadable("bad DER".to_owned()),
        CertificateError::ExpiredContext { time, not_after } => {
            CertificateProblem::Expired { seconds_ago: time.as_secs().saturating_sub(not_after.as_secs()) }
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            CertificateProblem::NotValidYet { seconds_ahead: not_before.as_secs().saturating_sub(time.as_secs()) }
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => CertificateProblem::UnknownIssuer,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateProblem::WrongPurpose(problem.to_string())
        }
        other => CertificateProblem::Other(other.to_string()),
    }
}
