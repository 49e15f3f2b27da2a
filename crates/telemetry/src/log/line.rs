//! What a line of the log looks like, plain or JSON. One event is one line, whatever a peer has put into its fields.

use std::fmt::{self, Write};

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    Layer,
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::{LookupSpan, Scope},
};

use super::{Format, writer::Queue};

/// RFC 3339 in UTC with microseconds.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Reads the clock of the lines.
pub(super) type Now = fn() -> OffsetDateTime;

/// The layer that makes lines of events and puts them into `queue`.
pub(super) fn layer<S>(format: Format, now: Now, queue: Queue) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .fmt_fields(SpanFields(format))
        .event_format(Lines { format, now })
        .with_ansi(false)
        .with_writer(queue)
}

/// The target without this daemon's name, or its predecessor's, whose filters are to go on working.
pub(super) fn strip(target: &str) -> &str {
    target.strip_prefix("coretunnel::").or_else(|| target.strip_prefix("ztunnel::")).unwrap_or(target)
}

/// Makes the line that the log says about itself.
pub(super) struct Notice {
    pub(super) format: Format,
    pub(super) now: Now,
}

impl Notice {
    /// So many lines could not be written.
    pub(super) fn dropped(&self, lines: u64) -> Vec<u8> {
        let message = "lines were dropped: whoever reads standard output is too slow";
        let now = timestamp(self.now).unwrap_or_default();
        let line = match self.format {
            Format::Plain => format!("{now}\twarn\tlog\t{message}\tlines={lines}\n"),
            Format::Json => format!(
                "{{\"level\":\"warn\",\"time\":\"{now}\",\"scope\":\"log\",\"message\":\"{message}\",\"lines\":{lines}}}\n"
            ),
        };
        line.into_bytes()
    }
}

fn timestamp(now: Now) -> Result<String, fmt::Error> {
    now().format(TIME).map_err(|_| fmt::Error)
}

struct Lines {
    format: Format,
    now: Now,
}

impl<S> FormatEvent<S, SpanFields> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, SpanFields>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = timestamp(self.now)?;
        let meta = event.metadata();
        let level = level(*meta.level());
        let spans = || context.event_scope().into_iter().flat_map(Scope::from_root);
        match self.format {
            Format::Plain => {
                write!(out, "{now}\t{level}\t{}", strip(meta.target()))?;
                for span in spans() {
                    let extensions = span.extensions();
                    let fields = extensions.get::<FormattedFields<SpanFields>>();
                    write!(out, ":{}{{{}}}", span.name(), fields.map_or("", |fields| fields.fields.as_str()))?;
                }
                Fields::new(self.format, &mut out, Pick::Message, "\t").of(event)?;
                Fields::new(self.format, &mut out, Pick::Others, "\t").of(event)?;
                out.write_str("\n")
            }
            Format::Json => {
                write!(out, "{{\"level\":\"{level}\",\"time\":\"{now}\",\"scope\":")?;
                json_string(&mut out, format_args!("{}", meta.target()))?;
                Fields::new(self.format, &mut out, Pick::Message, ",").of(event)?;
                Fields::new(self.format, &mut out, Pick::Others, ",").of(event)?;
                for span in spans() {
                    let extensions = span.extensions();
                    let fields = extensions.get::<FormattedFields<SpanFields>>();
                    let fields = fields.map_or("{}", |fields| fields.fields.as_str());
                    write!(out, ",\"{}\":{fields}", span.name())?;
                }
                out.write_str("}\n")
            }
        }
    }
}

/// How the fields of a span are kept until a line needs them: as they stand in the line.
struct SpanFields(Format);

impl<'w> FormatFields<'w> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut out: Writer<'w>, fields: R) -> fmt::Result {
        match self.0 {
            Format::Plain => Fields::new(self.0, &mut out, Pick::All, "").of(&fields),
            Format::Json => {
                out.write_str("{")?;
                Fields::new(self.0, &mut out, Pick::All, "").of(&fields)?;
                out.write_str("}")
            }
        }
    }

    /// For fields that became known later.
    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let text = &mut current.fields;
        match self.0 {
            Format::Plain => {
                let lead = if text.is_empty() { "" } else { " " };
                Fields::new(self.0, text, Pick::All, lead).of(fields)
            }
            Format::Json => {
                text.truncate(text.len() - 1);
                let lead = if text.len() == 1 { "" } else { "," };
                Fields::new(self.0, text, Pick::All, lead).of(fields)?;
                text.write_str("}")
            }
        }
    }
}

/// Writes fields as they are visited.
struct Fields<'a> {
    format: Format,
    out: &'a mut dyn Write,
    pick: Pick,
    /// What goes before the next field.
    lead: &'static str,
    result: fmt::Result,
}

/// Which fields are written. The message goes first, wherever it was recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pick {
    All,
    Message,
    Others,
}

/// A field's value, by how it is quoted.
enum Value<'a> {
    /// A string: quoted in both formats.
    Text(&'a str),
    /// A number or truth: quoted in neither.
    Bare(fmt::Arguments<'a>),
    /// Something that shows itself, an address for instance: a string in JSON.
    Shown(fmt::Arguments<'a>),
}

impl<'a> Fields<'a> {
    fn new(format: Format, out: &'a mut dyn Write, pick: Pick, lead: &'static str) -> Self {
        Self { format, out, pick, lead, result: Ok(()) }
    }

    fn of(mut self, fields: &impl RecordFields) -> fmt::Result {
        fields.record(&mut self);
        self.result
    }

    fn field(&mut self, field: &Field, value: &Value<'_>) {
        let is_message = field.name() == "message";
        let is_picked = match self.pick {
            Pick::All => true,
            Pick::Message => is_message,
            Pick::Others => !is_message,
        };
        if is_picked && self.result.is_ok() {
            self.result = match self.format {
                Format::Plain => self.plain(field.name(), value),
                Format::Json => self.json(field.name(), value),
            };
        }
    }

    fn plain(&mut self, name: &str, value: &Value<'_>) -> fmt::Result {
        self.out.write_str(std::mem::replace(&mut self.lead, " "))?;
        if self.pick != Pick::Message {
            write!(self.out, "{name}=")?;
        }
        match value {
            Value::Text(text) if self.pick == Pick::Message => OneLine(self.out).write_str(text),
            // `Debug` of a string quotes it and escapes whatever is not to be printed.
            Value::Text(text) => write!(self.out, "{text:?}"),
            Value::Bare(value) => self.out.write_fmt(*value),
            Value::Shown(value) => OneLine(self.out).write_fmt(*value),
        }
    }

    fn json(&mut self, name: &str, value: &Value<'_>) -> fmt::Result {
        write!(self.out, "{}\"{name}\":", std::mem::replace(&mut self.lead, ","))?;
        match value {
            Value::Text(text) => json_string(self.out, format_args!("{text}")),
            Value::Bare(value) => self.out.write_fmt(*value),
            Value::Shown(value) => json_string(self.out, *value),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, &Value::Text(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, &Value::Bare(format_args!("{value}")));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, &Value::Bare(format_args!("{value}")));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number that is none.
        let value = if value.is_finite() { value } else { return self.field(field, &Value::Text(&value.to_string())) };
        self.field(field, &Value::Bare(format_args!("{value}")));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, &Value::Bare(format_args!("{value}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, &Value::Shown(format_args!("{value:?}")));
    }
}

/// Escapes what would end a line or a column, or talk to a terminal.
struct OneLine<'a>(&'a mut dyn Write);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.chars().next_back().filter(|last| last.is_control()) {
                Some(last) => write!(self.0, "{}{}", &part[..part.len() - last.len_utf8()], last.escape_default())?,
                None => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

fn json_string(out: &mut dyn Write, value: fmt::Arguments<'_>) -> fmt::Result {
    out.write_str("\"")?;
    InJsonString(out).write_fmt(value)?;
    out.write_str("\"")
}

/// Escapes what may not stand in a JSON string.
struct InJsonString<'a>(&'a mut dyn Write);

impl Write for InJsonString<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_special = |letter: char| letter.is_control() || letter == '"' || letter == '\\';
        for part in text.split_inclusive(is_special) {
            let Some(last) = part.chars().next_back().filter(|last| is_special(*last)) else {
                self.0.write_str(part)?;
                continue;
            };
            self.0.write_str(&part[..part.len() - last.len_utf8()])?;
            match last {
                '"' | '\\' => write!(self.0, "\\{last}")?,
                '\n' => self.0.write_str("\\n")?,
                '\t' => self.0.write_str("\\t")?,
                '\r' => self.0.write_str("\\r")?,
                other => write!(self.0, "\\u{:04x}", u32::from(other))?,
            }
        }
        Ok(())
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
