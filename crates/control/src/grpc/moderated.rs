//! Reads of a connection that brings many small messages, as a network card moderates its interrupts: after some reads that
//! came fast upon each other, the next waits a little, and takes all that has come meanwhile. A message by itself costs
//! the wakes, system calls and cold caches that ten together cost once.
//!
//! The first reads after a pause wait for nothing, and neither do those of a message that is not whole yet. Nor does anything
//! on a connection of questions and answers, where nobody says when messages end: somebody waits for each answer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep_until},
};

use crate::{clocks::now, pacer::APART_MIN};

/// In the long run reads are so far apart, as generations are at least: nothing is in force before it is published.
const APART: Duration = APART_MIN;
/// So many may follow each other at once: a handshake, the first messages, a pod with all that belongs to it.
const BURST: u32 = 16;

/// A socket whose reads are moderated. Writes are not.
#[derive(Debug)]
pub(crate) struct Moderated<S> {
    socket: S,
    prompt: Prompt,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Whether reads wait for nothing. They do not until somebody says otherwise. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Prompt(Arc<AtomicBool>);

impl Prompt {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub(crate) fn set(&self, prompt: bool) {
        self.0.store(prompt, Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl<S> Moderated<S> {
    pub(crate) fn new(socket: S, prompt: Prompt) -> Self {
        Self { socket, prompt, pace: Pace { spent_until: now() }, pause: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moderated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        ready!(Pin::new(&mut this.socket).poll_read(context, buffer))?;
        // What fills the buffer has left something behind, which the same wake takes.
        if buffer.remaining() > 0 && !this.prompt.is_set() {
            this.pause = this.pace.read(now()).map(|next| Box::pin(sleep_until(next.into())));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moderated<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// When the next read is due. Pure: the time comes in. The generic cell rate algorithm, as of ITU-T I.371.
#[derive(Debug)]
struct Pace {
    /// Had every read been at its time, the last one's time would end here.
    spent_until: Instant,
}

impl Pace {
    /// All that had come was read now; until when the next read has to wait, if it has to.
    fn read(&mut self, now: Instant) -> Option<Instant> {
        self.spent_until = self.spent_until.max(now) + APART;
        let next = self.spent_until.checked_sub(APART * (BURST - 1))?;
        (next > now).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Reads what comes `apart` from each other for a second, each as soon as it may: when each was read.
    fn reads(apart: Duration) -> Vec<Instant> {
        let start = Instant::now();
        let mut pace = Pace { spent_until: start };
        let (mut not_before, mut reads) = (start, Vec::new());
        for arrival in 0..(Duration::from_secs(1).as_nanos() / apart.as_nanos()) as u32 {
            let now = start + apart * arrival;
            // All that has come is read as soon as that is allowed, be it between two arrivals.
            if not_before < now + apart {
                reads.push(now.max(not_before));
                not_before = pace.read(now.max(not_before)).unwrap_or(now);
            }
        }
        reads
    }

    #[test]
    fn a_storm_is_read_at_a_bounded_rate_and_no_message_waits_longer_than_reads_are_apart() {
        let reads = reads(2 * MS);
        assert!((50..=50 + BURST as usize).contains(&reads.len()), "{} of 500", reads.len());
        let longest = reads.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(APART + 2 * MS), "{longest:?}");
    }

    #[test]
    fn what_comes_rarely_or_in_a_burst_waits_for_nothing() {
        assert_eq!(reads(APART).len(), 50);
        let mut now = Instant::now();
        let mut pace = Pace { spent_until: now };
        for burst in 0..3 {
            for message in 1..BURST {
                assert_eq!(pace.read(now), None, "{message} of burst {burst}");
            }
            assert_eq!(pace.read(now), Some(now + APART), "no more than the burst");
            now += APART * (BURST + 1);
        }
    }

    /// Reads until the end, with a buffer of so many bytes: what came, in how many reads and how long that took.
    async fn read_all(mut client: Moderated<DuplexStream>, room: usize) -> (Vec<u8>, u32, Duration) {
        let (mut all, mut reads, began) = (Vec::new(), 0, now());
        loop {
            let mut buffer = vec![0; room];
            match client.read(&mut buffer).await.unwrap() {
                0 => return (all, reads, now() - began),
                count => all.extend_from_slice(&buffer[..count]),
            }
            reads += 1;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_come_meanwhile_is_read_at_once_and_the_end_after_it() {
        let (mut server, client) = tokio::io::duplex(1 << 20);
        let sending = async move {
            for number in 0..500_u32 {
                server.write_all(&number.to_be_bytes()).await.unwrap();
                tokio::time::sleep(2 * MS).await;
            }
        };
        let client = Moderated::new(client, Prompt::new());
        client.prompt.set(false);
        let ((), (all, reads, _)) = tokio::join!(sending, read_all(client, 4096));
        assert_eq!(all, (0..500_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        assert!((50..=70).contains(&reads), "{reads} of 500");
    }

    #[tokio::test(start_paused = true)]
    async fn prompt_reads_and_those_of_what_has_come_already_wait_for_nothing() {
        for (prompt, piece, room) in [(true, 100, 4096), (false, 4096, 512)] {
            let (mut server, client) = tokio::io::duplex(4096);
            let client = Moderated::new(client, Prompt::new());
            assert!(client.prompt.is_set(), "until somebody says otherwise");
            client.prompt.set(prompt);
            let sending = async move {
                for _ in 0..1000 {
                    server.write_all(&vec![7; piece]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let ((), (all, reads, took)) = tokio::join!(sending, read_all(client, room));
            assert_eq!(all.len(), 1000 * piece);
            assert!(reads > 500, "the case has many reads: {reads}");
            assert_eq!(took, Duration::ZERO, "prompt {prompt}, {piece} in {room}");
        }
    }
}
