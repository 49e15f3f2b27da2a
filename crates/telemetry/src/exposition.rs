//! The metrics page: OpenMetrics text made from the cells of all cores, when somebody asks.
//!
//! Lives on the admin thread. A scrape reads relaxed cells and disturbs no core. What is counted is decided elsewhere;
//! here is only what it looks like.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use metrics::Key;

use crate::recorder::{Announced, Announcement, Cell};

/// The content type for a scraper that asks for OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";
/// The content type for all others.
const PLAIN: &str = "text/plain; charset=utf-8";

/// What a family's number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its series end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A gauge of seconds, counted in nanoseconds.
    Seconds,
}

/// A number that no core's cell holds: whoever serves the page reads it just before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The family, without `_total`. Samples of one family stand together.
    pub family: &'static str,
    /// What it means, without a full stop.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: u64,
}

/// All series of all cores.
pub struct Exposition {
    announced: Announced,
    families: BTreeMap<String, Family>,
    help: HashMap<String, String>,
}

struct Family {
    kind: Kind,
    /// By labels as they stand on the page: cores that count the same thing are one series.
    series: BTreeMap<String, Vec<Arc<Cell>>>,
}

impl Exposition {
    pub(crate) fn new(announced: Announced) -> Self {
        Self { announced, families: BTreeMap::new(), help: HashMap::new() }
    }

    /// Takes in the series that cores have announced. [`Exposition::render`] does so too; where nobody scrapes, call it
    /// every now and then.
    pub fn catch_up(&mut self) {
        for announcement in self.announced.try_iter() {
            match announcement {
                Announcement::Help { family, text } => {
                    self.help.insert(base_name(family.as_str()).to_owned(), text.into_owned());
                }
                Announcement::Series { kind, key, cell } => {
                    let name = base_name(key.name()).to_owned();
                    let family = self.families.entry(name).or_insert_with(|| Family { kind, series: BTreeMap::new() });
                    family.series.entry(labels(&key)).or_default().push(cell);
                }
            }
        }
    }

    /// The whole page: what the cores count, then `samples`.
    pub fn render(&mut self, samples: &[Sample]) -> String {
        self.catch_up();
        let series: usize = self.families.values().map(|family| family.series.len()).sum();
        // A connection's series is about a kilobyte of labels.
        let mut page = String::with_capacity(4096 + series * 1024);
        for (name, family) in &self.families {
            head(&mut page, name, family.kind, self.help.get(name).map_or("", String::as_str));
            for (labels, cells) in &family.series {
                let sum = cells.iter().fold(0_u64, |sum, cell| sum.wrapping_add(cell.read()));
                line(&mut page, name, family.kind, labels, sum);
            }
        }
        let mut last = "";
        for sample in samples {
            if sample.family != last {
                head(&mut page, sample.family, sample.kind, sample.help);
                last = sample.family;
            }
            let labels = sample.labels.iter().map(|(name, value)| label(name, value)).collect::<Vec<_>>().join(",");
            line(&mut page, sample.family, sample.kind, &labels, sample.value);
        }
        page.push_str("# EOF\n");
        page
    }
}

/// The content type that answers an `Accept` header.
pub fn content_type(accept: Option<&str>) -> &'static str {
    let wants_openmetrics = accept.is_some_and(|accept| {
        accept
            .split(',')
            .map(|element| element.split(';').next().unwrap_or_default().trim())
            .any(|element| element.eq_ignore_ascii_case("application/openmetrics-text"))
    });
    if wants_openmetrics { OPENMETRICS } else { PLAIN }
}

/// A family's name: only its series end in `_total`.
fn base_name(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

/// The families whose names and labels istio promises to keep. All others have to say that they are not among them.
fn is_stable(name: &str) -> bool {
    const STABLE: [&str; 5] = [
        "istio_build",
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
    ];
    STABLE.contains(&name) || name.starts_with("process_")
}

/// Writing to a string does not fail, so what `write!` returns says nothing.
macro_rules! put {
    ($page:expr, $($text:tt)*) => {
        writeln!($page, $($text)*).expect("writing to a string does not fail")
    };
}

fn head(page: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge | Kind::Seconds => "gauge",
    };
    let unstable = if is_stable(name) || help.contains("(unstable)") { "" } else { " (unstable)" };
    put!(page, "# HELP {name} {}{unstable}.\n# TYPE {name} {kind}", escaped(help));
}

fn line(page: &mut String, name: &str, kind: Kind, labels: &str, value: u64) {
    let suffix = match kind {
        Kind::Counter => "_total",
        Kind::Gauge | Kind::Seconds => "",
    };
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    match kind {
        Kind::Counter => put!(page, "{name}{suffix}{open}{labels}{close} {value}"),
        // Gauges are kept in two's complement.
        Kind::Gauge => put!(page, "{name}{suffix}{open}{labels}{close} {}", value.cast_signed()),
        Kind::Seconds => {
            put!(page, "{name}{suffix}{open}{labels}{close} {}", Duration::from_nanos(value).as_secs_f64())
        }
    }
}

fn labels(key: &Key) -> String {
    key.labels().map(|one| label(one.key(), one.value())).collect::<Vec<_>>().join(",")
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}

/// As label values and help texts have it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use metrics::{Counter, Label, Recorder};

    use super::*;
    use crate::recorder::{CoreRecorder, METADATA, recorders};

    fn counter(core: &CoreRecorder, name: &'static str, labels: &[(&'static str, &'static str)]) -> Counter {
        let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, *value)).collect();
        core.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    /// The page without the cores' own counters of overflows, which every page has.
    fn page(exposition: &mut Exposition) -> String {
        let all = exposition.render(&[]);
        let ours = all.lines().filter(|line| !line.contains("coretunnel_core_series_overflowed"));
        ours.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn two_cores_that_count_the_same_are_one_series() {
        let (cores, mut exposition) = recorders(2);
        cores[1].describe_counter("istio_tcp_sent_bytes".into(), None, "Bytes sent".into());
        for (core, bytes) in cores.iter().zip([40, 2]) {
            counter(core, "istio_tcp_sent_bytes", &[("reporter", "source")]).increment(bytes);
        }
        counter(&cores[1], "istio_tcp_sent_bytes", &[("reporter", "destination")]).increment(7);
        let expected = "# HELP istio_tcp_sent_bytes Bytes sent.\n# TYPE istio_tcp_sent_bytes counter\n\
                        istio_tcp_sent_bytes_total{reporter=\"destination\"} 7\n\
                        istio_tcp_sent_bytes_total{reporter=\"source\"} 42\n# EOF\n";
        assert_eq!(page(&mut exposition), expected);
        assert_eq!(page(&mut exposition), expected, "a scrape takes nothing away");
    }

    #[test]
    fn the_longest_time_of_each_core_is_told_in_seconds_and_never_shrinks() {
        let (cores, mut exposition) = recorders(2);
        cores[1].core_longest("gap_seconds", "The longest gap").took(Duration::from_secs(7));
        let longest = cores[0].core_longest("gap_seconds", "The longest gap");
        for (took_us, told) in [(0, "0"), (1_250, "0.00125"), (3, "0.00125"), (2_000_000, "2")] {
            longest.took(Duration::from_micros(took_us));
            let page = page(&mut exposition);
            assert!(
                page.ends_with(&format!(
                    "# TYPE gap_seconds gauge\ngap_seconds{{core=\"0\"}} {told}\ngap_seconds{{core=\"1\"}} 7\n# EOF\n"
                )),
                "{page}"
            );
        }
    }

    #[test]
    fn values_are_escaped_and_families_without_series_left_out() {
        let (cores, mut exposition) = recorders(1);
        cores[0].describe_counter("unused".into(), None, "Never counted".into());
        assert_eq!(page(&mut exposition), "# EOF\n");
        let key = Key::from_parts("odd", vec![Label::new("name", "a\"b\\c\nd")]);
        cores[0].register_gauge(&key, &METADATA).decrement(1.0);
        assert!(page(&mut exposition).contains("odd{name=\"a\\\"b\\\\c\\nd\"} -1\n"));
    }

    #[test]
    fn samples_have_one_head_per_family() {
        let (_cores, mut exposition) = recorders(1);
        let sample = |core: &str, value| Sample {
            family: "core_tasks",
            help: "Tasks",
            kind: Kind::Gauge,
            labels: vec![("core", core.to_owned())],
            value,
        };
        let text = exposition.render(&[sample("0", 1), sample("1", 2)]);
        assert_eq!(text.matches("# TYPE core_tasks gauge").count(), 1);
        assert!(text.contains("core_tasks{core=\"1\"} 2\n"));
    }

    #[test]
    fn only_what_istio_promises_may_call_itself_stable() {
        for (name, stable) in [
            ("istio_build", true),
            ("istio_tcp_received_bytes", true),
            ("istio_tcp_connections_failed", false),
            ("istio_tcp_sockets_open", false),
            ("process_open_fds", true),
            ("workload_manager_active_proxy_count", false),
            ("coretunnel_core_tasks", false),
        ] {
            assert_eq!(is_stable(name), stable, "{name}");
        }
    }

    #[test]
    fn the_content_type_follows_what_the_scraper_accepts() {
        for (accept, expected) in [
            (None, PLAIN),
            (Some("text/plain"), PLAIN),
            (Some("application/openmetrics-text"), OPENMETRICS),
            (Some("text/html, Application/OpenMetrics-Text;version=1.0.0;q=0.5"), OPENMETRICS),
            (Some("application/openmetrics-textual"), PLAIN),
        ] {
            assert_eq!(content_type(accept), expected, "{accept:?}");
        }
    }
}
