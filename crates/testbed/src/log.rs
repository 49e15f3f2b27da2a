//! The lines a daemon wrote, kept for questions. Knows JSON log lines (behaviour.md §12.4) and access log fields
//! (§12.3) by their names only.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

/// Lines kept of one daemon; later ones are dropped. Worst case some 100 MB, reached by no test.
const LINES_MAX: usize = 200_000;
/// Lines of context in an error, of either kind.
const TAIL_LINES: usize = 15;

/// A growing log. Clones read the same one.
#[derive(Clone, Default)]
pub struct Log {
    shared: Arc<Shared>,
}

/// A place in a log: what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(usize);

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    text: String,
    fields: Value,
}

#[derive(Default)]
struct Shared {
    lines: Mutex<Vec<Line>>,
    grown: Condvar,
}

impl Log {
    /// Reads `pipe` to its end on a thread of its own, which ends with it.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn follow(&self, pipe: impl Read + Send + 'static) -> Result<JoinHandle<()>> {
        let log = self.clone();
        let read = move || BufReader::new(pipe).lines().map_while(Result::ok).for_each(|text| log.push(text));
        Ok(thread::Builder::new().name("log".into()).spawn(read)?)
    }

    /// Where the log ends now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.lines().len())
    }

    /// All lines after `mark`.
    #[must_use]
    pub fn since(&self, mark: Mark) -> Vec<Line> {
        self.lines()[mark.0..].to_vec()
    }

    /// All lines.
    #[must_use]
    pub fn all(&self) -> Vec<Line> {
        self.lines().clone()
    }

    /// The finished connections' lines of the access log after `mark`.
    #[must_use]
    pub fn access_since(&self, mark: Mark) -> Vec<Line> {
        self.lines()[mark.0..].iter().filter(|line| line.is_access()).cloned().collect()
    }

    /// Waits for a line after `mark` that `wanted` accepts.
    ///
    /// # Errors
    /// After `patience`, naming `what` and showing the log's end.
    pub fn await_line(
        &self,
        mark: Mark,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Line> {
        let deadline = Instant::now() + patience;
        let mut seen = mark.0;
        let mut lines = self.lines();
        loop {
            if let Some(line) = lines[seen..].iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                bail!(
                    "waited {patience:?} in vain for a log line: {what}; the log after the mark:\n{}",
                    self.tail(mark)
                );
            }
            lines = self
                .shared
                .grown
                .wait_timeout(lines, left)
                .map_or_else(|poison| poison.into_inner().0, |(lines, _)| lines);
        }
    }

    /// Waits for an access log line after `mark` that `wanted` accepts.
    ///
    /// # Errors
    /// As [`Self::await_line`].
    pub fn await_access(&self, mark: Mark, what: &str, wanted: impl Fn(&Line) -> bool) -> Result<Line> {
        self.await_line(mark, what, Duration::from_secs(5), |line| line.is_access() && wanted(line))
    }

    /// The end of what came after `mark`: the last lines, and before them the last of those that are no routine.
    #[must_use]
    pub fn tail(&self, mark: Mark) -> String {
        let lines = self.since(mark);
        let (earlier, last) = lines.split_at(lines.len().saturating_sub(TAIL_LINES));
        let unusual: Vec<&Line> = earlier.iter().filter(|line| !line.has("level", "info")).collect();
        let shown = unusual[unusual.len().saturating_sub(TAIL_LINES)..].iter().copied().chain(last);
        shown.map(Line::text).collect::<Vec<_>>().join("\n")
    }

    /// A mark before the first line.
    #[must_use]
    pub fn start() -> Mark {
        Mark(0)
    }

    fn push(&self, text: String) {
        let fields = serde_json::from_str(&text).unwrap_or(Value::Null);
        let mut lines = self.lines();
        if lines.len() < LINES_MAX {
            lines.push(Line { text, fields });
        }
        drop(lines);
        self.shared.grown.notify_all();
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A field's text; numbers and booleans as they print. Empty when there is no such field.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        match self.fields.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// Whether it is a line of the access log, of any event.
    #[must_use]
    pub fn is_access(&self) -> bool {
        let scope = self.field("scope");
        (scope == "access" || scope.ends_with("::access")) && self.field("message") != "connection opened"
    }

    /// Whether the field has exactly this text.
    #[must_use]
    pub fn has(&self, name: &str, text: &str) -> bool {
        self.field(name) == text
    }
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: &str =
        r#"{"level":"info","scope":"access","message":"connection complete","src.addr":"1.2.3.4:5","bytes_sent":7}"#;

    #[test]
    fn fields_read_as_text_and_only_later_lines_are_found() {
        let log = Log::default();
        log.follow(ACCESS.as_bytes()).unwrap();
        let line = log.await_access(Log::start(), "the line", |line| line.has("bytes_sent", "7")).unwrap();
        assert_eq!((line.field("src.addr").as_str(), line.field("dst.addr").as_str()), ("1.2.3.4:5", ""));
        let error = log.await_line(log.mark(), "another", Duration::from_millis(5), |_| true).unwrap_err().to_string();
        assert!(error.contains("another"), "{error}");
    }

    #[test]
    fn a_line_that_is_no_json_is_kept_as_text() {
        let log = Log::default();
        log.follow("thread 'main' panicked\n".as_bytes()).unwrap();
        let line = log
            .await_line(Log::start(), "the panic", Duration::from_secs(2), |line| line.text().contains("panicked"))
            .unwrap();
        assert!(!line.is_access());
    }
}
