//! Whom the control plane's certificate must come from. A file is read for each connection: it may have been replaced.

use std::{fmt, io, path::PathBuf};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::whole_file;

/// The largest file of roots. An operating system's has about 200 KiB.
const ROOTS_BYTES_MAX: u64 = 4 << 20;

/// Where the roots come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// A file of PEM.
    File(PathBuf),
    /// The operating system.
    System,
    /// This text of PEM.
    Given(String),
}

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read.
    #[error("root certificates {file}: {source}")]
    File {
        /// Which.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is there are no roots.
    #[error("root certificates {origin}: {cause}")]
    Content {
        /// From where.
        origin: String,
        /// What is wrong.
        cause: String,
    },
}

impl Roots {
    /// The roots as they are now.
    ///
    /// # Errors
    /// [`RootsError`].
    pub(crate) fn read(&self) -> Result<RootCertStore, RootsError> {
        match self {
            Self::File(file) => parse(&file.display().to_string(), &self.text()?),
            Self::Given(text) => parse("given inline", text),
            Self::System => of_system(),
        }
    }

    /// How many there are now, as a check that there are some.
    ///
    /// # Errors
    /// [`RootsError`].
    pub fn count(&self) -> Result<usize, RootsError> {
        self.read().map(|roots| roots.len())
    }

    /// What would tell that they have changed.
    ///
    /// # Errors
    /// [`RootsError`].
    pub(crate) fn text(&self) -> Result<String, RootsError> {
        match self {
            Self::File(file) => whole_file::read_text(file, ROOTS_BYTES_MAX)
                .map_err(|source| RootsError::File { file: file.clone(), source }),
            Self::Given(text) => Ok(text.clone()),
            Self::System => Ok(String::new()),
        }
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
            Self::System => f.write_str("System"),
            Self::Given(text) => write!(f, "Given(<{} bytes>)", text.len()),
        }
    }
}

fn parse(origin: &str, text: &str) -> Result<RootCertStore, RootsError> {
    let refused = |cause: String| RootsError::Content { origin: origin.to_owned(), cause };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| refused(format!("unreadable PEM: {error}")))?;
        roots.add(certificate).map_err(|error| refused(format!("certificate {}: {error}", roots.len())))?;
    }
    if roots.is_empty() {
        return Err(refused("no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// An operating system has many, and one that this library cannot read is no reason to do without the others.
fn of_system() -> Result<RootCertStore, RootsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let problems: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let cause = format!("none found ({}); is ca-certificates installed?", problems.join(", "));
        return Err(RootsError::Content { origin: "of the system".to_owned(), cause });
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use std::fs;

    use super::*;

    fn root() -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").pem()
    }

    #[test]
    fn roots_come_from_a_file_as_it_is_now_or_from_a_text() {
        let directory = tempfile::tempdir().expect("a directory");
        let roots = Roots::File(directory.path().join("root.pem"));
        for count in [1, 2] {
            let text: String = (0..count).map(|_| root()).collect();
            fs::write(directory.path().join("root.pem"), &text).expect("written");
            assert_eq!(roots.read().expect("good").len(), count);
            assert_eq!(Roots::Given(text).read().expect("good").len(), count);
        }
    }

    #[test]
    fn what_are_no_roots_is_refused_with_the_place() {
        let missing = Roots::File("/nowhere/root.pem".into()).read().expect_err("missing").to_string();
        assert!(missing.contains("/nowhere/root.pem"), "{missing}");
        let junk = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";
        for (text, complaint) in [("", "no certificate"), ("PEM?", "no certificate"), (junk, "certificate 0")] {
            let error = Roots::Given(text.to_owned()).read().expect_err(complaint).to_string();
            assert!(error.contains(complaint) && error.contains("inline"), "{error}");
        }
    }
}
