//! Bounds a future by a time of the core's own runtime, virtual in simulation.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::future::{Either, select};
use reactor::Runtime;

/// The time given to a step was over before the step was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimedOut;

/// Runs `step` for at most `limit`. The step is dropped when its time is over.
pub(crate) async fn within<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    step: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    match select(pin!(step), pin!(runtime.sleep(limit))).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(((), _)) => Err(TimedOut),
    }
}
