//! `make bench-mesh`: what a mesh of a million workloads costs in memory, to build, to change and to ask. The last line it
//! prints is one JSON object. Without `--bench`, as `make test` runs it, it goes through everything once on a small mesh.

use std::alloc::System;
use std::io::Write;
use std::path::PathBuf;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use figures::{Figures, PolicyFigures};
use world::World;

mod figures;
mod measure;
mod plot;
mod world;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SIZES: [u32; 3] = [10_000, 100_000, 1_000_000];

fn main() -> std::io::Result<()> {
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let only = std::env::var("MESH_WORKLOADS").ok().and_then(|text| text.parse::<u32>().ok());
    let sizes = if measuring { &SIZES[..] } else { &SIZES[..1] };
    let mut curve = Vec::new();
    for workloads in sizes.iter().filter(|size| only.is_none_or(|only| only == **size)) {
        tell(&format!("{workloads} workloads"));
        curve.push(Figures::of(World { workloads: *workloads }, &tell));
    }
    let policies = if measuring { 10_000 } else { 100 };
    tell(&format!("{policies} policies"));
    let policy = PolicyFigures::of(policies);
    if measuring {
        let path = target_directory().join("bench-mesh.svg");
        std::fs::write(&path, plot::svg(&curve))?;
        tell(&format!("cost curve: {}", path.display()));
    }
    let largest = curve.last().expect("there is at least one size");
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", json(largest, &policy))
}

fn json(figures: &Figures, policy: &PolicyFigures) -> String {
    let named = figures.named().into_iter().chain(policy.named());
    let fields: Vec<String> = named.map(|(name, value)| format!("\"{name}\": {value:.3}")).collect();
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
