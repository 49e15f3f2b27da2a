//! Where the control thread runs: away from the cores where the machine has a CPU to spare, else behind them. What it takes
//! apart, a push of 100,000 workloads for instance, is not to be paid for by connections.

use rustix::{
    process::{getpriority_process, setpriority_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Its nice value where it shares CPUs with cores. Beside a thread that never sleeps, 2 ms of work take 13 ms at 10 and up to
/// 128 ms at 19 (one CPU, Linux 6.18); a pod's capture takes a few such steps, and the CNI agent is to have its answer
/// within a second beside several such threads.
const NICE: i32 = 10;

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On CPUs that no core is pinned to.
    Spare(Vec<usize>),
    /// Wherever it may, behind the cores.
    Behind,
}

/// Moves the calling thread, and the threads it starts from now on, out of the way of those that are pinned to `cores`. What
/// cannot be done is told and changes nothing.
pub(crate) fn step(cores: &[usize]) {
    let usable = match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => Vec::new(),
    };
    let place = place(&usable, cores);
    let done = match &place {
        Place::Spare(cpus) => {
            let mut set = CpuSet::new();
            cpus.iter().for_each(|cpu| set.set(*cpu));
            sched_setaffinity(None, &set)
        }
        // Linux takes the calling thread's for the process's, as `setpriority(2)` says under BUGS.
        Place::Behind => {
            let nice = getpriority_process(None).map_or(NICE, |nice| nice.max(NICE));
            setpriority_process(None, nice)
        }
    };
    match done {
        Ok(()) => tracing::info!(?place, "the control thread keeps out of the cores' way"),
        Err(error) => tracing::warn!(%error, ?place, "the control thread stays in the cores' way"),
    }
}

fn place(usable: &[usize], cores: &[usize]) -> Place {
    let spare: Vec<usize> = usable.iter().filter(|cpu| !cores.contains(cpu)).copied().collect();
    if spare.is_empty() { Place::Behind } else { Place::Spare(spare) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_thread_has_the_cpus_that_cores_do_not_or_stands_behind_them() {
        for (usable, cores, expected) in [
            (&[0, 1, 2, 3][..], &[0][..], Place::Spare(vec![1, 2, 3])),
            (&[0, 1, 2, 3], &[1, 3], Place::Spare(vec![0, 2])),
            (&[0, 1], &[0, 1], Place::Behind),
            (&[5], &[5], Place::Behind),
            (&[], &[0], Place::Behind),
        ] {
            assert_eq!(place(usable, cores), expected, "{usable:?} {cores:?}");
        }
    }
}
