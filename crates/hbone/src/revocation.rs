//! Certificates that count no more although their time is not over: revocation lists, and whether a chain is on one. Where
//! lists come from, and when they are read again, is `control`'s; what becomes of live tunnels is `dataplane`'s.

use std::collections::HashMap;
use std::fmt;

use rustls::RootCertStore;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use thiserror::Error;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use crate::error::CertificateProblem;

/// The most that is read of lists. A Kubernetes ConfigMap has at most 1 MiB. Worst case 200,000 entries of 20 bytes, which
/// take about 200 bytes each once read: 40 MiB, and twice that while new ones replace them.
pub const LISTS_BYTES_MAX: usize = 4 << 20;

/// Lists as they were read. Shared by all credentials, never changed.
#[derive(Default)]
pub struct Revocations {
    lists: Vec<CertRevocationList<'static>>,
    /// The lists of an issuer: several while its key is replaced.
    by_issuer: HashMap<Box<[u8]>, Vec<usize>>,
}

/// Why bytes are no lists.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RevocationsError {
    /// More than are read.
    #[error("{bytes} bytes of revocation lists are more than the {LISTS_BYTES_MAX} that are read")]
    TooLong {
        /// How many.
        bytes: usize,
    },
    /// The text is no PEM.
    #[error("revocation list {at} (counted from 0) is not readable as PEM: {problem}")]
    Pem {
        /// Which.
        at: usize,
        /// What the reader says.
        problem: String,
    },
    /// The bytes are no list.
    #[error("revocation list {at} (counted from 0) is no X.509 revocation list that can be checked: {problem}")]
    List {
        /// Which.
        at: usize,
        /// What the parser says.
        problem: String,
    },
}

impl Revocations {
    /// Reads PEM, of which every revocation list counts and all else is passed over, or one list in DER. Nothing but
    /// space is no list.
    ///
    /// # Errors
    /// [`RevocationsError`]; one that cannot be read is a reason to take none of them.
    pub fn read(bytes: &[u8]) -> Result<Self, RevocationsError> {
        if bytes.len() > LISTS_BYTES_MAX {
            return Err(RevocationsError::TooLong { bytes: bytes.len() });
        }
        let mut read = Self::default();
        if is_pem(bytes) {
            for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
                let at = read.lists.len();
                read.add(&list.map_err(|problem| RevocationsError::Pem { at, problem: problem.to_string() })?)?;
            }
        } else if !bytes.trim_ascii().is_empty() {
            read.add(bytes)?;
        }
        Ok(read)
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    fn add(&mut self, der: &[u8]) -> Result<(), RevocationsError> {
        let at = self.lists.len();
        let list = OwnedCertRevocationList::from_der(der)
            .map_err(|problem| RevocationsError::List { at, problem: format!("{problem:?}") })?;
        let list = CertRevocationList::from(list);
        self.by_issuer.entry(list.issuer().into()).or_default().push(at);
        self.lists.push(list);
        Ok(())
    }

    /// Whether a chain that has been verified is on a list that its issuer signed.
    ///
    /// A look into tables for each certificate; only what a list names is verified once more, with that list, which is
    /// what checks the list's own signature. When the list should have been replaced plays no part: a list that is late
    /// still revokes.
    pub(crate) fn check(&self, chain: &Chain<'_>) -> Result<(), CertificateProblem> {
        let Some((leaf, intermediates)) = chain.certificates.split_first() else { return Ok(()) };
        for (at, certificate) in chain.certificates.iter().enumerate() {
            // What is no certificate that can be verified is in no path either.
            let Ok(parsed) = EndEntityCert::try_from(certificate) else { continue };
            for list in self.by_issuer.get(parsed.issuer()).into_iter().flatten() {
                let list = &self.lists[*list];
                if matches!(list.find_serial(parsed.serial()), Ok(Some(_))) {
                    let leaf = EndEntityCert::try_from(leaf).map_err(|problem| unsure(at, &problem))?;
                    verify(&leaf, intermediates, chain, list).map_err(|problem| match problem {
                        webpki::Error::CertRevoked => {
                            CertificateProblem::Revoked { at, serial: Hex(parsed.serial()).to_string() }
                        }
                        problem => unsure(at, &problem),
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// A list may be long, and says nothing to a reader.
impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revocations({} lists)", self.lists.len())
    }
}

/// A chain as a peer presents it, the leaf first, and by whom it is believed.
pub(crate) struct Chain<'a> {
    pub(crate) certificates: &'a [CertificateDer<'a>],
    pub(crate) role: Role,
    pub(crate) roots: &'a RootCertStore,
    pub(crate) algorithms: &'a WebPkiSupportedAlgorithms,
    /// The time it is verified for.
    pub(crate) at: UnixTime,
}

/// What a peer's certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// A peer as it proved itself, kept as long as its tunnel: it may be revoked meanwhile. About the size of its chain, 1 KiB.
#[derive(Clone)]
pub struct Proof {
    certificates: Box<[CertificateDer<'static>]>,
    role: Role,
    roots: std::sync::Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    at: UnixTime,
}

impl Proof {
    pub(crate) fn new(
        certificates: &[CertificateDer<'_>],
        role: Role,
        roots: std::sync::Arc<RootCertStore>,
        algorithms: WebPkiSupportedAlgorithms,
        at: UnixTime,
    ) -> Self {
        let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Self { certificates, role, roots, algorithms, at }
    }

    /// Whether it still holds. Costs a look into tables, and some 200 us of cryptography where a list names a certificate
    /// of the chain. Verified for the time of the handshake: a tunnel outlives the end of its certificate.
    ///
    /// # Errors
    /// [`CertificateProblem::Revoked`], or [`CertificateProblem::RevocationUnsure`].
    pub fn check(&self, revocations: &Revocations) -> Result<(), CertificateProblem> {
        let Self { certificates, role, roots, algorithms, at } = self;
        revocations.check(&Chain { certificates, role: *role, roots, algorithms, at: *at })
    }
}

/// Names and keys of peers are not printed.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({} certificates)", self.certificates.len())
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN";
    bytes.windows(BEGIN.len()).any(|window| window == BEGIN)
}

fn verify(
    leaf: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
    chain: &Chain<'_>,
    list: &CertRevocationList<'_>,
) -> Result<(), webpki::Error> {
    let lists = [list];
    let options = RevocationOptionsBuilder::new(&lists)
        .expect("there is one list")
        .with_status_policy(UnknownStatusPolicy::Allow)
        .with_expiration_policy(ExpirationPolicy::Ignore)
        .build();
    let usage = match chain.role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    leaf.verify_for_usage(chain.algorithms.all, &chain.roots.roots, intermediates, chain.at, usage, Some(options), None)
        .map(drop)
}

fn unsure(at: usize, problem: &webpki::Error) -> CertificateProblem {
    CertificateProblem::RevocationUnsure { at, problem: format!("{problem:?}") }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
