//! `requirements-check PAGE OUTPUT`: does every test that docs/REQUIREMENTS.md names exist, and did it pass? Reads the page's
//! tables and what `cargo test --workspace 2>&1` printed; also fails when a test was ignored. Runs nothing itself: see `make test`.
//!
//! The last cell of each table's header is `Held by`, and it is an error if it is not. That column holds, separated by commas, test
//! names in backticks (`a_fact`, or with leading parts of its path for clarity: `mesh-state::decisions::a_fact`), criterion ids (they have a
//! slash: `route/outbound`), or plain `not yet: issue 5`.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::Value;

/// Fails, naming them, when tests that a page of requirements names did not run and pass.
#[derive(Parser)]
struct Arguments {
    /// The page, docs/REQUIREMENTS.md
    page: String,
    /// What `cargo test --workspace 2>&1` printed
    output: String,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
    let page = Page::parse(&read(&arguments.page)?).with_context(|| arguments.page.clone())?;
    let run = Run::parse(&read(&arguments.output)?, &packages_by_binary()?);
    ensure!(!page.rows.is_empty(), "{}: no table whose last column is `Held by`", arguments.page);
    ensure!(!run.tests.is_empty(), "{}: no test in it: was it captured with 2>&1?", arguments.output);

    let mut wrong = run.not_passed();
    wrong.extend(page.rows.iter().flat_map(|row| row.check(&run)));
    if wrong.is_empty() {
        screen(&format!(
            "{}: {} requirements, {} tests, none ignored",
            arguments.page,
            page.rows.len(),
            run.tests.len()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    wrong.iter().for_each(|line| screen(line));
    Ok(ExitCode::FAILURE)
}

#[expect(clippy::print_stdout, reason = "a command whose result is what it prints")]
fn screen(line: &str) {
    println!("{line}");
}

/// Which packages have a test binary of a name: cargo prints the binary, a page names the package.
fn packages_by_binary() -> Result<BTreeMap<String, Vec<String>>> {
    let output =
        Command::new("cargo").args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let (Some(package), Some(binary)) = (package["name"].as_str(), target["name"].as_str()) else { continue };
            packages.entry(binary.replace('-', "_")).or_default().push(package.to_owned());
        }
    }
    Ok(packages)
}

/// The rows of the page's checked tables.
struct Page {
    rows: Vec<Row>,
}

/// One requirement and its last cell.
struct Row {
    line: usize,
    requirement: String,
    held_by: String,
}

impl Page {
    /// # Errors
    /// A table without the column that is checked: nothing would hold its requirements.
    fn parse(text: &str) -> Result<Self> {
        let mut rows = Vec::new();
        let mut in_table = false;
        for (number, line) in text.lines().enumerate() {
            if !line.trim_start().starts_with('|') {
                in_table = false;
                continue;
            }
            let cells = cells(line);
            let last = cells.last().map(String::as_str).unwrap_or_default();
            if !in_table {
                ensure!(last == "Held by", "line {}: this table's last column is `{last}`, not `Held by`", number + 1);
                in_table = true;
            } else if !cells.iter().all(|cell| cell.chars().all(|c| matches!(c, '-' | ':' | ' '))) {
                let requirement = cells.first().cloned().unwrap_or_default();
                rows.push(Row { line: number + 1, requirement, held_by: last.to_owned() });
            }
        }
        Ok(Self { rows })
    }
}

fn cells(line: &str) -> Vec<String> {
    // `\|` is a bar inside a cell.
    let line = line.trim().replace("\\|", "\u{1}");
    let line = line.strip_prefix('|').unwrap_or(&line);
    let line = line.strip_suffix('|').unwrap_or(line);
    line.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

impl Row {
    fn check(&self, run: &Run) -> Vec<String> {
        let entries = self.held_by.split(',').map(str::trim);
        entries.filter_map(|entry| self.check_entry(entry, run).err()).collect()
    }

    fn check_entry(&self, entry: &str, run: &Run) -> Result<(), String> {
        let complain = |what: String| Err(format!("line {}, {}: {what}", self.line, self.requirement));
        if let Some(issue) = entry.strip_prefix("not yet: issue ") {
            let number = !issue.is_empty() && issue.chars().all(|c| c.is_ascii_digit());
            return if number { Ok(()) } else { complain(format!("`{entry}` names no issue")) };
        }
        let name = entry.strip_prefix('`').and_then(|entry| entry.strip_suffix('`'));
        let Some(name) = name.filter(|name| !name.is_empty() && !name.contains(['`', ' '])) else {
            return complain(format!("\"{entry}\" is neither a test in backticks nor `not yet: issue N`"));
        };
        if name.contains('/') {
            // One of several sizes may be left out.
            let ran = run.benches.iter().any(|bench| bench == name || bench.starts_with(&format!("{name}/")));
            return if ran { Ok(()) } else { complain(format!("the bench {name} did not run")) };
        }
        let mut matching = run.tests.iter().filter(|test| test.is_named(name)).peekable();
        if matching.peek().is_none() {
            return complain(format!("{name} did not run: no such test"));
        }
        match matching.find(|test| test.outcome != "ok") {
            Some(test) => complain(format!("{name} did not pass: {}", test.outcome)),
            None => Ok(()),
        }
    }
}

/// What ran.
struct Run {
    tests: Vec<Test>,
    benches: Vec<String>,
    /// Binaries that began and never gave a result: they crashed, or the output was cut.
    unfinished: Vec<String>,
}

struct Test {
    /// Package, binary, modules, function: for each package that has such a binary.
    paths: Vec<Vec<String>>,
    outcome: String,
}

impl Test {
    /// Whether the parts of `name` are parts of the test's path, in order, ending with the function.
    fn is_named(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split("::").collect();
        self.paths.iter().any(|path| {
            let mut rest = path.iter();
            parts.last() == path.last().map(String::as_str).as_ref()
                && parts.iter().all(|part| rest.any(|step| step == part))
        })
    }
}

impl Run {
    fn parse(output: &str, packages: &BTreeMap<String, Vec<String>>) -> Self {
        let mut run = Self { tests: Vec::new(), benches: Vec::new(), unfinished: Vec::new() };
        let mut binary = String::new();
        // With one thread, a name is printed first, and what the test's children print comes between it and the outcome.
        let mut pending: Option<String> = None;
        for line in output.lines() {
            if let Some(started) = binary_of(line) {
                run.unfinished.push(started.clone());
                (binary, pending) = (started, None);
            } else if line.starts_with("test result: ") {
                run.unfinished.retain(|name| *name != binary);
            } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
                // ` - should panic` follows the name of such a test.
                let name = name.split(" - should panic").next().unwrap_or(name).to_owned();
                match known(outcome) {
                    Some(outcome) => run.tests.push(Test::new(&binary, &name, outcome, packages)),
                    None => pending = Some(name),
                }
            } else if let Some(bench) = line.strip_prefix("Testing ") {
                run.benches.push(bench.trim().to_owned());
                run.unfinished.retain(|name| *name != binary);
            } else if let (Some(name), Some(outcome)) = (&pending, known(line.trim())) {
                run.tests.push(Test::new(&binary, name, outcome, packages));
                pending = None;
            }
        }
        run
    }

    fn not_passed(&self) -> Vec<String> {
        let tests = self.tests.iter().filter(|test| test.outcome != "ok");
        let tests = tests.map(|test| format!("{}: {}", test.paths[0].join("::"), test.outcome));
        tests.chain(self.unfinished.iter().map(|name| format!("{name}: began and never gave a result"))).collect()
    }
}

impl Test {
    fn new(binary: &str, name: &str, outcome: &str, packages: &BTreeMap<String, Vec<String>>) -> Self {
        let own = vec![binary.to_owned()];
        let packages = packages.get(binary).unwrap_or(&own);
        let path = |package: &String| {
            let head = [package.as_str(), binary];
            head.into_iter().chain(name.split("::")).map(str::to_owned).collect()
        };
        Self { paths: packages.iter().map(path).collect(), outcome: outcome.to_owned() }
    }
}

fn known(outcome: &str) -> Option<&str> {
    ["ok", "FAILED", "ignored"].into_iter().find(|known| outcome == *known || outcome.starts_with(&format!("{known},")))
}

/// The test binary of cargo's `Running tests/x.rs (target/debug/deps/x-0123456789abcdef)`, or the crate of its `Doc-tests x`.
fn binary_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(name.trim().to_owned());
    }
    let file = line.strip_prefix("Running ")?.rsplit_once('(')?.1.strip_suffix(')')?;
    let name = file.rsplit('/').next()?;
    Some(name.rsplit_once('-')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
     Running unittests src/lib.rs (target/debug/deps/mesh_state-0123)
test admit::tests::a_fact ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/decisions/main.rs (target/debug/deps/decisions-0123)
test outbound::another_fact ... ok
test outbound::a_false_one ... FAILED
test outbound::a_skipped_one ... ignored, too slow
test outbound::panics - should panic ... ok
test outbound::a_chatty_one ... a child speaks
on more lines
ok
test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running benches/decisions.rs (target/debug/deps/decisions-99)
Testing route/outbound/1000
Success
     Running tests/crashes.rs (target/debug/deps/crashes-0123)
test begins ... ok
";

    fn run() -> Run {
        let packages = [("mesh_state", "mesh-state"), ("decisions", "mesh-state")];
        Run::parse(OUTPUT, &packages.map(|(binary, package)| (binary.to_owned(), vec![package.to_owned()])).into())
    }

    #[test]
    fn a_requirement_is_held_only_by_what_ran_and_passed() {
        for (held_by, complaints) in [
            ("`a_fact`", 0),
            ("`mesh-state::a_fact`", 0),
            ("`mesh-state::mesh_state::admit::tests::a_fact`", 0),
            ("`mesh-state::decisions::another_fact`, `a_fact`", 0),
            ("`decisions::outbound::panics`, `a_chatty_one`", 0),
            ("`route/outbound`", 0),
            ("`route/outbound/1000`", 0),
            ("`route/out`", 1),
            ("not yet: issue 5", 0),
            ("`a_fact`, not yet: issue 5", 0),
            ("`no_such_test`", 1),
            ("`fact`", 1),
            ("`another_fact::outbound`", 1),
            ("`hbone::a_fact`", 1),
            ("`a_false_one`", 1),
            ("`a_skipped_one`", 1),
            ("`route/inbound`", 1),
            ("`no_such_test`, `a_false_one`", 2),
            ("not yet: issue", 1),
            ("not yet", 1),
            ("by design", 1),
            ("", 1),
        ] {
            let row = Row { line: 1, requirement: "R1".into(), held_by: held_by.into() };
            let wrong = row.check(&run());
            assert_eq!(wrong.len(), complaints, "{held_by}: {wrong:?}");
        }
    }

    #[test]
    fn failed_ignored_and_crashed_tests_are_named_even_if_no_requirement_does() {
        let wrong = run().not_passed();
        assert_eq!(
            wrong,
            [
                "mesh-state::decisions::outbound::a_false_one: FAILED",
                "mesh-state::decisions::outbound::a_skipped_one: ignored",
                "crashes: began and never gave a result",
            ]
        );
    }

    #[test]
    fn every_table_has_the_column() {
        let page = "# R\n| a | Held by |\n|---|:---|\n| R1 | `x` |\n| R2 `a \\| b` | `y` |\n";
        let error = Page::parse(&format!("{page}\n| a | Held-by |\n|---|---|\n| c | d |\n")).err().expect("a slip");
        assert!(error.to_string().contains("line 7") && error.to_string().contains("`Held-by`"), "{error}");
        let rows = Page::parse(page).expect("it has").rows;
        let read: Vec<_> = rows.iter().map(|row| (row.line, row.requirement.as_str(), row.held_by.as_str())).collect();
        assert_eq!(read, [(4, "R1", "`x`"), (5, "R2 `a | b`", "`y`")]);
    }
}
