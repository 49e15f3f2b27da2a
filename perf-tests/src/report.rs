//! Figures for people and for programs: the same rows as a table or as JSON. Each name says its unit.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::spread::Spread;

/// How rows are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One array of objects.
    Json,
}

/// What one measurement of one path came to.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done, for instance `ping-pong 16 x 128 B`.
    pub scenario: String,
    /// Over what: `direct`, `mesh`.
    pub path: String,
    /// Name with unit, figure.
    pub figures: Vec<(String, f64)>,
}

impl Row {
    /// A row without figures.
    #[must_use]
    pub fn new(scenario: impl Into<String>, path: impl Into<String>) -> Self {
        Self { scenario: scenario.into(), path: path.into(), figures: Vec::new() }
    }

    /// Adds a figure.
    #[must_use]
    pub fn figure(mut self, name: &str, value: f64) -> Self {
        self.figures.push((name.to_owned(), value));
        self
    }

    /// Adds p50, p99, p99.9 and the longest of `spread`, in microseconds.
    #[must_use]
    pub fn spread(self, name: &str, spread: &Spread) -> Self {
        let microseconds = |duration: Duration| duration.as_secs_f64() * 1e6;
        [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]
            .iter()
            .fold(self, |row, (label, quantile)| {
                row.figure(&format!("{name} {label} us"), microseconds(spread.quantile(*quantile)))
            })
            .figure(&format!("{name} max us"), microseconds(spread.longest()))
    }
}

/// Shows `rows`; a scenario's rows stand together in one table.
#[must_use]
pub fn render(rows: &[Row], format: Format) -> String {
    match format {
        Format::Json => {
            let object = |row: &Row| {
                let figures = row.figures.iter().map(|(name, value)| (name.clone(), json!(value)));
                let figures: Map<String, Value> = figures.collect();
                json!({ "scenario": row.scenario, "path": row.path, "figures": figures })
            };
            let rows: Vec<Value> = rows.iter().map(object).collect();
            format!("{:#}\n", Value::from(rows))
        }
        Format::Table => {
            let mut scenarios: Vec<&str> = Vec::new();
            for row in rows {
                if !scenarios.contains(&row.scenario.as_str()) {
                    scenarios.push(&row.scenario);
                }
            }
            let table = |scenario: &&str| {
                let own: Vec<&Row> = rows.iter().filter(|row| row.scenario == **scenario).collect();
                format!("{scenario}\n{}", columns(&own))
            };
            scenarios.iter().map(table).collect::<Vec<_>>().join("\n")
        }
    }
}

fn columns(rows: &[&Row]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.figures) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let cell = |row: &Row, name: &str| {
        let figure = row.figures.iter().find(|(own, _)| own == name);
        figure.map_or_else(|| "-".to_owned(), |(_, value)| readable(*value))
    };
    let mut lines = vec![[vec!["path".to_owned()], names.iter().map(|name| (*name).to_owned()).collect()].concat()];
    for row in rows {
        lines.push([vec![row.path.clone()], names.iter().map(|name| cell(row, name)).collect()].concat());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=names.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        text.push_str(&format!("  {:<width$}", line[0], width = widths[0]));
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            text.push_str(&format!("  {cell:>width$}"));
        }
        text.push('\n');
    }
    text
}

/// Three digits or all of a larger number's.
fn readable(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        vec![
            Row::new("bulk", "direct").figure("Gbit/s", 12.34),
            Row::new("bulk", "mesh").figure("Gbit/s", 4.0).figure("CPU ns/B", 0.5),
            Row::new("ping-pong", "mesh").figure("per s", 123_456.0),
        ]
    }

    #[test]
    fn a_table_has_a_column_per_figure_and_a_line_per_path() {
        let expected = "\
bulk
  path    Gbit/s  CPU ns/B
  direct    12.3         -
  mesh      4.00     0.500

ping-pong
  path   per s
  mesh  123456
";
        assert_eq!(render(&rows(), Format::Table), expected);
    }

    #[test]
    fn json_has_the_same_figures() {
        let parsed: Value = serde_json::from_str(&render(&rows(), Format::Json)).unwrap();
        assert_eq!(parsed[1]["path"], "mesh");
        assert_eq!(parsed[1]["figures"]["CPU ns/B"], 0.5);
        assert_eq!(parsed.as_array().unwrap().len(), 3);
    }
}
