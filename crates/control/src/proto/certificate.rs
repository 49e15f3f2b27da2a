//! Certificates on request, package `istio.v1.auth`.

use prost::Message;

use super::well_known::Struct;

/// The path of the call.
pub const CREATE_CERTIFICATE_PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The member of the metadata that says for whom a node's proxy asks.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// What a client asks.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateRequest {
    /// A PKCS #10 request in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long it is to be valid, in seconds. The CA may grant less.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// [`IMPERSONATED_IDENTITY`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// What the CA answers.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateResponse {
    /// In PEM: the leaf, each intermediate, and last the roots, of which one text may hold several.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
