//! A control plane on one port, as istiod has it: discovery ([`crate::xds_server`]) and a CA ([`crate::ca_server`]) over
//! real gRPC and TLS, with a wire between that can be slow or break at any byte. On a thread of its own.

use std::future::Future as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use control::proto::certificate::CREATE_CERTIFICATE_PATH;
use control::proto::discovery::DELTA_PATH;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;

use crate::ca_server::CaServer;
use crate::xds_server::XdsServer;

/// Listeners that wait to be served: one for each daemon that a test has ever started.
const LISTENERS_MAX: usize = 256;

/// How a control plane proves itself. Keep it to start the same one again.
#[derive(Clone)]
pub struct ServerIdentity {
    root_pem: String,
    config: Arc<ServerConfig>,
}

impl ServerIdentity {
    /// A root of its own, and a certificate by it for `names` (DNS names or IP addresses).
    ///
    /// # Errors
    /// When a name is none.
    pub fn new(names: &[&str]) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "testbed control plane");
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { root_pem: root.pem(), config: Arc::new(config) })
    }

    /// The root, as clients are given it.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }
}

/// A running control plane. Dropping it ends it and every connection to it.
pub struct ControlPlane {
    /// Its discovery.
    pub xds: XdsServer,
    /// Its CA.
    pub ca: CaServer,
    /// The wire to its clients.
    pub wire: Wire,
    listeners: Option<mpsc::Sender<TcpListener>>,
    cut: watch::Sender<u64>,
    thread: Option<JoinHandle<()>>,
}

/// What may go wrong between. Clones are the same wire.
#[derive(Clone, Debug)]
pub struct Wire(Arc<WireState>);

#[derive(Debug)]
struct WireState {
    /// Bytes that the server may still send, over all connections, until whichever sends next is reset.
    left: AtomicI64,
    /// Bytes a millisecond that each connection may send.
    per_ms: AtomicU64,
}

impl Wire {
    /// After so many more bytes from the server, the connection that sends is reset.
    pub fn break_after(&self, bytes: u32) {
        self.0.left.store(bytes.into(), Ordering::Relaxed);
    }

    /// It breaks no more.
    pub fn mend(&self) {
        self.0.left.store(i64::MAX, Ordering::Relaxed);
    }

    /// So many bytes a millisecond from the server.
    pub fn slow_down(&self, bytes_per_ms: u64) {
        self.0.per_ms.store(bytes_per_ms.max(1), Ordering::Relaxed);
    }
}

impl ControlPlane {
    /// Starts one that listens nowhere yet.
    ///
    /// # Errors
    /// When no thread or runtime can be made.
    pub fn start(identity: &ServerIdentity, xds: XdsServer, ca: CaServer) -> Result<Self> {
        let (listeners, mut new_listeners) = mpsc::channel::<TcpListener>(LISTENERS_MAX);
        let (cut, is_cut) = watch::channel(0);
        let wire = Wire(Arc::new(WireState { left: AtomicI64::new(i64::MAX), per_ms: AtomicU64::new(u64::MAX) }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let port = Port { xds: xds.clone(), ca: ca.clone(), wire: wire.clone(), tls: identity.config.clone(), is_cut };
        let thread = std::thread::Builder::new().name("control-plane".into()).spawn(move || {
            runtime.block_on(async move {
                while let Some(listener) = new_listeners.recv().await {
                    tokio::spawn(port.clone().accept(listener));
                }
            });
        })?;
        Ok(Self { xds, ca, wire, listeners: Some(listeners), cut, thread: Some(thread) })
    }

    /// Serves what comes to `listener`, which may be of any network namespace.
    ///
    /// # Errors
    /// When it has no address or the server has ended.
    pub fn listen(&self, listener: TcpListener) -> Result<SocketAddr> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listeners = self.listeners.as_ref().context("the server has ended")?;
        listeners.try_send(listener).context("more listeners at once than a test needs")?;
        Ok(address)
    }

    /// Resets every connection there is. New ones are welcome.
    pub fn disconnect(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.listeners = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; a second one here would hide it.
            drop(thread.join());
        }
    }
}

/// What serves a listener.
#[derive(Clone)]
struct Port {
    xds: XdsServer,
    ca: CaServer,
    wire: Wire,
    tls: Arc<ServerConfig>,
    is_cut: watch::Receiver<u64>,
}

impl Port {
    async fn accept(self, listener: TcpListener) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("it was made non-blocking");
        while let Ok((socket, _)) = listener.accept().await {
            let mut port = self.clone();
            port.is_cut.mark_unchanged();
            tokio::spawn(async move {
                let mut is_cut = port.is_cut.clone();
                tokio::select! {
                    _ = port.serve(socket) => {}
                    // Dropping the socket with bytes unread resets it; so does a client that goes on writing.
                    _ = is_cut.changed() => {}
                }
            });
        }
    }

    async fn serve(self, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let socket = OnWire { socket, wire: self.wire.clone(), sleep: None, free_at: Instant::now() };
        let encrypted = TlsAcceptor::from(self.tls.clone()).accept(socket).await?;
        let service = service_fn(move |request| {
            let (xds, ca) = (self.xds.clone(), self.ca.clone());
            async move { Ok::<_, std::convert::Infallible>(answer(&xds, &ca, request).await) }
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .serve_connection(TokioIo::new(encrypted), service)
            .await
            .map_err(io::Error::other)
    }
}

async fn answer(xds: &XdsServer, ca: &CaServer, request: http::Request<Incoming>) -> http::Response<Body> {
    match request.uri().path() {
        DELTA_PATH => xds.serve(request).await,
        CREATE_CERTIFICATE_PATH => ca.serve(request).await,
        path => tonic::Status::unimplemented(path.to_owned()).into_http(),
    }
}

/// A socket whose writes go over the wire.
struct OnWire {
    socket: TcpStream,
    wire: Wire,
    sleep: Option<Pin<Box<Sleep>>>,
    free_at: Instant,
}

impl AsyncRead for OnWire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for OnWire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let left = self.wire.0.left.load(Ordering::Relaxed);
        if left <= 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let per_ms = usize::try_from(self.wire.0.per_ms.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        if per_ms != usize::MAX && Instant::now() < self.free_at {
            let free_at = self.free_at;
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(free_at)));
            ready!(sleep.as_mut().poll(cx));
        }
        self.sleep = None;
        let bytes = &bytes[..bytes.len().min(per_ms).min(usize::try_from(left).unwrap_or(usize::MAX))];
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        if left != i64::MAX {
            self.wire.0.left.fetch_sub(i64::try_from(written).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
        self.free_at = Instant::now() + Duration::from_millis(1);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
