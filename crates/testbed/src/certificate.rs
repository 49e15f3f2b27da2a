//! Certificates made by hand from the embedded CA's root file, right ones and wrong ones. Independent of `control`,
//! which makes the daemon's.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// What a leaf is to say.
#[derive(Clone, Debug)]
pub struct LeafSpec {
    uris: Vec<String>,
    expired: bool,
}

/// A leaf and its key, ready to be presented.
#[derive(Debug)]
pub struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl LeafSpec {
    /// A valid one with these URI names.
    #[must_use]
    pub fn named(uris: &[&str]) -> Self {
        Self { uris: uris.iter().map(|&uri| uri.into()).collect(), expired: false }
    }

    /// Valid in 2020 only.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }
}

impl Leaf {
    /// A copy of chain and key.
    #[must_use]
    pub fn presented(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.clone(), self.key.clone_key())
    }

    /// Chain and key as rustls presents them, without a look at what the chain says.
    ///
    /// # Errors
    /// When the key can't be read.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&self.key)?;
        Ok(Arc::new(CertifiedKey::new(self.chain.clone(), key)))
    }

    /// The same with a certificate that no parser gets to the end of.
    #[must_use]
    pub fn cut_short(mut self) -> Self {
        for certificate in &mut self.chain {
            *certificate = CertificateDer::from(certificate[..certificate.len() / 2].to_vec());
        }
        self
    }
}

impl Authority {
    /// The mesh's: certificate and key from the file that the daemons share.
    ///
    /// # Errors
    /// When the file isn't there yet or doesn't hold both.
    pub fn from_root_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let (certificate, key) = (section(&text, "CERTIFICATE"), section(&text, "PRIVATE KEY"));
        let certificate = certificate.with_context(|| format!("no certificate in {}", path.display()))?;
        let key = KeyPair::from_pem(key.with_context(|| format!("no private key in {}", path.display()))?)?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(certificate, key)? })
    }

    /// One that no daemon trusts.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn stranger() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        Ok(Self { issuer: Issuer::new(params, KeyPair::generate()?) })
    }

    /// Signs a leaf.
    ///
    /// # Errors
    /// When a name is no ASCII.
    pub fn sign(&self, spec: &LeafSpec) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        for uri in &spec.uris {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri.as_str())?));
        }
        let (from, to) = if spec.expired { (2019, 2020) } else { (2020, 2099) };
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let key = KeyPair::generate()?;
        let chain = vec![params.signed_by(&key, &self.issuer)?.der().clone()];
        Ok(Leaf { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }
}

/// The protocol versions and algorithms of HBONE.
///
/// # Panics
/// Never: aws-lc-rs has TLS 1.3.
#[must_use]
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn section<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    // The key's label may be longer: EC PRIVATE KEY.
    let ends = format!("{label}-----");
    let mut lines = text.match_indices("-----BEGIN ");
    let (start, _) = lines.find(|(at, _)| text[*at..].lines().next().is_some_and(|line| line.ends_with(&ends)))?;
    let end = text[start..].find("-----END ")? + start;
    let line_end = text[end..].find('\n').map_or(text.len(), |at| end + at + 1);
    Some(&text[start..line_end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_root_file_are_found_in_either_order() {
        let (certificate, key) = (
            "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n",
            "-----BEGIN EC PRIVATE KEY-----\nQg==\n-----END EC PRIVATE KEY-----\n",
        );
        for text in [format!("{certificate}{key}"), format!("{key}{certificate}")] {
            assert_eq!((section(&text, "CERTIFICATE"), section(&text, "PRIVATE KEY")), (Some(certificate), Some(key)));
        }
        assert_eq!(section(certificate, "PRIVATE KEY"), None);
    }
}
