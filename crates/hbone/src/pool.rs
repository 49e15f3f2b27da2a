//! The tunnels of one core's pods, lent out stream by stream. For each key at most one tunnel is being dialled; who
//! comes meanwhile waits for it, in order. It neither dials nor sleeps: the caller does both and brings the time.
//!
//! The rules are in `pool::ledger`, which is pure. This file adds what Rust needs around them: shared ownership, wakers,
//! and guards whose drop gives back what they stand for.

mod ledger;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mesh_state::identity::Identity;
use thiserror::Error;

use ledger::{Answer, Decision, Effects, Ledger, TunnelId, WaiterId};

/// What makes a tunnel fit for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// As whom we connect.
    pub source: Identity,
    /// Whom we expect, in the route's order.
    pub expected: Vec<Identity>,
    /// Where the tunnel goes.
    pub hop: SocketAddr,
    /// From which of the pod's addresses.
    pub source_ip: IpAddr,
}

/// The pool's limits.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Streams in one tunnel at once; the peer may allow fewer.
    pub streams_per_tunnel_max: usize,
    /// How long a tunnel without streams is kept.
    pub idle_timeout: Duration,
    /// Keys with a tunnel, a dial or a waiter. Worst case this many times 0.5 KiB, beside the tunnels themselves.
    pub keys_max: usize,
    /// Connections waiting for dials. Worst case this many times 0.2 KiB.
    pub waiters_max: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams_per_tunnel_max: 100,
            idle_timeout: Duration::from_secs(300),
            keys_max: 16_384,
            waiters_max: 16_384,
        }
    }
}

/// What the pool must know of a tunnel.
pub trait Usable {
    /// Whether it takes another stream at all.
    fn is_usable(&self) -> bool;

    /// How many streams its peer allows at once, as far as is known by now.
    fn streams_max(&self) -> usize {
        usize::MAX
    }
}

/// Tunnels to lend. Clones are the same pool.
pub struct Pool<T: Clone + Usable>(Rc<Shared<T>>);

struct Shared<T> {
    ledger: RefCell<Ledger<T>>,
    desk: RefCell<HashMap<WaiterId, Place<T>>>,
}

/// A waiter's place: how to call it, and then what for.
enum Place<T> {
    Waiting(Waker),
    Called(Answer<T>),
}

impl<T: Clone + Usable> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What a caller is to do for a stream.
pub enum Checkout<T: Clone + Usable> {
    /// Use this tunnel.
    Ready(Lent<T>),
    /// Dial one, and tell the ticket how it went.
    Dial(Ticket<T>),
    /// Somebody dials already.
    Wait(Waiting<T>),
    /// A limit of the pool is reached, or it is closed.
    Full,
}

/// What a waiter got.
pub enum Turn<T: Clone + Usable> {
    /// A place in a tunnel.
    Lent(Lent<T>),
    /// The dial it waited for had no room for it, or was given up: it dials now, and the others wait for it.
    Dial(Ticket<T>),
}

/// Why a waiter got nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// The dial it waited for failed.
    #[error("{message}")]
    DialFailed {
        /// In the dialler's words.
        message: Arc<str>,
    },
    /// The pool was closed: the pod is going.
    #[error("the tunnel pool was closed: its pod is going away")]
    Closed,
}

impl<T: Clone + Usable> Pool<T> {
    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self {
        Self(Rc::new(Shared { ledger: RefCell::new(Ledger::new(config)), desk: RefCell::default() }))
    }

    /// Asks for a stream's place in a tunnel. Never overtakes those who wait.
    pub fn checkout(&self, key: &PoolKey, now: Instant) -> Checkout<T> {
        let (decision, effects) = self.0.ledger.borrow_mut().checkout(key, now);
        self.0.apply(effects);
        match decision {
            Decision::Ready { key, id, tunnel } => Checkout::Ready(self.0.lent(key, id, tunnel)),
            Decision::Dial { key } => Checkout::Dial(self.0.ticket(key)),
            Decision::Wait { key, id } => {
                self.0.desk.borrow_mut().insert(id, Place::Waiting(Waker::noop().clone()));
                Checkout::Wait(Waiting { pool: self.0.clone(), key, id })
            }
            Decision::Full => Checkout::Full,
        }
    }

    /// Lets go of tunnels that nobody has used for the idle timeout, and of closed ones that nobody uses.
    pub fn evict_idle(&self, now: Instant) {
        let effects = self.0.ledger.borrow_mut().evict_idle(now);
        self.0.apply(effects);
    }

    /// When [`evict_idle`](Self::evict_idle) will next have something to do, as far as is known now. A tunnel given
    /// back later is not known yet: ask again at least every idle timeout.
    pub fn next_eviction(&self) -> Option<Instant> {
        self.0.ledger.borrow().next_eviction()
    }

    /// Lets go of all tunnels and sends all waiters away. Streams that run keep their tunnels until they end.
    pub fn close(&self) {
        let effects = self.0.ledger.borrow_mut().close();
        self.0.apply(effects);
    }

    /// Tunnels in the pool, lent or idle.
    pub fn tunnels(&self) -> usize {
        self.0.ledger.borrow().tunnels()
    }

    /// Keys the pool keeps something for.
    pub fn keys(&self) -> usize {
        self.0.ledger.borrow().keys()
    }
}

impl<T: Clone + Usable> Shared<T> {
    /// Calls the waiters that got something, then lets go of tunnels. The ledger isn't borrowed here: both run code of
    /// others, which may come back to the pool.
    fn apply(&self, effects: Effects<T>) {
        for (id, answer) in effects.answers {
            let place = self.desk.borrow_mut().insert(id, Place::Called(answer));
            match place {
                Some(Place::Waiting(waker)) => waker.wake(),
                Some(Place::Called(_)) | None => {
                    unreachable!("the ledger answers a waiter once, while it waits")
                }
            }
        }
    }

    fn lent(self: &Rc<Self>, key: Rc<PoolKey>, id: TunnelId, tunnel: T) -> Lent<T> {
        Lent { pool: self.clone(), key, id, tunnel }
    }

    fn ticket(self: &Rc<Self>, key: Rc<PoolKey>) -> Ticket<T> {
        Ticket { pool: self.clone(), key, open: true }
    }

    fn turn(self: &Rc<Self>, key: Rc<PoolKey>, answer: Answer<T>) -> Result<Turn<T>, PoolError> {
        match answer {
            Answer::Lent { id, tunnel } => Ok(Turn::Lent(self.lent(key, id, tunnel))),
            Answer::Dial => Ok(Turn::Dial(self.ticket(key))),
            Answer::Failed { message } => Err(PoolError::DialFailed { message }),
            Answer::Closed => Err(PoolError::Closed),
        }
    }
}

/// One stream's place in a tunnel. Dropping it gives the place to the next.
pub struct Lent<T: Clone + Usable> {
    pool: Rc<Shared<T>>,
    key: Rc<PoolKey>,
    id: TunnelId,
    tunnel: T,
}

impl<T: Clone + Usable> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.tunnel
    }
}

impl<T: Clone + Usable> Drop for Lent<T> {
    fn drop(&mut self) {
        let effects = self.pool.ledger.borrow_mut().give_back(&self.key, self.id);
        self.pool.apply(effects);
    }
}

/// The duty to dial for a key. Dropping it, because its connection went away, hands the duty to the next who waits:
/// nobody's dial failed, so nobody should be told so.
pub struct Ticket<T: Clone + Usable> {
    pool: Rc<Shared<T>>,
    key: Rc<PoolKey>,
    open: bool,
}

impl<T: Clone + Usable> Ticket<T> {
    /// The tunnel stands, and takes `streams_max` streams. The dialler's own place comes first, then the waiters'.
    pub fn fulfil(mut self, tunnel: T, streams_max: usize, now: Instant) -> Lent<T> {
        self.open = false;
        let (id, effects) = self.pool.ledger.borrow_mut().dialled(&self.key, tunnel.clone(), streams_max, now);
        let lent = self.pool.lent(self.key.clone(), id, tunnel);
        self.pool.apply(effects);
        lent
    }

    /// There is no tunnel. All who waited for this dial are told so: their dials would fail the same way, one timeout
    /// after the other.
    pub fn fail(mut self, message: Arc<str>) {
        self.open = false;
        let effects = self.pool.ledger.borrow_mut().dial_failed(&self.key, &message);
        self.pool.apply(effects);
    }
}

impl<T: Clone + Usable> Drop for Ticket<T> {
    fn drop(&mut self) {
        if self.open {
            let effects = self.pool.ledger.borrow_mut().dial_given_up(&self.key);
            self.pool.apply(effects);
        }
    }
}

/// Waits for somebody else's dial. Dropping it leaves the queue; what it was given already goes to the next.
pub struct Waiting<T: Clone + Usable> {
    pool: Rc<Shared<T>>,
    key: Rc<PoolKey>,
    id: WaiterId,
}

impl<T: Clone + Usable> Future for Waiting<T> {
    type Output = Result<Turn<T>, PoolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut desk = self.pool.desk.borrow_mut();
        let place = desk.get_mut(&self.id).expect("a place is kept until it is answered, and not polled after");
        if let Place::Waiting(waker) = place {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let Some(Place::Called(answer)) = desk.remove(&self.id) else { unreachable!("looked at above") };
        drop(desk);
        Poll::Ready(self.pool.turn(self.key.clone(), answer))
    }
}

impl<T: Clone + Usable> Drop for Waiting<T> {
    fn drop(&mut self) {
        let place = self.pool.desk.borrow_mut().remove(&self.id);
        match place {
            // Polled to its end.
            None => {}
            Some(Place::Waiting(_)) => {
                let effects = self.pool.ledger.borrow_mut().waiter_left(&self.key, self.id);
                self.pool.apply(effects);
            }
            // Made into its guard, whose drop hands it on.
            Some(Place::Called(answer)) => drop(self.pool.turn(self.key.clone(), answer)),
        }
    }
}
