//! What a core says of its progress, for whoever watches from another thread: since when it does what it does, for whom,
//! and the longest time it ever took for one thing.

use std::{
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::{accounts::Count, tenant::TenantKey};

/// How long the longest gap is remembered at least, and at most twice as long.
const WINDOW_NS: u64 = 30_000_000_000;

/// See the module. One writer, the core, but for `stalls`.
#[derive(Debug)]
pub(crate) struct Pulse {
    origin: Instant,
    /// In nanoseconds from the origin; 0 while it sleeps, as it may for any time.
    since_ns: Count,
    tenant: AtomicU32,
    /// Where the task that runs was spawned; null between polls.
    task: AtomicPtr<Location<'static>>,
    /// The longest gap of this window and of the one before.
    gaps_ns: [Count; 2],
    window: Count,
    /// Written by the watchdog.
    pub(crate) stalls: Count,
}

/// What a core does for longer than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    /// Names the thing: no other one of this core has begun then.
    pub(crate) since_ns: u64,
    pub(crate) lasts: Duration,
    pub(crate) tenant: TenantKey,
    /// Where the task was spawned; `None` if it is the core itself that does not get on.
    pub(crate) task: Option<&'static Location<'static>>,
}

impl Pulse {
    /// The pulse of a core that sleeps, and counts time from `origin`.
    pub(crate) fn new(origin: Instant) -> Self {
        Self {
            origin,
            since_ns: Count::default(),
            tenant: AtomicU32::new(0),
            task: AtomicPtr::new(ptr::null_mut()),
            gaps_ns: [Count::default(), Count::default()],
            window: Count::default(),
            stalls: Count::default(),
        }
    }

    /// A turn of `tenant` begins.
    pub(crate) fn turn(&self, tenant: TenantKey) {
        self.tenant.store(tenant.0, Ordering::Relaxed);
    }

    /// At `now_ns` a poll of the task spawned at `task` begins.
    pub(crate) fn polls(&self, now_ns: u64, task: &'static Location<'static>) {
        self.task.store(ptr::from_ref(task).cast_mut(), Ordering::Relaxed);
        self.since_ns.set(now_ns);
    }

    /// At `now_ns` the core does something of its own: the kernel, timers, wakes, its host.
    pub(crate) fn works(&self, now_ns: u64) {
        self.task.store(ptr::null_mut(), Ordering::Relaxed);
        self.tenant.store(TenantKey::CORE.0, Ordering::Relaxed);
        self.since_ns.set(now_ns);
    }

    /// The core sleeps until it has something to do.
    pub(crate) fn sleeps(&self) {
        self.since_ns.set(0);
    }

    /// At `now_ns` something ended that took `took_ns`.
    pub(crate) fn took(&self, now_ns: u64, took_ns: u64) {
        let window = now_ns / WINDOW_NS;
        let here = &self.gaps_ns[window as usize % 2];
        let known = self.window.read();
        if known != window {
            here.set(0);
            if window > known + 1 {
                self.gaps_ns[(window + 1) as usize % 2].set(0);
            }
            self.window.set(window);
        }
        if took_ns > here.read() {
            here.set(took_ns);
        }
    }

    /// The longest time the core took for one thing within the last half minute to minute.
    pub(crate) fn longest_gap(&self) -> Duration {
        Duration::from_nanos(self.gaps_ns[0].read().max(self.gaps_ns[1].read()))
    }

    /// What the core does, if it has done it for longer than `threshold`.
    pub(crate) fn busy(&self, threshold: Duration) -> Option<Busy> {
        let since_ns = self.since_ns.read();
        let task = self.task.load(Ordering::Relaxed);
        let tenant = TenantKey(self.tenant.load(Ordering::Relaxed));
        let lasts = self.origin.elapsed().saturating_sub(Duration::from_nanos(since_ns));
        if since_ns == 0 || lasts <= threshold || self.since_ns.read() != since_ns {
            return None;
        }
        #[expect(unsafe_code, reason = "an atomic holds a pointer, not a reference")]
        // SAFETY: what is stored there is null or was made from a `&'static Location`.
        let task = unsafe { task.as_ref() };
        Some(Busy { since_ns, lasts, tenant, task })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_sleeps_or_gets_on_is_not_busy() {
        let Some(origin) = Instant::now().checked_sub(Duration::from_secs(100)) else {
            return;
        };
        let pulse = Pulse::new(origin);
        let threshold = Duration::from_secs(10);
        assert_eq!(pulse.busy(threshold), None);
        pulse.turn(TenantKey(7));
        pulse.polls(99_000_000_000, Location::caller());
        assert_eq!(pulse.busy(threshold), None, "for a second only");
        pulse.polls(80_000_000_000, Location::caller());
        let busy = pulse.busy(threshold).unwrap();
        assert_eq!((busy.since_ns, busy.tenant), (80_000_000_000, TenantKey(7)));
        assert!(busy.task.unwrap().file().ends_with("pulse.rs"));
        pulse.works(80_000_000_000);
        assert_eq!(pulse.busy(threshold).map(|busy| (busy.tenant, busy.task)), Some((TenantKey::CORE, None)));
        pulse.sleeps();
        assert_eq!(pulse.busy(threshold), None);
    }

    #[test]
    fn the_longest_gap_is_forgotten_after_a_window_or_two() {
        let pulse = Pulse::new(Instant::now());
        let after = |windows: u64, gap: u64| {
            pulse.took(windows * WINDOW_NS + 1, gap);
            pulse.longest_gap().as_nanos()
        };
        assert_eq!([after(0, 5), after(0, 3), after(1, 2), after(1, 4), after(2, 1), after(5, 0)], [5, 5, 5, 5, 4, 0]);
    }
}
