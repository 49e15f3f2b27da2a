//! One HTTP/2 connection over TLS to a server of the control plane. Made by hand rather than by a channel that reconnects
//! by itself: each connection reads the roots anew, and who uses it knows when it ended and why.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt;
use rustls::{ClientConfig, client::VerifierBuilderError, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use super::{
    RootsError, Server,
    moderated::{Moderated, Prompt},
    verifier::EitherName,
};

/// How long each step of connecting may take: the name, TCP with each of its addresses, TLS, HTTP/2.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;
/// A server that is silent for so long is asked whether it is there. istiod takes offence at less than 15 s.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long it may take to say so.
const PING_WITHIN: Duration = Duration::from_secs(10);
/// The same for the connection below, whose loss HTTP/2 would see much earlier.
const TCP_KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(300), Duration::from_secs(75), 9);
/// What a server may send unread, of one call and of all. A full push is hundreds of MiB, and on a far cluster a smaller
/// window makes it as many round trips. What has come of a message is buffered until it is whole, window or not.
const WINDOWS: (u32, u32) = (4 << 20, 8 << 20);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP.
    #[error("cannot connect to {server}: {source}")]
    Tcp {
        /// To whom.
        server: String,
        /// What the kernel said, or the resolver.
        source: io::Error,
    },
    /// TLS.
    #[error("no TLS with {server}: {source}; the root certificates configured may be another mesh's")]
    Tls {
        /// With whom.
        server: String,
        /// What rustls said.
        source: io::Error,
    },
    /// HTTP/2.
    #[error("no HTTP/2 with {server}: {source}")]
    Http2 {
        /// With whom.
        server: String,
        /// What hyper said.
        source: hyper::Error,
    },
    /// It takes too long.
    #[error("{server} did not answer within {STEP_WITHIN:?}, in {step}; a NetworkPolicy may be in the way")]
    Silent {
        /// Who.
        server: String,
        /// In which step.
        step: &'static str,
    },
    /// The roots.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The roots verify nobody.
    #[error("the root certificates cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The address's host or the alternative name.
    #[error("{name:?} is no name that a certificate can be for")]
    Name {
        /// Which.
        name: String,
    },
}

/// A connection. Clones are the same one; it ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    send: http2::SendRequest<Body>,
    prompt: Prompt,
}

impl Connection {
    /// Connects. Needs a runtime with I/O and time, on which the connection's own task is spawned.
    pub(crate) async fn open(server: &Server) -> Result<Self, ConnectError> {
        let named = || server.address.to_string();
        let silent = |step| move |_| ConnectError::Silent { server: named(), step };
        let (config, name) = tls(server)?;
        let unreachable = |source| ConnectError::Tcp { server: named(), source };
        let found = timeout(STEP_WITHIN, lookup_host((server.address.host(), server.address.port()))).await;
        let addresses = found.map_err(silent("name"))?.map_err(unreachable)?;
        let socket = first_of(addresses.take(ADDRESSES_MAX), STEP_WITHIN).await.map_err(|failed| match failed {
            Some(source) => unreachable(source),
            None => ConnectError::Silent { server: named(), step: "TCP" },
        })?;
        let socket = keep_alive(socket).map_err(unreachable)?;
        let prompt = Prompt::new();
        let socket = Moderated::new(socket, prompt.clone());
        let encrypted = timeout(STEP_WITHIN, TlsConnector::from(config).connect(name, socket)).await;
        let encrypted = encrypted.map_err(silent("TLS"))?;
        let encrypted = encrypted.map_err(|source| ConnectError::Tls { server: named(), source })?;
        let shake_hands = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .handshake(TokioIo::new(encrypted));
        let shaken = timeout(STEP_WITHIN, shake_hands).await.map_err(silent("HTTP/2"))?;
        let (send, connection) = shaken.map_err(|source| ConnectError::Http2 { server: named(), source })?;
        let server = named();
        tokio::spawn(async move {
            // Whoever has a call on it learns of its end by that.
            if let Err(error) = connection.await {
                tracing::debug!(server, %error, "connection to the control plane ended");
            }
        });
        Ok(Self { send, prompt })
    }

    /// Whether calls can still be made on it, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        !self.send.is_closed()
    }

    /// To be told when nothing of a message is outstanding, so that small ones are read together.
    pub(crate) fn prompt(&self) -> Prompt {
        self.prompt.clone()
    }
}

impl tower_service::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.send.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.send.send_request(request))
    }
}

fn tls(server: &Server) -> Result<(Arc<ClientConfig>, ServerName<'static>), ConnectError> {
    let parsed =
        |name: &str| ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Name { name: name.to_owned() });
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = server.roots.read()?;
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.expect("aws-lc-rs has what TLS 1.3 needs");
    let builder = match &server.alternative_name {
        None => builder.with_root_certificates(roots),
        Some(other) => {
            let verifier = EitherName::new(roots, provider, parsed(other)?)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(config), parsed(server.address.host())?))
}

/// The first address at which somebody answers: one that is silent takes none of the others' time. The last one's error, if it
/// was not silence.
async fn first_of(
    addresses: impl Iterator<Item = SocketAddr>,
    within: Duration,
) -> Result<TcpStream, Option<io::Error>> {
    let mut failed = Some(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in addresses {
        match timeout(within, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failed = Some(error),
            Err(_) => failed = None,
        }
    }
    Err(failed)
}

fn keep_alive(socket: TcpStream) -> io::Result<TcpStream> {
    let (idle, interval, probes) = TCP_KEEPALIVE;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, idle)?;
    sockopt::set_tcp_keepintvl(&socket, interval)?;
    sockopt::set_tcp_keepcnt(&socket, probes)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[tokio::test]
    async fn an_address_that_is_silent_takes_nothing_from_the_next() {
        // With its backlog full, a listener's kernel drops what else would connect.
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        silent.listen(0).expect("it listens");
        let silent_at = silent.local_addr().expect("bound").as_socket().expect("an address");
        let mut filling = Vec::new();
        while let Ok(Ok(taken)) = timeout(Duration::from_millis(100), TcpStream::connect(silent_at)).await {
            filling.push(taken);
            assert!(filling.len() < 100, "its backlog is never full");
        }
        let good = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let good_at = good.local_addr().expect("bound");
        let within = Duration::from_millis(200);
        let socket = first_of([silent_at, good_at].into_iter(), within).await.expect("the second answers");
        assert_eq!(socket.peer_addr().expect("connected"), good_at);
        drop(good);
        let refused = first_of([good_at].into_iter(), within).await.expect_err("nobody listens");
        assert_eq!(refused.expect("not silence").kind(), io::ErrorKind::ConnectionRefused);
        assert!(first_of([silent_at].into_iter(), within).await.expect_err("it is silent").is_none());
    }

    #[tokio::test]
    async fn a_connection_is_probed_as_the_reference_does_and_sends_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let connected = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it connects");
        let socket = keep_alive(connected).expect("a TCP socket");
        assert!(sockopt::socket_keepalive(&socket).expect("asked") && socket.nodelay().expect("asked"));
        let times = (sockopt::tcp_keepidle(&socket), sockopt::tcp_keepintvl(&socket), sockopt::tcp_keepcnt(&socket));
        let (Ok(idle), Ok(interval), Ok(probes)) = times else { panic!("{times:?}") };
        assert_eq!((idle.as_secs(), interval.as_secs(), probes), (300, 75, 9));
    }
}
