//! Findings as text for people, as JSON for programs and as log lines. It judges nothing.

use std::fmt::Write as _;

use super::{Finding, Verdict};

/// One line for each finding.
pub(crate) fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len() + 1).max().unwrap_or(0);
    let mut table = String::new();
    for Finding { what, verdict, found, need, cure } in findings {
        let (verdict, what) = (word(*verdict), format!("{what}:"));
        let mut line = format!("{verdict:<5}  {what:<width$}  found {found}, need {need}.");
        if let Some(cure) = cure {
            write!(line, " cure: {cure}").expect("writing to a String cannot fail");
        }
        // Paths and process names are others' words, and may hold a newline.
        table.extend(line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }));
        table.push('\n');
    }
    table
}

/// Log lines for what is not good.
pub(crate) fn log(findings: &[Finding]) {
    for Finding { what, verdict, found, need, cure } in findings {
        let cure = cure.as_deref();
        match verdict {
            Verdict::Good => {}
            Verdict::Warning => tracing::warn!(what, found, need, cure, "preflight"),
            Verdict::Fatal => tracing::error!(what, found, need, cure, "preflight"),
        }
    }
}

/// An array of objects: `what`, `verdict` (`ok`, `warn`, `fatal`), `found`, `need`, and `cure`, which may be null.
pub(crate) fn json(findings: &[Finding]) -> String {
    let findings: Vec<serde_json::Value> = findings
        .iter()
        .map(|Finding { what, verdict, found, need, cure }| {
            let verdict = word(*verdict).to_ascii_lowercase();
            serde_json::json!({ "what": what, "verdict": verdict, "found": found, "need": need, "cure": cure })
        })
        .collect();
    format!("{:#}", serde_json::Value::Array(findings))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok",
        Verdict::Warning => "warn",
        Verdict::Fatal => "FATAL",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let finding = |what, verdict, cure: Option<&str>| Finding {
            what,
            verdict,
            found: "1".to_owned(),
            need: "2".to_owned(),
            cure: cure.map(str::to_owned),
        };
        vec![
            finding("kernel", Verdict::Good, None),
            finding("a longer one", Verdict::Warning, Some("wait.")),
            finding("port", Verdict::Fatal, Some("stop \"a\nb\".")),
        ]
    }

    #[test]
    fn the_table_has_one_aligned_line_for_each_finding_whatever_the_words() {
        assert_eq!(
            table(&findings()),
            "ok     kernel:        found 1, need 2.\n\
             warn   a longer one:  found 1, need 2. cure: wait.\n\
             FATAL  port:          found 1, need 2. cure: stop \"a b\".\n"
        );
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn the_json_says_the_same_as_the_table() {
        let read: serde_json::Value = serde_json::from_str(&json(&findings())).expect("JSON");
        assert_eq!(
            read,
            serde_json::json!([
                { "what": "kernel", "verdict": "ok", "found": "1", "need": "2", "cure": null },
                { "what": "a longer one", "verdict": "warn", "found": "1", "need": "2", "cure": "wait." },
                { "what": "port", "verdict": "fatal", "found": "1", "need": "2", "cure": "stop \"a\nb\"." },
            ])
        );
    }
}
