//! Runs the few external programs a test mesh is made with, in the calling thread's network namespace. Not for the
//! daemon: see `daemon`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Program and the Debian package it comes from.
const PACKAGES: [(&str, &str); 4] =
    [("ip", "iproute2"), ("iptables-restore", "iptables"), ("iptables-save", "iptables"), ("setpriv", "util-linux")];

/// Runs `program` with `input` on its standard input and returns its standard output.
///
/// # Errors
/// When it can't be started (naming the package to install) or exits with a failure (with what it said).
pub fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{program}`: {}", cure(program)))?;
    // The inputs are a few hundred bytes, less than a pipe holds, so writing before reading can't deadlock.
    let written = child.stdin.take().expect("stdin was piped above").write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "`{program} {}` failed ({}): {}; its input was:\n{input}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    written.with_context(|| format!("write to `{program}`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Checks that `program` is there to be run.
///
/// # Errors
/// Naming the package that holds it.
pub fn require(program: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|directory| directory.join(program).is_file()) {
        return Ok(());
    }
    bail!("`{program}` not found in PATH: {}", cure(program))
}

fn cure(program: &str) -> String {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or_else(
        || "install it".to_owned(),
        |(_, package)| format!("`apt-get install {package}` (and /usr/sbin in PATH)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        assert_eq!(cure("ip"), "`apt-get install iproute2` (and /usr/sbin in PATH)");
        assert!(require("no-such-program-here").is_err());
    }

    #[test]
    fn a_failing_program_shows_what_it_said() {
        let error = run_with_input("ip", &["link", "show", "nowhere"], "").unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
    }
}
