//! Reads a page of OpenMetrics text: families, labels, sums. Not a validator of the whole format, but it refuses a line
//! it can't read.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// One scrape.
#[derive(Clone, Debug)]
pub struct MetricsPage {
    samples: Vec<Sample>,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name as exposed, with its `_total`.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

impl MetricsPage {
    /// Reads a page.
    ///
    /// # Errors
    /// When a line is no sample, or the page has no `# EOF`.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.trim_end().ends_with("# EOF"), "the page does not end with # EOF");
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples =
            lines.map(|line| sample(line).with_context(|| format!("not a sample: {line}"))).collect::<Result<_>>()?;
        Ok(Self { samples })
    }

    /// The samples of `name` that carry all of `labels`.
    pub fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|got| got == value))
        })
    }

    /// Their sum; zero when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// All samples, in the page's order.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.trim_start_matches(',').split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, character) => value.push(character),
            }
        };
        labels.insert(key.to_owned(), value);
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE a counter
a_total{x="1",y="q\"}"} 2
a_total{x="1",y="z"} 3
a_total{x="2"} 8
g 4
# EOF
"#;

    #[test]
    fn samples_are_summed_by_the_labels_asked_for() {
        let page = MetricsPage::parse(PAGE).unwrap();
        assert_eq!(page.sum("a_total", &[("x", "1")]), 5.0);
        assert_eq!(page.sum("a_total", &[("y", "q\"}")]), 2.0);
        assert_eq!((page.sum("g", &[]), page.sum("none", &[])), (4.0, 0.0));
    }

    #[test]
    fn a_broken_line_and_a_cut_page_are_refused() {
        assert!(MetricsPage::parse("a_total{x=\"1\" 2\n# EOF\n").is_err());
        assert!(MetricsPage::parse("a 1\n").is_err());
    }
}
