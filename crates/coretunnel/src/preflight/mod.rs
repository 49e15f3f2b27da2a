//! What on this host would keep the daemon from running, and the cure. It changes nothing and starts nothing that lasts:
//! `facts` asks the host, `checks` judges, `report` words it.

mod checks;
mod control_plane;
mod facts;
mod report;

pub(crate) use report::{json, log, table};

use crate::config::Settings;
use control_plane::ControlPlane;
use facts::Facts;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    pub(crate) verdict: Verdict,
    /// What is there.
    pub(crate) found: String,
    /// What would be good.
    pub(crate) need: String,
    /// What to do, as one sentence; `None` where there is nothing to do.
    pub(crate) cure: Option<String>,
}

/// What it means for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// It runs, but slower, smaller or less safe than it could.
    Warning,
    /// It cannot run.
    Fatal,
}

/// Looks at the host, in the order in which an operator would mend it.
pub(crate) fn examine(settings: &Settings) -> Vec<Finding> {
    checks::judge(&Facts::gather(settings), settings)
}

/// The same, and then what is read and asked for the control plane's sake: a resolver that is silent takes its time, so a
/// start does without.
pub(crate) fn examine_all(settings: &Settings) -> Vec<Finding> {
    let mut findings = examine(settings);
    findings.extend(control_plane::judge(&ControlPlane::gather(settings), settings));
    findings
}

/// Whether a start is bound to fail.
pub(crate) fn blocks_start(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.verdict == Verdict::Fatal)
}

/// The findings that block a start.
pub(crate) fn fatal(findings: &[Finding]) -> Vec<Finding> {
    findings.iter().filter(|finding| finding.verdict == Verdict::Fatal).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fatal_finding_blocks_the_start() {
        let finding = |verdict| Finding { what: "x", verdict, found: String::new(), need: String::new(), cure: None };
        assert!(!blocks_start(&[]));
        assert!(!blocks_start(&[finding(Verdict::Good), finding(Verdict::Warning)]));
        let bad = [finding(Verdict::Good), finding(Verdict::Fatal)];
        assert!(blocks_start(&bad));
        assert_eq!(fatal(&bad), [finding(Verdict::Fatal)]);
    }
}
