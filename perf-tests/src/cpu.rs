//! What a process has spent on CPUs, the kernel's work on its behalf included, to the nanosecond: the sum of
//! `/proc/<pid>/task/*/schedstat`. Threads that ended are no longer in it, so measure processes whose threads stay.

use std::fs;
use std::io;
use std::time::Duration;

/// CPU time of some processes since it was started.
pub struct Meter {
    processes: Vec<(u32, Duration)>,
}

impl Meter {
    /// Starts to measure.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn start(processes: &[u32]) -> io::Result<Self> {
        let processes: io::Result<_> = processes.iter().map(|process| Ok((*process, of_process(*process)?))).collect();
        Ok(Self { processes: processes? })
    }

    /// What each has spent since, in the order they were given.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn spent(&self) -> io::Result<Vec<Duration>> {
        let since = |(process, before): &(u32, Duration)| Ok(of_process(*process)?.saturating_sub(*before));
        self.processes.iter().map(since).collect()
    }
}

/// What the threads of a process have spent since they began.
///
/// # Errors
/// When it is not there, or the kernel does not count (`CONFIG_SCHED_INFO`).
pub fn of_process(process: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // One that ended meanwhile.
        let Ok(line) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += on_cpu(&line)?;
    }
    if total.is_zero() {
        return Err(io::Error::other(format!("process {process} never ran: /proc has no schedstat of it")));
    }
    Ok(total)
}

/// Of `on_cpu_ns waiting_ns slices`.
fn on_cpu(line: &str) -> io::Result<Duration> {
    let nanoseconds = line.split_whitespace().next().and_then(|field| field.parse().ok());
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("not a schedstat line: {line:?}"));
    nanoseconds.map(Duration::from_nanos).ok_or_else(unreadable)
}

#[cfg(test)]
mod tests {
    use std::process;
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_is_charged_and_waiting_is_not() {
        let own = process::id();
        let meter = Meter::start(&[own]).unwrap();
        let began = Instant::now();
        let mut steps = 0_u64;
        while meter.spent().unwrap()[0] < Duration::from_millis(20) {
            steps += 1;
            assert!(began.elapsed() < Duration::from_secs(20), "{steps} steps and never charged");
        }
        assert!(Meter::start(&[u32::MAX]).is_err());
    }

    #[test]
    fn only_time_on_a_cpu_is_read() {
        assert_eq!(on_cpu("1500 99 3\n").unwrap(), Duration::from_nanos(1500));
        assert!(on_cpu("").is_err() && on_cpu("x 1 2").is_err());
    }
}
