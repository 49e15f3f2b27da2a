//! The engine's own figures: a plain relay on one core against one on tokio, shares of CPU between tenants, a quiet tenant beside
//! noise. What is measured and why is in `docs/PERFORMANCE.md`; `bench-engine` is the command.

pub mod child;
pub mod cpus;
pub mod crowd;
pub mod isolation;
pub mod paired;
pub mod ratios;
pub mod relay;
pub mod shares;
pub mod victim;

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Map, Value};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Interleaved rounds of the ratios.
    pub rounds: usize,
    /// How long one sample of a ratio takes.
    pub sample: Duration,
    /// Idle connections.
    pub idle: usize,
    /// Connections that burst.
    pub burst: usize,
    /// Rounds of shares and of the victim.
    pub long_rounds: usize,
    /// How long one of those samples takes.
    pub long_sample: Duration,
}

impl Scale {
    /// What figures are taken from: below ten minutes.
    pub const FULL: Self = Self {
        rounds: 10,
        sample: Duration::from_millis(1200),
        idle: 8000,
        burst: 5000,
        long_rounds: 3,
        long_sample: Duration::from_secs(5),
    };
    /// Enough to see that everything works: below a minute. Its figures mean nothing.
    pub const QUICK: Self = Self {
        rounds: 2,
        sample: Duration::from_millis(200),
        idle: 1000,
        burst: 500,
        long_rounds: 1,
        long_sample: Duration::from_millis(600),
    };
}

/// What a run goes by.
pub struct Run {
    /// How much.
    pub scale: Scale,
    /// Where relays run.
    pub relay_cpu: usize,
    /// Where everything else does.
    pub load_cpu: usize,
    began: Instant,
    /// Told line by line to who waits.
    progress: Box<dyn Fn(&str)>,
}

impl Run {
    /// Puts this process on its CPU.
    ///
    /// # Errors
    /// When there are not two.
    pub fn new(scale: Scale, progress: Box<dyn Fn(&str)>) -> Result<Self> {
        let (relay_cpu, load_cpu) = cpus::pair()?;
        cpus::pin(load_cpu)?;
        Ok(Self { scale, relay_cpu, load_cpu, began: Instant::now(), progress })
    }

    /// Says a line, with the time since the run began.
    pub fn say(&self, line: &str) {
        (self.progress)(&format!("[{:5.1} s] {line}", self.began.elapsed().as_secs_f64()));
    }

    /// All of the figures, by their names.
    ///
    /// # Errors
    /// When a relay fails, loses bytes, or does not answer in time.
    pub fn figures(&self) -> Result<Map<String, Value>> {
        let mut figures = ratios::measure(self)?;
        figures.extend(shares::measure(self)?);
        figures.extend(isolation::measure(self)?);
        Ok(figures)
    }
}
