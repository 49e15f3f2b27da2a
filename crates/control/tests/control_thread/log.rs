//! What the operator reads: warnings and errors of the test's own thread.

use std::fmt;

use tokio::sync::mpsc;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::DefaultGuard,
};

const LINES_MAX: usize = 64;

/// Lines as they come, as long as it lives.
pub(crate) struct Log {
    lines: mpsc::Receiver<String>,
    _here: DefaultGuard,
}

impl Log {
    pub(crate) fn listen() -> Self {
        let (line, lines) = mpsc::channel(LINES_MAX);
        Self { lines, _here: tracing::subscriber::set_default(Writer(line)) }
    }

    /// The next error.
    pub(crate) async fn line(&mut self) -> String {
        self.lines.recv().await.expect("the log is open")
    }

    /// No error since.
    pub(crate) fn nothing_more(&mut self) {
        assert_eq!(self.lines.try_recv().ok(), None);
    }
}

struct Writer(mpsc::Sender<String>);

impl Subscriber for Writer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.try_send(line.0).expect("a test has few errors and reads them");
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}
