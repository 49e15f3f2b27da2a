//! How lines reach standard output: a bounded queue and a thread that empties it. Not what a line looks like.
//!
//! Whoever logs never waits for whoever reads: a line that finds the queue full is dropped and counted, and the log says
//! so once there is room again. The reference blocks there, and with it its data plane when a log collector stands still
//! (user demand 19); that difference is on purpose.

use std::{
    fs::File,
    io::{self, ErrorKind, IoSlice, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use tracing_subscriber::fmt::MakeWriter;

/// Lines waiting to be written.
pub const LINES_MAX: usize = 10_000;

/// Bytes of them: what the log can take of memory at worst, 16 MiB. Ordinary lines come to 4 MiB.
pub const BYTES_MAX: usize = 16 << 20;

/// Lines written by one system call.
const BATCH_MAX: usize = 64;

/// How long the end of the process waits for a reader that does not read.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Until the next attempt where standard output was made non-blocking by whoever shares it.
const RETRY: Duration = Duration::from_millis(10);

/// Starts the thread that writes to standard output; `notice` makes the line that tells of dropped ones.
pub(super) fn start(notice: impl Fn(u64) -> Vec<u8> + Send + 'static) -> io::Result<(Queue, LogGuard)> {
    // Not `io::stdout()` itself: its buffer would turn the vectored write into copies.
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    start_on(out, LINES_MAX, FLUSH_MAX, notice)
}

fn start_on(
    mut out: impl Write + Send + 'static,
    lines_max: usize,
    flush_max: Duration,
    notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
) -> io::Result<(Queue, LogGuard)> {
    let (lines, received) = crossbeam_channel::bounded(lines_max);
    let load = Arc::new(Load::default());
    let queue = Queue { lines: lines.clone(), load: load.clone() };
    let guard_load = load.clone();
    let writing = move || write_until_flushed(&received, &load, &mut out, notice);
    let thread = thread::Builder::new().name("log".to_owned()).spawn(writing)?;
    Ok((queue, LogGuard { lines, load: guard_load, flush_max, thread: Some(thread) }))
}

/// Keeps the log's thread; dropping it flushes what is queued, for at most two seconds.
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard {
    lines: Sender<Message>,
    load: Arc<Load>,
    flush_max: Duration,
    thread: Option<JoinHandle<()>>,
}

impl LogGuard {
    pub(super) fn dropped_counter(&self) -> Arc<AtomicU64> {
        self.load.dropped.clone()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let deadline = Instant::now() + self.flush_max;
        let (answer, done) = crossbeam_channel::bounded(1);
        let told = self.lines.send_deadline(Message::Flush(answer), deadline).is_ok();
        if told && done.recv_deadline(deadline).is_ok() {
            // It has answered, so it has nothing left to do; a panic of it was printed already.
            drop(self.thread.take().map(JoinHandle::join));
        }
    }
}

/// Where lines are put. Clones are the same queue.
#[derive(Clone)]
pub(super) struct Queue {
    lines: Sender<Message>,
    load: Arc<Load>,
}

enum Message {
    Line(Box<[u8]>),
    Flush(Sender<()>),
}

#[derive(Default)]
struct Load {
    /// Queued bytes.
    bytes: AtomicUsize,
    /// Lines that were never written.
    dropped: Arc<AtomicU64>,
}

impl Queue {
    fn put(&self, line: &[u8]) {
        let queued = self.load.bytes.fetch_add(line.len(), Ordering::Relaxed);
        if queued + line.len() > BYTES_MAX || self.lines.try_send(Message::Line(line.into())).is_err() {
            self.load.bytes.fetch_sub(line.len(), Ordering::Relaxed);
            self.load.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `tracing-subscriber` writes each event's whole line at once.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

fn write_until_flushed(
    received: &Receiver<Message>,
    load: &Load,
    out: &mut impl Write,
    notice: impl Fn(u64) -> Vec<u8>,
) {
    let mut told = 0;
    while let Ok(first) = received.recv() {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut flushed = None;
        for message in std::iter::once(first).chain(received.try_iter().take(BATCH_MAX - 1)) {
            match message {
                Message::Line(line) => batch.push(line),
                Message::Flush(answer) => flushed = Some(answer),
            }
        }
        if write_all(out, &batch).is_err() {
            // Nobody reads any more. Whoever scrapes the metrics still sees it.
            load.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        load.bytes.fetch_sub(batch.iter().map(|line| line.len()).sum(), Ordering::Relaxed);
        let dropped = load.dropped.load(Ordering::Relaxed);
        if dropped > told && write_all(out, &[notice(dropped - told).into()]).is_ok() {
            told = dropped;
        }
        if let Some(answer) = flushed {
            // The guard may have stopped waiting.
            let _still_waiting = answer.try_send(());
            return;
        }
    }
}

fn write_all(out: &mut impl Write, lines: &[Box<[u8]>]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = lines.iter().map(|line| IoSlice::new(line)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match out.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A queue that nobody empties but the test.
#[cfg(test)]
pub(super) fn detached(lines_max: usize) -> (Queue, Written) {
    let (lines, received) = crossbeam_channel::bounded(lines_max);
    (Queue { lines, load: Arc::default() }, Written(received))
}

/// What was put into a detached queue.
#[cfg(test)]
pub(super) struct Written(Receiver<Message>);

#[cfg(test)]
impl Written {
    pub(super) fn drain(&self) -> Vec<String> {
        let text = |message| match message {
            Message::Line(line) => String::from_utf8(line.into()).expect("text"),
            Message::Flush(_) => unreachable!("nobody flushes a detached queue"),
        };
        self.0.try_iter().map(text).collect()
    }
}

#[cfg(test)]
impl Queue {
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        self.load.dropped.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, Read};

    use super::*;

    fn notice(lines: u64) -> Vec<u8> {
        format!("dropped {lines}\n").into_bytes()
    }

    /// A writer that takes a few bytes at a time, after a number of refusals.
    struct Reluctant {
        refusals: Vec<ErrorKind>,
        taken: Vec<u8>,
        calls: usize,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.calls += 1;
            if let Some(refusal) = self.refusals.pop() {
                return Err(refusal.into());
            }
            let some: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(5).collect();
            self.taken.extend(&some);
            Ok(some.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(texts: &[&str]) -> Vec<Box<[u8]>> {
        texts.iter().map(|text| text.as_bytes().into()).collect()
    }

    #[test]
    fn lines_are_whole_however_little_is_taken_at_a_time() {
        let mut out =
            Reluctant { refusals: vec![ErrorKind::WouldBlock, ErrorKind::Interrupted], taken: vec![], calls: 0 };
        write_all(&mut out, &lines(&["one\n", "twenty-two\n", "3\n"])).expect("all taken in the end");
        assert_eq!(out.taken, b"one\ntwenty-two\n3\n");
        assert_eq!(out.calls, 6);
        out.refusals = vec![ErrorKind::BrokenPipe];
        assert!(write_all(&mut out, &lines(&["4\n"])).is_err());
    }

    #[test]
    fn one_system_call_takes_up_to_sixty_four_lines() {
        struct Counting(Vec<usize>);
        impl Write for Counting {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len())
            }
            fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                self.0.push(slices.len());
                Ok(slices.iter().map(|slice| slice.len()).sum())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (queue, written) = detached(200);
        for _ in 0..130 {
            queue.put(b"line\n");
        }
        let (answer, done) = crossbeam_channel::bounded(1);
        queue.lines.send(Message::Flush(answer)).expect("room");
        let mut out = Counting(vec![]);
        write_until_flushed(&written.0, &queue.load, &mut out, notice);
        assert_eq!(out.0, [64, 64, 2]);
        assert_eq!(queue.load.bytes.load(Ordering::Relaxed), 0);
        assert!(done.try_recv().is_ok());
    }

    /// A log on a pipe whose reader decides when to read.
    fn on_a_pipe(lines_max: usize, flush_max: Duration) -> (Queue, LogGuard, PipeReader) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (queue, guard) = start_on(writer, lines_max, flush_max, notice).expect("a thread");
        (queue, guard, reader)
    }

    #[test]
    fn whoever_logs_never_waits_and_what_was_dropped_is_told_once_there_is_a_reader() {
        let (queue, guard, reader) = on_a_pipe(8, FLUSH_MAX);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        // More than the pipe (64 KiB) and the queue can hold; nobody reads, so a wait here would be forever.
        let logged = 1_000;
        for _ in 0..logged {
            queue.put(&line);
        }
        let dropped = guard.dropped_counter().load(Ordering::Relaxed);
        assert!(dropped > 0, "the queue cannot have taken them all");
        let reading = thread::spawn(move || {
            let (mut whole, mut told) = (0, 0);
            for text in BufReader::new(reader).lines().map(|line| line.expect("text")) {
                match text.strip_prefix("dropped ") {
                    Some(lines) => told += lines.parse::<u64>().expect("a number"),
                    None => whole += u64::from(text.len() == 1023),
                }
            }
            (whole, told)
        });
        drop((queue, guard));
        assert_eq!(reading.join().expect("no panic"), (logged - dropped, dropped));
    }

    #[test]
    fn everything_queued_is_written_before_the_guard_is_gone() {
        let (queue, guard, mut reader) = on_a_pipe(100, FLUSH_MAX);
        for number in 0..100 {
            queue.put(format!("{number}\n").as_bytes());
        }
        drop((queue, guard));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        let expected: String = (0..100).map(|number| format!("{number}\n")).collect();
        assert_eq!(text, expected);
    }

    #[test]
    fn the_end_of_the_process_does_not_wait_long_for_a_reader_that_does_not_read() {
        let (queue, guard, reader) = on_a_pipe(4, Duration::from_millis(20));
        let line = vec![b'x'; 64 << 10];
        for _ in 0..8 {
            queue.put(&line);
        }
        let before = Instant::now();
        drop(guard);
        assert!(before.elapsed() < FLUSH_MAX, "{:?}", before.elapsed());
        drop(reader);
    }

    #[test]
    fn bytes_are_bounded_as_well_as_lines() {
        let (queue, written) = detached(LINES_MAX);
        let line = vec![b'x'; BYTES_MAX / 4];
        for _ in 0..5 {
            queue.put(&line);
        }
        assert_eq!(written.0.len(), 4);
        assert_eq!(queue.dropped().load(Ordering::Relaxed), 1);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (queue, guard, reader) = on_a_pipe(4, FLUSH_MAX);
        drop(reader);
        let dropped = guard.dropped_counter();
        queue.put(b"line\n");
        drop(guard);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }
}
