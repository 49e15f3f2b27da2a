//! The pool against its promises: by hand for each rule, and by random events against a model.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use hbone::pool::{Checkout, Lent, Pool, PoolConfig, PoolError, PoolKey, Ticket, Turn, Usable, Waiting};
use mesh_state::identity::Identity;
use proptest::prelude::*;

/// A tunnel that only exists.
#[derive(Clone)]
struct Fake {
    number: usize,
    open: Rc<Cell<bool>>,
    allowed: Rc<Cell<usize>>,
}

impl Fake {
    fn new(number: usize) -> Self {
        Self { number, open: Rc::new(Cell::new(true)), allowed: Rc::new(Cell::new(usize::MAX)) }
    }
}

impl Usable for Fake {
    fn is_usable(&self) -> bool {
        self.open.get()
    }

    fn streams_max(&self) -> usize {
        self.allowed.get()
    }
}

fn key(number: u16) -> PoolKey {
    let identity = Identity::parse("spiffe://cluster.local/ns/shop/sa/a").expect("an identity");
    PoolKey {
        source: identity.clone(),
        expected: vec![identity],
        hop: (Ipv4Addr::LOCALHOST, 1 + number).into(),
        source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

fn config() -> PoolConfig {
    PoolConfig { streams_per_tunnel_max: 2, idle_timeout: Duration::from_secs(300), keys_max: 3, waiters_max: 4 }
}

fn ready<T>(checkout: Checkout<T>) -> Lent<T>
where
    T: Clone + Usable,
{
    match checkout {
        Checkout::Ready(lent) => lent,
        other => panic!("{}, not Ready", name(&other)),
    }
}

fn dial<T: Clone + Usable>(checkout: Checkout<T>) -> Ticket<T> {
    match checkout {
        Checkout::Dial(ticket) => ticket,
        other => panic!("{}, not Dial", name(&other)),
    }
}

fn wait<T: Clone + Usable>(checkout: Checkout<T>) -> Waiting<T> {
    match checkout {
        Checkout::Wait(waiting) => waiting,
        other => panic!("{}, not Wait", name(&other)),
    }
}

fn is_full<T: Clone + Usable>(checkout: &Checkout<T>) -> bool {
    matches!(checkout, Checkout::Full)
}

fn name<T: Clone + Usable>(checkout: &Checkout<T>) -> &'static str {
    match checkout {
        Checkout::Ready(_) => "Ready",
        Checkout::Dial(_) => "Dial",
        Checkout::Wait(_) => "Wait",
        Checkout::Full => "Full",
    }
}

fn poll<T: Clone + Usable>(waiting: &mut Waiting<T>) -> Poll<Result<Turn<T>, PoolError>> {
    Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
}

fn lent<T: Clone + Usable>(waiting: &mut Waiting<T>) -> Lent<T> {
    match poll(waiting) {
        Poll::Ready(Ok(Turn::Lent(lent))) => lent,
        Poll::Ready(Ok(Turn::Dial(_))) => panic!("told to dial, not lent"),
        Poll::Ready(Err(error)) => panic!("{error}, not lent"),
        Poll::Pending => panic!("still waiting, not lent"),
    }
}

fn told_to_dial<T: Clone + Usable>(waiting: &mut Waiting<T>) -> Ticket<T> {
    match poll(waiting) {
        Poll::Ready(Ok(Turn::Dial(ticket))) => ticket,
        Poll::Ready(Ok(Turn::Lent(_))) => panic!("lent, not told to dial"),
        Poll::Ready(Err(error)) => panic!("{error}, not told to dial"),
        Poll::Pending => panic!("still waiting, not told to dial"),
    }
}

#[test]
fn one_dials_and_the_others_share_its_tunnel_up_to_its_limit() {
    let (pool, now) = (Pool::new(PoolConfig { streams_per_tunnel_max: 3, ..config() }), Instant::now());
    let ticket = dial(pool.checkout(&key(0), now));
    let mut waiting: Vec<_> = (0..4).map(|_| wait(pool.checkout(&key(0), now))).collect();
    let mine = ticket.fulfil(Fake::new(7), 100, now);
    assert_eq!(mine.number, 7);
    let shared: Vec<_> = waiting[..2].iter_mut().map(lent).collect();
    assert!(shared.iter().all(|lent| lent.number == 7));
    let ticket = told_to_dial(&mut waiting[2]);
    assert!(poll(&mut waiting[3]).is_pending(), "exactly one of the rest dials");
    let second = ticket.fulfil(Fake::new(8), 100, now);
    assert_eq!(lent(&mut waiting[3]).number, 8);
    drop((mine, second));
    assert_eq!(pool.tunnels(), 2);
}

#[test]
fn different_keys_do_not_wait_for_each_other() {
    let (pool, now) = (Pool::<Fake>::new(config()), Instant::now());
    let _first = dial(pool.checkout(&key(0), now));
    let _second = dial(pool.checkout(&key(1), now));
    let others =
        [PoolKey { expected: vec![], ..key(0) }, PoolKey { source_ip: IpAddr::V4(Ipv4Addr::BROADCAST), ..key(0) }];
    let roomy = Pool::<Fake>::new(PoolConfig::default());
    let _dialling = dial(roomy.checkout(&key(0), now));
    for other in &others {
        drop(dial(roomy.checkout(other, now)));
    }
}

#[test]
fn a_peer_that_allows_fewer_streams_gets_fewer() {
    let (pool, now) = (Pool::new(PoolConfig::default()), Instant::now());
    let tunnel = Fake::new(0);
    let first = dial(pool.checkout(&key(0), now)).fulfil(tunnel.clone(), 2, now);
    let second = ready(pool.checkout(&key(0), now));
    drop(dial(pool.checkout(&key(0), now)));
    drop((first, second));
    // Its SETTINGS came after the dial was over.
    tunnel.allowed.set(1);
    let _first = ready(pool.checkout(&key(0), now));
    drop(dial(pool.checkout(&key(0), now)));
}

#[test]
fn a_tunnel_that_was_full_is_lent_again_when_streams_end() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let first = dial(pool.checkout(&key(0), now)).fulfil(Fake::new(1), 100, now);
    let _second = ready(pool.checkout(&key(0), now));
    drop(dial(pool.checkout(&key(0), now)));
    drop(first);
    assert_eq!(ready(pool.checkout(&key(0), now)).number, 1);
}

#[test]
fn a_place_that_becomes_free_goes_to_the_first_who_waits() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let first = dial(pool.checkout(&key(0), now)).fulfil(Fake::new(1), 100, now);
    let _second = ready(pool.checkout(&key(0), now));
    let dialling = dial(pool.checkout(&key(0), now));
    let (mut third, mut fourth) = (wait(pool.checkout(&key(0), now)), wait(pool.checkout(&key(0), now)));
    drop(first);
    assert!(poll(&mut fourth).is_pending());
    let third = lent(&mut third);
    assert_eq!(third.number, 1);
    assert!(poll(&mut fourth).is_pending());
    drop(third);
    assert_eq!(lent(&mut fourth).number, 1);
    drop(dialling);
}

#[test]
fn a_failed_dial_tells_all_who_wait_and_leaves_nothing_behind() {
    let (pool, now) = (Pool::<Fake>::new(config()), Instant::now());
    let ticket = dial(pool.checkout(&key(0), now));
    let mut waiting: Vec<_> = (0..3).map(|_| wait(pool.checkout(&key(0), now))).collect();
    ticket.fail("connection refused".into());
    for waiting in &mut waiting {
        let error = match poll(waiting) {
            Poll::Ready(Err(error)) => error,
            Poll::Ready(Ok(_)) => panic!("there is nothing to get"),
            Poll::Pending => panic!("waits for ever"),
        };
        assert_eq!(error, PoolError::DialFailed { message: "connection refused".into() });
    }
    assert_eq!((pool.keys(), pool.tunnels()), (0, 0));
    drop(dial(pool.checkout(&key(0), now)));
    assert_eq!(pool.keys(), 0, "a dial that is given up leaves nothing either");
}

#[test]
fn a_dialler_that_goes_away_is_followed_by_the_next() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let ticket = dial(pool.checkout(&key(0), now));
    let (mut second, mut third) = (wait(pool.checkout(&key(0), now)), wait(pool.checkout(&key(0), now)));
    drop(ticket);
    assert!(poll(&mut third).is_pending());
    // Told to dial, and gone before it even looked.
    drop(told_to_dial(&mut second));
    drop(second);
    let _lent = told_to_dial(&mut third).fulfil(Fake::new(1), 100, now);
}

#[test]
fn what_a_waiter_got_and_did_not_take_goes_to_the_next() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let ticket = dial(pool.checkout(&key(0), now));
    let second = wait(pool.checkout(&key(0), now));
    let mut third = wait(pool.checkout(&key(0), now));
    let _mine = ticket.fulfil(Fake::new(1), 100, now);
    // Third was told to dial; the second's place makes room, but a dial is a dial.
    drop(second);
    drop(told_to_dial(&mut third));
    assert_eq!(ready(pool.checkout(&key(0), now)).number, 1);
}

#[test]
fn a_waiter_is_woken() {
    struct Bell(AtomicUsize);
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (pool, now) = (Pool::new(config()), Instant::now());
    let ticket = dial(pool.checkout(&key(0), now));
    let mut waiting = wait(pool.checkout(&key(0), now));
    let bell = Arc::new(Bell(AtomicUsize::new(0)));
    let waker = Waker::from(bell.clone());
    assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(bell.0.load(Ordering::Relaxed), 0);
    let _mine = ticket.fulfil(Fake::new(1), 100, now);
    assert_eq!(bell.0.load(Ordering::Relaxed), 1);
    drop(lent(&mut waiting));
}

#[test]
fn a_closed_tunnel_is_let_go_when_it_is_seen() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let tunnel = Fake::new(1);
    let mine = dial(pool.checkout(&key(0), now)).fulfil(tunnel.clone(), 100, now);
    tunnel.open.set(false);
    let second = dial(pool.checkout(&key(0), now)).fulfil(Fake::new(2), 100, now);
    assert_eq!(pool.tunnels(), 1);
    drop(mine);
    assert_eq!(ready(pool.checkout(&key(0), now)).number, 2);
    second.open.set(false);
    drop(second);
    assert_eq!((pool.tunnels(), pool.keys()), (0, 0), "seen when it was given back");
    assert_eq!(Rc::strong_count(&tunnel.open), 1, "nobody holds it");
}

#[test]
fn a_tunnel_closed_before_it_was_shared_makes_the_next_dial() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let ticket = dial(pool.checkout(&key(0), now));
    let mut waiting = wait(pool.checkout(&key(0), now));
    let tunnel = Fake::new(1);
    tunnel.open.set(false);
    let _mine = ticket.fulfil(tunnel, 100, now);
    drop(told_to_dial(&mut waiting));
    assert_eq!(pool.keys(), 0);
}

#[test]
fn an_idle_tunnel_is_kept_for_the_timeout_and_a_used_one_for_as_long_as_it_is_used() {
    let (pool, start) = (Pool::new(config()), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let used = dial(pool.checkout(&key(0), start)).fulfil(Fake::new(0), 100, start);
    drop(dial(pool.checkout(&key(1), start)).fulfil(Fake::new(1), 100, start));
    assert_eq!(pool.next_eviction(), None, "given back without the time");
    pool.evict_idle(at(100));
    assert_eq!(pool.next_eviction(), Some(at(400)));
    pool.evict_idle(at(399));
    assert_eq!(pool.tunnels(), 2);
    // Used again, and idle again from then on.
    drop(ready(pool.checkout(&key(1), at(399))));
    pool.evict_idle(at(401));
    assert_eq!(pool.next_eviction(), Some(at(701)));
    pool.evict_idle(at(701));
    assert_eq!((pool.tunnels(), pool.keys()), (1, 1));
    pool.evict_idle(at(100_000));
    assert_eq!(pool.tunnels(), 1, "in use");
    drop(used);
    pool.evict_idle(at(100_000));
    pool.evict_idle(at(100_300));
    assert_eq!((pool.tunnels(), pool.keys(), pool.next_eviction()), (0, 0, None));
}

#[test]
fn a_closed_idle_tunnel_does_not_wait_for_its_timeout() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let tunnel = Fake::new(0);
    drop(dial(pool.checkout(&key(0), now)).fulfil(tunnel.clone(), 100, now));
    tunnel.open.set(false);
    pool.evict_idle(now);
    assert_eq!((pool.tunnels(), pool.keys()), (0, 0));
}

#[test]
fn the_limits_of_keys_and_waiters_hold() {
    let (pool, now) = (Pool::<Fake>::new(config()), Instant::now());
    let tickets: Vec<_> = (0..3).map(|number| dial(pool.checkout(&key(number), now))).collect();
    assert!(is_full(&pool.checkout(&key(3), now)));
    let waiting: Vec<_> = (0..4).map(|number| wait(pool.checkout(&key(number % 3), now))).collect();
    assert!(is_full(&pool.checkout(&key(0), now)));
    drop(waiting);
    drop(wait(pool.checkout(&key(0), now)));
    drop(tickets);
    assert_eq!(pool.keys(), 0);
}

#[test]
fn a_new_key_takes_the_place_of_the_longest_idle_one() {
    let (pool, start) = (Pool::new(config()), Instant::now());
    for number in 0..3_u16 {
        let now = start + Duration::from_secs(number.into());
        drop(dial(pool.checkout(&key(number), now)).fulfil(Fake::new(number.into()), 100, now));
        pool.evict_idle(now);
    }
    let now = start + Duration::from_secs(10);
    let _used = ready(pool.checkout(&key(0), now));
    let _new = dial(pool.checkout(&key(3), now));
    drop(ready(pool.checkout(&key(2), now)));
    assert!(matches!(pool.checkout(&key(1), now), Checkout::Dial(_)), "the longest idle was key 1's");
}

#[test]
fn a_closed_pool_sends_all_away_and_outlives_what_it_lent() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let tunnel = Fake::new(1);
    let mine = dial(pool.checkout(&key(0), now)).fulfil(tunnel.clone(), 100, now);
    let ticket = dial(pool.checkout(&key(1), now));
    let mut waiting = wait(pool.checkout(&key(1), now));
    let never_polled = wait(pool.checkout(&key(1), now));
    pool.close();
    assert!(matches!(poll(&mut waiting), Poll::Ready(Err(PoolError::Closed))));
    drop(never_polled);
    assert!(is_full(&pool.checkout(&key(0), now)));
    let late = ticket.fulfil(Fake::new(2), 100, now);
    assert_eq!((pool.tunnels(), pool.keys(), late.number, mine.number), (0, 0, 2, 1));
    drop((late, mine));
    pool.evict_idle(now);
    pool.close();
    assert_eq!(Rc::strong_count(&tunnel.open), 1, "nobody holds it");
}

/// A tunnel whose last handle comes back to the pool, as a driver's wake-up might.
#[derive(Clone)]
struct Nosy {
    _peek: Rc<Peek>,
}

struct Peek(RefCell<Option<Pool<Nosy>>>);

impl Usable for Nosy {
    fn is_usable(&self) -> bool {
        true
    }
}

impl Drop for Peek {
    fn drop(&mut self) {
        if let Some(pool) = self.0.borrow_mut().take() {
            let _ = pool.tunnels();
            pool.evict_idle(Instant::now());
        }
    }
}

#[test]
fn letting_go_of_a_tunnel_may_come_back_to_the_pool() {
    let (pool, now) = (Pool::new(config()), Instant::now());
    let nosy = || Nosy { _peek: Rc::new(Peek(RefCell::new(Some(pool.clone())))) };
    drop(dial(pool.checkout(&key(0), now)).fulfil(nosy(), 100, now));
    pool.evict_idle(now);
    pool.evict_idle(now + Duration::from_secs(300));
    assert_eq!(pool.tunnels(), 0);
    drop(dial(pool.checkout(&key(0), now)).fulfil(nosy(), 100, now));
    pool.close();
    assert_eq!(pool.tunnels(), 0);
}

/// One thing that happens to a pool. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Checkout { key: u16 },
    Fulfil { which: usize, streams_max: usize, open: bool },
    Fail { which: usize },
    GiveUp { which: usize },
    GiveBack { which: usize },
    PollWaiter { which: usize },
    DropWaiter { which: usize },
    CloseTunnel { which: usize },
    Allow { which: usize, streams: usize },
    Evict { seconds: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    let which = 0..64_usize;
    prop_oneof![
        6 => (0..4_u16).prop_map(|key| Event::Checkout { key }),
        3 => (which.clone(), 0..4_usize, prop::bool::weighted(0.9))
            .prop_map(|(which, streams_max, open)| Event::Fulfil { which, streams_max, open }),
        1 => which.clone().prop_map(|which| Event::Fail { which }),
        1 => which.clone().prop_map(|which| Event::GiveUp { which }),
        4 => which.clone().prop_map(|which| Event::GiveBack { which }),
        3 => which.clone().prop_map(|which| Event::PollWaiter { which }),
        2 => which.clone().prop_map(|which| Event::DropWaiter { which }),
        1 => which.clone().prop_map(|which| Event::CloseTunnel { which }),
        1 => (which, 0..4_usize).prop_map(|(which, streams)| Event::Allow { which, streams }),
        1 => (0..400_u64).prop_map(|seconds| Event::Evict { seconds }),
    ]
}

/// What the test holds, and what it knows about it.
struct World {
    pool: Pool<Fake>,
    config: PoolConfig,
    now: Instant,
    tickets: Vec<(u16, Ticket<Fake>)>,
    lent: Vec<Lent<Fake>>,
    waiting: Vec<(u16, Waiting<Fake>)>,
    tunnels: Vec<(Fake, usize)>,
}

impl World {
    fn new() -> Self {
        let config = PoolConfig { streams_per_tunnel_max: 3, waiters_max: 8, ..config() };
        Self {
            pool: Pool::new(config.clone()),
            config,
            now: Instant::now(),
            tickets: Vec::new(),
            lent: Vec::new(),
            waiting: Vec::new(),
            tunnels: Vec::new(),
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Checkout { key: number } => match self.pool.checkout(&key(number), self.now) {
                Checkout::Ready(lent) => self.lent.push(lent),
                Checkout::Dial(ticket) => self.tickets.push((number, ticket)),
                Checkout::Wait(waiting) => self.waiting.push((number, waiting)),
                Checkout::Full => {}
            },
            Event::Fulfil { which, streams_max, open } => {
                let Some((_, ticket)) = take(&mut self.tickets, which) else { return };
                let tunnel = Fake::new(self.tunnels.len());
                tunnel.open.set(open);
                self.tunnels.push((tunnel.clone(), streams_max.min(self.config.streams_per_tunnel_max).max(1)));
                self.lent.push(ticket.fulfil(tunnel, streams_max, self.now));
            }
            Event::Fail { which } => {
                let Some((_, ticket)) = take(&mut self.tickets, which) else { return };
                ticket.fail("refused".into());
            }
            Event::GiveUp { which } => drop(take(&mut self.tickets, which)),
            Event::GiveBack { which } => drop(take(&mut self.lent, which)),
            Event::PollWaiter { which } => {
                if !self.waiting.is_empty() {
                    let at = which % self.waiting.len();
                    self.poll_waiter(at);
                }
            }
            Event::DropWaiter { which } => drop(take(&mut self.waiting, which)),
            Event::CloseTunnel { which } => {
                if !self.tunnels.is_empty() {
                    self.tunnels[which % self.tunnels.len()].0.open.set(false);
                }
            }
            Event::Allow { which, streams } => {
                // Only before it carries more: a peer's limit doesn't end streams that are there.
                self.settle();
                let lent = self.streams();
                if let Some((tunnel, _)) = self.tunnels.get(which % self.tunnels.len().max(1))
                    && lent.get(&tunnel.number).is_none_or(|count| *count <= streams)
                {
                    tunnel.allowed.set(streams);
                }
            }
            Event::Evict { seconds } => {
                self.now += Duration::from_secs(seconds);
                self.pool.evict_idle(self.now);
            }
        }
    }

    /// Whether the waiter got something, good or bad.
    fn poll_waiter(&mut self, at: usize) -> bool {
        let (number, waiting) = &mut self.waiting[at];
        match poll(waiting) {
            Poll::Pending => return false,
            Poll::Ready(Ok(Turn::Lent(lent))) => self.lent.push(lent),
            Poll::Ready(Ok(Turn::Dial(ticket))) => self.tickets.push((*number, ticket)),
            Poll::Ready(Err(_)) => {}
        }
        self.waiting.remove(at);
        true
    }

    /// Streams by tunnel, of those lent to the test; waiters may hold more.
    fn streams(&self) -> HashMap<usize, usize> {
        self.lent.iter().fold(HashMap::new(), |mut streams, lent| {
            *streams.entry(lent.number).or_default() += 1;
            streams
        })
    }

    /// What must hold after every event, as far as it can be seen without polling waiters.
    fn check(&self) {
        for number in 0..4 {
            let dials = self.tickets.iter().filter(|(key, _)| *key == number).count();
            assert!(dials <= 1, "key {number} is dialled {dials} times");
        }
        for (tunnel, streams) in self.streams() {
            let (fake, limit) = &self.tunnels[tunnel];
            let limit = (*limit).min(fake.allowed.get().max(1));
            assert!(streams <= limit, "tunnel {tunnel} carries {streams} of {limit}");
        }
        assert!(self.pool.keys() <= self.config.keys_max);
    }

    /// Takes every answer there is. Who is left then must have a dial to wait for, and they are the last to have come.
    fn settle(&mut self) {
        for number in 0..4 {
            let mut still_waiting = false;
            let mut at = 0;
            while at < self.waiting.len() {
                if self.waiting[at].0 != number {
                    at += 1;
                } else if self.poll_waiter(at) {
                    assert!(!still_waiting, "key {number}: served before one who came earlier");
                } else {
                    still_waiting = true;
                    at += 1;
                }
            }
            let dialled = self.tickets.iter().any(|(key, _)| *key == number);
            assert!(dialled || !still_waiting, "key {number}: somebody waits and nobody dials");
        }
        assert!(self.waiting.len() <= self.config.waiters_max, "{} wait", self.waiting.len());
        self.check();
    }
}

fn take<T>(from: &mut Vec<T>, which: usize) -> Option<T> {
    if from.is_empty() {
        return None;
    }
    Some(from.remove(which % from.len()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_promises_hold_whatever_happens(events in prop::collection::vec(event(), 1..80), settle_every in 1..8_usize) {
        let mut world = World::new();
        for (at, event) in events.iter().enumerate() {
            world.happen(event);
            world.check();
            if at % settle_every == 0 {
                world.settle();
            }
        }
        world.settle();

        // Nobody waits for ever: with every dial ending, all are answered in the end.
        while let Some((_, ticket)) = world.tickets.pop() {
            drop(ticket);
            world.settle();
        }
        prop_assert!(world.waiting.is_empty());

        // Nothing is left behind.
        world.lent.clear();
        world.pool.evict_idle(world.now);
        world.pool.evict_idle(world.now + world.config.idle_timeout);
        prop_assert_eq!((world.pool.keys(), world.pool.tunnels(), world.pool.next_eviction()), (0, 0, None));
        for (tunnel, _) in &world.tunnels {
            prop_assert_eq!(Rc::strong_count(&tunnel.open), 1);
        }
    }
}
