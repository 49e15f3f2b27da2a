//! The daemon's HTTP servers: how requests come in and answers go out. What they say is `metrics_page`'s and
//! `readiness`'s business. They live on the control thread, never on a core.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, rc::Rc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Connections of one server at once; further ones wait in the backlog. Worst case about 20 KiB each, and the page that
/// is being sent.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request's head, also while it keeps an unused connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest request head.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// A client that takes longer for its answer, or stays longer, is let go.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// After an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An answer: status, content type, body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

impl Answer {
    /// A text.
    pub(crate) fn text(status: StatusCode, body: String) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }

    /// No text.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self::text(status, String::new())
    }
}

/// What an endpoint needs to know of a request.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) accept: Option<String>,
}

/// Whether the servers are to stop: `true` from some time on, or its sender is gone.
pub(crate) type Stop = watch::Receiver<bool>;

/// Ends when the servers are to stop.
async fn told(stop: &mut Stop) {
    // A sender that has gone says the same.
    let _gone = stop.wait_for(|stop| *stop).await;
}

/// A server that listens and does not answer yet.
pub(crate) struct Server {
    listener: TcpListener,
}

impl Server {
    /// Listens on `address` for `what`.
    ///
    /// # Errors
    /// What stands in the way, with the address and the likely cause.
    pub(crate) fn listen(what: &'static str, address: SocketAddr) -> anyhow::Result<Self> {
        let listener = listener(address).map_err(|error| {
            anyhow::anyhow!("cannot listen on {address} for {what}: {error}; does another process hold the port?")
        })?;
        tracing::info!(address = %listener.local_addr()?, "serving {what}");
        Ok(Self { listener })
    }

    /// Answers until told to stop: then the port is closed at once, and what was asked is still answered.
    pub(crate) async fn serve<F>(self, answer: impl Fn(Asked) -> F + 'static, mut stop: Stop)
    where
        F: Future<Output = Answer> + 'static,
    {
        let answer = Rc::new(answer);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn_local(converse(stream, answer.clone(), stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed; is the process out of descriptors?");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                // It has ended; how is between it and its client.
                Some(_ended) = connections.join_next() => {}
                () = told(&mut stop) => break,
            }
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says: the wildcard is for both.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    // While one daemon takes the place of another on a host, both have the port.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

async fn converse<F>(stream: TcpStream, answer: Rc<impl Fn(Asked) -> F + 'static>, mut stop: Stop)
where
    F: Future<Output = Answer> + 'static,
{
    // An answer is one write or few; the option saves it a wait for the client's acknowledgement, no more.
    let _set = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answering = answer(asked(&request));
        async move { Ok::<_, Infallible>(response(answering.await)) }
    });
    let mut http = http1::Builder::new();
    http.half_close(true).timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES_MAX);
    let connection = async {
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = told(&mut stop) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    // A client's mistakes are answered by hyper; there is nobody else to tell.
    let _ended = tokio::time::timeout(CONNECTION_MAX, connection).await;
}

fn asked(request: &Request<Incoming>) -> Asked {
    Asked {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        accept: request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).map(str::to_owned),
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(answer.content_type));
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::LocalSet,
        time::Instant,
    };

    use super::*;

    /// Runs a server that answers with the method and path it was asked for, and `client` against it. The clock stands
    /// still while anything moves.
    fn with_server<T>(client: impl AsyncFnOnce(SocketAddr, watch::Sender<bool>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        LocalSet::new().block_on(&runtime.expect("a runtime"), async {
            let server = Server::listen("a test", SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("loopback");
            let address = server.listener.local_addr().expect("it is bound");
            let (stop, stopped) = watch::channel(false);
            let answer = async |asked: Asked| {
                if asked.path == "/slow" {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                Answer::text(StatusCode::IM_A_TEAPOT, format!("{} {} {:?}", asked.method, asked.path, asked.accept))
            };
            let serving = tokio::task::spawn_local(server.serve(answer, stopped));
            let outcome = client(address, stop).await;
            serving.abort();
            outcome
        })
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("it listens")
    }

    /// Says `request` and hears everything until the server ends the connection.
    async fn talk(address: SocketAddr, request: &str) -> String {
        let mut stream = connect(address).await;
        stream.write_all(request.as_bytes()).await.expect("it reads");
        hear(&mut stream).await
    }

    async fn hear(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        // A server that closes with bytes unread resets: what it said before stands.
        let _ended = stream.read_to_string(&mut text).await;
        text
    }

    #[test]
    fn a_request_is_answered_with_status_content_type_and_body() {
        let text = with_server(async |address, _stop| {
            talk(address, "POST /a?b=c HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\nConnection: close\r\n\r\n").await
        });
        assert!(text.starts_with("HTTP/1.1 418 "), "{text}");
        assert!(text.contains("content-type: text/plain; charset=utf-8\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nPOST /a Some(\"text/plain\")"), "{text}");
    }

    #[test]
    fn what_is_no_http_is_told_so_and_too_much_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(HEADER_BYTES_MAX));
        let fits = format!("GET / HTTP/1.1\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(HEADER_BYTES_MAX - 200));
        for (request, status) in [
            ("nonsense\r\n\r\n", "HTTP/1.1 400 "),
            ("GET / HTTP/3.0\r\n\r\n", "HTTP/1.1 400 "),
            (&long, "HTTP/1.1 431 "),
            (&fits, "HTTP/1.1 418 "),
        ] {
            let text = with_server(async |address, _stop| talk(address, request).await);
            assert!(text.starts_with(status), "{:?} is answered {text:?}", &request[..20.min(request.len())]);
        }
    }

    #[test]
    fn a_client_that_does_not_finish_its_head_is_let_go() {
        for head in ["", "GET / HT"] {
            let waited = with_server(async |address, _stop| {
                let before = Instant::now();
                talk(address, head).await;
                before.elapsed()
            });
            assert!((HEADER_TIMEOUT..HEADER_TIMEOUT * 2).contains(&waited), "{head:?}: {waited:?}");
        }
    }

    #[test]
    fn a_client_that_half_closes_is_answered() {
        let text = with_server(async |address, _stop| {
            let mut stream = connect(address).await;
            stream.write_all(b"GET /half HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("it reads");
            stream.shutdown().await.expect("connected");
            hear(&mut stream).await
        });
        assert!(text.ends_with("GET /half None"), "{text}");
    }

    #[test]
    fn one_client_more_than_there_are_places_waits_until_one_leaves() {
        with_server(async |address, _stop| {
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                idle.push(connect(address).await);
            }
            let request = "GET /late HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            let mut late = connect(address).await;
            late.write_all(request.as_bytes()).await.expect("the backlog takes it");
            // All places are taken by clients that say nothing, so there is no answer before the first was let go.
            let soon = tokio::time::timeout(HEADER_TIMEOUT / 2, late.readable()).await;
            assert!(soon.is_err(), "answered beyond the limit");
            assert!(hear(&mut late).await.ends_with("GET /late None"));
        });
    }

    #[test]
    fn a_server_that_stops_closes_its_port_and_answers_what_was_asked() {
        with_server(async |address, stop| {
            let mut slow = connect(address).await;
            slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
            let mut idle = connect(address).await;
            // The server has read it once its own sleep is the next thing to happen.
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.send(true).expect("the server listens");
            assert_eq!(hear(&mut idle).await, "", "an unused connection is ended");
            // Time passes only when nothing else is left to do, so the server has heard of it as well.
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
            assert!(hear(&mut slow).await.ends_with("GET /slow None"));
        });
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let address = taken.local_addr().expect("it is bound");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        let error = Server::listen("metrics", address).err().expect("it is taken").to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("metrics") && error.contains("in use"),
            "{error}"
        );
    }
}
