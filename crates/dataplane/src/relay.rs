//! Moves bytes both ways between a captured connection and where it goes, until both directions have ended.
//!
//! Knows two kinds of ends, a plain socket and a stream of a tunnel, and for each how to pass on an end of data and a
//! break. It decides nothing about the mesh and records nothing: it reports bytes as they flow, and how it ended.
//!
//! What an end may see, and why:
//! * An end of data goes on as one (FIN, `END_STREAM`); the other direction lives on (half-close).
//! * A source that breaks resets both ends. The reader on the far side must never take a torn transfer for a whole one.
//! * A sink that breaks ends its direction only: what the other direction still carries is delivered. The application
//!   may have closed after a complete answer, without reading all that was sent to it.

use std::{future::Future, io, pin::pin, rc::Rc};

use futures_util::future::{Either, select};
use hbone::{ReceiveHalf, ResetCode, SendHalf, StreamError};
use reactor::{Chunk, Stream};

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
    /// The next bytes, at most about `room` of them; `None` at the end of data.
    fn receive(&mut self, room: usize) -> impl Future<Output = Result<Option<Chunk>, Broken>>;
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
pub(crate) async fn run<CR: Source, CW: Sink, SR: Source, SW: Sink>(
    mut client: End<CR, CW>,
    mut server: End<SR, SW>,
    meter: &impl Meter,
    stop: impl Future<Output = Stop>,
) -> Result<(), Ended> {
    let outcome = {
        let received = pump(&mut client.source, &mut server.sink, |bytes| meter.received(bytes));
        let sent = pump(&mut server.source, &mut client.sink, |bytes| meter.sent(bytes));
        match select(pin!(both(received, sent)), pin!(stop)).await {
            Either::Left((outcome, _)) => outcome.map_err(Ended::Broken),
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
enum Direction {
    Finished,
    SourceBroke(Broken),
    SinkBroke(Broken),
}

/// Both directions, to their ends. `Ok(Some)` is a sink that broke while its sources ended well; `Err` is a broken
/// source, which does not wait for the other direction.
async fn both(
    received: impl Future<Output = Direction>,
    sent: impl Future<Output = Direction>,
) -> Result<Option<Broken>, Broken> {
    let (first, second) = match select(pin!(received), pin!(sent)).await {
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
async fn pump(source: &mut impl Source, sink: &mut impl Sink, mut count: impl FnMut(usize)) -> Direction {
    let mut moved = 0;
    loop {
        let chunk = match source.receive(room(moved)).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => {
                return match sink.finish() {
                    Ok(()) => Direction::Finished,
                    Err(broken) => Direction::SinkBroke(broken),
                };
            }
            Err(broken) => return Direction::SourceBroke(broken),
        };
        let bytes = chunk.len();
        if let Err(broken) = sink.send(chunk).await {
            return Direction::SinkBroke(broken);
        }
        source.delivered(bytes);
        count(bytes);
        moved += bytes as u64;
    }
}

/// How much to ask of a plain socket, by what the direction has moved: small while it may be a request and its answer,
/// large once it is bulk. Bytes per system call are what a bulk relay costs: 256 KiB take half the CPU of 64 KiB.
fn room(moved: u64) -> usize {
    match moved {
        0..0x2_0000 => 16 << 10,
        0x2_0000..0x10_0000 => 64 << 10,
        _ => 256 << 10,
    }
}

/// A half of a plain socket.
pub(crate) struct Plain<S>(Rc<S>);

impl<S: Stream> Source for Plain<S> {
    async fn receive(&mut self, room: usize) -> Result<Option<Chunk>, Broken> {
        let lease = self.0.receive(room).await?;
        Ok(if lease.is_empty() { None } else { Some(lease.into()) })
    }

    fn delivered(&mut self, _bytes: usize) {}
}

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
    async fn receive(&mut self, _room: usize) -> Result<Option<Chunk>, Broken> {
        Ok(self.receive().await?.map(Chunk::from))
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
        async fn receive(&mut self, _room: usize) -> Result<Option<Chunk>, Broken> {
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
        let result = run(client_end, server_end, &counts, stop).now_or_never();
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
