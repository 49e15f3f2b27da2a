//! Requests at a fixed rate over some connections, with the time of every answer: request n is due at a time fixed before the
//! first is sent, so a stall hides nothing. And connections that do nothing but stay.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

const CONNECTIONS: u32 = 4;
const PER_SECOND: u32 = 1_000;
const MESSAGE: usize = 128;
/// For an answer, after which its connection has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A load under way.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    origin: Instant,
    threads: Vec<JoinHandle<io::Result<Vec<Answer>>>>,
    senders: Vec<JoinHandle<()>>,
}

/// When a request was due, and when its answer was there, from the load's beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    due: Duration,
    done: Duration,
}

/// All answers, by the time they were there.
pub(crate) struct Trace {
    origin: Instant,
    answers: Vec<Answer>,
    /// Connections that failed.
    pub(crate) failed: usize,
}

/// What a part of the trace says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    /// The longest time between two answers.
    pub(crate) gap_ms: f64,
    /// Latency from when a request was due.
    pub(crate) p999_ms: f64,
}

impl Load {
    /// Begins on connections made by `connect`, to a server that echoes.
    pub(crate) fn start(connect: impl Fn() -> Result<TcpStream>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let interval = Duration::from_secs(1) * CONNECTIONS / PER_SECOND;
        let origin = Instant::now() + Duration::from_millis(50);
        let (mut threads, mut senders) = (Vec::new(), Vec::new());
        for number in 0..CONNECTIONS {
            let stream = connect()?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let due = move |request: u32| interval * number / CONNECTIONS + interval * request;
            let (reading, stopping) = (stream.try_clone()?, stop.clone());
            senders.push(thread::Builder::new().name("send".into()).spawn(move || {
                be_on_time();
                send(&stream, origin, due, &stopping);
            })?);
            threads.push(thread::Builder::new().name("receive".into()).spawn(move || {
                be_on_time();
                receive(&reading, origin, due)
            })?);
        }
        Ok(Self { stop, origin, threads, senders })
    }

    /// Ends it and waits for the last answers.
    pub(crate) fn end(self) -> Result<Trace> {
        self.stop.store(true, Ordering::Release);
        for sender in self.senders {
            sender.join().map_err(|_| anyhow!("a sender panicked"))?;
        }
        let (mut answers, mut failed) = (Vec::new(), 0);
        for thread in self.threads {
            match thread.join().map_err(|_| anyhow!("a receiver panicked"))? {
                Ok(of_one) => answers.extend(of_one),
                Err(_) => failed += 1,
            }
        }
        answers.sort_unstable_by_key(|answer| answer.done);
        Ok(Trace { origin: self.origin, answers, failed })
    }
}

impl Trace {
    /// What was between two times.
    pub(crate) fn window(&self, from: Instant, to: Instant) -> Result<Window> {
        let (from, to) = (from.duration_since(self.origin), to.duration_since(self.origin));
        let begin = self.answers.partition_point(|answer| answer.done < from);
        let end = self.answers.partition_point(|answer| answer.done <= to);
        let within = &self.answers[begin.saturating_sub(1)..end];
        let gaps = within.windows(2).map(|two| two[1].done - two[0].done);
        let gap = gaps.max().context("no answers in this time")?;
        let mut latencies: Vec<Duration> =
            self.answers[begin..end].iter().map(|answer| answer.done.saturating_sub(answer.due)).collect();
        latencies.sort_unstable();
        let p999 = latencies[(latencies.len() - 1) * 999 / 1000];
        Ok(Window { gap_ms: gap.as_secs_f64() * 1e3, p999_ms: p999.as_secs_f64() * 1e3 })
    }
}

fn send(mut stream: &TcpStream, origin: Instant, due: impl Fn(u32) -> Duration, stop: &AtomicBool) {
    let message = [b'.'; MESSAGE];
    for request in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        thread::sleep((origin + due(request)).saturating_duration_since(Instant::now()));
        if stream.write_all(&message).is_err() {
            return; // The receiver tells.
        }
    }
    // All answers come before the other end closes.
    let _ended = stream.shutdown(std::net::Shutdown::Write);
}

fn receive(mut stream: &TcpStream, origin: Instant, due: impl Fn(u32) -> Duration) -> io::Result<Vec<Answer>> {
    let (mut answers, mut buffer, mut filled) = (Vec::new(), [0; MESSAGE * 64], 0);
    loop {
        let count = stream.read(&mut buffer)?;
        let done = Instant::now().saturating_duration_since(origin);
        if count == 0 {
            return if filled == 0 { Ok(answers) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        filled += count;
        while filled >= MESSAGE {
            filled -= MESSAGE;
            answers.push(Answer { due: due(u32::try_from(answers.len()).unwrap_or(u32::MAX)), done });
        }
    }
}

/// This thread is to be on time whatever else its CPU does: what it waits for there would count as the daemon's.
fn be_on_time() {
    // A sleeping thread is woken up to 50 us late by default.
    let _set = rustix::thread::set_current_timer_slack(Some(std::num::NonZeroU64::MIN));
    go_first(&rustix::thread::gettid().as_raw_nonzero().to_string());
}

/// A thread goes before all others of its CPU. Without the permission to ask for that there is the more noise.
pub(crate) fn go_first(thread: &str) {
    let _set = Command::new("chrt").args(["--fifo", "--pid", "10", thread]).output();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_a_gap_of_its_window_alone_and_a_late_answer_counts_from_when_it_was_due() {
        let origin = Instant::now();
        let ms = Duration::from_millis;
        let on_time = |at: u64| Answer { due: ms(at), done: ms(at + 1) };
        let mut answers: Vec<Answer> = (0..1_000).map(on_time).collect();
        // Nothing for 40 ms, then all that was due.
        for answer in &mut answers[500..540] {
            answer.done = ms(540);
        }
        let trace = Trace { origin, answers, failed: 0 };
        let quiet = trace.window(origin, origin + ms(400)).expect("answers");
        assert_eq!(quiet, Window { gap_ms: 1.0, p999_ms: 1.0 });
        let stalled = trace.window(origin + ms(400), origin + ms(900)).expect("answers");
        assert_eq!(stalled.gap_ms, 40.0);
        assert!(stalled.p999_ms >= 39.0, "{stalled:?}");
        assert!(trace.window(origin + ms(5_000), origin + ms(6_000)).is_err());
    }
}
