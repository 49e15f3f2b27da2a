//! The engine's own figures: a plain relay on one core against one on tokio, shares of CPU between tenants, a quiet tenant beside
//! noise. What is measured and why is in `docs/PERFORMANCE.md`; `bench-engine` is the command.

pub mod both_ends;
pub mod child;
pub mod cpus;
pub mod crowd;
pub mod flood;
pub mod isolation;
pub mod paired;
pub mod ratios;
pub mod relay;
pub mod shares;
pub mod victim;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
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
    /// Names of the figures that are wanted; all when it is empty.
    only: Vec<String>,
    /// Told line by line to who waits.
    progress: Box<dyn Fn(&str)>,
}

/// Every figure, in the order in which they are taken.
pub const FIGURES: [&str; 15] = [
    "pp1",
    "pp16",
    "pp64",
    "pp256",
    "crr16",
    "bulk1",
    "bulk16",
    "accounts_cost",
    "idle_cpu_pct",
    "idle_kib",
    "share_1_3",
    "share_256_1",
    "victim_p99_bulk",
    "victim_p99_churn",
    "victim_p99_burst",
];

impl Run {
    /// Puts this process on its CPU.
    ///
    /// # Errors
    /// When there are not two, or there is no such figure.
    pub fn new(scale: Scale, only: Vec<String>, progress: Box<dyn Fn(&str)>) -> Result<Self> {
        if let Some(unknown) = only.iter().find(|name| !FIGURES.contains(&name.as_str())) {
            bail!("there is no figure {unknown:?}; there are {}", FIGURES.join(", "));
        }
        let (relay_cpu, load_cpu) = cpus::pair()?;
        cpus::pin(load_cpu)?;
        Ok(Self { scale, relay_cpu, load_cpu, began: Instant::now(), only, progress })
    }

    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == figure)
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
