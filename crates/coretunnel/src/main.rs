//! The daemon: command line, settings, wiring. Everything it does is done by the crates below.

mod admin;
mod aside;
mod cli;
mod config;
mod cores_page;
mod limits;
mod metrics_page;
mod preflight;
mod publisher;
mod readiness;
mod signal;
mod start;
mod status;
mod version;

use std::{io::Write as _, net::SocketAddr, process::ExitCode};

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
        Some(Command::Status { admin_addr, format }) => tell(admin_addr, format),
        Some(Command::Version) => {
            let istio = std::env::var(version::ISTIO_VERSION).unwrap_or_else(|_| "unknown".to_owned());
            print(&version::line(&istio));
            ExitCode::SUCCESS
        }
    }
}

fn run(flags: &Flags) -> ExitCode {
    let settings = match settings(flags) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match start::run(&settings) {
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
    // As a start does, so that both see the same; what cannot be raised is a finding.
    drop(limits::raise());
    let findings = preflight::examine_all(&settings);
    print(&match format {
        OutputFormat::Table => preflight::table(&findings),
        OutputFormat::Json => preflight::json(&findings),
    });
    if preflight::blocks_start(&findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// How a running daemon stands.
fn tell(address: SocketAddr, format: OutputFormat) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("coretunnel: cannot wait for an answer: {error}; is the process out of descriptors?"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(status::ask::page(address)) {
        Ok(page) => {
            print(&match format {
                OutputFormat::Table => status::table::table(&page),
                OutputFormat::Json => serde_json::to_string_pretty(&page).expect("it was JSON"),
            });
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("coretunnel: {error}"));
            ExitCode::FAILURE
        }
    }
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

/// What a command answers goes to standard output.
fn print(text: &str) {
    // A reader that has gone, as `head` does, has read what it wanted.
    let _read = writeln!(std::io::stdout(), "{}", text.trim_end());
}

#[expect(clippy::print_stderr, reason = "before there is a log, errors go to standard error")]
fn complain(text: &str) {
    eprintln!("{text}");
}
