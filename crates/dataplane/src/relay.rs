//! Moves bytes both ways between a captured connection and where it goes, until both directions have ended.
//!
//! Knows two kinds of ends, a plain socket and a stream of a tunnel, and for each how to pass on an end of data and a
//! break. Between two plain sockets a direction that has proved bulk goes on without a copy, until it is bulk no more. It
//! decides nothing about the mesh and records nothing: it reports bytes as they flow, and how it ended.
//!
//! What an end may see, and why:
//! * An end of data goes on as one (FIN, `END_STREAM`); the other direction lives on (half-close).
//! * A source that breaks resets both ends. The reader on the far side must never take a torn transfer for a whole one.
//! * A sink that breaks ends its direction only: what the other direction still carries is delivered. The application
//!   may have closed after a complete answer, without reading all that was sent to it.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use hbone::{ReceiveHalf, ResetCode, SendHalf, StreamError};
use reactor::{Chunk, Lease, Spliced, Stream};

use crate::connections::Stop;

/// Bytes reported as they flow.
pub(crate) trait Meter {
    /// From the client towards the server.
    fn received(&self, bytes: usize);
    /// From the server towards the client.
    fn sent(&self, bytes: usize);
}

/// What broke an end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// A plain socket.
    #[error(transparent)]
    Plain(#[from] io::Error),
    /// A stream of a tunnel, or the tunnel under it.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Broken {
    /// An application that aborts its own connection is no fault of the mesh: it is passed on, not reported as one.
    fn is_the_applications_own(&self) -> bool {
        match self {
            Self::Plain(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::ConnectionAborted
            ),
            Self::Stream(StreamError::Reset(code)) => {
                matches!(*code, ResetCode::CONNECT_ERROR | ResetCode::NO_ERROR)
            }
            Self::Stream(StreamError::Tunnel(_)) => false,
        }
    }
}

/// How a relay ended otherwise than by both ends of data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// An end broke.
    #[error(transparent)]
    Broken(Broken),
    /// Somebody stopped it: policy, drain, or a pod that is gone.
    #[error(transparent)]
    Stopped(Stop),
}

/// Where bytes come from.
pub(crate) trait Source {
    /// The next bytes; `None` at the end of data.
    fn receive(&mut self) -> impl Future<Output = Result<Option<Chunk>, Broken>>;
    /// So many bytes have left at the other end: flow control may let as many in.
    fn delivered(&mut self, bytes: usize);
}

/// Where bytes go.
pub(crate) trait Sink {
    /// Sends all of `chunk`.
    fn send(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), Broken>>;
    /// Passes on the end of data.
    fn finish(&mut self) -> Result<(), Broken>;
    /// Resets the end: what is under way may be lost, and the reader learns it.
    fn abort(&mut self, code: ResetCode);
}

/// A way from a source to a sink, both of their kinds.
pub(crate) trait Way<W: Sink>: Source + Sized {
    /// Moves everything, to the end of data or a break.
    fn pump(&mut self, sink: &mut W, count: impl FnMut(usize)) -> impl Future<Output = Direction> {
        copy(self, sink, count)
    }
}

/// One end of a relay.
pub(crate) struct End<R, W> {
    source: R,
    sink: W,
}

/// A plain socket as an end of a relay.
pub(crate) fn plain<S: Stream>(stream: S) -> End<Plain<S>, Plain<S>> {
    let stream = Rc::new(stream);
    End { source: Plain(stream.clone()), sink: Plain(stream) }
}

/// A stream of a tunnel as an end of a relay.
pub(crate) fn tunnel(send: SendHalf<Chunk>, receive: ReceiveHalf) -> End<ReceiveHalf, SendHalf<Chunk>> {
    End { source: receive, sink: send }
}

/// Relays between `client` and `server` until both directions have ended, one end breaks, or `stop` resolves.
///
/// # Errors
/// [`Ended`], when something other than the applications ended it. The ends have been closed or reset by then.
pub(crate) async fn run<CR: Way<SW>, CW: Sink, SR: Way<CW>, SW: Sink>(
    mut client: End<CR, CW>,
    mut server: End<SR, SW>,
    meter: &impl Meter,
    stop: Pin<&mut impl Future<Output = Stop>>,
) -> Result<(), Ended> {
    let outcome = {
        let received = pin!(client.source.pump(&mut server.sink, |bytes| meter.received(bytes)));
        let sent = pin!(server.source.pump(&mut client.sink, |bytes| meter.sent(bytes)));
        match select(pin!(both(received, sent)), stop).await {
            // A tunnel that was closed under it breaks it: why it was closed says more.
            Either::Left((Err(broken), stop)) => Err(stop.now_or_never().map_or(Ended::Broken(broken), Ended::Stopped)),
            Either::Left((Ok(ended), _)) => Ok(ended),
            Either::Right((why, _)) => Err(Ended::Stopped(why)),
        }
    };
    match outcome {
        Ok(None) => Ok(()),
        // The directions have ended one by one, and what was queued is on its way: an abort here would lose it.
        Ok(Some(sink)) if sink.is_the_applications_own() => Ok(()),
        Ok(Some(sink)) => Err(Ended::Broken(sink)),
        Err(ended) => {
            let code = match &ended {
                Ended::Broken(_) => ResetCode::CONNECT_ERROR,
                Ended::Stopped(_) => ResetCode::CANCEL,
            };
            client.sink.abort(code);
            server.sink.abort(code);
            match ended {
                Ended::Broken(broken) if broken.is_the_applications_own() => Ok(()),
                ended => Err(ended),
            }
        }
    }
}

/// Why one direction is over.
pub(crate) enum Direction {
    Finished,
    SourceBroke(Broken),
    SinkBroke(Broken),
}

/// Both directions, to their ends. `Ok(Some)` is a sink that broke while its sources ended well; `Err` is a broken
/// source, which does not wait for the other direction. The two are lent: an async function keeps what it is given and what
/// it pins of that, and they are most of what an idle connection costs.
async fn both(
    received: Pin<&mut impl Future<Output = Direction>>,
    sent: Pin<&mut impl Future<Output = Direction>>,
) -> Result<Option<Broken>, Broken> {
    let (first, second) = match select(received, sent).await {
        Either::Left((Direction::SourceBroke(broken), _)) | Either::Right((Direction::SourceBroke(broken), _)) => {
            return Err(broken);
        }
        Either::Left((first, other)) => (first, other.await),
        Either::Right((first, other)) => (first, other.await),
    };
    match (first, second) {
        (_, Direction::SourceBroke(broken)) => Err(broken),
        (Direction::SinkBroke(broken), _) | (_, Direction::SinkBroke(broken)) => Ok(Some(broken)),
        _ => Ok(None),
    }
}

/// One direction, to its end.
async fn copy(source: &mut impl Source, sink: &mut impl Sink, mut count: impl FnMut(usize)) -> Direction {
    loop {
        match copy_once(source, sink).await {
            Ok(bytes) => count(bytes),
            Err(over) => return over,
        }
    }
}

/// The next bytes of one direction.
async fn copy_once(source: &mut impl Source, sink: &mut impl Sink) -> Result<usize, Direction> {
    let chunk = match source.receive().await {
        Ok(Some(chunk)) => chunk,
        Ok(None) => return Err(finish(sink)),
        Err(broken) => return Err(Direction::SourceBroke(broken)),
    };
    let bytes = chunk.len();
    sink.send(chunk).await.map_err(Direction::SinkBroke)?;
    source.delivered(bytes);
    Ok(bytes)
}

/// Passes on an end of data.
fn finish(sink: &mut impl Sink) -> Direction {
    finished(sink.finish())
}

/// What passing on an end of data came to.
fn finished(outcome: Result<(), Broken>) -> Direction {
    match outcome {
        Ok(()) => Direction::Finished,
        Err(broken) => Direction::SinkBroke(broken),
    }
}

/// Bytes in a row, each piece of them at least [`PIECE_MIN`], after which a direction counts as bulk. Splicing takes 0.62
/// of the copying relay's CPU in bulk and more than it for small messages.
const BULK_MIN: usize = 512 << 10;
/// A piece smaller than that ends the row: questions and answers, however many.
const PIECE_MIN: usize = 4 << 10;
/// What a receive asks for. The socket's own units are smaller unless it is bulk.
const ROOM: usize = 256 << 10;

/// A piece larger than that is sent before the next one is asked for: a direction holds one of those, or two small ones.
const AHEAD_MAX: usize = 16 << 10;

/// How far a direction has proved bulk.
#[derive(Default)]
struct Proof(usize);

impl Proof {
    fn add(&mut self, piece: usize) {
        self.0 = if piece < PIECE_MIN { 0 } else { self.0.saturating_add(piece) };
    }

    fn is_complete(&self) -> bool {
        self.0 >= BULK_MIN
    }
}

/// A half of a plain socket.
pub(crate) struct Plain<S>(Rc<S>);

impl<S: Stream> Source for Plain<S> {
    async fn receive(&mut self) -> Result<Option<Chunk>, Broken> {
        let lease = self.0.receive(ROOM).await?;
        Ok(if lease.is_empty() { None } else { Some(lease.into()) })
    }

    fn delivered(&mut self, _bytes: usize) {}
}

impl<S: Stream> Way<Self> for Plain<S> {
    /// Copies until the direction has proved bulk, and splices as long as it is. While a small piece is on its way out the
    /// next one is waited for already, so that both requests are one entry into the kernel: a question and its answer take
    /// half as many of them.
    ///
    /// An idle connection keeps room for two of these as long as it lives. So nothing in here borrows what it hands on: that
    /// would keep its place, and an async function would keep one for its arguments, too (1.9 KiB of 4, once).
    fn pump(&mut self, sink: &mut Self, mut count: impl FnMut(usize)) -> impl Future<Output = Direction> {
        let (source, sink) = (&self.0, &sink.0);
        async move {
            let (mut proof, mut received) = (Proof::default(), None);
            loop {
                if received.is_none() && proof.is_complete() {
                    // Apart, because it is the larger part and few connections are bulk.
                    match Box::pin(source.splice_to(sink)).await {
                        Spliced::Moved(bytes) => {
                            count(bytes);
                            proof.add(bytes);
                        }
                        Spliced::End => return finished(sink.shutdown_write().map_err(Broken::from)),
                        Spliced::SourceBroke(error) => return Direction::SourceBroke(error.into()),
                        Spliced::SinkBroke(error) => return Direction::SinkBroke(error.into()),
                        // It has to prove itself again before it asks again.
                        Spliced::Unavailable => proof = Proof::default(),
                    }
                    continue;
                }
                let Some(next) = received.take() else {
                    match source.receive(ROOM).await {
                        Ok(lease) => received = Some(lease),
                        Err(error) => return Direction::SourceBroke(error.into()),
                    }
                    continue;
                };
                let Some((bytes, sending)) = begin(&**sink, next) else {
                    return finished(sink.shutdown_write().map_err(Broken::from));
                };
                // Counted first: that it went out may be heard of with the next piece only.
                count(bytes);
                proof.add(bytes);
                let mut sending = pin!(sending);
                if bytes <= AHEAD_MAX {
                    match select(sending.as_mut(), pin!(source.receive(ROOM))).await {
                        Either::Left((Ok(()), _)) => continue,
                        Either::Left((Err(error), _)) => return Direction::SinkBroke(error.into()),
                        Either::Right((Ok(next), _)) => received = Some(next),
                        Either::Right((Err(error), _)) => return Direction::SourceBroke(error.into()),
                    }
                }
                if let Err(error) = sending.await {
                    return Direction::SinkBroke(error.into());
                }
            }
        }
    }
}

/// Begins to send what was received, and says how much that is; nothing at the end of data.
fn begin<S: Stream>(sink: &S, received: Lease) -> Option<(usize, impl Future<Output = io::Result<()>>)> {
    let bytes = received.len();
    let sending = match bytes {
        0 => return None,
        1..=AHEAD_MAX => Either::Left(sink.post(received.into())),
        _ => Either::Right(sink.send(received.into())),
    };
    Some((bytes, sending))
}

impl<S: Stream> Way<SendHalf<Chunk>> for Plain<S> {}

impl<S: Stream> Way<Plain<S>> for ReceiveHalf {}

impl<S: Stream> Sink for Plain<S> {
    async fn send(&mut self, chunk: Chunk) -> Result<(), Broken> {
        Ok(self.0.send(chunk).await?)
    }

    fn finish(&mut self) -> Result<(), Broken> {
        Ok(self.0.shutdown_write()?)
    }

    fn abort(&mut self, _code: ResetCode) {
        self.0.reset_on_drop();
    }
}

impl Source for ReceiveHalf {
    async fn receive(&mut self) -> Result<Option<Chunk>, Broken> {
        Ok(Self::receive(self).await?.map(Chunk::from))
    }

    fn delivered(&mut self, bytes: usize) {
        self.grant(bytes);
    }
}

impl Sink for SendHalf<Chunk> {
    async fn send(&mut self, mut chunk: Chunk) -> Result<(), Broken> {
        while !chunk.is_empty() {
            let credit = self.capacity(chunk.len()).await?.min(chunk.len());
            self.deliver(chunk.split_to(credit))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Broken> {
        Ok(self.finish()?)
    }

    fn abort(&mut self, code: ResetCode) {
        self.reset(code);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque, future::pending};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use hbone::TunnelError;

    use super::*;

    /// What a source does next; a source at the end of its script stays silent.
    enum Step {
        Bytes(&'static [u8]),
        End,
        Break(io::ErrorKind),
        TunnelBreaks,
    }

    struct Script(VecDeque<Step>);

    impl Source for Script {
        async fn receive(&mut self) -> Result<Option<Chunk>, Broken> {
            match self.0.pop_front() {
                Some(Step::Bytes(bytes)) => Ok(Some(Chunk::from(Bytes::from_static(bytes)))),
                Some(Step::End) => Ok(None),
                Some(Step::Break(kind)) => Err(Broken::Plain(kind.into())),
                Some(Step::TunnelBreaks) => Err(Broken::Stream(StreamError::Tunnel(TunnelError::Cut))),
                None => pending().await,
            }
        }

        fn delivered(&mut self, _bytes: usize) {}
    }

    impl Way<Rc<RefCell<Seen>>> for Script {}

    #[derive(Default)]
    struct Seen {
        bytes: usize,
        finished: bool,
        aborted: Option<ResetCode>,
        breaks: bool,
    }

    impl Sink for Rc<RefCell<Seen>> {
        async fn send(&mut self, chunk: Chunk) -> Result<(), Broken> {
            let mut seen = self.borrow_mut();
            if seen.breaks {
                return Err(Broken::Plain(io::ErrorKind::BrokenPipe.into()));
            }
            seen.bytes += chunk.len();
            Ok(())
        }

        fn finish(&mut self) -> Result<(), Broken> {
            self.borrow_mut().finished = true;
            Ok(())
        }

        fn abort(&mut self, code: ResetCode) {
            self.borrow_mut().aborted = Some(code);
        }
    }

    #[derive(Default)]
    struct Counts(RefCell<(usize, usize)>);

    impl Meter for Counts {
        fn received(&self, bytes: usize) {
            self.0.borrow_mut().0 += bytes;
        }

        fn sent(&self, bytes: usize) {
            self.0.borrow_mut().1 += bytes;
        }
    }

    struct Run {
        result: Option<Result<(), Ended>>,
        client: Rc<RefCell<Seen>>,
        server: Rc<RefCell<Seen>>,
        counts: (usize, usize),
    }

    fn relay(client: Vec<Step>, server: Vec<Step>, breaking: (bool, bool), stop: impl Future<Output = Stop>) -> Run {
        let end = |steps: Vec<Step>, breaks| {
            let seen = Rc::new(RefCell::new(Seen { breaks, ..Seen::default() }));
            (End { source: Script(steps.into()), sink: seen.clone() }, seen)
        };
        let (client_end, client) = end(client, breaking.0);
        let (server_end, server) = end(server, breaking.1);
        let counts = Counts::default();
        let result = run(client_end, server_end, &counts, pin!(stop)).now_or_never();
        Run { result, client, server, counts: counts.0.into_inner() }
    }

    #[test]
    fn an_end_of_data_goes_on_as_one_while_the_other_direction_lives() {
        let run = relay(vec![Step::Bytes(b"ask"), Step::End], vec![Step::Bytes(b"part")], (false, false), pending());
        assert!(run.result.is_none(), "the server has not ended yet");
        assert!(run.server.borrow().finished);
        assert!(!run.client.borrow().finished);
        assert_eq!(run.counts, (3, 4));
    }

    #[test]
    fn both_ends_of_data_end_it_well_whoever_is_first() {
        let run = relay(
            vec![Step::Bytes(b"ask"), Step::End],
            vec![Step::Bytes(b"answer"), Step::End],
            (false, false),
            pending(),
        );
        assert!(matches!(run.result, Some(Ok(()))));
        assert_eq!((run.client.borrow().aborted, run.server.borrow().aborted), (None, None));
        assert_eq!(run.counts, (3, 6));
    }

    #[test]
    fn a_tunnel_that_breaks_resets_the_application_and_is_reported() {
        let run = relay(vec![], vec![Step::Bytes(b"half of an ans"), Step::TunnelBreaks], (false, false), pending());
        assert!(matches!(run.result, Some(Err(Ended::Broken(_)))));
        assert_eq!(run.client.borrow().aborted, Some(ResetCode::CONNECT_ERROR));
        assert!(!run.client.borrow().finished, "a torn answer must not look complete");
    }

    #[test]
    fn an_application_that_aborts_is_passed_on_but_not_reported() {
        let run = relay(vec![Step::Break(io::ErrorKind::ConnectionReset)], vec![], (false, false), pending());
        assert!(matches!(run.result, Some(Ok(()))));
        assert_eq!(run.server.borrow().aborted, Some(ResetCode::CONNECT_ERROR));
        assert!(!run.server.borrow().finished);
    }

    #[test]
    fn an_application_that_stops_reading_does_not_cut_what_it_still_sends() {
        let server = vec![Step::Bytes(b"all of the answer"), Step::End];
        let run = relay(vec![Step::Bytes(b"more"), Step::End], server, (false, true), pending());
        assert!(matches!(run.result, Some(Ok(()))));
        assert_eq!(run.client.borrow().bytes, 17);
        assert!(run.client.borrow().finished);
        assert_eq!((run.client.borrow().aborted, run.server.borrow().aborted), (None, None));
    }

    #[test]
    fn a_stop_resets_both_ends_at_once() {
        let run = relay(vec![], vec![], (false, false), async { Stop::Drained });
        assert!(matches!(run.result, Some(Err(Ended::Stopped(Stop::Drained)))));
        assert_eq!(run.client.borrow().aborted, Some(ResetCode::CANCEL));
        assert_eq!(run.server.borrow().aborted, Some(ResetCode::CANCEL));
    }
}
