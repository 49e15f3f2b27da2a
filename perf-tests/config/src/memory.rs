//! What a large mesh takes of memory while it is replaced, and of a CPU while its endpoints change.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use testbed::mesh::{NodeId, PodSpec};

use crate::stage::Stage;
use crate::tell;
use crate::world::{World, response};

const CHANGES_PER_SECOND: u32 = 500;
/// As istiod collects them.
const COLLECTED: Duration = Duration::from_millis(100);

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// The highest memory during a full push over the old generation, the new one and one and a half encoded messages.
    pub(crate) peak_ratio: f64,
    /// Of one CPU, all threads together, each change in a response of its own.
    pub(crate) churn_cpu_pct: f64,
}

pub(crate) fn measure(workloads: u32, churn: Duration) -> Result<Figures> {
    let stage = Stage::start(&[PodSpec::new("pod", NodeId::A)], &[])?;
    let world = World { workloads };
    let empty = stage.memory("VmRSS")?;
    let bytes = full_push(&stage, world, 0)?;
    let old = stage.memory("VmRSS")? - empty;
    stage.forget_peak()?;
    full_push(&stage, world, 1)?;
    let (peak, new) = (stage.memory("VmHWM")? - empty, stage.memory("VmRSS")? - empty);
    // Memory that the allocator keeps is no generation: the smaller of both is nearer to what one takes.
    let generation = old.min(new);
    let peak_ratio = peak / (2.0 * generation + 1.5 * bytes);
    let mb = |bytes: f64| bytes / 1e6;
    tell(&format!(
        "{workloads} workloads: empty {:.0} MB, a generation {:.0} MB ({:.0} and {:.0}), encoded {:.0} MB, peak {:.0} MB: \
         ratio {peak_ratio:.2}",
        mb(empty),
        mb(generation),
        mb(old),
        mb(new),
        mb(bytes),
        mb(peak)
    ));
    let idle = cpu_during(&stage, churn, |_| Ok(()))?;
    let alone = cpu_during(&stage, churn, |began| change(&stage, world, 2, began, churn, Duration::ZERO))? - idle;
    let together = cpu_during(&stage, churn, |began| change(&stage, world, 3, began, churn, COLLECTED))? - idle;
    tell(&format!(
        "{CHANGES_PER_SECOND} changes a second: {alone:.2} % of a CPU when each is a response, {together:.2} % when they are \
         collected for {} ms (idle {idle:.2} %)",
        COLLECTED.as_millis()
    ));
    Ok(Figures { peak_ratio, churn_cpu_pct: alone })
}

/// Sends all of it and waits until it is in force. Its encoded bytes.
fn full_push(stage: &Stage, world: World, revision: u32) -> Result<f64> {
    let responses = world.encoded(revision);
    let answers = stage.xds().acknowledged() + responses.len();
    let bytes: usize = responses.iter().map(Bytes::len).sum();
    stage.xds().record(responses);
    stage.xds().push_recorded();
    stage.settled(answers)?;
    Ok(bytes as f64)
}

/// Percent of a CPU that the daemon took while something was done that lasts so long.
fn cpu_during(stage: &Stage, time: Duration, work: impl FnOnce(Instant) -> Result<()>) -> Result<f64> {
    let (before, began) = (stage.cpu()?, Instant::now());
    work(began)?;
    thread::sleep((began + time).saturating_duration_since(Instant::now()));
    let took = began.elapsed();
    Ok((stage.cpu()? - before).as_secs_f64() / took.as_secs_f64() * 100.0)
}

/// Changes endpoints to revisions from `revision` on, one after the other at their times; what is due within `collected` is one
/// response.
fn change(
    stage: &Stage,
    world: World,
    revision: u32,
    began: Instant,
    time: Duration,
    collected: Duration,
) -> Result<()> {
    let interval = Duration::from_secs(1) / CHANGES_PER_SECOND;
    let count = (time.as_secs_f64() * f64::from(CHANGES_PER_SECOND)) as u32;
    let answers = stage.xds().acknowledged();
    let (mut resources, mut sent) = (Vec::new(), 0);
    for number in 0..count {
        let due = began + interval * number;
        // Spread over the mesh, each another endpoint of another service. What is in force is odd where this is even, and the
        // other way round, so each has another address than it had.
        let which = number.wrapping_mul(7_919) % world.workloads;
        resources.push(world.workload(which, revision + 2 * number));
        if number + 1 == count || interval * (number + 1) >= collected * (sent + 1) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            stage.xds().send(&response(std::mem::take(&mut resources), number.into()));
            sent += 1;
        }
    }
    stage.settled(answers + sent as usize).map(drop)
}
