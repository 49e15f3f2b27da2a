//! What the demonstration shows: headings, steps with their time, facts, tables. Colour and the running clock on a
//! terminal only.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Where it goes.
pub(crate) struct Screen {
    terminal: bool,
    colour: bool,
}

/// A colour or weight.
#[derive(Clone, Copy)]
pub(crate) enum Tint {
    Heading,
    Good,
    Bad,
    Faint,
}

impl Screen {
    /// Standard output; `NO_COLOR` is respected.
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        Self { terminal, colour: terminal && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Begins a section.
    pub(crate) fn section(&self, title: &str) {
        self.line(&format!("\n{}", self.tint(Tint::Heading, title)));
    }

    /// A line of explanation.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("  {line}"));
        }
    }

    /// Something found to be true.
    pub(crate) fn fact(&self, text: &str) {
        self.line(&format!("  {} {text}", self.tint(Tint::Good, "✓")));
    }

    /// Quoted material: a log line, a dump.
    pub(crate) fn quote(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("      {}", self.tint(Tint::Faint, line)));
        }
    }

    /// The last word of a demonstration that failed.
    pub(crate) fn failure(&self, text: &str) {
        self.line(&format!("\n{} {text}", self.tint(Tint::Bad, "✗")));
    }

    /// Does `work`, showing that it goes on and then how long it took.
    pub(crate) fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        if !self.terminal {
            self.line(&format!("  . {what} ..."));
            let result = work();
            self.line(&format!("  . {what}: {} after {:.1} s", outcome(&result), began.elapsed().as_secs_f64()));
            return result;
        }
        let (done, awaited) = mpsc::channel::<()>();
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                while matches!(awaited.recv_timeout(Duration::from_millis(100)), Err(RecvTimeoutError::Timeout)) {
                    put(&format!("\r\x1b[2K  . {what} ({:.1} s)", began.elapsed().as_secs_f64()));
                }
            });
            // Dropped also when `work` panics, or the scope would wait for the clock for ever.
            let _done = done;
            work()
        });
        put("\r\x1b[2K");
        if result.is_ok() {
            self.fact(&format!(
                "{what} {}",
                self.tint(Tint::Faint, &format!("({:.1} s)", began.elapsed().as_secs_f64()))
            ));
        }
        result
    }

    /// A table with a heading; columns of numbers go to the right.
    pub(crate) fn table(&self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let number = |column: usize| {
            rows.iter().skip(1).all(|row| row.get(column).is_none_or(|cell| cell.parse::<f64>().is_ok()))
        };
        let layout: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), number(column))).collect();
        for (at, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&layout).map(|(cell, (width, right))| {
                let pad = " ".repeat(width - cell.chars().count());
                if *right { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
            });
            let text = cells.collect::<Vec<_>>().join("  ");
            let text = text.trim_end();
            self.line(&format!("  {}", if at == 0 { self.tint(Tint::Faint, text) } else { text.to_owned() }));
        }
    }

    fn tint(&self, tint: Tint, text: &str) -> String {
        let code = match tint {
            Tint::Heading => "1;36",
            Tint::Good => "32",
            Tint::Bad => "1;31",
            Tint::Faint => "2",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, text: &str) {
        put(&format!("{text}\n"));
    }
}

fn outcome<T>(result: &Result<T>) -> &'static str {
    if result.is_ok() { "done" } else { "failed" }
}

/// A reader that went away (`| head`) is no reason to fail: what the demonstration claims is in its exit code.
fn put(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
