//! `make bench-mesh`: what a mesh of a million workloads costs in memory, to build, to change and to ask. The last line it
//! prints is one JSON object. Without `--bench`, as `make test` runs it, it goes through everything once on a small mesh.

use std::alloc::System;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use figures::Figure;
use world::World;

mod figures;
mod measure;
mod plot;
mod world;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SIZES: [u32; 3] = [10_000, 100_000, 1_000_000];

const POLICIES: u32 = 10_000;

/// What every build on every machine comes to alike, however small the mesh, and must not exceed.
const HELD: [(&str, f64); 2] = [("heap_bytes_per_workload", 400.0), ("generation_kib", 16.0)];

/// What a child is told: to print the figures of one size, so that what one mesh leaves behind in the allocator is no part
/// of the next one's memory.
const ONE_SIZE: &str = "--workloads";

const HELP: &str = "\
What a mesh costs: memory, build, change, lookups, verdicts. About five minutes; the last line is one JSON object.

  --bench            all sizes, each in a process of its own, and the cost curve as a picture (`make bench-mesh`)
  --workloads N      the figures of a mesh of N workloads only, a line each; of 0 those of 10,000 policies
  (none)             everything once on a small mesh, as `make test` runs it; the figures mean nothing";

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let mut stdout = std::io::stdout();
    if arguments.iter().any(|argument| ["-h", "--help"].contains(&argument.as_str())) {
        return writeln!(stdout, "{HELP}");
    }
    if let Some(at) = arguments.iter().position(|argument| argument == ONE_SIZE) {
        let workloads = arguments.get(at + 1).and_then(|text| text.parse().ok()).expect("its parent names a size");
        let figures = match workloads {
            // What of all this has nothing to do with workloads.
            0 => figures::of_policies(POLICIES, &tell),
            _ => figures::of(World { workloads }, &tell),
        };
        for (name, value) in figures {
            writeln!(stdout, "{name} {value}")?;
        }
        return Ok(());
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // Each as criterion says it, for docs/REQUIREMENTS.md and whoever reads what ran.
        let figures = figures::of(World { workloads: SIZES[0] }, &tell);
        let policies = figures::of_policies(100, &tell);
        for (name, value) in figures.iter().chain(&policies) {
            let held = HELD.iter().find(|(held, _)| held == name);
            assert!(held.is_none_or(|(_, most)| value <= most), "{name} is {value}, and {held:?} the most");
            writeln!(stdout, "Testing mesh/{name}")?;
        }
        return writeln!(stdout, "{}", json(&figures, &policies));
    }
    tell(&format!("a miss of all caches costs {:.0} ns here and now", measure::miss_ns()));
    let mut curve = Vec::new();
    for workloads in SIZES {
        tell(&format!("{workloads} workloads"));
        curve.push((workloads, child(workloads)?));
    }
    tell(&format!("{POLICIES} policies"));
    let policy = child(0)?;
    let path = target_directory().join("bench-mesh.svg");
    match std::fs::write(&path, plot::svg(&curve)) {
        Ok(()) => tell(&format!("cost curve: {}", path.display())),
        Err(error) => tell(&format!("no cost curve, because {} could not be written: {error}", path.display())),
    }
    let (_, largest) = curve.last().expect("there is at least one size");
    writeln!(stdout, "{}", json(largest, &policy))
}

/// The figures of one size, from a process of its own.
fn child(workloads: u32) -> std::io::Result<Vec<Figure>> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program);
    child.args([ONE_SIZE, &workloads.to_string()]).stdout(Stdio::piped());
    let output = child.spawn()?.wait_with_output()?;
    assert!(output.status.success(), "{workloads} workloads: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Ok(text.lines().filter_map(figure).collect())
}

fn json(figures: &[Figure], policies: &[Figure]) -> String {
    let fields: Vec<String> =
        figures.iter().chain(policies).map(|(name, value)| format!("\"{name}\": {value:.3}")).collect();
    format!("{{{}}}", fields.join(", "))
}

fn target_directory() -> PathBuf {
    // Set by make; cargo's own default otherwise.
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Progress, apart from the result.
fn tell(text: &str) {
    let mut stderr = std::io::stderr();
    // Nobody may be listening.
    let _ = writeln!(stderr, "bench-mesh: {text}");
}
