//! One identity's certificate, key and roots, checked once and made ready for handshakes. Where they come from and when
//! they are renewed is `control`'s.

use std::fmt;
use std::sync::Arc;

use mesh_state::identity::Identity;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, RootCertStore};
use thiserror::Error as ThisError;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::revocation::Revocations;
use crate::tls::client::Connector;
use crate::tls::server::Acceptor;
use crate::tls::verify::identities;
use crate::tls::{self, Trust};

/// The most PEM text read for a chain, a key or the roots; a mesh's bundle is some kilobytes. Worst case three such
/// texts and their DER, 2.25 MiB, while one credential is made.
pub const PEM_BYTES_MAX: usize = 1 << 20;

/// What a pod proves itself with, and whom it believes. `Send + Sync`: made by control, shared by the cores.
#[derive(Clone)]
pub struct Credential {
    identity: Identity,
    not_before_unix_s: u64,
    not_after_unix_s: u64,
    provider: Arc<CryptoProvider>,
    trust: Trust,
    own: Arc<SingleCertAndKey>,
    acceptor: Acceptor,
}

impl Credential {
    /// Reads and checks what a CA issued: `chain_pem` is the leaf and then its intermediates, `roots_pem` one root or
    /// several. The leaf must be `identity`'s, valid now, and fit the key.
    pub fn from_pem(
        identity: &Identity,
        chain_pem: &str,
        key_pem: &str,
        roots_pem: &str,
        now_unix_s: u64,
    ) -> Result<Self, CredentialError> {
        let chain = certificates(Part::Chain, chain_pem)?;
        let root_certificates = certificates(Part::Roots, roots_pem)?;
        let (not_before_unix_s, not_after_unix_s) = check_leaf(identity, &chain, now_unix_s)?;

        let mut roots = RootCertStore::empty();
        for (at, root) in root_certificates.into_iter().enumerate() {
            roots.add(root).map_err(|problem| CredentialError::Certificate {
                part: Part::Roots,
                at,
                problem: problem.to_string(),
            })?;
        }
        let trust = Trust { roots: Arc::new(roots), revocations: Arc::default() };
        let provider = tls::provider();
        let own = Arc::new(SingleCertAndKey::from(certified_key(&provider, chain, key_pem)?));
        let acceptor = Acceptor::new(provider.clone(), trust.clone(), own.clone(), identity.clone());
        Ok(Self { identity: identity.clone(), not_before_unix_s, not_after_unix_s, provider, trust, own, acceptor })
    }

    /// The same, and peers that `revocations` name are believed no more.
    #[must_use]
    pub fn with_revocations(self, revocations: Arc<Revocations>) -> Self {
        let trust = Trust { revocations, ..self.trust };
        let acceptor = Acceptor::new(self.provider.clone(), trust.clone(), self.own.clone(), self.identity.clone());
        Self { trust, acceptor, ..self }
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Since when it is valid, in seconds since 1970.
    pub fn not_before_unix_s(&self) -> u64 {
        self.not_before_unix_s
    }

    /// Until when it is valid, in seconds since 1970.
    pub fn not_after_unix_s(&self) -> u64 {
        self.not_after_unix_s
    }

    /// For tunnels that come in. Costs a reference count.
    pub fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    /// For tunnels to one of `expected`; an empty list verifies nobody. Costs a few small allocations, no cryptography:
    /// made per dial.
    pub fn connector(&self, expected: &[Identity]) -> Connector {
        Connector::new(self.provider.clone(), &self.trust, self.own.clone(), expected)
    }
}

/// Without the key.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("not_before_unix_s", &self.not_before_unix_s)
            .field("not_after_unix_s", &self.not_after_unix_s)
            .finish_non_exhaustive()
    }
}

/// What a credential is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The leaf and its intermediates.
    Chain,
    /// The private key.
    Key,
    /// The roots.
    Roots,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chain => "certificate chain",
            Self::Key => "private key",
            Self::Roots => "root certificates",
        })
    }
}

/// Why a credential can't be used.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum CredentialError {
    /// The text is no PEM of the right kind.
    #[error("{part}: not readable as PEM: {problem}")]
    Pem {
        /// Which text.
        part: Part,
        /// What the reader says.
        problem: String,
    },
    /// There is nothing in the text.
    #[error("{part}: the PEM text holds none; the CA's answer is empty or in another order")]
    Empty {
        /// Which text.
        part: Part,
    },
    /// The text is absurdly long.
    #[error("{part}: {bytes} bytes of PEM are more than the {PEM_BYTES_MAX} allowed")]
    TooLong {
        /// Which text.
        part: Part,
        /// How long.
        bytes: usize,
    },
    /// One certificate doesn't parse.
    #[error("{part}: certificate {at} (counted from 0) does not parse: {problem}")]
    Certificate {
        /// In which text.
        part: Part,
        /// Which of them.
        at: usize,
        /// What the parser says.
        problem: String,
    },
    /// The leaf names somebody else, or nobody.
    #[error(
        "the certificate is for {got}, not for {wanted}: the CA authenticated another service account, or ignores the request's SAN"
    )]
    Identity {
        /// Whose credential this should be.
        wanted: Identity,
        /// Whose it is.
        got: String,
    },
    /// The leaf's time is over.
    #[error(
        "the certificate expired {seconds_ago} s ago: the CA issues too short lifetimes, or this node's clock is ahead"
    )]
    Expired {
        /// For how long.
        seconds_ago: u64,
    },
    /// The leaf's time is yet to come.
    #[error("the certificate is valid only in {seconds_ahead} s: this node's clock is behind the CA's")]
    NotValidYet {
        /// For how long it isn't.
        seconds_ahead: u64,
    },
    /// Key and leaf are strangers.
    #[error(
        "the private key does not belong to the certificate: the CA answered another request, or files were mixed up"
    )]
    KeyMismatch,
    /// The key can't sign.
    #[error("the private key cannot be used: {problem}")]
    Key {
        /// What the library says.
        problem: String,
    },
}

fn certificates(part: Part, pem: &str) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    check_length(part, pem)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|problem| CredentialError::Pem { part, problem: problem.to_string() })?;
    if read.is_empty() {
        return Err(CredentialError::Empty { part });
    }
    for (at, certificate) in read.iter().enumerate() {
        X509Certificate::from_der(certificate).map_err(|problem| CredentialError::Certificate {
            part,
            at,
            problem: problem.to_string(),
        })?;
    }
    Ok(read)
}

fn check_length(part: Part, pem: &str) -> Result<(), CredentialError> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(CredentialError::TooLong { part, bytes: pem.len() });
    }
    Ok(())
}

/// Checks the leaf's name and time, and returns its validity.
fn check_leaf(
    identity: &Identity,
    chain: &[CertificateDer<'_>],
    now_unix_s: u64,
) -> Result<(u64, u64), CredentialError> {
    let leaf = &chain[0];
    let unreadable = |problem: String| CredentialError::Certificate { part: Part::Chain, at: 0, problem };
    let names = identities(leaf).map_err(|problem| unreadable(problem.to_string()))?;
    // Peers take the first name for the connection's identity, so it is the one that counts here.
    if names.first() != Some(identity) {
        let got = names.first().map_or_else(|| "nobody (no SPIFFE name)".to_owned(), ToString::to_string);
        return Err(CredentialError::Identity { wanted: identity.clone(), got });
    }
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|problem| unreadable(problem.to_string()))?;
    let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
    let not_before = seconds(parsed.validity().not_before.timestamp());
    let not_after = seconds(parsed.validity().not_after.timestamp());
    if now_unix_s < not_before {
        return Err(CredentialError::NotValidYet { seconds_ahead: not_before - now_unix_s });
    }
    if now_unix_s > not_after {
        return Err(CredentialError::Expired { seconds_ago: now_unix_s - not_after });
    }
    Ok((not_before, not_after))
}

fn certified_key(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    key_pem: &str,
) -> Result<CertifiedKey, CredentialError> {
    check_length(Part::Key, key_pem)?;
    let key = match PrivateKeyDer::from_pem_slice(key_pem.as_bytes()) {
        Ok(key) => key,
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            return Err(CredentialError::Empty { part: Part::Key });
        }
        Err(problem) => {
            return Err(CredentialError::Pem { part: Part::Key, problem: problem.to_string() });
        }
    };
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|problem| CredentialError::Key { problem: problem.to_string() })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Unknown: the key doesn't show its public half. Ours always do; a handshake would tell.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(CredentialError::KeyMismatch),
        Err(problem) => Err(CredentialError::Key { problem: problem.to_string() }),
    }
}
