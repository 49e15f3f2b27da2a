//! The tunnel's opening side: a handle that opens streams, and the driver that moves them.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ::h2::PingPong;
use ::h2::client::{Builder, Connection, SendRequest};
use bytes::Buf;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::leaving::{Exit, Leaving};
use super::line::{Line, LineEnd, line};
use super::ping::Pinger;
use super::stream::TunnelStream;
use super::{H2Config, Payload};
use crate::error::{OpenError, TunnelError};
use crate::pool::Usable;
use crate::request::{ConnectRequest, header};

/// Begins HTTP/2 on a connection. It doesn't wait for the peer: whether that speaks HTTP/2 shows with the first stream.
pub async fn handshake<Io, B>(io: Io, config: &H2Config) -> Result<(Tunnel<B>, Driver<Io, B>), TunnelError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    B: Buf + 'static,
{
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_frame_size(config.frame_size)
        .max_header_list_size(config.header_list_client)
        .initial_max_send_streams(STREAMS_UNTIL_SETTINGS)
        .max_send_buffer_size(config.send_buffer_client)
        .max_concurrent_reset_streams(config.reset_streams_max)
        .data_frame_budget(config.small_frames);
    let (line, end) = line(io, config.turn_bytes);
    let (requests, mut connection) = builder.handshake(line).await.map_err(|error| TunnelError::of(&error))?;
    let pings = Rc::new(RefCell::new(connection.ping_pong()));
    let leaving = Leaving::new();
    let tunnel = Tunnel { requests, pings, exit: leaving.exit() };
    Ok((tunnel, Driver { stage: Stage::Running { connection: Box::pin(connection), leaving }, line: end }))
}

/// Streams we believe the peer allows until its SETTINGS say so.
const STREAMS_UNTIL_SETTINGS: usize = 100;

/// Opens streams in one tunnel. The tunnel lives until all clones and all streams are gone, and then says goodbye.
pub struct Tunnel<B: Buf> {
    requests: SendRequest<Payload<B>>,
    pings: Rc<RefCell<Option<PingPong>>>,
    exit: Exit<B>,
}

impl<B: Buf> Clone for Tunnel<B> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone(), pings: self.pings.clone(), exit: self.exit.clone() }
    }
}

impl<B: Buf + 'static> Tunnel<B> {
    /// Asks the other end for a connection, and waits for its answer. When the peer's stream limit is reached, it waits
    /// for another stream to end first.
    pub fn open(&self, request: ConnectRequest) -> impl Future<Output = Result<TunnelStream<B>, OpenError>> + use<B> {
        let (requests, exit) = (self.requests.clone(), self.exit.clone());
        async move {
            let request = to_http(&request)?;
            let mut requests = requests.ready().await.map_err(|error| OpenError::NotSent(TunnelError::of(&error)))?;
            let (answer, send) =
                requests.send_request(request, false).map_err(|error| OpenError::NotSent(TunnelError::of(&error)))?;
            drop(requests);
            let (answer, receive) = answer.await.map_err(|error| open_error(&error))?.into_parts();
            if answer.status != StatusCode::OK {
                return Err(OpenError::Status(answer.status.as_u16()));
            }
            Ok(TunnelStream::new(send, receive, exit, text(&answer.headers, header::BAGGAGE)))
        }
    }

    /// Whether another stream may be opened: not after the peer's GOAWAY, not after the connection ended.
    pub fn is_open(&self) -> bool {
        let ready = self.requests.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(())))
    }

    /// How many streams the peer allows at once, as far as it has said.
    pub fn streams_max(&self) -> usize {
        self.requests.current_max_send_streams()
    }

    /// The tunnel's one pinger; `None` after it was taken.
    pub fn pinger(&self) -> Option<Pinger> {
        self.pings.borrow_mut().take().map(Pinger::new)
    }
}

impl<B: Buf + 'static> Usable for Tunnel<B> {
    fn is_usable(&self) -> bool {
        self.is_open()
    }

    fn streams_max(&self) -> usize {
        Tunnel::streams_max(self)
    }
}

/// Moves a tunnel's streams. Must be polled for them to move; ends when the tunnel is over and all it had to send is
/// with the peer. Dropping it cuts all streams: the caller does that when it has waited long enough.
pub struct Driver<Io, B: Buf> {
    stage: Stage<Io, B>,
    line: LineEnd<Io>,
}

enum Stage<Io, B: Buf> {
    Running {
        /// Boxed, since chunks need not be `Unpin`.
        connection: Pin<Box<Connection<Line<Io>, Payload<B>>>>,
        leaving: Leaving<B>,
    },
    Lingering,
}

impl<Io, B> Future for Driver<Io, B>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    B: Buf + 'static,
{
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.line.begin_turn();
        if let Stage::Running { connection, leaving } = &mut this.stage {
            let Poll::Ready(ended) = connection.as_mut().poll(cx) else {
                if leaving.let_go() {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            };
            // Dropping the connection is what tells the streams, when a write failed.
            this.stage = Stage::Lingering;
            if let Err(error) = ended {
                return Poll::Ready(Err(TunnelError::of(&error)));
            }
        }
        this.line.poll_linger(cx).map(Ok)
    }
}

fn to_http(request: &ConnectRequest) -> Result<Request<()>, OpenError> {
    let authority = request.authority.to_string();
    let uri = Uri::builder()
        .authority(authority.as_str())
        .build()
        .map_err(|problem| OpenError::Request(format!("authority {authority:?}: {problem}")))?;
    let mut http = Request::new(());
    *http.method_mut() = Method::CONNECT;
    *http.uri_mut() = uri;
    *http.version_mut() = Version::HTTP_2;
    for (name, value) in [
        (header::BAGGAGE, &request.baggage),
        (header::FORWARDED, &request.forwarded),
        (header::TRACEPARENT, &request.traceparent),
    ] {
        let Some(value) = value else { continue };
        let value = HeaderValue::from_str(value)
            .map_err(|problem| OpenError::Request(format!("header {name} {value:?}: {problem}")))?;
        http.headers_mut().insert(name, value);
    }
    Ok(http)
}

fn open_error(error: &::h2::Error) -> OpenError {
    match error.reason() {
        Some(reason) if error.is_reset() => OpenError::Reset(reason.into()),
        _ => OpenError::Tunnel(TunnelError::of(error)),
    }
}

/// The first value of a header, if it is text.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
