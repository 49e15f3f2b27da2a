//! Tells the time that a core worked from the time that the machine took away: other processes on its CPU, other virtual
//! machines on its host, and its own sleep.
//!
//! The wall clock is read all the time because that is cheap; the thread's own costs a system call. So it is asked when
//! something took suspiciously long, and around a sleep.

use rustix::time::{ClockId, clock_gettime};

/// Both clocks of the calling thread, as they were looked at last.
#[derive(Debug)]
pub(crate) struct CpuClock {
    wall_ns: u64,
    cpu_ns: u64,
}

impl CpuClock {
    /// Looks at `wall_ns`.
    pub(crate) fn new(wall_ns: u64) -> Self {
        Self { wall_ns, cpu_ns: thread_ns() }
    }

    /// Time that the thread worked since the last look.
    pub(crate) fn worked(&mut self, wall_ns: u64) -> u64 {
        let before = std::mem::replace(self, Self::new(wall_ns));
        self.cpu_ns - before.cpu_ns
    }

    /// The thread slept for so long since the last look: that time was not taken away from anything.
    pub(crate) fn slept(&mut self, asleep_ns: u64) {
        self.wall_ns += asleep_ns;
    }

    /// Of `took_ns` until `wall_ns`, what the thread worked at least. Time that was taken away since the last look is
    /// taken to have been taken away from this, which is why it is asked of what took long.
    pub(crate) fn worked_of(&mut self, took_ns: u64, wall_ns: u64) -> u64 {
        let passed = wall_ns.saturating_sub(self.wall_ns);
        let taken = passed.saturating_sub(self.worked(wall_ns));
        took_ns.saturating_sub(taken)
    }
}

fn thread_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).expect("a thread has no negative age");
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).expect("nanoseconds are below 10^9")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn time_spent_asleep_was_not_worked() {
        let began = Instant::now();
        let passed = || u64::try_from(began.elapsed().as_nanos()).unwrap();
        let mut clock = CpuClock::new(passed());
        let (never, receiver) = std::sync::mpsc::channel::<()>();
        assert!(receiver.recv_timeout(Duration::from_millis(30)).is_err());
        let slept = passed();
        assert!(clock.worked_of(slept, slept) < 15_000_000, "asleep for 30 ms");
        let excused = passed();
        assert!(receiver.recv_timeout(Duration::from_millis(30)).is_err());
        clock.slept(passed() - excused);
        let busy = passed();
        while clock.cpu_ns + 5_000_000 > thread_ns() {}
        let now = passed();
        assert!(clock.worked_of(now - busy, now) >= 4_900_000, "the negative control: busy for 5 ms");
        drop(never);
    }
}
