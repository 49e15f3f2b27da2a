//! A call in which both sides send messages for as long as it lasts, as bytes. tonic's own keeps, for the life of the
//! stream, a buffer as large as the largest message it ever read.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, uri::PathAndQuery};
use hyper::body::{Body, Frame, Incoming};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, metadata::MetadataMap};
use tower_service::Service;

use super::{
    Connection, Server,
    frames::{Frames, framed},
    moderated::Prompt,
};

/// What the server sends.
#[derive(Debug)]
pub(crate) struct Responses {
    body: Incoming,
    frames: Frames,
    prompt: Prompt,
    heard_at: Option<Instant>,
}

/// Calls `path`, and sends what comes from `requests`. Resolves when the server answers, which many do with their first
/// message only. No message of more than `bytes_max` is taken.
pub(crate) async fn call(
    mut connection: Connection,
    server: &Server,
    path: &'static str,
    metadata: MetadataMap,
    requests: mpsc::Receiver<Bytes>,
    bytes_max: usize,
) -> Result<Responses, Status> {
    let mut uri = server.address.origin().into_parts();
    uri.path_and_query = Some(PathAndQuery::from_static(path));
    let uri = http::Uri::from_parts(uri).map_err(|error| Status::internal(error.to_string()))?;
    let mut request = Request::new(tonic::body::Body::new(Outgoing(requests)));
    (*request.method_mut(), *request.uri_mut()) = (Method::POST, uri);
    let headers = request.headers_mut();
    headers.extend(metadata.into_headers());
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    std::future::poll_fn(|context| connection.poll_ready(context)).await.map_err(of_error)?;
    let (head, body) = connection.call(request).await.map_err(of_error)?.into_parts();
    // A call that is refused at once has its status here.
    if let Some(status) = Status::from_header_map(&head.headers) {
        return Err(status);
    }
    if head.status != StatusCode::OK {
        return Err(Status::unknown(format!("HTTP status {}; is this the control plane?", head.status)));
    }
    Ok(Responses { body, frames: Frames::new(bytes_max), prompt: connection.prompt(), heard_at: None })
}

impl Responses {
    /// The next message, or none when the server has ended the call in order. Dropping the future loses nothing.
    pub(crate) async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.frames.next_message().map_err(|error| Status::internal(error.to_string()))? {
                return Ok(Some(message));
            }
            self.prompt.set(self.frames.is_inside());
            let frame = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            let frame = match frame {
                Some(frame) => frame.map_err(of_error)?,
                None => return Err(Status::internal("the stream ended without a status")),
            };
            match frame.into_data() {
                Ok(bytes) => {
                    self.heard_at = Some(Instant::now());
                    self.frames.push(bytes);
                }
                Err(frame) => return self.ended(frame.trailers_ref()),
            }
        }
    }

    /// When bytes came last, of a message that may not be whole.
    pub(crate) fn heard_at(&self) -> Option<Instant> {
        self.heard_at
    }

    fn ended(&self, trailers: Option<&HeaderMap>) -> Result<Option<Bytes>, Status> {
        match trailers.and_then(Status::from_header_map) {
            Some(status) if status.code() != tonic::Code::Ok => Err(status),
            Some(_) if !self.frames.is_inside() => Ok(None),
            _ => Err(Status::internal("the stream ended within a message, or without a status")),
        }
    }
}

/// What hyper says as the status that gRPC has for it.
fn of_error(error: hyper::Error) -> Status {
    Status::from_error(Box::new(error))
}

/// What is sent; it ends with the last sender.
struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|message| message.map(|message| Ok(Frame::data(framed(&message)))))
    }
}
