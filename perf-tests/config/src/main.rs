//! `make bench-config`: what configuration costs a daemon that has work to do. Real gRPC and TLS, the real daemon, one core on a
//! CPU of its own. Progress goes to standard error; the last line of standard output is one JSON object.

mod certificates;
mod gap;
mod load;
mod memory;
mod plot;
mod slope;
mod stage;
mod world;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Map, Value, json};

/// Measures what configuration costs. Needs root and two CPUs; ends by itself.
#[derive(Parser)]
struct Arguments {
    /// Only to see that it works: small meshes, one round; the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Some parts only; the figures of the others are null
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Of the gap's sizes those up to this many workloads only
    #[arg(long, value_name = "N")]
    up_to: Option<u32>,
    /// Of the gap's sizes those from this many workloads only
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u32,
    /// The binary of another node proxy, such as ztunnel, to measure the slope of beside ours
    #[arg(long, value_name = "BINARY")]
    beside: Option<PathBuf>,
    /// Where the picture of the slope is written
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Gap,
    Memory,
    Slope,
    Certificates,
}

/// How much of each.
struct Plan {
    sizes: [u32; 4],
    gap: gap::Plan,
    large: u32,
    churn: Duration,
    locals: &'static [u32],
    remotes: &'static [u32],
    changes: u32,
    /// Of the certificates while the root is replaced.
    lifetime: Duration,
    /// Of virtual time, the worst of which counts.
    days: u64,
}

const FULL: Plan = Plan {
    sizes: [1_000, 10_000, 100_000, 1_000_000],
    gap: gap::Plan { rounds: 5, idle: 2_000 },
    large: 100_000,
    churn: Duration::from_secs(8),
    locals: &[1, 10, 50],
    remotes: &[100, 1_000, 2_000],
    changes: 100,
    lifetime: Duration::from_secs(4),
    days: 5,
};

const QUICK: Plan = Plan {
    sizes: [100, 200, 400, 800],
    gap: gap::Plan { rounds: 1, idle: 20 },
    large: 1_000,
    churn: Duration::from_secs(1),
    locals: &[1, 2],
    remotes: &[50, 100],
    changes: 5,
    lifetime: Duration::from_secs(2),
    days: 1,
};

/// The figures of the gap, by size.
const GAPS: [&str; 4] = ["gap_ms_1k", "gap_ms_10k", "gap_ms_100k", "gap_ms_1m"];
const OTHERS: [&str; 5] =
    ["failed", "peak_ratio_100k", "churn_500_cpu_pct", "slope_bytes_per_pair", "csr_peak_over_mean"];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plan = if arguments.quick { QUICK } else { FULL };
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    // A pair of connections for each idle one, and some.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raise the limit of descriptors")?;

    let mut figures: Map<String, Value> =
        GAPS.iter().chain(&OTHERS).map(|name| ((*name).to_owned(), Value::Null)).collect();
    let mut failed = None;
    if wanted(Part::Gap) {
        let within = arguments.from..=arguments.up_to.unwrap_or(u32::MAX);
        let sizes: Vec<u32> = plan.sizes.into_iter().filter(|size| within.contains(size)).collect();
        let gaps = gap::measure(&sizes, plan.gap)?;
        for (size, gap) in gaps.gaps_ms {
            let place = plan.sizes.iter().position(|one| *one == size).context("a size of the plan")?;
            figures[GAPS[place]] = rounded(gap);
        }
        *failed.get_or_insert(0) += gaps.failed;
    }
    if wanted(Part::Memory) {
        let memory = memory::measure(plan.large, plan.churn)?;
        figures["peak_ratio_100k"] = rounded(memory.peak_ratio);
        figures["churn_500_cpu_pct"] = rounded(memory.churn_cpu_pct);
    }
    if wanted(Part::Slope) {
        let points = slope::measure(None, plan.locals, plan.remotes, plan.changes)?;
        figures["slope_bytes_per_pair"] = rounded(slope::bytes_per_pair(&points));
        let mut beside = Vec::new();
        if let Some(peer) = &arguments.beside {
            tell(&format!("the same by {}", peer.display()));
            beside = slope::measure(Some(peer), plan.locals, plan.remotes, plan.changes)?;
            figures.insert("beside_slope_bytes_per_pair".to_owned(), rounded(slope::bytes_per_pair(&beside)));
        }
        let path = arguments.plot.unwrap_or_else(|| target_directory().join("bench-config.svg"));
        // No reason to lose the figures.
        match std::fs::write(&path, plot::svg(&points, &beside)) {
            Ok(()) => tell(&format!("the slope as a picture: {}", path.display())),
            Err(error) => tell(&format!("no picture, because {} could not be written: {error}", path.display())),
        }
    }
    if wanted(Part::Certificates) {
        let peak = (0..plan.days).map(certificates::peak_over_mean).fold(0.0, f64::max);
        tell(&format!(
            "500 identities, certificates of an hour, a day of virtual time: peak minute {peak:.2} of the mean"
        ));
        figures["csr_peak_over_mean"] = rounded(peak);
        *failed.get_or_insert(0) += certificates::replace_root(plan.lifetime)?;
    }
    figures["failed"] = json!(failed);
    writeln!(std::io::stdout(), "{}", Value::Object(figures))?;
    Ok(())
}

/// With three digits after the point.
fn rounded(figure: f64) -> Value {
    json!((figure * 1e3).round() / 1e3)
}

/// The middle one, of an odd number.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn target_directory() -> PathBuf {
    // Set by make; cargo's own default otherwise.
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Progress, apart from the result.
fn tell(text: &str) {
    // Nobody may be listening.
    drop(writeln!(std::io::stderr(), "bench-config: {text}"));
}
