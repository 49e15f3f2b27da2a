//! `bench-engine`: all figures of the engine by itself, with progress; the last line is one JSON object. The relays and the victim
//! are this program again.

use std::io::{self, Write};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use perf_tests::engine::{Run, Scale, relay, victim};
use serde_json::Value;

/// The engine's figures: CPU per operation against tokio, memory, shares between tenants, isolation. At most ten minutes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Fewer and shorter rounds, below a minute: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
    /// So many rounds instead of the usual number
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Only these figures, separated by commas: pp16,victim_p99_bulk
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Be a relay until standard input ends
    #[command(hide = true)]
    Relay(relay::Options),
    /// Be the victim until standard input ends
    #[command(hide = true)]
    Victim {
        #[arg(long)]
        cpu: usize,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::Relay(options)) => relay::serve(&options),
        Some(Part::Victim { cpu }) => victim::serve(cpu),
        None => {
            let mut scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
            if let Some(rounds) = arguments.rounds {
                (scale.rounds, scale.long_rounds) = (rounds.into(), rounds.into());
            }
            let run = Run::new(scale, arguments.only, Box::new(tell))?;
            run.say(&machine()?);
            let figures = Value::Object(run.figures()?);
            ensure!(finite(&figures), "a figure is no number: {figures}");
            tell(&figures.to_string());
            Ok(())
        }
    }
}

fn tell(line: &str) {
    // A reader that left ends the run at its next figure, not here.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn finite(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(finite),
        other => other.as_f64().is_some_and(f64::is_finite),
    }
}

fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    // Not available_parallelism: by now this process is on one of them.
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let model = model.trim_start_matches([' ', '\t', ':']);
    Ok(format!("{model}, {count} CPUs, Linux {}, load {}, {build} build", kernel.trim(), load.trim()))
}
