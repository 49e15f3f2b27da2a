//! What was asked for by name, where not everything is subscribed to. Pure: knows which keys are asked and for whom, which
//! resource answered which, and what to let go when there is too much.
//!
//! A key is what a core lacks: `NETWORK/IP`, or `NAMESPACE/HOSTNAME`. The control plane answers an address with the
//! workload's own name, and the key only among its aliases; so both are looked at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_state::wanted::Sought;

/// The most keys that are kept asked for. Each takes about 300 bytes beside its resource, so 20 MiB. Beyond, one is let go:
/// the oldest of the tenant that has most. Whoever still needs it asks anew.
pub const KEYS_MAX: usize = 65_536;

/// A key is asked for again after so long without an answer, or without a resource that could be taken.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A key that is answered is asked for again after so long when a core still lacks it. The control plane says by itself when
/// an answer changes; this is for what was lost between the two.
const ASK_ANSWERED_AGAIN: Duration = Duration::from_secs(30);
/// That there is nothing by a key is believed for so long. A control plane says of a workload that comes its own name, and
/// not every address that somebody has asked for.
const ABSENT_FOR: Duration = Duration::from_secs(30);

/// How the control plane knows a part of the mesh.
pub fn key(sought: &Sought) -> String {
    match sought {
        Sought::Address { network, address } => format!("{network}/{}", address.to_canonical()),
        Sought::Hostname(name) => name.to_string(),
    }
}

/// What was asked for by name.
#[derive(Debug)]
pub struct OnDemand {
    keys: HashMap<Arc<str>, Asked>,
    /// By the tenant who was the first to ask, in the order of asking.
    order: BTreeMap<Arc<str>, VecDeque<Arc<str>>>,
    /// The keys that each resource is the answer to.
    names: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// The keys to which there is nothing, by how long that is believed.
    absences: BTreeSet<(Instant, Arc<str>)>,
    keys_max: usize,
}

#[derive(Debug)]
struct Asked {
    sought: Sought,
    /// On this stream: a server does not answer a subscription that it has.
    subscribed: bool,
    again_at: Instant,
    answer: Answer,
}

#[derive(Debug, PartialEq)]
enum Answer {
    None,
    /// This resource.
    Is(Arc<str>),
    /// There is nothing.
    Absent {
        until: Instant,
    },
}

/// What follows from a wish.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// To be unsubscribed from, before anything else: also what is asked again. In one message with its subscription it would
    /// be gone afterwards (istiod subscribes first).
    pub unsubscribe: Vec<String>,
    /// To be subscribed to.
    pub subscribe: Vec<String>,
    /// Resources that nobody asks for any more.
    pub dropped: Vec<Arc<str>>,
    /// Of these it is not known any more that they are not there.
    pub unknown: Vec<Sought>,
}

impl Default for OnDemand {
    fn default() -> Self {
        Self::with_limit(KEYS_MAX)
    }
}

impl OnDemand {
    /// With room for so many keys.
    pub fn with_limit(keys_max: usize) -> Self {
        let (keys, order, names, absences) = Default::default();
        Self { keys, order, names, absences, keys_max }
    }

    /// Tenants lack these.
    pub fn want<'w>(&mut self, wanted: impl IntoIterator<Item = (&'w Sought, &'w Arc<str>)>, now: Instant) -> Asks {
        let mut asks = Asks::default();
        for (sought, tenant) in wanted {
            let key = key(sought);
            match self.keys.get_mut(&*key) {
                Some(asked) if asked.again_at > now => {}
                Some(asked) => {
                    asked.again_at = now + asked.answer.patience();
                    if std::mem::replace(&mut asked.subscribed, true) {
                        asks.unsubscribe.push(key.clone());
                    }
                    asks.subscribe.push(key);
                }
                None => {
                    self.make_room(&mut asks);
                    let shared: Arc<str> = key.as_str().into();
                    self.order.entry(tenant.clone()).or_default().push_back(shared.clone());
                    let (sought, again_at) = (sought.clone(), now + ASK_AGAIN);
                    self.keys.insert(shared, Asked { sought, subscribed: true, again_at, answer: Answer::None });
                    asks.subscribe.push(key);
                }
            }
        }
        asks
    }

    /// A resource has been taken, with all its names. One that is not addressable is on its node's network: the address, which
    /// it shares, is nobody's. Gives what was asked for and is not there, when that is news.
    pub fn on_taken(&mut self, name: &Arc<str>, aliases: &[String], addressable: bool, now: Instant) -> Vec<Sought> {
        let mut absent = Vec::new();
        let is_name = |key: &str| *key == **name || aliases.iter().any(|alias| alias == key);
        // It may have had more names before: an address that it lost is somebody else's, or nobody's.
        let before = self.names.get(name).cloned().unwrap_or_default();
        for key in before.iter().filter(|key| !is_name(key)) {
            self.answer(key, Answer::None, now);
        }
        for key in aliases.iter().map(String::as_str).chain([&**name]) {
            let Some((key, asked)) = self.keys.get_key_value(key) else { continue };
            if !addressable && matches!(asked.sought, Sought::Address { .. }) {
                let key = key.clone();
                absent.extend(self.absent(&key, now));
            } else if !matches!(&asked.answer, Answer::Is(is) if is == name) {
                let key = key.clone();
                self.names.entry(name.clone()).or_default().push(key.clone());
                self.answer(&key, Answer::Is(name.clone()), now + ASK_ANSWERED_AGAIN);
            }
        }
        absent
    }

    /// There is nothing by this name: either it is a key, or a resource that keys were answered with, of which nothing is
    /// known now. Gives what was asked for and is not there, when that is news.
    pub fn on_removed(&mut self, name: &str, now: Instant) -> Option<Sought> {
        for key in self.names.remove(name).unwrap_or_default() {
            self.answer(&key, Answer::None, now);
        }
        let key = self.keys.get_key_value(name)?.0.clone();
        self.absent(&key, now)
    }

    /// There is nothing by this key. Gives what was asked for when that is news.
    fn absent(&mut self, key: &Arc<str>, now: Instant) -> Option<Sought> {
        let Asked { sought, answer, .. } = &self.keys[key];
        let news = (!matches!(answer, Answer::Absent { .. })).then(|| sought.clone());
        let until = now + ABSENT_FOR;
        self.answer(key, Answer::Absent { until }, until);
        news
    }

    /// A stream begins. Keys without a resource, which it has to ask for: the server knows of the others by their versions.
    pub fn unanswered(&mut self, now: Instant) -> Vec<String> {
        let mut keys = Vec::new();
        for key in self.order.values().flatten() {
            let asked = self.keys.get_mut(key).expect("each key in order is a key");
            asked.subscribed = !matches!(asked.answer, Answer::Is(_));
            if asked.subscribed {
                asked.again_at = now + asked.answer.patience();
                keys.push(key.to_string());
            }
        }
        keys
    }

    /// When [`OnDemand::too_old`] has something to say.
    pub fn next_due(&self) -> Option<Instant> {
        self.absences.first().map(|(until, _)| *until)
    }

    /// What was said not to be there, too long ago to be believed.
    pub fn too_old(&mut self, now: Instant) -> Vec<Sought> {
        let mut too_old = Vec::new();
        while let Some((until, key)) = self.absences.first()
            && *until <= now
        {
            let key = key.clone();
            self.answer(&key, Answer::None, now);
            too_old.push(self.keys[&key].sought.clone());
        }
        too_old
    }

    fn answer(&mut self, key: &Arc<str>, answer: Answer, again_at: Instant) {
        if let Answer::Absent { until } = answer {
            self.absences.insert((until, key.clone()));
        }
        let asked = self.keys.get_mut(key).expect("a key that is answered is there");
        asked.again_at = again_at;
        if asked.answer != answer {
            let before = std::mem::replace(&mut asked.answer, answer);
            self.let_go(key, &before);
        }
    }

    fn make_room(&mut self, asks: &mut Asks) {
        while self.keys.len() >= self.keys_max {
            let Some((tenant, oldest)) = self.oldest_of_the_greediest() else { return };
            if self.order.get(&tenant).is_some_and(VecDeque::is_empty) {
                self.order.remove(&tenant);
            }
            let asked = self.keys.remove(&oldest).expect("each key in order is a key");
            asks.subscribe.retain(|key| **key != *oldest);
            asks.unsubscribe.push(oldest.to_string());
            asks.dropped.extend(self.let_go(&oldest, &asked.answer));
            asks.unknown.extend(matches!(asked.answer, Answer::Absent { .. }).then_some(asked.sought));
        }
    }

    /// So that who asks for a whole network loses its own keys, and not those of others.
    fn oldest_of_the_greediest(&mut self) -> Option<(Arc<str>, Arc<str>)> {
        let (tenant, keys) = self.order.iter_mut().max_by_key(|(_, keys)| keys.len())?;
        Some((tenant.clone(), keys.pop_front()?))
    }

    /// A key has this answer no more. Says which resource nobody asks for any more.
    fn let_go(&mut self, key: &Arc<str>, answer: &Answer) -> Option<Arc<str>> {
        match answer {
            Answer::None => None,
            Answer::Absent { until } => {
                self.absences.remove(&(*until, key.clone()));
                None
            }
            Answer::Is(name) => {
                let keys = self.names.get_mut(name)?;
                keys.retain(|one| one != key);
                keys.is_empty().then(|| self.names.remove_entry(name).expect("there a moment ago").0)
            }
        }
    }
}

impl Answer {
    fn patience(&self) -> Duration {
        match self {
            Self::None => ASK_AGAIN,
            Self::Is(_) | Self::Absent { .. } => ASK_ANSWERED_AGAIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::name::{NamespacedHostname, NetworkId};

    use super::*;

    fn sought(key: &str) -> Sought {
        match key.strip_prefix('/') {
            Some(address) => Sought::Address { network: NetworkId::from(""), address: address.parse().expect(key) },
            None => Sought::Hostname(NamespacedHostname::parse(key).expect(key)),
        }
    }

    fn want_for(on_demand: &mut OnDemand, tenant: &str, keys: &[&str], now: Instant) -> Asks {
        let (tenant, wanted) = (tenant.into(), keys.iter().map(|key| sought(key)).collect::<Vec<_>>());
        on_demand.want(wanted.iter().map(|sought| (sought, &tenant)), now)
    }

    fn want(on_demand: &mut OnDemand, keys: &[&str], now: Instant) -> Asks {
        want_for(on_demand, "tenant", keys, now)
    }

    #[test]
    fn a_key_is_asked_for_once_until_it_is_time_to_ask_again() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        assert_eq!(want(&mut on_demand, &["/10.0.0.1", "shop/web"], start).subscribe, ["/10.0.0.1", "shop/web"]);
        assert_eq!(want(&mut on_demand, &["/10.0.0.1"], start + ASK_AGAIN / 2), Asks::default());
        let asks = want(&mut on_demand, &["/10.0.0.1"], start + ASK_AGAIN);
        assert_eq!((asks.unsubscribe, asks.subscribe), (vec!["/10.0.0.1".into()], vec!["/10.0.0.1".into()]), "anew");
    }

    #[test]
    fn what_a_stream_was_not_asked_for_is_not_unsubscribed_from_when_it_is() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        want(&mut on_demand, &["/10.0.0.1"], start);
        on_demand.on_taken(&"uid".into(), &["/10.0.0.1".into()], true, start);
        assert!(on_demand.unanswered(start).is_empty(), "the new stream knows of it by its version");
        on_demand.on_removed("uid", start);
        let asks = want(&mut on_demand, &["/10.0.0.1"], start);
        assert_eq!((asks.unsubscribe, asks.subscribe), (vec![], vec!["/10.0.0.1".into()]));
        assert_eq!(on_demand.unanswered(start), ["/10.0.0.1"]);
        let asks = want(&mut on_demand, &["/10.0.0.1"], start + ASK_AGAIN);
        assert_eq!(asks.unsubscribe, ["/10.0.0.1"], "that stream was asked when it began");
    }

    #[test]
    fn a_key_is_answered_by_an_alias_until_that_is_taken_from_it() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        want(&mut on_demand, &["/10.0.0.1"], start);
        on_demand.on_taken(&"uid".into(), &["/10.0.0.1".into(), "/10.0.0.2".into()], true, start);
        assert_eq!(want(&mut on_demand, &["/10.0.0.1"], start + ASK_AGAIN), Asks::default());
        assert!(on_demand.unanswered(start).is_empty());
        on_demand.on_taken(&"uid".into(), &["/10.0.0.2".into()], true, start);
        assert_eq!(want(&mut on_demand, &["/10.0.0.1"], start).subscribe, ["/10.0.0.1"]);
        on_demand.on_taken(&"uid".into(), &["/10.0.0.1".into()], true, start);
        assert_eq!(on_demand.on_removed("uid", start), None, "that the address is nobody's was not said");
        assert_eq!(on_demand.unanswered(start + ASK_AGAIN), ["/10.0.0.1"]);
    }

    #[test]
    fn what_is_not_there_is_told_once_believed_for_a_while_and_then_asked_for_anew() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        want(&mut on_demand, &["/10.0.0.9"], start);
        assert_eq!(on_demand.on_removed("/10.0.0.9", start), Some(sought("/10.0.0.9")));
        assert_eq!(on_demand.on_removed("/10.0.0.9", start), None);
        assert_eq!(on_demand.on_removed("/10.0.0.8", start), None, "nobody asked");
        assert_eq!(want(&mut on_demand, &["/10.0.0.9"], start + ASK_AGAIN), Asks::default());
        assert_eq!(on_demand.next_due(), Some(start + ABSENT_FOR));
        assert_eq!(on_demand.too_old(start + ABSENT_FOR), [sought("/10.0.0.9")]);
        assert_eq!((on_demand.next_due(), on_demand.too_old(start + ABSENT_FOR)), (None, vec![]));
        assert_eq!(want(&mut on_demand, &["/10.0.0.9"], start + ABSENT_FOR).subscribe, ["/10.0.0.9"]);
        on_demand.on_removed("/10.0.0.9", start);
        on_demand.on_taken(&"uid".into(), &["/10.0.0.9".into()], true, start);
        assert_eq!(on_demand.next_due(), None, "it came into being");
        assert!(on_demand.unanswered(start).is_empty());
    }

    #[test]
    fn an_address_of_what_is_on_its_nodes_network_is_nobodys() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        want(&mut on_demand, &["/10.0.0.1", "a/b"], start);
        let aliases = ["/10.0.0.1".to_owned(), "a/b".to_owned()];
        assert_eq!(on_demand.on_taken(&"uid".into(), &aliases, false, start), [sought("/10.0.0.1")]);
        assert_eq!(on_demand.on_taken(&"uid".into(), &aliases, false, start), [], "that is no news");
        assert_eq!(on_demand.unanswered(start), ["/10.0.0.1"], "its hostname is answered");
        assert_eq!(on_demand.too_old(start + ABSENT_FOR), [sought("/10.0.0.1")]);
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes_and_its_resource_with_the_last_key_for_it() {
        let (mut on_demand, start) = (OnDemand::with_limit(2), Instant::now());
        let name: Arc<str> = "a/b".into();
        want(&mut on_demand, &["/10.0.0.1", "a/b"], start);
        on_demand.on_taken(&name, &["/10.0.0.1".into()], true, start);
        let asks = want(&mut on_demand, &["a/c"], start);
        assert_eq!((asks.unsubscribe, asks.dropped), (vec!["/10.0.0.1".to_owned()], vec![]), "`a/b` asks for it, too");
        let asks = want(&mut on_demand, &["a/d"], start);
        assert_eq!((asks.unsubscribe, asks.dropped), (vec!["a/b".to_owned()], vec![name]));
        on_demand.on_removed("a/c", start);
        let asks = want(&mut on_demand, &["a/e"], start);
        assert_eq!(asks.unknown, [sought("a/c")], "nobody listens for it any more");
        assert_eq!(on_demand.next_due(), None);
    }

    /// Negative control, done by hand: the oldest of all goes, whosesoever it is.
    #[test]
    fn a_tenant_that_asks_for_everything_loses_its_own_keys_and_nobody_elses() {
        let (mut on_demand, start) = (OnDemand::with_limit(8), Instant::now());
        want_for(&mut on_demand, "quiet", &["/10.0.0.1", "/10.0.0.2"], start);
        for host in 3..200 {
            let asks = want_for(&mut on_demand, "scanner", &[&format!("/10.0.0.{host}")], start);
            assert!(!asks.unsubscribe.iter().any(|key| key == "/10.0.0.1" || key == "/10.0.0.2"), "{asks:?}");
        }
        assert_eq!(want_for(&mut on_demand, "quiet", &["/10.0.0.1", "/10.0.0.2"], start), Asks::default());
    }
}
