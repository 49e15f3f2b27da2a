//! What was asked for by name, where not everything is subscribed to. Pure: knows which keys are asked, which resource
//! answered which, and what to let go when there is too much.
//!
//! A key is what a core lacks: `NETWORK/IP`, a workload's uid, or `NAMESPACE/HOSTNAME`. The control plane answers an
//! address with the workload's own name, and the key only among its aliases; so both are looked at.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_state::wanted::Wanted;

/// The most keys that are kept asked for. Each takes about 200 bytes beside its resource, so 13 MiB. Beyond, the one
/// that was asked for first is let go; whoever still needs it asks anew.
pub const KEYS_MAX: usize = 65_536;

/// A key is asked for again after so long without an answer, or without a resource that could be taken.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// A key that is answered, be it with nothing, is asked for again after so long when a core still lacks it. The control
/// plane says by itself when an answer changes; this is for what was lost between the two.
const ASK_ANSWERED_AGAIN: Duration = Duration::from_secs(30);

/// The key of what a core lacks; none where it is nothing of the control plane's.
pub fn key(wanted: &Wanted) -> Option<String> {
    match wanted {
        Wanted::Address { network, address } => Some(format!("{network}/{address}")),
        Wanted::Hostname(name) => Some(name.to_string()),
        Wanted::Identity(_) => None,
    }
}

/// What was asked for by name.
#[derive(Debug)]
pub struct OnDemand {
    keys: HashMap<Arc<str>, Asked>,
    /// In the order of asking.
    order: VecDeque<Arc<str>>,
    /// The keys that each resource is the answer to.
    names: HashMap<Arc<str>, Vec<Arc<str>>>,
    keys_max: usize,
}

#[derive(Debug)]
struct Asked {
    again_at: Instant,
    answer: Answer,
}

#[derive(Debug, PartialEq)]
enum Answer {
    None,
    /// This resource.
    Is(Arc<str>),
    Absent,
}

/// What follows from a wish.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// To be subscribed to.
    pub subscribe: Vec<String>,
    /// To be unsubscribed from.
    pub unsubscribe: Vec<String>,
    /// Resources that nobody asks for any more.
    pub dropped: Vec<Arc<str>>,
}

impl Default for OnDemand {
    fn default() -> Self {
        Self::with_limit(KEYS_MAX)
    }
}

impl OnDemand {
    /// With room for so many keys.
    pub fn with_limit(keys_max: usize) -> Self {
        Self { keys: HashMap::new(), order: VecDeque::new(), names: HashMap::new(), keys_max }
    }

    /// Somebody lacks these.
    pub fn want(&mut self, keys: impl IntoIterator<Item = String>, now: Instant) -> Asks {
        let mut asks = Asks::default();
        for key in keys {
            match self.keys.get_mut(&*key) {
                Some(asked) if asked.again_at > now => {}
                Some(asked) => {
                    asked.again_at = now + asked.answer.patience();
                    asks.subscribe.push(key);
                }
                None => {
                    self.make_room(&mut asks);
                    let shared: Arc<str> = key.as_str().into();
                    self.order.push_back(shared.clone());
                    self.keys.insert(shared, Asked { again_at: now + ASK_AGAIN, answer: Answer::None });
                    asks.subscribe.push(key);
                }
            }
        }
        asks
    }

    /// A resource has been taken, with all its names.
    pub fn on_taken(&mut self, name: &Arc<str>, aliases: &[String], now: Instant) {
        let is_name = |key: &str| *key == **name || aliases.iter().any(|alias| alias == key);
        // It may have had more names before: an address that it lost is somebody else's, or nobody's.
        let before = self.names.get(name).cloned().unwrap_or_default();
        for key in before.iter().filter(|key| !is_name(key)) {
            self.answer(key, Answer::None, now);
        }
        for key in aliases.iter().map(String::as_str).chain([&**name]) {
            let Some((key, asked)) = self.keys.get_key_value(key) else { continue };
            if !matches!(&asked.answer, Answer::Is(is) if is == name) {
                let key = key.clone();
                self.names.entry(name.clone()).or_default().push(key.clone());
                self.answer(&key, Answer::Is(name.clone()), now + ASK_ANSWERED_AGAIN);
            }
        }
    }

    /// There is nothing by this name: either it is a key, or a resource that keys were answered with.
    pub fn on_removed(&mut self, name: &str, now: Instant) {
        let answered_with_it = self.names.remove(name).unwrap_or_default();
        let it = self.keys.get_key_value(name).map(|(key, _)| key.clone());
        for key in answered_with_it.into_iter().chain(it) {
            self.answer(&key, Answer::Absent, now + ASK_ANSWERED_AGAIN);
        }
    }

    /// Keys without a resource, which a new connection has to ask for: the server knows of the others by their versions.
    pub fn unanswered(&mut self, now: Instant) -> Vec<String> {
        let mut keys = Vec::new();
        for key in &self.order {
            let asked = self.keys.get_mut(key).expect("each key in order is a key");
            if !matches!(asked.answer, Answer::Is(_)) {
                asked.again_at = now + asked.answer.patience();
                keys.push(key.to_string());
            }
        }
        keys
    }

    fn answer(&mut self, key: &str, answer: Answer, again_at: Instant) {
        let asked = self.keys.get_mut(key).expect("a key that is answered is there");
        asked.again_at = again_at;
        let before = std::mem::replace(&mut asked.answer, answer);
        self.let_go(key, &before);
    }

    fn make_room(&mut self, asks: &mut Asks) {
        while self.keys.len() >= self.keys_max {
            let Some(oldest) = self.order.pop_front() else { return };
            let asked = self.keys.remove(&oldest).expect("each key in order is a key");
            asks.unsubscribe.push(oldest.to_string());
            asks.dropped.extend(self.let_go(&oldest, &asked.answer));
        }
    }

    /// A key has this answer no more. Says which resource nobody asks for any more.
    fn let_go(&mut self, key: &str, answer: &Answer) -> Option<Arc<str>> {
        let Answer::Is(name) = answer else { return None };
        let keys = self.names.get_mut(name)?;
        keys.retain(|one| **one != *key);
        keys.is_empty().then(|| self.names.remove_entry(name).expect("there a moment ago").0)
    }
}

impl Answer {
    fn patience(&self) -> Duration {
        match self {
            Self::None => ASK_AGAIN,
            Self::Is(_) | Self::Absent => ASK_ANSWERED_AGAIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn a_key_is_asked_for_once_until_it_is_time_to_ask_again() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        assert_eq!(on_demand.want(keys(&["/10.0.0.1", "shop/web"]), start).subscribe, ["/10.0.0.1", "shop/web"]);
        assert_eq!(on_demand.want(keys(&["/10.0.0.1"]), start + ASK_AGAIN / 2), Asks::default());
        assert_eq!(on_demand.want(keys(&["/10.0.0.1"]), start + ASK_AGAIN).subscribe, ["/10.0.0.1"]);
    }

    #[test]
    fn a_key_is_answered_by_an_alias_until_that_is_taken_from_it() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        on_demand.want(keys(&["/10.0.0.1"]), start);
        on_demand.on_taken(&"uid".into(), &["/10.0.0.1".into(), "/10.0.0.2".into()], start);
        assert_eq!(on_demand.want(keys(&["/10.0.0.1"]), start + ASK_AGAIN), Asks::default());
        assert!(on_demand.unanswered(start).is_empty());
        on_demand.on_taken(&"uid".into(), &["/10.0.0.2".into()], start);
        assert_eq!(on_demand.want(keys(&["/10.0.0.1"]), start).subscribe, ["/10.0.0.1"]);
        on_demand.on_taken(&"uid".into(), &["/10.0.0.1".into()], start);
        on_demand.on_removed("uid", start);
        assert_eq!(on_demand.want(keys(&["/10.0.0.1"]), start + ASK_AGAIN), Asks::default(), "absent");
        assert_eq!(on_demand.unanswered(start), ["/10.0.0.1"]);
        assert_eq!(on_demand.want(keys(&["/10.0.0.1"]), start + ASK_ANSWERED_AGAIN).subscribe, ["/10.0.0.1"]);
    }

    #[test]
    fn what_is_not_there_is_answered_by_the_keys_removal() {
        let (mut on_demand, start) = (OnDemand::default(), Instant::now());
        on_demand.want(keys(&["/10.0.0.9"]), start);
        on_demand.on_removed("/10.0.0.9", start);
        assert_eq!(on_demand.want(keys(&["/10.0.0.9"]), start + ASK_AGAIN), Asks::default());
        on_demand.on_taken(&"uid".into(), &["/10.0.0.9".into()], start);
        assert!(on_demand.unanswered(start).is_empty(), "it came into being");
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes_and_its_resource_with_the_last_key_for_it() {
        let (mut on_demand, start) = (OnDemand::with_limit(2), Instant::now());
        let name: Arc<str> = "uid".into();
        on_demand.want(keys(&["/10.0.0.1", "uid"]), start);
        on_demand.on_taken(&name, &["/10.0.0.1".into()], start);
        let asks = on_demand.want(keys(&["a/b"]), start);
        assert_eq!((asks.unsubscribe, asks.dropped), (keys(&["/10.0.0.1"]), vec![]), "`uid` still asks for it");
        let asks = on_demand.want(keys(&["a/c"]), start);
        assert_eq!((asks.unsubscribe, asks.dropped), (keys(&["uid"]), vec![name]));
    }
}
