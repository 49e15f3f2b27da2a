//! An HBONE server that is not who it should be: it greets with any certificate given to it, and keeps a count of who
//! believed it.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use rustls::sign::SingleCertAndKey;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::certificate::{Leaf, provider};
use crate::mesh::Pod;
use crate::redirect::INBOUND_HBONE_PORT;
use crate::serve::Server;

/// A running impostor.
pub struct Impostor {
    _server: Server,
    believers: Arc<AtomicUsize>,
}

impl Impostor {
    /// Listens at the HBONE port of `pod`, which must not be captured for real.
    ///
    /// # Errors
    /// When the port is taken or the leaf can't be used.
    pub fn start(pod: &Pod, leaf: &Leaf) -> Result<Self> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified()?)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let believers = Arc::new(AtomicUsize::new(0));
        let counting = believers.clone();
        let server = pod.serve(INBOUND_HBONE_PORT, move |stream: &TcpStream, _: SocketAddr| {
            let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            let mut tls = StreamOwned::new(connection, stream.try_clone()?);
            let mut first = [0];
            // A client that checks the certificate sends an alert and no application data.
            if tls.read(&mut first)? > 0 {
                counting.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(Self { _server: server, believers })
    }

    /// Clients that sent it data inside TLS.
    #[must_use]
    pub fn believers(&self) -> usize {
        self.believers.load(Ordering::Relaxed)
    }
}
