//! The relay between two plain sockets by itself, for measuring the engine under it. What is around it in a mesh (a verdict,
//! a record, a place in the table that can be stopped) is not here.

use std::{cell::Cell, future::pending, io, pin::pin};

use reactor::Stream;

use crate::relay::{self, Meter};

#[derive(Default)]
struct Totals {
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Meter for Totals {
    fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }
}

/// Relays between two sockets as the data plane does, until both directions have ended. How many bytes went from `client`
/// to `server`, and how many back.
///
/// # Errors
/// When an end broke otherwise than by its application; both have been reset by then.
pub fn relay_plain<S: Stream>(client: S, server: S) -> impl Future<Output = io::Result<(u64, u64)>> {
    // Not inside, where both would keep their places beside what is made of them.
    let (client, server) = (relay::plain(client), relay::plain(server));
    async move {
        let totals = Totals::default();
        let ended = relay::run(client, server, &totals, pin!(pending())).await;
        ended.map_err(|why| io::Error::other(why.to_string()))?;
        Ok((totals.received.get(), totals.sent.get()))
    }
}
