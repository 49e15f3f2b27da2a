//! A certificate authority inside the daemon, for meshes without a control plane.
//!
//! Its root is one PEM file, certificate and key; further certificates in it are believed as well, and sign nothing. So a
//! root is replaced in three steps: the next one behind it, the two changed over with the next one's key, the old one gone. Daemons that share the file trust each other; whoever reads it can be
//! anybody in the mesh, so it is made for its owner only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use hbone::credential::{Credential, CredentialError};
use mesh_state::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, string::Ia5String,
};
use rustix::fs::{FlockOperation, flock};
use time::OffsetDateTime;

use super::{client::Issued, trust};
use crate::whole_file;

/// How long a root lives that is made here.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A leaf is valid from a little before now: clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(120);
/// The largest root file that is read.
const ROOT_BYTES_MAX: u64 = 1 << 20;

/// Why there is no CA, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file cannot be read or made.
    #[error("CA root file {file}: {cause}")]
    File {
        /// Which.
        file: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The file is not a root.
    #[error(
        "CA root file {file}: {cause}; give one PEM file with a CA certificate and its private key, or remove it to have one made"
    )]
    Root {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A leaf could not be made.
    #[error("cannot issue a certificate for {identity}: {cause}")]
    Issue {
        /// For whom.
        identity: Identity,
        /// Why not.
        cause: String,
    },
    /// The root does not verify what it has signed.
    #[error("the certificate just issued for {identity} is not usable: {cause}")]
    Unusable {
        /// For whom.
        identity: Identity,
        /// Why not.
        cause: CredentialError,
    },
}

/// The embedded CA.
pub struct EmbeddedCa {
    issuer: Issuer<'static, KeyPair>,
    /// Its own, and those that it is to be trusted beside.
    roots_pem: String,
    root_not_after: OffsetDateTime,
    leaf_ttl: Duration,
}

impl EmbeddedCa {
    /// Takes the root from `file`, or makes one there when there is none. Daemons that start at the same time agree on
    /// one root.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn open(file: &Path, leaf_ttl: Duration, now: OffsetDateTime) -> Result<Self, CaError> {
        let refused = |cause| CaError::File { file: file.to_owned(), cause };
        // A root that is there is only read: it may be mounted from a Secret, read-only.
        if !file.try_exists().map_err(refused)? {
            make_root_once(file, now)?;
        }
        let text = whole_file::read_text(file, ROOT_BYTES_MAX).map_err(refused)?;
        Self::from_pem(&text, leaf_ttl, now).map_err(|cause| CaError::Root { file: file.to_owned(), cause })
    }

    /// Takes the root from a text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(text: &str, leaf_ttl: Duration, now: OffsetDateTime) -> Result<Self, String> {
        let certificate = section(text, "CERTIFICATE").ok_or("it holds no certificate")?;
        let key = section(text, "PRIVATE KEY").ok_or("it holds no private key")?;
        let key = KeyPair::from_pem(key).map_err(|error| format!("its private key is unreadable: {error}"))?;
        let (root_not_after, public_key, is_ca) = describe(certificate)?;
        if !is_ca {
            return Err("its certificate is not a CA's".to_owned());
        }
        if public_key != key.subject_public_key_info() {
            return Err("its private key is not its certificate's".to_owned());
        }
        if root_not_after <= now {
            return Err(format!("its certificate expired at {root_not_after}"));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key)
            .map_err(|error| format!("its certificate is unreadable: {error}"))?;
        for (nth, other) in trust::certificates(text).enumerate().skip(1) {
            describe(other).map_err(|cause| format!("certificate {nth} (counted from 0): {cause}"))?;
        }
        Ok(Self { issuer, roots_pem: trust::union([text].into_iter()), root_not_after, leaf_ttl })
    }

    /// Whom the daemons that share the file believe.
    pub(crate) fn roots(&self) -> &str {
        &self.roots_pem
    }

    /// A certificate for `identity`, valid from now, ready for handshakes.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue(&self, identity: &Identity, now: OffsetDateTime) -> Result<Credential, CaError> {
        let unusable = |cause| CaError::Unusable { identity: identity.clone(), cause };
        let issued = self.sign(identity, now)?;
        let unix = u64::try_from(now.unix_timestamp()).map_err(|_| CaError::Issue {
            identity: identity.clone(),
            cause: "the clock says a time before 1970".to_owned(),
        })?;
        Credential::from_pem(identity, &issued.chain, &issued.key, &issued.roots, unix).map_err(unusable)
    }

    /// A certificate for `identity`, valid from now.
    pub(crate) fn sign(&self, identity: &Identity, now: OffsetDateTime) -> Result<Issued, CaError> {
        let failed = |cause: String| CaError::Issue { identity: identity.clone(), cause };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = now - BACKDATED;
        params.not_after = (now + self.leaf_ttl).min(self.root_not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let name = Ia5String::try_from(identity.as_str()).map_err(|error| failed(error.to_string()))?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| failed(error.to_string()))?;
        Ok(Issued { chain: leaf.pem(), key: key.serialize_pem(), roots: self.roots_pem.clone() })
    }
}

/// Makes a root, unless another daemon that starts at the same time is quicker.
fn make_root_once(file: &Path, now: OffsetDateTime) -> Result<(), CaError> {
    let refused = |cause| CaError::File { file: file.to_owned(), cause };
    if let Some(parent) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(refused)?;
    }
    // The lock is beside the file, because the file comes into being by a rename.
    let mut beside = file.as_os_str().to_owned();
    beside.push(".lock");
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&beside).map_err(refused)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| refused(error.into()))?;
    if file.try_exists().map_err(refused)? {
        return Ok(());
    }
    make_root(file, now)
}

fn make_root(file: &Path, now: OffsetDateTime) -> Result<(), CaError> {
    let failed = |cause: rcgen::Error| CaError::Root { file: file.to_owned(), cause: cause.to_string() };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "coretunnel embedded CA");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATED;
    params.not_after = now + ROOT_TTL;
    let key = KeyPair::generate().map_err(failed)?;
    let root = params.self_signed(&key).map_err(failed)?;
    let refused = |cause| CaError::File { file: file.to_owned(), cause };
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    // The name is ours alone while the lock is held; a leftover is of a daemon that died here.
    drop(fs::remove_file(&beside));
    let mut new: File = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside).map_err(refused)?;
    new.write_all(root.pem().as_bytes()).map_err(refused)?;
    new.write_all(key.serialize_pem().as_bytes()).map_err(refused)?;
    new.sync_all().map_err(refused)?;
    fs::rename(&beside, file).map_err(refused)
}

/// When a certificate ends, its public key, and whether it is a CA's.
fn describe(pem: &str) -> Result<(OffsetDateTime, Vec<u8>, bool), String> {
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| format!("its PEM is unreadable: {error}"))?;
    let certificate = pem.parse_x509().map_err(|error| format!("its certificate is unreadable: {error}"))?;
    // The subject is written into every leaf as its issuer, and rcgen panics at a kind that cannot be written.
    for attribute in certificate.subject().iter_attributes() {
        let kind = attribute.attr_type();
        let parts: Option<Vec<u64>> = kind.iter().map(Iterator::collect);
        if !matches!(parts.as_deref(), Some([0 | 1, 0..40, ..] | [2, ..])) {
            return Err(format!("its subject has an attribute of a kind that cannot be: OID {kind}"));
        }
    }
    Ok((certificate.validity().not_after.to_datetime(), certificate.public_key().raw.to_vec(), certificate.is_ca()))
}

/// The first PEM section whose label ends in `label`; a key's may be longer.
fn section<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let end_of_label = format!("{label}-----");
    let (start, _) = text
        .match_indices("-----BEGIN ")
        .find(|(at, _)| text[*at..].lines().next().is_some_and(|line| line.trim_end().ends_with(&end_of_label)))?;
    let end = start + text[start..].find("-----END ")?;
    let line = text[end..].find('\n').map_or(text.len(), |at| end + at + 1);
    Some(&text[start..line])
}
