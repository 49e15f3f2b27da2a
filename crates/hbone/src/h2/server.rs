//! The tunnel's accepting side: requests come out, and each is answered with a stream or a status. What to answer is
//! `dataplane`'s and `mesh-state`'s decision.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use ::h2::server::{Builder, Connection, SendResponse};
use ::h2::{Reason, RecvStream};
use bytes::Buf;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::leaving::{Exit, Leaving};
use super::line::{Line, LineEnd, line};
use super::ping::Pinger;
use super::stream::TunnelStream;
use super::{H2Config, Payload};
use crate::baggage::Baggage;
use crate::error::{StreamError, TunnelError};
use crate::forwarded;
use crate::request::header;

/// One accepted tunnel. Its streams move only while [`accept`](Self::accept) is polled.
pub struct Server<Io, B: Buf> {
    stage: Stage<Io, B>,
    line: LineEnd<Io>,
    pinger: Option<Pinger>,
}

enum Stage<Io, B: Buf> {
    Running { connection: Box<Connection<Line<Io>, Payload<B>>>, leaving: Leaving<B> },
    Lingering,
}

impl<Io, B> Server<Io, B>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    B: Buf + 'static,
{
    /// Begins HTTP/2: waits for the client's preface.
    pub async fn handshake(io: Io, config: &H2Config) -> Result<Self, TunnelError> {
        let mut builder = Builder::new();
        builder
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .max_frame_size(config.frame_size)
            .max_concurrent_streams(config.streams_max)
            .max_header_list_size(config.header_list_server)
            .max_send_buffer_size(config.send_buffer_server)
            .max_concurrent_reset_streams(config.reset_streams_max)
            // A client may cancel all it opened while this core is busy with others; h2's 20 would take that for an
            // attack and cut the tunnel.
            .max_pending_accept_reset_streams(config.reset_streams_max)
            .data_frame_budget(config.small_frames);
        let (line, end) = line(io, config.turn_bytes);
        let mut connection = builder.handshake(line).await.map_err(|error| TunnelError::of(&error))?;
        let pinger = connection.ping_pong().map(Pinger::new);
        Ok(Self {
            stage: Stage::Running { connection: Box::new(connection), leaving: Leaving::new() },
            line: end,
            pinger,
        })
    }

    /// Waits for the next request. `None`: the tunnel is over and all it had to send is with the peer. Cancelling the
    /// wait loses nothing.
    pub async fn accept(&mut self) -> Option<Result<Incoming<B>, TunnelError>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept).
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming<B>, TunnelError>>> {
        self.line.begin_turn();
        if let Stage::Running { connection, leaving } = &mut self.stage {
            let Poll::Ready(accepted) = connection.poll_accept(cx) else {
                if leaving.let_go() {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            };
            match accepted {
                Some(Ok((request, answer))) => {
                    let exit = leaving.exit();
                    return Poll::Ready(Some(Ok(Incoming { request, answer, exit })));
                }
                // Dropping the connection is what tells the streams, when a write failed.
                Some(Err(error)) => {
                    self.stage = Stage::Lingering;
                    return Poll::Ready(Some(Err(TunnelError::of(&error))));
                }
                None => self.stage = Stage::Lingering,
            }
        }
        self.line.poll_linger(cx).map(|()| None)
    }

    /// Tells the client to open no more streams; those it has go on to their end. Keep calling
    /// [`accept`](Self::accept): streams may still be under way.
    pub fn graceful_shutdown(&mut self) {
        if let Stage::Running { connection, .. } = &mut self.stage {
            connection.graceful_shutdown();
        }
    }

    /// Tells the client goodbye and aborts all streams. Keep calling [`accept`](Self::accept) until it says `None`.
    pub fn abort(&mut self) {
        if let Stage::Running { connection, .. } = &mut self.stage {
            connection.abrupt_shutdown(Reason::NO_ERROR);
        }
    }

    /// The tunnel's one pinger; `None` after it was taken.
    pub fn pinger(&mut self) -> Option<Pinger> {
        self.pinger.take()
    }
}

/// A request nobody has answered yet. It may be a bad one: look before accepting. Dropping it resets the stream.
pub struct Incoming<B: Buf> {
    request: Request<RecvStream>,
    answer: SendResponse<Payload<B>>,
    exit: Exit<B>,
}

impl<B: Buf + 'static> Incoming<B> {
    /// The method; anything but CONNECT deserves 400.
    pub fn method(&self) -> &str {
        self.request.method().as_str()
    }

    /// Whether the method is CONNECT, without a `:protocol`, which would be something else over the same method.
    pub fn is_connect(&self) -> bool {
        self.request.method() == Method::CONNECT && self.request.extensions().get::<::h2::ext::Protocol>().is_none()
    }

    /// The authority as the client wrote it, if it did.
    pub fn authority(&self) -> Option<&str> {
        self.request.uri().authority().map(http::uri::Authority::as_str)
    }

    /// What the client says about its workload, if it says anything. Values that aren't text say nothing.
    pub fn baggage(&self) -> Option<Baggage> {
        let mut values = self.request.headers().get_all(header::BAGGAGE).iter().peekable();
        values.peek()?;
        Some(Baggage::parse_all(values.filter_map(|value| value.to_str().ok())))
    }

    /// The service the client's client asked for.
    pub fn forwarded_host(&self) -> Option<&str> {
        self.header(header::FORWARDED).and_then(forwarded::host)
    }

    /// The `traceparent` header, for [`crate::traceparent::Traceparent::parse`].
    pub fn traceparent(&self) -> Option<&str> {
        self.header(header::TRACEPARENT)
    }

    /// The network the request comes from, when a gateway brought it.
    pub fn forwarded_network(&self) -> Option<&str> {
        self.header(header::FORWARDED_NETWORK)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }

    /// Answers 200: the connection behind it stands. `baggage` describes the workload here; one that can't be a header
    /// is left out.
    pub fn accept(mut self, baggage: Option<String>) -> Result<TunnelStream<B>, StreamError> {
        let mut response = Response::new(());
        if let Some(value) = baggage.and_then(|text| HeaderValue::from_str(&text).ok()) {
            response.headers_mut().insert(header::BAGGAGE, value);
        }
        match self.answer.send_response(response, false) {
            Ok(send) => Ok(TunnelStream::new(send, self.request.into_body(), self.exit, None)),
            Err(error) => Err(match self.answer.poll_reset(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(reason)) => StreamError::Reset(reason.into()),
                Poll::Ready(Err(error)) => StreamError::of(&error),
                Poll::Pending => StreamError::of(&error),
            }),
        }
    }

    /// Answers with a status and nothing else. A client that is gone already doesn't mind.
    pub fn refuse(mut self, status: u16) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("the caller's statuses are constants of HTTP");
        let _ = self.answer.send_response(response, true);
    }
}
