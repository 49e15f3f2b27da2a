//! The daemon: command line, settings, wiring. Everything it does is done by the crates below.

mod admin;
mod cli;
mod config;
mod metrics_page;
mod preflight;
mod publisher;
mod readiness;
mod signal;
mod start;
mod version;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Flags, OutputFormat};
use config::{Cpus, Environment, Host, Settings};

/// A setting cannot be used: as clap's own errors.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => run(&cli.settings),
        Some(Command::Run(flags)) => run(&flags),
        Some(Command::Proxy { .. }) => run(&Flags::default()),
        Some(Command::Preflight { format, settings }) => examine(&settings, format),
        Some(Command::Version) => {
            print(&version::line());
            ExitCode::SUCCESS
        }
    }
}

fn run(flags: &Flags) -> ExitCode {
    let settings = match settings(flags) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match start::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("coretunnel: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn examine(flags: &Flags, format: OutputFormat) -> ExitCode {
    let settings = match settings(flags) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let findings = preflight::examine(&settings);
    print(&match format {
        OutputFormat::Table => preflight::table(&findings),
        OutputFormat::Json => preflight::json(&findings),
    });
    if preflight::blocks_start(&findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn settings(flags: &Flags) -> Result<Settings, ExitCode> {
    config::load(flags, &Environment::of_process(), &host()).map_err(|errors| {
        for error in errors {
            complain(&format!("coretunnel: {error}"));
        }
        ExitCode::from(EXIT_USAGE)
    })
}

fn host() -> Host {
    let usable = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        // Every process runs somewhere; where it cannot be told, the first CPU has to do.
        Err(_) => vec![0],
    };
    // Absent where the kernel was built or booted without IPv6.
    let has_ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    Host { cpus: Cpus { usable }, has_ipv6 }
}

#[expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]
fn print(text: &str) {
    println!("{}", text.trim_end());
}

#[expect(clippy::print_stderr, reason = "before there is a log, errors go to standard error")]
fn complain(text: &str) {
    eprintln!("{text}");
}
