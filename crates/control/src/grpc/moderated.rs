//! Reads of a connection that brings many small messages, as a network card moderates its interrupts: after some reads that
//! came fast upon each other, the next waits a little, and takes all that has come meanwhile. A message by itself costs
//! the wakes, system calls and cold caches that ten together cost once.
//!
//! The first reads after a pause wait for nothing, and reads that bring much are free, so a large message is as fast as it
//! was.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep_until},
};

use crate::clocks::now;

/// In the long run small reads are so far apart: 100 in a second. Half of what generations are apart at least, for nothing
/// is in force before it is published.
const APART: Duration = Duration::from_millis(10);
/// So many small reads may follow each other at once: a handshake, the first messages, a pod with all that belongs to it.
const BURST: u32 = 16;
/// A read of so many bytes is free, and a smaller one costs what it lacks: a record of TLS, the most that is read at once.
const BYTES_FREE: usize = 16 << 10;

/// A socket whose reads are moderated. Writes are not.
#[derive(Debug)]
pub(crate) struct Moderated<S> {
    socket: S,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> Moderated<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { socket, pace: Pace { spent_until: now() }, pause: None }
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
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(context, buffer))?;
        let next = this.pace.read(buffer.filled().len() - before, now());
        this.pause = next.map(|next| Box::pin(sleep_until(next.into())));
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
    /// So many bytes were read now; until when the next read has to wait, if it has to.
    fn read(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let lacks = BYTES_FREE.saturating_sub(bytes) as u32;
        self.spent_until = self.spent_until.max(now) + APART * lacks / BYTES_FREE as u32;
        // One read's time more than the burst: the next one would be beyond it.
        let next = self.spent_until.checked_sub(APART * (BURST - 1))?;
        (next > now).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// As a change of an endpoint.
    const SMALL: usize = 400;

    /// Reads what comes `apart` from each other for a second, each as soon as it may: when each was read.
    fn reads(bytes: usize, apart: Duration) -> Vec<Instant> {
        let start = Instant::now();
        let mut pace = Pace { spent_until: start };
        let (mut not_before, mut waiting, mut reads) = (start, 0, Vec::new());
        let arrivals = (Duration::from_secs(1).as_nanos() / apart.as_nanos()) as u32;
        for arrival in 0..arrivals {
            let now = start + apart * arrival;
            waiting += bytes;
            // All that has come is read as soon as that is allowed, be it between two arrivals.
            if not_before < now + apart {
                let at = now.max(not_before);
                not_before = pace.read(waiting, at).unwrap_or(at);
                reads.push(at);
                waiting = 0;
            }
        }
        reads
    }

    #[test]
    fn a_storm_is_read_at_a_bounded_rate_and_no_message_waits_longer_than_the_reads_are_apart() {
        let reads = reads(SMALL, 2 * MS);
        assert!((100..=140).contains(&reads.len()), "{} of 500", reads.len());
        let longest = reads.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(APART + 2 * MS), "{longest:?}");
    }

    #[test]
    fn what_comes_rarely_or_in_a_burst_waits_for_nothing() {
        assert_eq!(reads(SMALL, APART).len(), 100);
        let mut now = Instant::now();
        let mut pace = Pace { spent_until: now };
        for burst in 0..3 {
            for message in 1..BURST {
                assert_eq!(pace.read(SMALL, now), None, "{message} of burst {burst}");
            }
            assert!((0..2).any(|_| pace.read(SMALL, now).is_some()), "no more than the burst");
            now += APART * (BURST + 1);
        }
    }

    #[test]
    fn reads_that_bring_much_wait_for_nothing() {
        let now = Instant::now();
        let mut pace = Pace { spent_until: now };
        for _ in 0..100_000 {
            assert_eq!(pace.read(BYTES_FREE, now), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_come_meanwhile_is_read_at_once_and_the_end_after_it() {
        let (mut server, client) = tokio::io::duplex(1 << 20);
        let mut client = Moderated::new(client);
        let sending = async move {
            for number in 0..500_u32 {
                server.write_all(&number.to_be_bytes()).await.unwrap();
                tokio::time::sleep(2 * MS).await;
            }
        };
        let receiving = async move {
            let (mut all, mut reads) = (Vec::new(), 0);
            while client.read_buf(&mut all).await.unwrap() > 0 {
                reads += 1;
            }
            (all, reads)
        };
        let ((), (all, reads)) = tokio::join!(sending, receiving);
        assert_eq!(all, (0..500_u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        assert!((90..=130).contains(&reads), "{reads} of 500");
    }
}
