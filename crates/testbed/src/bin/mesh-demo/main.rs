//! `mesh-demo`: two nodes, two tenants and what the daemon does for them, shown in under two minutes. `make demo` runs
//! it. It ends with 0 only if everything it showed was true. Nothing it makes outlives it, however it ends.

mod latency;
mod screen;
mod story;

use std::fs;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::screen::Screen;

fn main() -> ExitCode {
    let screen = Screen::new();
    match show(&screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn show(screen: &Screen) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("coretunnel-demo-").tempdir()?;
    tempfile::env::override_temp_dir(directory.path())
        .ok()
        .context("the directory for temporary files was chosen before")?;
    clean_up_when_interrupted(directory.path().to_owned())?;
    story::tell(screen)
}

/// Namespaces go with this process, and daemons are killed with it; only files have to be removed by hand.
fn clean_up_when_interrupted(directory: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        let _ = fs::remove_dir_all(&directory);
        Screen::new().failure("interrupted; the mesh is gone");
        process::exit(130);
    })?;
    Ok(())
}
