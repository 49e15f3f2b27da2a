//! A request for a certificate: a new key, and an identity to be signed with it.

use mesh_state::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String};

/// A request and its key. The key never leaves the process.
pub(super) struct Request {
    /// PKCS #10 in PEM.
    pub(super) pem: String,
    /// PKCS #8 in PEM.
    pub(super) key_pem: String,
}

/// Makes a P-256 key and a request for `identity`, without a subject and with one URI name.
pub(super) fn request(identity: &Identity) -> Result<Request, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.as_str())?)];
    Ok(Request { pem: params.serialize_request(&key)?.pem()?, key_pem: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use x509_parser::{certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer};

    use super::*;

    #[test]
    fn a_request_names_its_identity_and_nothing_else_and_no_two_have_one_key() {
        let identity = Identity::new("cluster.local", "shop", "web").expect("a good identity");
        let (one, other) = (request(&identity).expect("made"), request(&identity).expect("made"));
        assert_ne!(one.key_pem, other.key_pem);
        let (_, pem) = parse_x509_pem(one.pem.as_bytes()).expect("PEM");
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).expect("a request");
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
        let extensions: Vec<String> =
            csr.requested_extensions().expect("some").map(|extension| format!("{extension:?}")).collect();
        assert!(
            extensions.len() == 1 && extensions[0].contains("URI(\"spiffe://cluster.local/ns/shop/sa/web\")"),
            "{extensions:?}"
        );
        assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2", "ECDSA with SHA-256");
    }
}
