//! Asking whether the other end of a tunnel is still there. When to ask, and how long to wait, is the caller's.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use ::h2::{Ping, PingPong};

use crate::error::TunnelError;

/// Sends PINGs on one tunnel. It doesn't keep the tunnel open.
#[derive(Debug)]
pub struct Pinger {
    pings: PingPong,
    waiting: bool,
}

impl Pinger {
    pub(super) fn new(pings: PingPong) -> Self {
        Self { pings, waiting: false }
    }

    /// Sends a PING and waits for its answer. When the wait is cut short and `ping` called again, the second call waits
    /// for the first one's answer.
    pub async fn ping(&mut self) -> Result<(), TunnelError> {
        poll_fn(|cx| self.poll_ping(cx)).await
    }

    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if !self.waiting {
            self.pings.send_ping(Ping::opaque()).map_err(|error| TunnelError::of(&error))?;
            self.waiting = true;
        }
        let pong = ready!(self.pings.poll_pong(cx));
        self.waiting = false;
        Poll::Ready(pong.map(|_| ()).map_err(|error| TunnelError::of(&error)))
    }
}
