//! The pool's rules: events in, answers out. No waker, no guard, no clock.
//!
//! They keep four promises: a key has at most one dial; a tunnel never carries more streams than its limit; who waits
//! is served in order; and as long as somebody waits for a key, somebody dials for it, so nobody waits for ever.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::{PoolConfig, PoolKey, Usable};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TunnelId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WaiterId(u64);

pub(super) enum Decision<T> {
    Ready { key: Rc<PoolKey>, id: TunnelId, tunnel: T },
    Dial { key: Rc<PoolKey> },
    Wait { key: Rc<PoolKey>, id: WaiterId },
    Full,
}

/// What a waiter gets.
pub(super) enum Answer<T> {
    Lent { id: TunnelId, tunnel: T },
    Dial,
    Failed { message: Arc<str> },
    Closed,
}

/// What the caller must do once the ledger is no longer borrowed.
pub(super) struct Effects<T> {
    /// Whom to call, in order, and what for.
    pub(super) answers: Vec<(WaiterId, Answer<T>)>,
    /// Tunnels nobody keeps any more, to be dropped.
    pub(super) let_go: Vec<T>,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Self { answers: Vec::new(), let_go: Vec::new() }
    }
}

pub(super) struct Ledger<T> {
    config: PoolConfig,
    entries: HashMap<Rc<PoolKey>, Entry<T>>,
    /// Tunnels without streams, by the time since when. A tunnel given back without the time at hand stands under
    /// `None`, first of all, until the next event brings the time.
    idle: BTreeMap<(Option<Instant>, TunnelId), Rc<PoolKey>>,
    waiters: usize,
    tunnels: usize,
    next_id: u64,
    closed: bool,
}

struct Entry<T> {
    tunnels: Vec<Pooled<T>>,
    dialling: bool,
    waiters: VecDeque<WaiterId>,
}

struct Pooled<T> {
    id: TunnelId,
    tunnel: T,
    streams: usize,
    streams_max: usize,
    idle_since: Option<Instant>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self { tunnels: Vec::new(), dialling: false, waiters: VecDeque::new() }
    }
}

impl<T: Usable> Pooled<T> {
    fn has_room(&self) -> bool {
        // A peer that allows no stream at all would never be used: the one that dialled it has its place regardless.
        self.streams < self.streams_max.min(self.tunnel.streams_max()).max(1)
    }
}

impl<T: Clone + Usable> Ledger<T> {
    pub(super) fn new(config: PoolConfig) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            idle: BTreeMap::new(),
            waiters: 0,
            tunnels: 0,
            next_id: 0,
            closed: false,
        }
    }

    pub(super) fn tunnels(&self) -> usize {
        self.tunnels
    }

    pub(super) fn keys(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn checkout(&mut self, key: &PoolKey, now: Instant) -> (Decision<T>, Effects<T>) {
        let mut effects = Effects::default();
        if self.closed {
            return (Decision::Full, effects);
        }
        self.stamp(now);
        let Some((key, _)) = self.entries.get_key_value(key) else {
            if !self.make_room(&mut effects) {
                return (Decision::Full, effects);
            }
            let key = Rc::new(key.clone());
            self.entries.insert(key.clone(), Entry { dialling: true, ..Entry::default() });
            return (Decision::Dial { key }, effects);
        };
        let key = key.clone();
        self.discard_closed(&key, &mut effects);
        let entry = self.entries.get_mut(&key).expect("found above; closed tunnels leave the entry");
        // With somebody waiting, a free place is spoken for; there is none then, since waiters are served at once.
        if entry.waiters.is_empty()
            && let Some(at) = entry.tunnels.iter().position(Pooled::has_room)
        {
            let (id, tunnel) = self.lend(&key, at);
            return (Decision::Ready { key, id, tunnel }, effects);
        }
        if !entry.dialling {
            entry.dialling = true;
            return (Decision::Dial { key }, effects);
        }
        if self.waiters >= self.config.waiters_max {
            return (Decision::Full, effects);
        }
        let id = WaiterId(self.next_id);
        self.next_id += 1;
        self.waiters += 1;
        entry.waiters.push_back(id);
        (Decision::Wait { key, id }, effects)
    }

    pub(super) fn dialled(
        &mut self,
        key: &Rc<PoolKey>,
        tunnel: T,
        streams_max: usize,
        now: Instant,
    ) -> (TunnelId, Effects<T>) {
        let mut effects = Effects::default();
        let id = TunnelId(self.next_id);
        self.next_id += 1;
        if self.closed {
            return (id, effects);
        }
        self.stamp(now);
        let entry = self.entries.get_mut(key).expect("an entry stays while it has a dial");
        entry.dialling = false;
        entry.tunnels.push(Pooled {
            id,
            tunnel,
            streams: 1,
            streams_max: streams_max.min(self.config.streams_per_tunnel_max),
            idle_since: None,
        });
        self.tunnels += 1;
        self.serve(key, &mut effects);
        self.prune(key);
        (id, effects)
    }

    pub(super) fn dial_failed(&mut self, key: &Rc<PoolKey>, message: &Arc<str>) -> Effects<T> {
        let mut effects = Effects::default();
        if self.closed {
            return effects;
        }
        let entry = self.entries.get_mut(key).expect("an entry stays while it has a dial");
        entry.dialling = false;
        self.waiters -= entry.waiters.len();
        let failed = entry.waiters.drain(..).map(|id| (id, Answer::Failed { message: message.clone() }));
        effects.answers.extend(failed);
        self.prune(key);
        effects
    }

    pub(super) fn dial_given_up(&mut self, key: &Rc<PoolKey>) -> Effects<T> {
        let mut effects = Effects::default();
        if self.closed {
            return effects;
        }
        self.entries.get_mut(key).expect("an entry stays while it has a dial").dialling = false;
        self.serve(key, &mut effects);
        self.prune(key);
        effects
    }

    pub(super) fn give_back(&mut self, key: &Rc<PoolKey>, id: TunnelId) -> Effects<T> {
        let mut effects = Effects::default();
        // Gone when the pool was closed, or the tunnel was found closed.
        let Some(entry) = self.entries.get_mut(key) else {
            return effects;
        };
        let Some(at) = entry.tunnels.iter().position(|pooled| pooled.id == id) else {
            return effects;
        };
        let pooled = &mut entry.tunnels[at];
        pooled.streams -= 1;
        if pooled.streams == 0 {
            pooled.idle_since = None;
            self.idle.insert((None, id), key.clone());
        }
        if !pooled.tunnel.is_usable() {
            self.remove(key, id, &mut effects);
        }
        self.serve(key, &mut effects);
        self.prune(key);
        effects
    }

    pub(super) fn waiter_left(&mut self, key: &Rc<PoolKey>, id: WaiterId) -> Effects<T> {
        if let Some(entry) = self.entries.get_mut(key)
            && let Some(at) = entry.waiters.iter().position(|waiter| *waiter == id)
        {
            entry.waiters.remove(at);
            self.waiters -= 1;
        }
        Effects::default()
    }

    pub(super) fn evict_idle(&mut self, now: Instant) -> Effects<T> {
        let mut effects = Effects::default();
        self.stamp(now);
        let timeout = self.config.idle_timeout;
        let due: Vec<_> = self
            .idle
            .iter()
            .filter(|((since, id), key)| {
                let over = since.is_some_and(|since| now.saturating_duration_since(since) >= timeout);
                over || !self.is_usable(key, *id)
            })
            .map(|((_, id), key)| (key.clone(), *id))
            .collect();
        for (key, id) in due {
            self.remove(&key, id, &mut effects);
            self.prune(&key);
        }
        effects
    }

    pub(super) fn next_eviction(&self) -> Option<Instant> {
        let ((since, _), _) = self.idle.iter().find(|((since, _), _)| since.is_some())?;
        since.map(|since| since + self.config.idle_timeout)
    }

    pub(super) fn close(&mut self) -> Effects<T> {
        let mut effects = Effects::default();
        self.closed = true;
        self.idle.clear();
        self.waiters = 0;
        self.tunnels = 0;
        for (_, entry) in self.entries.drain() {
            effects.answers.extend(entry.waiters.into_iter().map(|id| (id, Answer::Closed)));
            effects.let_go.extend(entry.tunnels.into_iter().map(|pooled| pooled.tunnel));
        }
        effects
    }

    /// Gives free places to waiters, in order; if some are left and nobody dials, the first of them does.
    fn serve(&mut self, key: &Rc<PoolKey>, effects: &mut Effects<T>) {
        self.discard_closed(key, effects);
        while let Some(entry) = self.entries.get_mut(key) {
            let Some(waiter) = entry.waiters.front().copied() else {
                return;
            };
            let room = entry.tunnels.iter().position(Pooled::has_room);
            let answer = match room {
                Some(at) => {
                    let (id, tunnel) = self.lend(key, at);
                    Answer::Lent { id, tunnel }
                }
                None if entry.dialling => return,
                None => {
                    entry.dialling = true;
                    Answer::Dial
                }
            };
            let entry = self.entries.get_mut(key).expect("lending leaves the entry");
            entry.waiters.pop_front();
            self.waiters -= 1;
            effects.answers.push((waiter, answer));
        }
    }

    fn lend(&mut self, key: &Rc<PoolKey>, at: usize) -> (TunnelId, T) {
        let entry = self.entries.get_mut(key).expect("the caller found the tunnel in it");
        let pooled = &mut entry.tunnels[at];
        if pooled.streams == 0 {
            self.idle.remove(&(pooled.idle_since, pooled.id));
        }
        pooled.streams += 1;
        (pooled.id, pooled.tunnel.clone())
    }

    /// Takes closed tunnels out. Their streams, if any, end on their own.
    fn discard_closed(&mut self, key: &Rc<PoolKey>, effects: &mut Effects<T>) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        let closed: Vec<_> =
            entry.tunnels.iter().filter(|pooled| !pooled.tunnel.is_usable()).map(|pooled| pooled.id).collect();
        for id in closed {
            self.remove(key, id, effects);
        }
    }

    fn remove(&mut self, key: &Rc<PoolKey>, id: TunnelId, effects: &mut Effects<T>) {
        let entry = self.entries.get_mut(key).expect("the caller found the tunnel in it");
        let at = entry.tunnels.iter().position(|pooled| pooled.id == id).expect("the caller found it");
        let pooled = entry.tunnels.remove(at);
        if pooled.streams == 0 {
            self.idle.remove(&(pooled.idle_since, id));
        }
        self.tunnels -= 1;
        effects.let_go.push(pooled.tunnel);
    }

    /// Forgets a key nothing is kept for.
    fn prune(&mut self, key: &Rc<PoolKey>) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        if entry.tunnels.is_empty() && !entry.dialling {
            assert!(entry.waiters.is_empty(), "who waits has a dial to wait for");
            self.entries.remove(key);
        }
    }

    /// Makes sure another key may be added, at the cost of the longest idle tunnels.
    fn make_room(&mut self, effects: &mut Effects<T>) -> bool {
        while self.entries.len() >= self.config.keys_max {
            let Some((id, key)) = self.idle.first_key_value().map(|((_, id), key)| (*id, key.clone())) else {
                return false;
            };
            self.remove(&key, id, effects);
            self.prune(&key);
        }
        true
    }

    /// Puts the time to tunnels that became idle since the last event. They count as idle from now, so at worst they
    /// are kept a little longer.
    fn stamp(&mut self, now: Instant) {
        while let Some(entry) = self.idle.first_entry()
            && entry.key().0.is_none()
        {
            let ((_, id), key) = entry.remove_entry();
            let pooled = self
                .entries
                .get_mut(&key)
                .and_then(|entry| entry.tunnels.iter_mut().find(|pooled| pooled.id == id))
                .expect("idle tunnels are in their entry");
            pooled.idle_since = Some(now);
            self.idle.insert((Some(now), id), key);
        }
    }

    fn is_usable(&self, key: &Rc<PoolKey>, id: TunnelId) -> bool {
        let tunnels = self.entries.get(key).map(|entry| entry.tunnels.iter());
        tunnels.into_iter().flatten().any(|pooled| pooled.id == id && pooled.tunnel.is_usable())
    }
}
