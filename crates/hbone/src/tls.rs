//! Mutual TLS of HBONE: 1.3 only, two cipher suites, ALPN h2, and peers known by their SPIFFE identity instead of a
//! host name. Certificates and keys come from [`crate::credential`].

pub mod client;
pub mod server;
pub mod stream;
pub mod verify;

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::revocation::Revocations;

/// The only protocol spoken inside.
pub(crate) const ALPN: &[u8] = b"h2";

/// Whom one believes, and whom no more. Clones share all of it.
#[derive(Clone)]
pub(crate) struct Trust {
    /// Not empty.
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) revocations: Arc<Revocations>,
}

/// aws-lc-rs with the two suites of the mesh. Passed on explicitly: a process-wide default would be state of nobody's.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}
