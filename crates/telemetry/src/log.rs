//! The log: `tracing` events as lines of text or JSON, written by a thread of their own.
//!
//! Whoever logs never waits for the reader of the log: a line that finds the queue full is dropped and counted. The
//! reference blocks its data plane there, and a stuck log collector stops its traffic (user demand 19).

use std::{
    fmt::{self, Write as _},
    io::{self, Write},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter, format},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::{SubscriberInitExt, TryInitError},
};

/// Lines waiting to be written. Worst case about 1 KiB each: 10 MiB.
pub const LINES_MAX: usize = 10_000;

/// Lines written at once.
const BATCH_MAX: usize = 64;

/// How long the end of the process waits for a reader that does not read.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// How lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Fields separated by tabs, for people.
    #[default]
    Plain,
    /// One object per line, for collectors.
    Json,
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Neither of the two.
    #[error("log format {0:?} is neither \"plain\" nor \"json\"")]
    Format(String),
    /// A clause of the filter.
    #[error("log filter {filter:?}: {cause}; clauses are LEVEL or TARGET=LEVEL with off, error, warn, info, debug or trace, separated by commas")]
    Filter {
        /// As given.
        filter: String,
        /// What was not understood.
        cause: String,
    },
    /// The log of a process is set up once.
    #[error("the log is set up already: {0}")]
    Twice(#[from] TryInitError),
    /// The writer's thread.
    #[error("cannot start the log's thread: {0}")]
    Thread(io::Error),
}

/// Sets up the process's log on standard output. Lines are flushed when the guard goes.
///
/// # Errors
/// [`LogError`].
pub fn init(filter: &str, format: Format) -> Result<LogGuard, LogError> {
    let filter = parse_filter(filter)?;
    let (lines, queue) = crossbeam_channel::bounded(LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = Queue { lines: lines.clone(), dropped: dropped.clone() };
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&queue, &mut io::stdout().lock()))
        .map_err(LogError::Thread)?;
    let layer = tracing_subscriber::fmt::layer().event_format(Lines(format)).with_ansi(false).with_writer(writer);
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    Ok(LogGuard { lines, dropped, thread: Some(thread) })
}

/// Reads a filter; `target:level`, as istioctl writes it, is understood like `target=level`.
///
/// # Errors
/// [`LogError::Filter`].
pub fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let clauses: Vec<String> = filter.split(',').map(str::trim).filter(|clause| !clause.is_empty()).map(clause).collect();
    let refused = |cause: &dyn fmt::Display| LogError::Filter { filter: filter.to_owned(), cause: cause.to_string() };
    if let Some(bad) = clauses.iter().find(|clause| !is_clause(clause)) {
        return Err(refused(&format!("{bad:?} is no clause")));
    }
    EnvFilter::builder().parse(clauses.join(",")).map_err(|cause| refused(&cause))
}

fn clause(text: &str) -> String {
    let text = text.strip_prefix("coretunnel::").or_else(|| text.strip_prefix("ztunnel::")).unwrap_or(text);
    match text.rsplit_once(':') {
        Some((target, level)) if !text.contains('=') && !target.ends_with(':') && is_level(level) => {
            format!("{target}={level}")
        }
        _ => text.to_owned(),
    }
}

fn is_clause(clause: &str) -> bool {
    match clause.rsplit_once('=') {
        Some((target, level)) => !target.is_empty() && is_level(level),
        None => is_level(clause),
    }
}

fn is_level(text: &str) -> bool {
    matches!(text, "off" | "error" | "warn" | "info" | "debug" | "trace")
}

/// Keeps the log's thread; dropping it flushes what is queued, for at most two seconds.
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard {
    lines: Sender<Line>,
    dropped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl LogGuard {
    /// Lines dropped so far because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A handle that reads [`LogGuard::dropped`] elsewhere.
    pub fn dropped_counter(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (written, done) = crossbeam_channel::bounded(1);
        if self.lines.send_timeout(Line::Flush(written), FLUSH_MAX).is_ok() && done.recv_timeout(FLUSH_MAX).is_ok() {
            drop(self.thread.take().map(JoinHandle::join));
        }
    }
}

enum Line {
    Text(Vec<u8>),
    Flush(Sender<()>),
}

fn write_lines(queue: &Receiver<Line>, out: &mut impl Write) {
    let mut batch = Vec::new();
    while let Ok(first) = queue.recv() {
        batch.clear();
        let mut flush = None;
        for line in std::iter::once(first).chain(queue.try_iter().take(BATCH_MAX - 1)) {
            match line {
                Line::Text(text) => batch.extend_from_slice(&text),
                Line::Flush(done) => flush = Some(done),
            }
        }
        // Nobody is left to be told that the log cannot be written.
        drop(out.write_all(&batch).and_then(|()| out.flush()));
        if let Some(done) = flush {
            let _told = done.try_send(());
            return;
        }
    }
}

/// Where formatted lines go.
#[derive(Clone)]
struct Queue {
    lines: Sender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    /// Called once per event, with the whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Line::Text(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// RFC 3339 in UTC with microseconds.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: format::Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let now = OffsetDateTime::now_utc().format(TIME).map_err(|_| fmt::Error)?;
        let meta = event.metadata();
        let level = level(*meta.level());
        let mut spans = Vec::new();
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
            spans.push((span.name(), fields.to_owned()));
        }
        match self.0 {
            Format::Plain => {
                let mut fields = Plain::default();
                event.record(&mut fields);
                let target = strip(meta.target());
                write!(line, "{now}\t{level}\t{target}")?;
                for (name, fields) in &spans {
                    write!(line, ":{name}{{{fields}}}")?;
                }
                write!(line, "\t{}", fields.message)?;
                if !fields.rest.is_empty() {
                    write!(line, "\t{}", fields.rest)?;
                }
                writeln!(line)
            }
            Format::Json => {
                let mut object = Json { text: String::from("{"), first: true };
                object.pair("level", &serde_json::Value::from(level));
                object.pair("time", &serde_json::Value::from(now));
                object.pair("scope", &serde_json::Value::from(meta.target()));
                event.record(&mut object);
                for (name, fields) in &spans {
                    object.pair(name, &serde_json::Value::from(fields.as_str()));
                }
                writeln!(line, "{}}}", object.text)
            }
        }
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn strip(target: &str) -> &str {
    target.strip_prefix("coretunnel::").unwrap_or(target)
}

/// Fields as `name=value`, strings quoted.
#[derive(Default)]
struct Plain {
    message: String,
    rest: String,
}

impl Plain {
    fn push(&mut self, name: &str, value: fmt::Arguments<'_>) {
        let space = if self.rest.is_empty() { "" } else { " " };
        write!(self.rest, "{space}{name}={value}").expect("writing to a string does not fail");
    }
}

impl Visit for Plain {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field.name(), format_args!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // One line per event, whatever a peer put into a message.
            self.message = format!("{value:?}").replace('\n', "\\n");
        } else {
            self.push(field.name(), format_args!("{}", format!("{value:?}").replace('\n', "\\n")));
        }
    }
}

/// Fields as members of an object, in their order.
struct Json {
    text: String,
    first: bool,
}

impl Json {
    fn pair(&mut self, name: &str, value: &serde_json::Value) {
        let comma = if self.first { "" } else { "," };
        self.first = false;
        write!(self.text, "{comma}{}:{value}", serde_json::Value::from(name)).expect("writing to a string does not fail");
    }
}

impl Visit for Json {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.pair(field.name(), &value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.pair(field.name(), &value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.pair(field.name(), &value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.pair(field.name(), &value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.pair(field.name(), &format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::{AccessEntry, Direction, Side, refused_early};

    fn lines(format: Format, filter: &str, log: impl FnOnce()) -> Vec<String> {
        let (lines, queue) = crossbeam_channel::bounded(100);
        let writer = Queue { lines, dropped: Arc::default() };
        let layer = tracing_subscriber::fmt::layer().event_format(Lines(format)).with_ansi(false).with_writer(writer);
        let subscriber =
            tracing_subscriber::registry().with(parse_filter(filter).expect("a good filter")).with(layer);
        tracing::subscriber::with_default(subscriber, log);
        queue
            .try_iter()
            .map(|line| match line {
                Line::Text(text) => String::from_utf8(text).expect("text"),
                Line::Flush(_) => unreachable!("nobody flushes here"),
            })
            .collect()
    }

    fn entry() -> AccessEntry {
        AccessEntry {
            source: Side {
                workload: Some("web-0".into()),
                namespace: Some("retail".into()),
                identity: Some("spiffe://cluster.local/ns/retail/sa/web".into()),
                ..Side::at("10.0.0.1:40000".parse().expect("an address"))
            },
            destination: Side::at("10.0.0.2:15008".parse().expect("an address")),
            hbone_addr: Some("10.0.0.2:80".into()),
            service: None,
            direction: Direction::Inbound,
        }
    }

    #[test]
    fn a_plain_line_has_its_parts_between_tabs_and_its_fields_in_order() {
        let lines = lines(Format::Plain, "info", || {
            entry().complete(10, 20, Duration::from_micros(12_900), None);
        });
        let (time, rest) = lines[0].split_once('\t').expect("a tab");
        assert_eq!(time.len(), "2026-11-23T05:04:00.000000Z".len());
        assert_eq!(
            rest,
            "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:40000 src.workload=\"web-0\" src.namespace=\"retail\" \
             src.identity=\"spiffe://cluster.local/ns/retail/sa/web\" dst.addr=10.0.0.2:15008 \
             dst.hbone_addr=\"10.0.0.2:80\" direction=\"inbound\" bytes_sent=20 bytes_recv=10 duration=\"12ms\"\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_level_time_scope_first() {
        let lines = lines(Format::Json, "info", || {
            entry().complete(10, 20, Duration::ZERO, Some(&"it broke\nbadly"));
        });
        assert!(lines[0].starts_with("{\"level\":\"error\",\"time\":\""), "{}", lines[0]);
        let object: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(object["scope"], "access");
        assert_eq!(object["message"], "connection complete");
        assert_eq!(object["bytes_sent"], 20);
        assert_eq!(object["error"], "it broke\nbadly");
        assert_eq!(lines[0].lines().count(), 1);
    }

    #[test]
    fn the_access_log_has_its_own_level() {
        let log = || {
            entry().opened();
            refused_early(
                Direction::Outbound,
                "10.0.0.1:1".parse().expect("an address"),
                "10.0.0.2:2".parse().expect("an address"),
                &"no",
            );
        };
        assert_eq!(lines(Format::Plain, "info", log).len(), 1);
        assert_eq!(lines(Format::Plain, "info,access=debug", log).len(), 2);
        assert_eq!(lines(Format::Plain, "info,access:off", log).len(), 0);
    }

    #[test]
    fn a_bad_filter_is_named_with_what_would_be_good() {
        for bad in ["loud", "access=", "=info", "access=loud", "info;debug"] {
            let error = parse_filter(bad).expect_err(bad).to_string();
            assert!(error.contains(bad) && error.contains("TARGET=LEVEL"), "{error}");
        }
        for good in ["", "info", "info,access=debug", "control::xds:debug", "ztunnel::access=off"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_line_that_finds_the_queue_full_is_dropped_and_counted() {
        let (lines, queue) = crossbeam_channel::bounded(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Queue { lines, dropped: dropped.clone() };
        for _ in 0..3 {
            assert_eq!(writer.write(b"line\n").expect("never fails"), 5);
        }
        assert_eq!((queue.len(), dropped.load(Ordering::Relaxed)), (1, 2));
    }

    #[test]
    fn queued_lines_are_written_in_order_before_the_flush_is_answered() {
        let (lines, queue) = crossbeam_channel::bounded(8);
        for text in ["one\n", "two\n"] {
            lines.send(Line::Text(text.into())).expect("room");
        }
        let (written, done) = crossbeam_channel::bounded(1);
        lines.send(Line::Flush(written)).expect("room");
        let mut out = Vec::new();
        write_lines(&queue, &mut out);
        assert_eq!(out, b"one\ntwo\n");
        assert!(done.try_recv().is_ok());
    }
}
