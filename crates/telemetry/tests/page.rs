//! The whole metrics page, read back by a parser that takes nothing but what OpenMetrics allows.

use std::{collections::BTreeMap, rc::Rc};

use telemetry::{
    connection::{ConnectionLabels, ConnectionMetrics, Party, Reporter, ResponseFlag, SecurityPolicy},
    exposition::{Kind, Sample},
    recorder::recorders,
};

/// One series: its family, labels and value.
type Series = (String, BTreeMap<String, String>, i64);

/// Reads a page.
///
/// Families come one after the other: HELP, TYPE, at least one series; no family and no series twice; the end is said.
fn parse(page: &str) -> Result<Vec<Series>, String> {
    let body = page.strip_suffix("# EOF\n").ok_or("does not end with # EOF")?;
    let mut families: BTreeMap<String, usize> = BTreeMap::new();
    let mut series: Vec<Series> = Vec::new();
    let mut lines = body.split_terminator('\n').peekable();
    while let Some(line) = lines.next() {
        let (family, help) = split(line.strip_prefix("# HELP ").ok_or(format!("{line:?} is no HELP"))?, ' ')?;
        if help.len() < 2 || !help.ends_with('.') || help.contains(['\n', '"']) {
            return Err(format!("{help:?} is no help text"));
        }
        let line = lines.next().ok_or("ends after HELP")?;
        let (typed, kind) = split(line.strip_prefix("# TYPE ").ok_or(format!("{line:?} is no TYPE"))?, ' ')?;
        if typed != family || families.insert(family.to_owned(), 0).is_some() {
            return Err(format!("the head of {family} is not its own, or its second"));
        }
        let suffix = match kind {
            "counter" => "_total",
            "gauge" => "",
            other => return Err(format!("{other:?} is no type")),
        };
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let one = parse_series(line, &format!("{family}{suffix}"))?;
            if kind == "counter" && one.1 < 0 {
                return Err(format!("{line:?} counts below 0"));
            }
            let (labels, value) = one;
            if series.iter().any(|(known, known_labels, _)| known == family && *known_labels == labels) {
                return Err(format!("{line:?} comes twice"));
            }
            series.push((family.to_owned(), labels, value));
            *families.get_mut(family).expect("inserted above") += 1;
        }
        if families[family] == 0 {
            return Err(format!("{family} has no series"));
        }
    }
    Ok(series)
}

fn parse_series(line: &str, name: &str) -> Result<(BTreeMap<String, String>, i64), String> {
    let rest = line.strip_prefix(name).ok_or(format!("{line:?} does not begin with {name}"))?;
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or(format!("{line:?}: a label without value"))?;
            if label.is_empty() || !label.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') {
                return Err(format!("{label:?} is no label"));
            }
            let (value, after) = unquote(after)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("{line:?} has {label} twice"));
            }
            match after.chars().next() {
                Some(',') => rest = &after[1..],
                Some('}') => break rest = &after[1..],
                _ => return Err(format!("{line:?}: the labels do not end")),
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or(format!("{line:?} has no value"))?;
    Ok((labels, value.parse().map_err(|error| format!("{value:?}: {error}"))?))
}

/// The value up to its closing quote, and what follows it.
fn unquote(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '\n' => break,
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err(format!("{text:?} escapes what need not be escaped")),
            },
            other => value.push(other),
        }
    }
    Err(format!("{text:?} has no closing quote"))
}

fn split(text: &str, at: char) -> Result<(&str, &str), String> {
    text.split_once(at).ok_or(format!("{text:?} has one part only"))
}

fn connection(workload: &str) -> ConnectionLabels {
    ConnectionLabels {
        reporter: Reporter::Source,
        source: Some(Party { workload: Some(workload.into()), ..Party::default() }),
        destination: None,
        service: None,
        security: SecurityPolicy::MutualTls,
    }
}

#[test]
fn the_page_of_two_cores_reads_back_as_what_was_counted() {
    let (cores, mut page) = recorders(2);
    let evil = "a\\b\"c\nd,e=\"f\"} 7";
    for (core, recorder) in cores.into_iter().enumerate() {
        let metrics = Rc::new(ConnectionMetrics::new(recorder));
        for workload in ["web", evil] {
            let connection = metrics.open(connection(workload));
            connection.received(10 + core);
            connection.close(if workload == evil { ResponseFlag::Deny } else { ResponseFlag::None });
        }
    }
    let sample = |family, kind, value| Sample { family, help: "Read just now", kind, labels: vec![], value };
    let text = page.render(&[
        sample("process_open_fds", Kind::Gauge, 12),
        sample("workload_manager_proxies_started", Kind::Counter, 3),
    ]);
    let series = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let value = |family: &str, wanted: &[(&str, &str)]| -> i64 {
        let fits = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|found| found == value))
        };
        series.iter().filter(|(name, labels, _)| name == family && fits(labels)).map(|(_, _, value)| value).sum()
    };
    assert_eq!(value("istio_tcp_connections_opened", &[("source_workload", "web")]), 2);
    assert_eq!(value("istio_tcp_received_bytes", &[("source_workload", evil), ("response_flags", "-")]), 21);
    assert_eq!(value("istio_tcp_connections_closed", &[("response_flags", "DENY")]), 2);
    assert_eq!(value("istio_tcp_connections_closed", &[]), 4);
    assert_eq!(value("istio_tcp_connections_failed", &[("source_workload", evil)]), 2);
    assert_eq!(value("istio_tcp_sockets_open", &[]), 0);
    assert_eq!(value("process_open_fds", &[]), 12);
    assert_eq!(value("workload_manager_proxies_started", &[]), 3);
    assert_eq!(value("coretunnel_core_series_overflowed", &[("core", "1")]), 0);
}

#[test]
fn more_label_sets_than_a_core_has_room_for_are_summed_and_nothing_is_lost() {
    let (mut cores, mut page) = recorders(1);
    let metrics = Rc::new(ConnectionMetrics::new(cores.remove(0)));
    let connections = 10_000;
    for number in 0..connections {
        metrics.open(connection(&format!("client-{number}"))).received(1);
        // As the daemon does where nobody scrapes.
        if number % 500 == 0 {
            page.catch_up();
        }
    }
    metrics.recorder().catch_up();
    let text = page.render(&[]);
    let series: Vec<&str> = text.lines().filter(|line| line.starts_with("istio_tcp_received_bytes_total")).collect();
    assert!(series.len() < connections, "{} series", series.len());
    let count = |line: &&str| line.rsplit(' ').next().and_then(|value| value.parse::<usize>().ok()).expect("a number");
    assert_eq!(series.iter().map(count).sum::<usize>(), connections);
    let overflow: Vec<&&str> = series.iter().filter(|line| line.contains("source_workload=\"overflow\"")).collect();
    assert_eq!(overflow.len(), 1);
    assert_eq!(count(overflow[0]), connections - (series.len() - 1));
}

#[test]
fn the_parser_of_this_test_refuses_what_is_no_page() {
    let head = "# HELP a A.\n# TYPE a counter\n";
    for (page, says) in [
        (format!("{head}a_total 1\n"), "EOF"),
        (format!("{head}# EOF\n"), "no series"),
        (format!("{head}a 1\n# EOF\n"), "begin"),
        (format!("{head}a_total -1\n# EOF\n"), "below"),
        (format!("{head}a_total{{b=\"c}} 1\n# EOF\n"), "quote"),
        (format!("{head}a_total{{b=\"\\c\"}} 1\n# EOF\n"), "escape"),
        (format!("{head}a_total 1\na_total 1\n# EOF\n"), "twice"),
        (format!("{head}a_total 1\n{head}a_total 1\n# EOF\n"), "second"),
        ("# TYPE a counter\na_total 1\n# EOF\n".to_owned(), "HELP"),
        ("# HELP a A\n# TYPE a counter\na_total 1\n# EOF\n".to_owned(), "help"),
    ] {
        let error = parse(&page).expect_err(&page);
        assert!(error.contains(says), "{page}: {error}");
    }
}
