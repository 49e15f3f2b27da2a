//! The log: `tracing` events as lines of text or JSON, written by a thread of their own.
//!
//! Set up once per process by [`init`]; which events become lines is the filter's choice, what a line looks like is
//! `line`'s, and how lines reach standard output without anybody waiting for it is `writer`'s.

mod line;
mod writer;

use std::{
    io,
    str::FromStr,
    sync::{Arc, atomic::AtomicU64},
};

use time::OffsetDateTime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    filter::Targets,
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

pub use writer::{BYTES_MAX, LINES_MAX, LogGuard};

/// How the process logs.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// Which events become lines.
    pub filter: Filter,
    /// What a line looks like.
    pub format: Format,
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Parts separated by tabs, for people.
    #[default]
    Plain,
    /// One object per line, for collectors.
    Json,
}

/// Which events become lines: clauses `LEVEL` or `TARGET=LEVEL`, of which the one with the longest target counts. As
/// with ztunnel, what no clause names is off.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter(Targets);

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Neither of the two.
    #[error("{0:?} is neither \"plain\" nor \"json\"")]
    Format(String),
    /// A clause of the filter.
    #[error(
        "{0:?} is no clause: a clause is LEVEL or TARGET=LEVEL, where a level is off, error, warn, info, debug or trace"
    )]
    Clause(String),
    /// The log of a process is set up once.
    #[error("the log is set up already: {0}")]
    Twice(#[from] TryInitError),
    /// Standard output, or the writer's thread.
    #[error("cannot start the log's writer: {0}; is standard output open, and are threads to be had?")]
    Writer(#[from] io::Error),
}

/// Sets up the process's log on standard output. What is queued is flushed when the guard goes.
///
/// # Errors
/// [`LogError`].
pub fn init(config: &LogConfig) -> Result<LogGuard, LogError> {
    let notice = line::Notice { format: config.format, now: OffsetDateTime::now_utc };
    let (queue, guard) = writer::start(move |dropped| notice.dropped(dropped))?;
    let layer = line::layer(config.format, OffsetDateTime::now_utc, queue);
    tracing_subscriber::registry().with(config.filter.0.clone()).with(layer).try_init()?;
    Ok(guard)
}

impl LogGuard {
    /// A counter of the lines dropped so far, to be read by whoever shows it.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped_counter()
    }
}

impl Default for Filter {
    /// Everything from info up.
    fn default() -> Self {
        Self(Targets::new().with_default(LevelFilter::INFO))
    }
}

impl FromStr for Filter {
    type Err = LogError;

    /// `target:level`, as istioctl writes it, is understood like `target=level`; a target may carry the crate's prefix.
    fn from_str(text: &str) -> Result<Self, LogError> {
        let clauses = text.split(',').map(str::trim).filter(|clause| !clause.is_empty());
        let mut targets = Targets::new();
        for clause in clauses {
            let bad = || LogError::Clause(clause.to_owned());
            let (target, level) = match clause.rsplit_once(['=', ':']) {
                Some((target, level)) => (Some(target.trim()), level.trim()),
                None => (None, clause),
            };
            let level = level_filter(level).ok_or_else(bad)?;
            targets = match target.map(line::strip) {
                None => targets.with_default(level),
                Some(target) if is_path(target) => targets.with_target(target, level),
                Some(_) => return Err(bad()),
            };
        }
        Ok(Self(targets))
    }
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

fn level_filter(text: &str) -> Option<LevelFilter> {
    let levels = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    levels.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, level)| level)
}

/// A Rust path, which is what targets are: anything else is a slip of the pen and would match nothing, silently.
fn is_path(target: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    target.split("::").all(is_name)
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::{Arc, atomic::Ordering},
        time::Duration,
    };

    use time::macros::datetime;
    use tracing::{debug, info, info_span, warn};

    use super::*;
    use crate::access_log::{AccessEntry, Direction, Side, refused_early};

    fn epoch() -> OffsetDateTime {
        datetime!(2026-11-23 05:04:00.000_001_9 UTC)
    }

    /// The lines that `log` makes.
    fn lines(format: Format, filter: &str, log: impl FnOnce()) -> Vec<String> {
        let (queue, written) = writer::detached(100);
        let filter: Filter = filter.parse().expect("a good filter");
        let subscriber = tracing_subscriber::registry().with(filter.0).with(line::layer(format, epoch, queue));
        tracing::subscriber::with_default(subscriber, log);
        written.drain()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn entry() -> AccessEntry {
        AccessEntry {
            source: Side {
                workload: Some("web-0".into()),
                namespace: Some("retail".into()),
                identity: Some("spiffe://cluster.local/ns/retail/sa/web".into()),
                cluster: Some("Kubernetes".into()),
                ..Side::at(address("10.0.0.1:40000"))
            },
            destination: Side {
                workload: Some("shop-0".into()),
                namespace: Some("retail".into()),
                identity: Some("spiffe://cluster.local/ns/retail/sa/shop".into()),
                cluster: Some("other".into()),
                ..Side::at(address("[2001:db8::2]:15008"))
            },
            hbone_addr: Some("[2001:db8::2]:80".into()),
            service: Some("shop.retail.svc.cluster.local".into()),
            direction: Direction::Inbound,
        }
    }

    #[test]
    fn an_access_line_has_every_field_in_the_order_of_the_reference() {
        let lines = lines(Format::Plain, "info", || {
            entry().complete(10, 20, Duration::from_micros(12_900), Some(&"it broke"));
        });
        assert_eq!(
            lines,
            ["2026-11-23T05:04:00.000001Z\terror\taccess\tconnection complete\t\
              src.addr=10.0.0.1:40000 src.workload=\"web-0\" src.namespace=\"retail\" \
              src.identity=\"spiffe://cluster.local/ns/retail/sa/web\" src.cluster=\"Kubernetes\" \
              dst.addr=[2001:db8::2]:15008 dst.hbone_addr=[2001:db8::2]:80 \
              dst.service=\"shop.retail.svc.cluster.local\" dst.workload=\"shop-0\" dst.namespace=\"retail\" \
              dst.identity=\"spiffe://cluster.local/ns/retail/sa/shop\" dst.cluster=\"other\" \
              direction=\"inbound\" bytes_sent=20 bytes_recv=10 duration=\"12ms\" error=\"it broke\"\n"]
        );
    }

    #[test]
    fn each_access_event_has_its_level_its_fields_and_leaves_out_what_is_unset() {
        let plain = AccessEntry {
            source: Side::at(address("10.0.0.1:1")),
            destination: Side::at(address("10.0.0.2:2")),
            hbone_addr: None,
            service: None,
            direction: Direction::Outbound,
        };
        let lines = lines(Format::Plain, "trace", || {
            let _inside = info_span!("outbound", id = "f00").entered();
            plain.opened();
            plain.complete(10, 20, Duration::from_secs(2), None);
            plain.complete(0, 0, Duration::ZERO, Some(&"no"));
            refused_early(plain.direction, plain.source.addr, plain.destination.addr, &"policy");
        });
        let ends = "src.addr=10.0.0.1:1 dst.addr=10.0.0.2:2 direction=\"outbound\"";
        let expected = [
            format!("debug\taccess\tconnection opened\t{ends}\n"),
            format!("info\taccess\tconnection complete\t{ends} bytes_sent=10 bytes_recv=20 duration=\"2000ms\"\n"),
            format!(
                "error\taccess\tconnection complete\t{ends} bytes_sent=0 bytes_recv=0 duration=\"0ms\" error=\"no\"\n"
            ),
            format!("warn\taccess\tconnection failed\t{ends} error=\"policy\"\n"),
        ];
        for (line, expected) in lines.iter().zip(&expected) {
            assert_eq!(line.split_once('\t').expect("a tab").1, expected);
        }
        assert_eq!(lines.len(), expected.len());
    }

    #[test]
    fn a_json_line_begins_with_level_time_scope_and_message_and_ends_with_its_spans() {
        let lines = lines(Format::Json, "info", || {
            let _outer = info_span!("proxy", wl = "retail/web", n = 2).entered();
            let inner = info_span!("inbound", id = "f00", peer = tracing::field::Empty);
            inner.record("peer", "a \"quoted\" one");
            let _inner = inner.entered();
            info!(target: "dataplane::pod", text = "two\nlines", count = 3, ratio = 0.5, yes = true, "hello {}", "you");
        });
        assert_eq!(
            lines,
            ["{\"level\":\"info\",\"time\":\"2026-11-23T05:04:00.000001Z\",\"scope\":\"dataplane::pod\",\
              \"message\":\"hello you\",\"text\":\"two\\nlines\",\"count\":3,\"ratio\":0.5,\"yes\":true,\
              \"proxy\":{\"wl\":\"retail/web\",\"n\":2},\"inbound\":{\"id\":\"f00\",\"peer\":\"a \\\"quoted\\\" one\"}}\n"]
        );
        let object: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(object["inbound"]["peer"], "a \"quoted\" one");
    }

    #[test]
    fn a_plain_line_names_its_spans_after_its_target() {
        let lines = lines(Format::Plain, "info", || {
            let _outer = info_span!("proxy", wl = "retail/web").entered();
            let _inner = info_span!("inbound", id = 7).entered();
            info!(target: "coretunnel::start", "hello");
        });
        assert_eq!(lines, ["2026-11-23T05:04:00.000001Z\tinfo\tstart:proxy{wl=\"retail/web\"}:inbound{id=7}\thello\n"]);
    }

    #[test]
    fn whatever_a_peer_says_stays_on_its_line_and_in_its_column() {
        let evil = "a\nb\tc\r\u{1b}[31m\u{0}\u{2028}";
        for format in [Format::Plain, Format::Json] {
            let lines = lines(format, "info", || info!(text = evil, shown = %evil, "{evil}"));
            let line = lines[0].strip_suffix('\n').expect("ends with a line break");
            let controls: Vec<char> = line.chars().filter(|letter| letter.is_control() && *letter != '\t').collect();
            assert_eq!(controls, [], "{line}");
            match format {
                Format::Plain => assert_eq!(line.matches('\t').count(), 4, "{line}"),
                Format::Json => {
                    let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
                    assert_eq!((&object["message"], &object["text"]), (&evil.into(), &evil.into()));
                    assert_eq!(object["shown"], evil);
                }
            }
        }
    }

    #[test]
    fn a_message_that_is_a_field_stands_where_messages_stand() {
        let plain = lines(Format::Plain, "info", || info!(count = 1, message = "one\ntwo"));
        let (_, rest) = plain[0].split_once("log::tests\t").expect("this module is the target");
        assert_eq!(rest, "one\\ntwo\tcount=1\n");
        let json = lines(Format::Json, "info", || info!(count = 1, message = "one\ntwo"));
        assert!(json[0].ends_with(",\"message\":\"one\\ntwo\",\"count\":1}\n"), "{json:?}");
    }

    #[test]
    fn the_longest_target_of_the_filter_decides_whichever_way_it_is_written() {
        let log = || {
            debug!(target: "access", "a");
            info!(target: "access", "b");
            debug!(target: "control::pods", "c");
            warn!(target: "elsewhere", "d");
        };
        for (filter, expected) in [
            ("info", "bd"),
            ("", ""),
            ("off", ""),
            ("DEBUG", "abcd"),
            ("info,access=debug", "abd"),
            ("info, access:debug", "abd"),
            ("access=debug,info", "abd"),
            ("info,coretunnel::access=off", "d"),
            ("info,ztunnel::access=warn", "d"),
            ("control::pods:debug", "c"),
            ("control=trace", "c"),
            ("debug,control::xds=off", "abcd"),
        ] {
            let seen: String = lines(Format::Plain, filter, log)
                .iter()
                .map(|line| line.trim_end().rsplit('\t').next().expect("a message").to_owned())
                .collect();
            assert_eq!(seen, expected, "{filter:?}");
        }
    }

    #[test]
    fn a_bad_clause_is_named_with_what_would_be_good() {
        for (filter, clause) in [
            ("loud", "loud"),
            ("info,access=", "access="),
            ("=info", "=info"),
            ("info,access=loud", "access=loud"),
            ("info;debug", "info;debug"),
            ("access", "access"),
            ("access[id]=debug", "access[id]=debug"),
            ("a::=info", "a::=info"),
        ] {
            let error = filter.parse::<Filter>().expect_err(filter).to_string();
            assert!(error.starts_with(&format!("{clause:?} is no clause")), "{filter}: {error}");
        }
        assert!("xml".parse::<Format>().expect_err("no format").to_string().contains("\"xml\""));
    }

    #[test]
    fn without_a_filter_everything_from_info_up_is_logged() {
        assert_eq!(Filter::default(), "info".parse().expect("a good filter"));
    }

    #[test]
    fn a_notice_of_dropped_lines_looks_like_any_line() {
        for (format, expected) in [
            (
                Format::Plain,
                "2026-11-23T05:04:00.000001Z\twarn\tlog\tlines were dropped: whoever reads standard output is too slow\tlines=3\n",
            ),
            (
                Format::Json,
                "{\"level\":\"warn\",\"time\":\"2026-11-23T05:04:00.000001Z\",\"scope\":\"log\",\"message\":\"lines were dropped: whoever reads standard output is too slow\",\"lines\":3}\n",
            ),
        ] {
            assert_eq!(line::Notice { format, now: epoch }.dropped(3), expected.as_bytes());
        }
    }

    #[test]
    fn events_beyond_the_queue_are_counted_as_dropped() {
        let (queue, _written) = writer::detached(1);
        let dropped: Arc<AtomicU64> = queue.dropped();
        let subscriber = tracing_subscriber::registry().with(line::layer(Format::Plain, epoch, queue));
        tracing::subscriber::with_default(subscriber, || (0..3).for_each(|_| info!("line")));
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    }
}
