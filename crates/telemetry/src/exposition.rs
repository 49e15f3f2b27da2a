//! The metrics page: OpenMetrics text made from the cells of all cores, when somebody asks.
//!
//! Lives on the admin thread. A scrape reads relaxed cells and disturbs no core.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use metrics::Key;

use crate::recorder::{Announced, Cell};

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
}

/// A gauge of the process, read by the caller just before a page is made.
#[derive(Debug, Clone)]
pub struct ProcessGauge {
    /// The family, e.g. `process_open_fds`.
    pub name: &'static str,
    /// Label names and values.
    pub labels: Vec<(&'static str, String)>,
    /// Counter or gauge.
    pub kind: Kind,
    /// The number.
    pub value: u64,
}

/// All series of all cores.
pub struct Exposition {
    announced: Announced,
    families: BTreeMap<String, Family>,
}

struct Family {
    kind: Kind,
    /// By rendered labels: cores that count the same thing are one series.
    series: BTreeMap<String, Vec<Arc<Cell>>>,
}

impl Exposition {
    pub(crate) fn new(announced: Announced) -> Self {
        Self { announced, families: BTreeMap::new() }
    }

    /// The whole page, with the process's own gauges.
    pub fn render(&mut self, process: &[ProcessGauge]) -> String {
        for announcement in self.announced.try_iter() {
            let family = self
                .families
                .entry(announcement.key.name().to_owned())
                .or_insert_with(|| Family { kind: announcement.kind, series: BTreeMap::new() });
            family.series.entry(labels(&announcement.key)).or_default().push(announcement.cell);
        }
        let mut page = String::with_capacity(4096);
        for (name, family) in &self.families {
            head(&mut page, name, family.kind);
            for (labels, cells) in &family.series {
                let sum = cells.iter().fold(0_u64, |sum, cell| sum.wrapping_add(cell.read()));
                line(&mut page, name, family.kind, labels, sum);
            }
        }
        let mut last = "";
        for gauge in process {
            if gauge.name != last {
                head(&mut page, gauge.name, gauge.kind);
                last = gauge.name;
            }
            let labels = gauge.labels.iter().map(|(name, value)| label(name, value)).collect::<Vec<_>>().join(",");
            line(&mut page, gauge.name, gauge.kind, &labels, gauge.value);
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

fn head(page: &mut String, name: &str, kind: Kind) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    writeln!(page, "# HELP {name} {}.\n# TYPE {name} {kind}", help(name)).expect("writing to a string does not fail");
}

fn line(page: &mut String, name: &str, kind: Kind, labels: &str, value: u64) {
    let (suffix, value) = match kind {
        Kind::Counter => ("_total", value.to_string()),
        #[expect(clippy::cast_possible_wrap, reason = "gauges are kept in two's complement")]
        Kind::Gauge => ("", (value as i64).to_string()),
    };
    let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    writeln!(page, "{name}{suffix}{braces} {value}").expect("writing to a string does not fail");
}

/// Help texts; families outside the reference's stable set say so.
fn help(name: &str) -> &'static str {
    match name {
        "istio_build" => "Istio component build info",
        "istio_tcp_connections_opened" => "The total number of TCP connections opened",
        "istio_tcp_connections_closed" => "The total number of TCP connections closed",
        "istio_tcp_received_bytes" => "The size of total bytes received during request in case of a TCP connection",
        "istio_tcp_sent_bytes" => "The size of total bytes sent during response in case of a TCP connection",
        "istio_tcp_connections_failed" => "The total number of TCP connections that failed (unstable)",
        "istio_tcp_sockets_open" => "The number of captured TCP connections open now (unstable)",
        "process_open_fds" => "Number of open file descriptors",
        "process_max_fds" => "Maximum number of open file descriptors",
        "workload_manager_active_proxy_count" => "The number of pods captured now (unstable)",
        "workload_manager_pending_proxy_count" => "The number of pods waiting to be captured (unstable)",
        "workload_manager_proxies_started" => "The number of pods ever captured (unstable)",
        "workload_manager_proxies_stopped" => "The number of pods ever released (unstable)",
        _ => "See docs/ARCHITECTURE.md (unstable)",
    }
}

fn labels(key: &Key) -> String {
    key.labels().map(|one| label(one.key(), one.value())).collect::<Vec<_>>().join(",")
}

fn label(name: &str, value: &str) -> String {
    let mut text = String::with_capacity(name.len() + value.len() + 3);
    text.push_str(name);
    text.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use metrics::{Label, Level, Metadata, Recorder};

    use super::*;
    use crate::recorder::recorders;

    const METADATA: Metadata<'static> = Metadata::new("test", Level::INFO, None);

    #[test]
    fn two_cores_that_count_the_same_are_one_series() {
        let (cores, mut page) = recorders(2);
        let key = Key::from_parts("istio_tcp_sent_bytes", vec![Label::new("reporter", "source")]);
        cores[0].register_counter(&key, &METADATA).increment(40);
        cores[1].register_counter(&key, &METADATA).increment(2);
        let text = page.render(&[]);
        let expected = "# HELP istio_tcp_sent_bytes The size of total bytes sent during response in case of a TCP \
                        connection.\n# TYPE istio_tcp_sent_bytes counter\n\
                        istio_tcp_sent_bytes_total{reporter=\"source\"} 42\n# EOF\n";
        assert_eq!(text, expected);
        assert_eq!(page.render(&[]), expected, "a scrape takes nothing away");
    }

    #[test]
    fn values_are_escaped_and_families_without_series_left_out() {
        let (cores, mut page) = recorders(1);
        assert_eq!(page.render(&[]), "# EOF\n");
        let key = Key::from_parts("odd", vec![Label::new("name", "a\"b\\c\nd")]);
        cores[0].register_gauge(&key, &METADATA).decrement(1.0);
        assert!(page.render(&[]).contains("odd{name=\"a\\\"b\\\\c\\nd\"} -1\n"));
    }

    #[test]
    fn gauges_of_the_process_come_with_one_head_per_family() {
        let (_cores, mut page) = recorders(1);
        let gauge = |core: &str, value| ProcessGauge {
            name: "core_tasks",
            labels: vec![("core", core.to_owned())],
            kind: Kind::Gauge,
            value,
        };
        let text = page.render(&[gauge("0", 1), gauge("1", 2)]);
        assert_eq!(text.matches("# TYPE core_tasks gauge").count(), 1);
        assert!(text.contains("core_tasks{core=\"1\"} 2\n"));
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
