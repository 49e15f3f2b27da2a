//! The daemon's HTTP servers: metrics and readiness. They live on the control thread, never on a core.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, rc::Rc, time::Duration};

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
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
};

/// Requests served at once per server; further connections wait in the backlog. Worst case about 20 KiB each.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest request head.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// A client that keeps a connection without using it is let go after this.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// An answer: status, content type, body.
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
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) accept: Option<String>,
}

/// Listens on `address`.
///
/// # Errors
/// What stands in the way, with the address and the likely cause.
pub(crate) fn listen(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // While one daemon takes the place of another, both answer: old and new share the address.
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        socket.listen(128)
    };
    bind().map_err(|error| {
        anyhow::anyhow!("cannot listen on {address} for {what}: {error}; does another process hold the port?")
    })
}

/// Serves `answer` until the task is dropped.
pub(crate) async fn serve<F: Future<Output = Answer> + 'static>(
    listener: TcpListener,
    answer: impl Fn(Asked) -> F + 'static,
) {
    let answer = Rc::new(answer);
    let places = Rc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Place::take(&places).await;
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed; is the process out of descriptors?");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::task::spawn_local(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answering = answer(asked(&request));
                async move { Ok::<_, Infallible>(response(answering.await)) }
            });
            let mut server = http1::Builder::new();
            server
                .half_close(true)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_BYTES_MAX);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            // A client's mistakes are answered by hyper; there is nobody else to tell.
            let _ended = tokio::time::timeout(CONNECTION_MAX, connection).await;
        });
    }
}

/// One of the places of a server; dropping it frees the place.
struct Place(Rc<Semaphore>);

impl Place {
    async fn take(places: &Rc<Semaphore>) -> Self {
        places.acquire().await.expect("the semaphore is never closed").forget();
        Self(places.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
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
