//! Which CPUs a run uses, and putting a thread on one. Not a scheduler's business beyond that.

use anyhow::{Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The relay's CPU, and that of what loads it and answers it.
///
/// # Errors
/// When this process may use fewer than two: load and relay would take turns on one, and nothing could be told.
pub fn pair() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    match (cpus.next(), cpus.next()) {
        (Some(relay), Some(load)) => Ok((relay, load)),
        _ => bail!("bench-engine needs two CPUs and may use one: see taskset -p $$ and the cgroup's cpuset"),
    }
}

/// Puts the calling thread, and those it starts from now on, on one CPU.
///
/// # Errors
/// When there is no such CPU or it is not allowed.
pub fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("CPU {cpu}: at most {}", CpuSet::MAX_CPU - 1);
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
