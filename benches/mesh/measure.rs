//! How things are measured: rounds of many, the median of the rounds, and an allocator that counts.

use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use stats_alloc::Region;

use crate::ALLOCATOR;

const ROUNDS: usize = 7;

/// Nanoseconds that `ask` takes for a key, as the median over rounds of the mean over all keys.
pub(crate) fn lookup_ns<K, T>(keys: &[K], ask: impl Fn(&K) -> T) -> f64 {
    median_of_rounds(|| pass_ns(keys, &ask))
}

/// The same, with other keys in each round: nothing of one round is left in the caches for the next, except by chance.
pub(crate) fn cold_lookup_ns<K, T>(mut draw: impl FnMut() -> Vec<K>, ask: impl Fn(&K) -> T) -> f64 {
    median_of_rounds(|| pass_ns(&draw(), &ask))
}

fn median_of_rounds(round: impl FnMut() -> f64) -> f64 {
    let mut rounds: Vec<f64> = std::iter::repeat_with(round).take(ROUNDS).collect();
    quantile(&mut rounds, 0.5)
}

/// Panics when `ask` allocates.
fn pass_ns<K, T>(keys: &[K], ask: impl Fn(&K) -> T) -> f64 {
    let region = Region::new(ALLOCATOR);
    let start = CpuTime::now();
    for key in keys {
        black_box(ask(black_box(key)));
    }
    let took = start.elapsed().as_secs_f64() * 1e9;
    let allocated = region.change();
    assert_eq!(allocated.allocations + allocated.reallocations, 0, "a lookup allocates: {allocated:?}");
    took / keys.len() as f64
}

/// Nanoseconds of a read that misses the caches and the address translation's: a walk through 256 MiB in no order. What
/// "cold" costs, to tell a slow machine, or one that others use, from a slow program.
pub(crate) fn miss_ns() -> f64 {
    const PLACES: u32 = 1 << 26;
    const STEPS: u32 = 1 << 20;
    // A full-period linear congruence: each place once, and no prefetcher follows it.
    let walk: Vec<u32> =
        (0..PLACES).map(|at| at.wrapping_mul(0x915f_77f5).wrapping_add(0x6487_ed51) % PLACES).collect();
    let start = CpuTime::now();
    let mut at = 0_u32;
    for _ in 0..STEPS {
        at = walk[at as usize];
    }
    black_box(at);
    start.elapsed().as_secs_f64() * 1e9 / f64::from(STEPS)
}

/// Bytes in use on the heap, as asked for: without what the allocator adds.
pub(crate) fn heap_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Bytes of this process in memory: what the allocator adds and cannot use again included.
pub(crate) fn resident_bytes() -> usize {
    const PAGE_BYTES: usize = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages =
        text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("the second is the resident");
    pages * PAGE_BYTES
}

/// The value that a part of the samples does not exceed.
pub(crate) fn quantile(samples: &mut [f64], part: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * part).round() as usize]
}

/// A point in this thread's own time. Wall-clock time belongs to the machine and whoever else uses it; the thread neither waits
/// nor sleeps, so on a quiet machine the two are one.
pub(crate) struct CpuTime(Duration);

impl CpuTime {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
        Self(Duration::new(seconds, nanoseconds))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}
