//! Keeps glommio's parking defect from stopping a core.
//!
//! glommio 0.9 takes "preempted before anything ran" for "nothing to run" (`run_task_queues` returns false for both) and
//! parks with runnable tasks, until one of its own events comes. So one of its timers must always be armed. A single
//! repeating timer is not enough, as measured: the defect strikes again right after the timer has ended the park, before
//! the timer's task ran to arm it anew, and then nothing is armed (with a preemption timer of 50 us a core with a single
//! 5 ms heartbeat stood still within seconds). Hence a ladder of timers, armed well ahead, each by a task of its own: the
//! core stands still for good only if glommio is preempted at that point as many times in a row as there are rungs.

use std::time::{Duration, Instant};

/// Timers armed ahead. Preempted every other time, which takes a preemption timer a thousand times shorter than the
/// default, 32 in a row happen once in four thousand million parks.
const RUNGS: u32 = 32;

/// The tasks that keep the ladder armed, on the calling thread's glommio executor. Dropping it ends them; not waiting for
/// that is part of it, for a wait would be one more chance to be parked for ever.
pub(crate) struct Heartbeat {
    _rungs: Vec<glommio::Task<()>>,
}

/// Arms a timer for every `every`.
pub(crate) fn start(every: Duration) -> Heartbeat {
    let origin = Instant::now();
    let rung = |rung| glommio::spawn_local(keep_armed(origin + every * rung, every * RUNGS));
    Heartbeat {
        _rungs: (1..=RUNGS).map(rung).collect(),
    }
}

async fn keep_armed(mut next: Instant, period: Duration) {
    loop {
        glommio::timer::sleep(next.saturating_duration_since(Instant::now())).await;
        // On the rung's own grid: those that come late together must not stay together.
        let late = Instant::now().saturating_duration_since(next).as_nanos();
        let periods = 1 + u32::try_from(late / period.as_nanos()).unwrap_or(u32::MAX - 1);
        next += period * periods;
    }
}
