//! Connections that came before what they need: they wait on their own core, bounded and with a deadline.
//!
//! Nothing answers a parked connection. It posts what it lacks on the core's `wanted` channel, and looks again whenever
//! something new was installed.

use std::{cell::Cell, rc::Rc, time::Duration};

use reactor::Runtime;

use crate::{bell::Bell, deadline::within};

/// The parked connections of one pod.
pub(crate) struct Lot {
    parked: Rc<Cell<usize>>,
    parked_max: usize,
}

/// Why a connection did not get what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unparked {
    /// The deadline passed.
    TimedOut,
    /// As many of this pod's connections were waiting as may.
    Full,
}

impl Lot {
    /// Room for `parked_max` connections.
    pub(crate) fn new(parked_max: usize) -> Self {
        Self { parked: Rc::default(), parked_max }
    }

    /// What `look` finds, now or after one of the next rings of `news`, for at most `limit`.
    pub(crate) async fn until<R: Runtime, T>(
        &self,
        runtime: &R,
        news: &Bell,
        limit: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Unparked> {
        if let Some(found) = look() {
            return Ok(found);
        }
        let _place = self.place().ok_or(Unparked::Full)?;
        let waiting = async {
            loop {
                let seen = news.count();
                if let Some(found) = look() {
                    return found;
                }
                news.after(seen).await;
            }
        };
        within(runtime, limit, waiting).await.map_err(|_| Unparked::TimedOut)
    }

    /// A place among the parked.
    pub(crate) fn place(&self) -> Option<Place> {
        if self.parked.get() >= self.parked_max {
            return None;
        }
        self.parked.set(self.parked.get() + 1);
        Some(Place(self.parked.clone()))
    }
}

/// A place among the parked; dropping it gives it up.
pub(crate) struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
