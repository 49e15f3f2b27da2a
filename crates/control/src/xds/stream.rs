//! The conversation, carried out: connects, reads and writes what the session decides, and connects again. Thin: what is
//! asked, taken and refused is the session's.
//!
//! A response is taken some resources at a time, so that the control thread answers the CNI agent between any two turns,
//! however long the response.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_state::{change::Change, wanted::Wanted};
use tokio::{sync::mpsc, time};
use tonic::{Code, metadata::MetadataMap};

use super::{
    Kind,
    kept::Kept,
    response::Response,
    session::{Receiving, Session},
};
use crate::{
    Status,
    backoff::Backoff,
    clocks::{now, until},
    grpc::{
        ConnectError, Connection, Server,
        duplex::{self, Responses},
    },
    proto::discovery::DELTA_PATH,
    status::Termination,
    token::TokenError,
};

/// The longest response. It is buffered whole before it is taken, and let go when it has been.
pub(crate) const RESPONSE_BYTES_MAX: usize = 200 << 20;
/// Requests that wait to be sent. A server that answers and does not read is left when so many wait.
const REQUESTS_MAX: usize = 256;
/// Parts of responses that are taken in one turn: under a millisecond.
const PARTS_PER_TURN: usize = 128;
/// The first wait before connecting again, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));

/// The conversation and the way to the server.
pub(crate) struct Stream {
    server: Server,
    session: Session,
    state: State,
    backoff: Backoff,
    taking: Option<Taking>,
    /// Parts that were taken in this turn.
    taken: usize,
    status: Status,
}

enum State {
    Waiting {
        until: Instant,
    },
    Connecting(Pending<Result<(Connection, MetadataMap), EstablishError>>),
    /// The stream is asked for. Servers answer with their first response, so requests are on their way already.
    Opening {
        requests: Requests,
        opening: Pending<Result<Responses, tonic::Status>>,
    },
    Open {
        requests: Requests,
        responses: Responses,
        delivered: bool,
        since: Instant,
    },
}

impl State {
    async fn next(&mut self) -> Happened {
        match self {
            Self::Waiting { until } => {
                time::sleep_until((*until).into()).await;
                Happened::Due
            }
            Self::Connecting(connecting) => Happened::Connected(connecting.await),
            Self::Opening { opening, .. } => Happened::Opened(opening.await),
            Self::Open { responses, .. } => Happened::Message(responses.message().await),
        }
    }
}

type Pending<T> = Pin<Box<dyn Future<Output = T>>>;
type Requests = mpsc::Sender<Bytes>;

/// A response that is being taken.
struct Taking {
    response: Response,
    receiving: Receiving,
    changed: usize,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EstablishError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// What can happen.
pub(crate) enum Happened {
    /// The time to connect has come.
    Due,
    Connected(Result<(Connection, MetadataMap), EstablishError>),
    Opened(Result<Responses, tonic::Status>),
    Message(Result<Option<Bytes>, tonic::Status>),
    /// There is more of the response that is being taken.
    More,
    /// The session has something to do: the stream has sent all there is, though it was not told of everything held, or a
    /// policy has not come in time.
    SessionDue,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing that concerns the mesh, or not all of a response yet.
    Nothing,
    /// A response has been taken to its end, and changed something.
    Changed,
    /// A response has been taken to its end and changed nothing.
    Unchanged,
}

impl Stream {
    pub(crate) fn new(server: Server, session: Session, status: Status) -> Self {
        let backoff = Backoff::new(WAITS.0, WAITS.1);
        Self { server, session, state: State::Waiting { until: now() }, backoff, taking: None, taken: 0, status }
    }

    /// All that is held.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        self.session.kept()
    }

    /// What a process before has held.
    pub(crate) fn restore(&mut self, kept: Vec<Kept>) {
        self.session.restore(kept);
        self.status.set_held(Kind::ALL.map(|kind| self.session.held(kind)));
    }

    /// Whether there is a stream that brings what is new.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Whether the mesh is known well enough to decide by.
    pub(crate) fn is_warm(&self) -> bool {
        self.session.is_warm()
    }

    /// Whether a response is being taken: what it has changed so far is a part of the whole.
    pub(crate) fn is_taking(&self) -> bool {
        self.taking.is_some()
    }

    /// The next thing. Dropping the future before it is done loses nothing.
    pub(crate) async fn next(&mut self) -> Happened {
        if self.taken >= PARTS_PER_TURN {
            // Whatever else waits has a turn first.
            tokio::task::yield_now().await;
            self.taken = 0;
        }
        if self.taking.is_some() {
            return Happened::More;
        }
        loop {
            // Also without a stream: what is withheld does not wait for the next one.
            tokio::select! {
                happened = self.state.next() => return happened,
                () = until(self.session.next_due()) => {}
            }
            if let State::Open { responses, .. } = &self.state
                && let Some(heard_at) = responses.heard_at()
            {
                self.session.on_bytes(heard_at.into_std());
            }
            if self.session.next_due().is_some_and(|due| due <= now()) {
                return Happened::SessionDue;
            }
        }
    }

    /// Does what follows from it; what it changes is added to `changes`.
    pub(crate) fn on(&mut self, happened: Happened, changes: &mut Vec<Change>) -> Progress {
        match happened {
            Happened::Due => self.connect(),
            Happened::Connected(Ok((connection, metadata))) => self.open(connection, metadata),
            Happened::Connected(Err(error)) => self.lost(Termination::ConnectionError, &error),
            Happened::Opened(Ok(responses)) => self.opened(responses),
            Happened::Opened(Err(status)) => self.lost(Termination::ConnectionError, &status),
            Happened::Message(Ok(Some(message))) => return self.on_message(message, changes),
            Happened::Message(Ok(None)) => self.lost(Termination::Complete, &"the server ended the stream"),
            Happened::Message(Err(status)) => self.lost(termination(&status), &status),
            Happened::More => return self.take(changes),
            Happened::SessionDue => {
                self.session.on_time(now(), changes);
                tracing::debug!(
                    changes = changes.len(),
                    "what was not sent again is gone, what was withheld takes effect"
                );
                self.status.set_held(Kind::ALL.map(|kind| self.session.held(kind)));
                return if changes.is_empty() { Progress::Unchanged } else { Progress::Changed };
            }
        }
        Progress::Nothing
    }

    /// Cores lack these.
    pub(crate) fn on_wanted(&mut self, wanted: &[Wanted], changes: &mut Vec<Change>) {
        // Without a stream the next one asks.
        for request in self.session.on_wanted(wanted, now(), changes) {
            self.send(request);
        }
    }

    fn connect(&mut self) {
        let server = self.server.clone();
        self.state = State::Connecting(Box::pin(async move {
            let metadata = server.metadata()?;
            Ok((Connection::open(&server).await?, metadata))
        }));
    }

    fn open(&mut self, connection: Connection, metadata: MetadataMap) {
        let (requests, to_send) = mpsc::channel(REQUESTS_MAX);
        let mut left = 0;
        for request in self.session.on_connected(now()) {
            left += usize::from(requests.try_send(request).is_err());
        }
        if left > 0 {
            // Only names of absurd length make so many requests. Whoever lacks one of them wants it again.
            tracing::warn!(left, "more is asked for by name than a stream begins with");
        }
        let server = self.server.clone();
        let opening = Box::pin(async move {
            duplex::call(connection, &server, DELTA_PATH, metadata, to_send, RESPONSE_BYTES_MAX).await
        });
        self.state = State::Opening { requests, opening };
    }

    fn opened(&mut self, responses: Responses) {
        if let State::Opening { requests, .. } = &self.state {
            tracing::info!(server = %self.server.address, "connected to the control plane");
            self.state = State::Open { requests: requests.clone(), responses, delivered: false, since: now() };
            self.status.set_xds_connected();
        }
    }

    fn on_message(&mut self, message: Bytes, changes: &mut Vec<Change>) -> Progress {
        match Response::read(message) {
            Ok(response) => {
                if let Some(kind) = Kind::of(response.type_url()) {
                    self.status.count_message(kind, response.bytes() as u64);
                } else {
                    tracing::warn!(type_url = response.type_url(), "a response of a type that nobody asked for");
                }
                let receiving = self.session.on_response(&response);
                self.taking = Some(Taking { response, receiving, changed: 0 });
                if let State::Open { delivered, .. } = &mut self.state {
                    *delivered = true;
                }
                self.take(changes)
            }
            Err(error) => {
                self.lost(Termination::Error, &error);
                Progress::Nothing
            }
        }
    }

    /// Takes some parts of the response at hand.
    fn take(&mut self, changes: &mut Vec<Change>) -> Progress {
        let Some(mut taking) = self.taking.take() else { return Progress::Nothing };
        let (now, before) = (now(), changes.len());
        // A response without parts is one, too.
        self.taken += 1;
        for part in taking.response.by_ref().take(PARTS_PER_TURN.saturating_sub(self.taken)) {
            self.taken += 1;
            self.session.on_part(&mut taking.receiving, part, now, changes);
        }
        if taking.response.has_more() {
            taking.changed += changes.len() - before;
            self.taking = Some(taking);
            return Progress::Nothing;
        }
        if let Some((kind, count, why)) = taking.receiving.refused() {
            self.status.count_refused(kind, count, why);
        }
        let answer = self.session.on_end(taking.receiving, now, changes);
        taking.changed += changes.len() - before;
        self.send(answer);
        if !matches!(self.state, State::Opening { .. } | State::Open { .. }) {
            // It ended before its last response was taken, which says nothing of what else there is.
            self.session.on_lost();
        }
        self.status.set_held(Kind::ALL.map(|kind| self.session.held(kind)));
        if taking.changed > 0 { Progress::Changed } else { Progress::Unchanged }
    }

    /// Sends, if there is a stream.
    fn send(&mut self, request: Bytes) {
        let (State::Opening { requests, .. } | State::Open { requests, .. }) = &self.state else { return };
        // A closed one is a stream that has ended, which the next read tells.
        if matches!(requests.try_send(request), Err(mpsc::error::TrySendError::Full(_))) {
            self.lost(Termination::Error, &format!("it does not read: {REQUESTS_MAX} requests wait"));
        }
    }

    /// The connection is over. What is held stays in force, and the next connection tells what of it there is.
    fn lost(&mut self, how: Termination, why: &dyn std::fmt::Display) {
        // One that brought something is worth coming back to at once: a server that was restarted, a connection that got
        // too old. One that did not may never.
        let delivered = matches!(self.state, State::Open { delivered: true, .. });
        let meant_well = delivered && matches!(how, Termination::Complete | Termination::Reconnect);
        let lasted = matches!(self.state, State::Open { since, .. } if since + WAITS.1 <= now());
        // One that brings what cannot be taken would bring it again at once, and all before it.
        if meant_well || lasted {
            self.backoff.reset();
        }
        let wait = self.backoff.wait(fastrand::u64(..));
        if meant_well {
            // hyper does not tell one from the other: a PING without an answer ends the connection as the server does.
            tracing::info!(
                %why, ?wait,
                "the connection ended: the control plane closed it or did not answer a PING; connecting again"
            );
        } else {
            tracing::warn!(%why, ?wait, server = %self.server.address, "no connection to the control plane; trying again");
        }
        self.session.on_lost();
        self.status.count_termination(how);
        self.status.set_xds_lost(why.to_string());
        self.state = State::Waiting { until: now() + wait };
    }
}

/// What the end of a stream is counted as.
fn termination(status: &tonic::Status) -> Termination {
    let goes_away = |text: &str| text.contains("transport is closing") || text.contains("received prior goaway");
    match status.code() {
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => Termination::Reconnect,
        Code::Unavailable if goes_away(status.message()) => Termination::Reconnect,
        _ => Termination::Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_that_servers_mean_well_are_no_errors() {
        use tonic::Status;
        for (status, expected) in [
            (Status::unknown("x"), Termination::Reconnect),
            (Status::cancelled("x"), Termination::Reconnect),
            (Status::deadline_exceeded("x"), Termination::Reconnect),
            (Status::unavailable("transport is closing"), Termination::Reconnect),
            (Status::unavailable("code = received prior goaway: x"), Termination::Reconnect),
            (Status::unavailable("connection refused"), Termination::Error),
            (Status::unauthenticated("x"), Termination::Error),
            (Status::internal("x"), Termination::Error),
        ] {
            assert_eq!(termination(&status), expected, "{status}");
        }
    }
}
