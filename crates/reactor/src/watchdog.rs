//! A thread that looks whether cores get on, and says in the log which does not, for whom and in which task.
//!
//! It sees a core from outside, because one that stands still says nothing itself. It changes nothing: a task cannot be
//! interrupted, and ending the process is for whoever asks the core for readiness in vain.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{CoreView, Decision, pulse::Busy};

/// Turns that are told of a core that stands still.
const LAST_TURNS: usize = 8;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches `cores`, and reports each thing that lasts longer than `threshold`, half a threshold later at most. It
    /// costs some ten microseconds of CPU as often.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(cores: Vec<CoreView>, threshold: Duration) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut seen: Vec<_> = cores.into_iter().map(|core| (core, None)).collect();
            while !stopped.load(Ordering::Relaxed) {
                for (core, reported) in &mut seen {
                    look(core, reported, threshold);
                }
                thread::park_timeout(threshold / 2);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic; if it did, that was in the log.
            drop(thread.join());
        }
    }
}

/// Reports what is new since the last look.
fn look(core: &CoreView, reported: &mut Option<Busy>, threshold: Duration) {
    let busy = core.pulse.busy(threshold);
    if let Some(before) = *reported
        && busy.is_none_or(|busy| busy.since_ns != before.since_ns)
    {
        *reported = None;
        tracing::warn!(core = core.name(), "the core goes on");
    }
    let Some(busy) = busy else { return };
    if reported.is_none() {
        core.pulse.stalls.add(1);
        let (lasts, turns_before) = (busy.lasts, last_turns(core));
        match busy.task {
            Some(task) => {
                let named = core.accounts.name(busy.tenant);
                let tenant = named.as_deref().unwrap_or("unnamed");
                tracing::error!(
                    core = core.name(),
                    tenant,
                    tenant_key = busy.tenant.0,
                    %task,
                    ?lasts,
                    turns_before,
                    "a task does not let its core go on; it was spawned there"
                );
            }
            None => tracing::error!(
                core = core.name(),
                ?lasts,
                turns_before,
                "the core does not go on, and no task is running"
            ),
        }
    }
    *reported = Some(busy);
}

/// The turns that led there, the newest last, in a line of a log.
fn last_turns(core: &CoreView) -> String {
    let decisions = core.decisions();
    let last = decisions[decisions.len().saturating_sub(LAST_TURNS)..].iter().map(|decision| {
        let Decision { tenant, used_ns, polls, end, .. } = decision;
        let name = core.accounts.name(*tenant);
        let name = name.as_deref().unwrap_or("unnamed");
        format!("{name} {} us, {polls} polls, {}", used_ns / 1_000, end.text())
    });
    last.collect::<Vec<_>>().join("; ")
}
