//! The conversation with the control plane, as a machine: what is asked first, what of a response is taken, refused and
//! taken back, and what is answered. Pure: no stream, no clock. What it holds outlives connections, so a new one costs
//! the difference only.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_state::{
    change::Change,
    name::PolicyKey,
    wanted::Wanted,
    workload::{NetworkMode, Workload},
};
use prost::Message;

use super::{
    Kind, convert,
    kept::{Kept, What},
    on_demand::{Asks, OnDemand},
    response::{Part, Response},
    withheld::{Waiting, Withheld},
};
use crate::proto::{
    discovery::{DeltaDiscoveryRequest, Node, Resource},
    well_known::Status,
};

/// The longest text of a refusal, well below what servers read. Beyond, what is refused is counted and not named.
const REFUSAL_BYTES_MAX: usize = 1 << 20;

/// How much of what is held is told to a new stream: what about 40,000 workloads take. A gRPC server in Go reads no message
/// of more than 4 MiB unless it is told otherwise, and refuses longer ones. See [`Session::on_connected`].
pub const VERSIONS_BYTES_MAX: usize = 3 << 20;

/// A stream that was not told of everything held, and has been quiet for so long, has sent all there is. Long, because what
/// is dropped too early is a part of the mesh, and what is dropped late does little harm.
const QUIET_AFTER: Duration = Duration::from_secs(20);

/// The conversation.
pub struct Session {
    node: Node,
    addresses: Subscription,
    authorizations: Subscription,
    /// `None` subscribes to everything.
    on_demand: Option<OnDemand>,
    /// `None` takes every workload for one of this node, whose policies are decided by here.
    local_node: Option<Box<str>>,
    withheld: Withheld,
    versions_bytes_max: usize,
}

/// What is held of one type. A resource takes about 100 bytes here, beside its name, which it shares with the mesh.
#[derive(Default)]
struct Subscription {
    held: HashMap<Arc<str>, Held, SameEachTime>,
    /// A response has been taken to its end, as far as it has to be.
    warm: bool,
    /// Refused and not there, as long as that keeps this from being warm.
    missing: HashSet<Arc<str>, SameEachTime>,
    /// Held, and this stream's server does not know it: so it cannot tell that it has gone.
    unconfirmed: HashSet<Arc<str>, SameEachTime>,
    /// When this stream brought the last response, or a part of the next one.
    responded_at: Option<Instant>,
}

/// So that a conversation can be repeated: what a stream has room for depends on the order.
type SameEachTime = BuildHasherDefault<DefaultHasher>;

struct Held {
    /// Empty where the server gives none, and of one whose new version is withheld.
    version: Box<str>,
    what: What,
    /// A workload of this node, which the control plane sends without being asked.
    is_local: bool,
    /// What is on its node's network has no address of its own.
    is_addressable: bool,
}

/// A response that is being taken.
#[derive(Debug)]
pub struct Receiving {
    /// `None` for a type that nobody here asked for.
    kind: Option<Kind>,
    type_url: String,
    nonce: String,
    refused: Refused,
}

/// What was refused of a response.
#[derive(Debug, Default)]
struct Refused {
    text: String,
    count: usize,
    unnamed: usize,
}

impl Session {
    /// One that has heard nothing yet.
    pub fn new(node: Node, on_demand: Option<OnDemand>) -> Self {
        let (addresses, authorizations) = (Subscription::default(), Subscription::default());
        let (withheld, versions_bytes_max) = (Withheld::default(), VERSIONS_BYTES_MAX);
        Self { node, addresses, authorizations, on_demand, local_node: None, withheld, versions_bytes_max }
    }

    /// The same for a node's pods only: a workload of another node never waits for its policies, by which nothing is
    /// decided here.
    #[must_use]
    pub fn for_node(mut self, node: Option<&str>) -> Self {
        self.local_node = node.map(Into::into);
        self
    }

    /// The same with another limit than [`VERSIONS_BYTES_MAX`].
    #[must_use]
    pub fn with_versions_limit(mut self, bytes: usize) -> Self {
        self.versions_bytes_max = bytes;
        self
    }

    /// A stream begins: what is to be sent, in this order. What is held is told as far as a message has room. The server
    /// sends the rest once more; what of it does not come until the stream has been quiet for a while is gone.
    pub fn on_connected(&mut self, now: Instant) -> Vec<Bytes> {
        let mut requests: Vec<Bytes> = Kind::ALL.into_iter().map(|kind| self.first(kind)).collect();
        if let Some(on_demand) = &mut self.on_demand {
            // By name, the server answers for each whether it is there.
            let untold = std::mem::take(&mut self.addresses.unconfirmed);
            let names = untold.iter().map(|name| name.to_string()).chain(on_demand.unanswered(now));
            requests.extend(subscriptions(names, self.versions_bytes_max));
        }
        requests
    }

    /// A part of a response has come: the stream is not quiet.
    pub fn on_bytes(&mut self, now: Instant) {
        for kind in Kind::ALL {
            let responded_at = &mut self.subscription(kind).responded_at;
            *responded_at = responded_at.map(|at| at.max(now));
        }
    }

    /// The stream has ended. It tells no more what there is.
    pub fn on_lost(&mut self) {
        for kind in Kind::ALL {
            self.subscription(kind).responded_at = None;
        }
    }

    /// When [`Session::on_time`] has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        let due = |of: &Subscription| of.responded_at.filter(|_| !of.unconfirmed.is_empty()).map(|at| at + QUIET_AFTER);
        // Without an answer since the last connection, what was said before is the best there is.
        let absences = self.on_demand.as_ref().filter(|_| self.addresses.responded_at.is_some());
        let absences = absences.and_then(OnDemand::next_due);
        [due(&self.addresses), due(&self.authorizations), self.withheld.next_due(), absences]
            .into_iter()
            .flatten()
            .min()
    }

    /// Drops what a quiet stream has not confirmed, no longer withholds what has waited for long enough, and no longer
    /// believes what was said too long ago not to be there.
    pub fn on_time(&mut self, now: Instant, changes: &mut Vec<Change>) {
        for kind in Kind::ALL {
            let subscription = self.subscription(kind);
            if subscription.responded_at.is_some_and(|at| at + QUIET_AFTER <= now) {
                let gone = std::mem::take(&mut subscription.unconfirmed);
                for name in &gone {
                    self.drop_resource(kind, name, changes);
                }
            }
        }
        self.release(now, changes);
        if let Some(on_demand) = self.on_demand.as_mut().filter(|_| self.addresses.responded_at.is_some()) {
            changes.extend(on_demand.too_old(now).into_iter().map(Change::Unknown));
        }
    }

    /// A response has come; its parts follow.
    pub fn on_response(&self, response: &Response) -> Receiving {
        let (type_url, nonce) = (response.type_url().to_owned(), response.nonce().to_owned());
        Receiving { kind: Kind::of(&type_url), type_url, nonce, refused: Refused::default() }
    }

    /// One part of it: what it changes is added to `changes`.
    pub fn on_part(&mut self, receiving: &mut Receiving, part: Part, now: Instant, changes: &mut Vec<Change>) {
        let Some(kind) = receiving.kind else { return };
        match part {
            Part::Resource(resource) => {
                if let Err((name, cause)) = self.on_resource(kind, resource, now, changes) {
                    self.refuse(receiving, kind, &name, &cause);
                }
            }
            Part::Unreadable { cause } => {
                self.refuse(receiving, kind, "a resource whose name is unreadable", &cause);
            }
            Part::Removed(name) => {
                self.drop_resource(kind, &name, changes);
                if let Some(on_demand) = self.on_demand.as_mut().filter(|_| kind == Kind::Address) {
                    changes.extend(on_demand.on_removed(&name, now).map(Change::Absent));
                }
            }
        }
    }

    /// All its parts are taken or refused: the answer. What had to wait for it is added to `changes`.
    pub fn on_end(&mut self, receiving: Receiving, now: Instant, changes: &mut Vec<Change>) -> Bytes {
        let Receiving { kind, type_url, nonce, refused } = receiving;
        if let Some(kind) = kind {
            let subscription = self.subscription(kind);
            subscription.warm |= kind == Kind::Address || subscription.missing.is_empty();
            subscription.responded_at = Some(now);
        }
        if kind == Some(Kind::Authorization) {
            self.release(now, changes);
        }
        let error_detail = refused.into_status();
        DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() }
            .encode_to_vec()
            .into()
    }

    /// Cores lack these: what is to be sent, in this order. Nothing where everything is subscribed to, or it is asked for
    /// already.
    pub fn on_wanted<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = &'a Wanted>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) -> Vec<Bytes> {
        let parts = wanted.into_iter().filter_map(|wanted| match wanted {
            Wanted::Part { sought, tenant } => Some((sought, tenant)),
            Wanted::Identity(_) => None,
        });
        let Some(on_demand) = &mut self.on_demand else { return Vec::new() };
        let Asks { mut unsubscribe, subscribe, dropped, unknown } = on_demand.want(parts, now);
        changes.extend(unknown.into_iter().map(Change::Unknown));
        for name in &dropped {
            // A pod of this node is known as long as it is there, whoever has asked for its address, too.
            if self.local_node.is_none() || !self.addresses.held.get(name).is_some_and(|held| held.is_local) {
                self.drop_resource(Kind::Address, name, changes);
                // Whatever key it was the answer to, the server has subscribed us to its name as well.
                unsubscribe.push(name.to_string());
            }
        }
        unsubscribe.sort_unstable();
        unsubscribe.dedup();
        let beside = if unsubscribe.is_empty() { Vec::new() } else { vec![NOBODY.to_owned()] };
        [subscription(beside, unsubscribe), subscription(subscribe, Vec::new())].into_iter().flatten().collect()
    }

    /// Whether the mesh is known well enough to decide by: of every type that is subscribed to as a whole, one response has
    /// been taken to its end, and no policy is missing because it was refused, which may be the one that denies. A workload that is refused is no more there later, and whoever can write one would keep the node's pods from starting.
    pub fn is_warm(&self) -> bool {
        self.authorizations.warm && (self.addresses.warm || self.on_demand.is_some())
    }

    /// All that is held, to be kept beyond the end of the process.
    pub fn kept(&self) -> Vec<Kept> {
        let all = self.addresses.held.iter().chain(&self.authorizations.held);
        all.map(|(name, held)| Kept { what: held.what, name: name.clone(), version: held.version.clone() }).collect()
    }

    /// What a process before has held, and the mesh has: whole, and to be told to the first stream.
    pub fn restore(&mut self, kept: impl IntoIterator<Item = Kept>) {
        // What could not be taken back is sent anew.
        for Kept { what, name, version } in kept.into_iter().filter(|kept| kept.what.gone(&kept.name).is_some()) {
            let kind = match what {
                What::Workload | What::Service => Kind::Address,
                What::Policy => Kind::Authorization,
            };
            // What is asked for by name is not kept (`Source::keeper`), so neither matters.
            let held = Held { version, what, is_local: false, is_addressable: true };
            self.subscription(kind).held.insert(name, held);
        }
        for kind in Kind::ALL {
            self.subscription(kind).warm = true;
        }
    }

    /// How many resources of a type are held.
    pub fn held(&self, kind: Kind) -> usize {
        match kind {
            Kind::Address => self.addresses.held.len(),
            Kind::Authorization => self.authorizations.held.len(),
        }
    }

    fn refuse(&mut self, receiving: &mut Receiving, kind: Kind, name: &str, cause: &str) {
        receiving.refused.add(name, cause);
        let subscription = self.subscription(kind);
        if kind == Kind::Authorization && !subscription.warm && !subscription.held.contains_key(name) {
            subscription.missing.insert(name.into());
        }
    }

    fn subscription(&mut self, kind: Kind) -> &mut Subscription {
        match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.authorizations,
        }
    }

    /// The first request of a stream for a type: who asks, and what is held already.
    fn first(&mut self, kind: Kind) -> Bytes {
        let names = match (kind, &self.on_demand) {
            // To everything and from everything: subscribed, and to nothing yet.
            (Kind::Address, Some(_)) => vec!["*".to_owned()],
            _ => Vec::new(),
        };
        let request = DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.type_url().to_owned(),
            subscribe: names.clone(),
            unsubscribe: names,
            ..Default::default()
        };
        let mut bytes = request.encode_to_vec();
        let bytes_max = bytes.len() + self.versions_bytes_max;
        let subscription = self.subscription(kind);
        subscription.unconfirmed.clear();
        // It is sent again, or it is gone.
        subscription.missing.clear();
        subscription.responded_at = None;
        // Written here, because there may be many, and the message would copy each of them first.
        for (name, Held { version, .. }) in &subscription.held {
            if bytes.len() + name.len() + version.len() + VERSION_OVERHEAD_MAX <= bytes_max {
                push_version(&mut bytes, name, version);
            } else {
                subscription.unconfirmed.insert(name.clone());
            }
        }
        bytes.into()
    }

    fn on_resource(
        &mut self,
        kind: Kind,
        resource: Resource,
        now: Instant,
        changes: &mut Vec<Change>,
    ) -> Result<(), (String, String)> {
        let subscription = self.subscription(kind);
        subscription.unconfirmed.remove(&*resource.name);
        // Until it is refused again.
        subscription.missing.remove(&*resource.name);
        let held = subscription.held.get_key_value(&*resource.name);
        let is_held = held.is_some_and(|(_, held)| !held.version.is_empty() && *held.version == resource.version);
        let name = held.map_or_else(|| Arc::from(resource.name.as_str()), |(name, _)| name.clone());
        if !is_held {
            let change = convert::change(kind, &name, &resource);
            let change = change.map_err(|refusal| (resource.name.clone(), refusal.to_string()))?;
            match self.unless_withheld(&name, &resource.version, change, now) {
                // Without its version, so that a new stream brings it again, and the version before it, too.
                None => self.addresses.held.get_mut(&name).expect("of which a version is in force").version = "".into(),
                Some(change) => {
                    let what = What::of(&change);
                    let before = self.hold(kind, &name, &resource.version, &change);
                    changes.extend(before.filter(|before| *before != what).and_then(|before| before.gone(&name)));
                    changes.push(change);
                }
            }
        }
        if let Some(on_demand) = self.on_demand.as_mut().filter(|_| kind == Kind::Address) {
            let addressable = self.addresses.held.get(&name).is_none_or(|held| held.is_addressable);
            let absent = on_demand.on_taken(&name, &resource.aliases, addressable, now);
            changes.extend(absent.into_iter().map(Change::Absent));
        }
        Ok(())
    }

    /// A change, if it takes effect now: a workload of which a version is in force waits for the policies that it names.
    fn unless_withheld(&mut self, name: &Arc<str>, version: &str, change: Change, now: Instant) -> Option<Change> {
        let in_force = self.addresses.held.get(name).is_some_and(|held| held.what == What::Workload);
        match change {
            Change::Workload(workload) if in_force && self.is_local(&workload) => {
                let policies = &self.authorizations.held;
                let knows = |key: &PolicyKey| policies.contains_key(key.as_str());
                self.withheld.withhold(name, workload, version, now, knows).map(Change::Workload)
            }
            Change::Policy(_) => Some(change),
            _ => {
                self.withheld.forget(name);
                Some(change)
            }
        }
    }

    /// A resource is held from now on. Says what it was.
    fn hold(&mut self, kind: Kind, name: &Arc<str>, version: &str, change: &Change) -> Option<What> {
        let (is_local, is_addressable) = match change {
            Change::Workload(workload) => (self.is_local(workload), workload.network_mode == NetworkMode::Standard),
            _ => (false, true),
        };
        let held = Held { version: version.into(), what: What::of(change), is_local, is_addressable };
        self.subscription(kind).held.insert(name.clone(), held).map(|before| before.what)
    }

    fn is_local(&self, workload: &Workload) -> bool {
        self.local_node.as_ref().is_none_or(|node| **node == *workload.place.node)
    }

    /// Lets take effect what need not be withheld any more.
    fn release(&mut self, now: Instant, changes: &mut Vec<Change>) {
        let policies = &self.authorizations.held;
        for (name, waiting) in self.withheld.released(now, |key| policies.contains_key(key.as_str())) {
            let Waiting { workload, version, .. } = waiting;
            let change = Change::Workload(workload);
            self.hold(Kind::Address, &name, &version, &change);
            changes.push(change);
        }
    }

    fn drop_resource(&mut self, kind: Kind, name: &str, changes: &mut Vec<Change>) {
        let subscription = self.subscription(kind);
        subscription.unconfirmed.remove(name);
        subscription.missing.remove(name);
        if let Some((name, held)) = subscription.held.remove_entry(name) {
            if kind == Kind::Address {
                self.withheld.forget(&name);
            }
            changes.extend(held.what.gone(&name));
        }
    }
}

impl Receiving {
    /// What was refused so far: of which type, how many, and which and why.
    pub fn refused(&self) -> Option<(Kind, usize, &str)> {
        Some((self.kind?, self.refused.count, &*self.refused.text)).filter(|(_, count, _)| *count > 0)
    }
}

impl Refused {
    fn add(&mut self, name: &str, cause: &str) {
        self.count += 1;
        if self.text.len() + name.len() + cause.len() > REFUSAL_BYTES_MAX {
            self.unnamed += 1;
            return;
        }
        let separator = if self.text.is_empty() { "" } else { "; " };
        self.text.extend([separator, name, ": ", cause]);
    }

    fn into_status(self) -> Option<Status> {
        if self.count == 0 {
            return None;
        }
        tracing::warn!(refused = self.count, why = self.text, "resources of the control plane refused");
        let more = if self.unnamed == 0 { String::new() } else { format!("; and {} more", self.unnamed) };
        Some(Status { code: 0, message: self.text + &more })
    }
}

/// Requests for addresses by name, none of them longer than a server reads.
fn subscriptions(names: impl Iterator<Item = String>, bytes_max: usize) -> Vec<Bytes> {
    let (mut requests, mut subscribe, mut bytes) = (Vec::new(), Vec::new(), 0);
    for name in names {
        let length = name.len() + VERSION_OVERHEAD_MAX;
        if bytes + length > bytes_max && !subscribe.is_empty() {
            requests.extend(subscription(std::mem::take(&mut subscribe), Vec::new()));
            bytes = 0;
        }
        bytes += length;
        subscribe.push(name);
    }
    requests.extend(subscription(subscribe, Vec::new()));
    requests
}

/// A later request for addresses by name, unless it is about none.
fn subscription(subscribe: Vec<String>, unsubscribe: Vec<String>) -> Option<Bytes> {
    if subscribe.is_empty() && unsubscribe.is_empty() {
        return None;
    }
    let type_url = Kind::Address.type_url().to_owned();
    let request = DeltaDiscoveryRequest { type_url, subscribe, unsubscribe, ..Default::default() };
    Some(request.encode_to_vec().into())
}

/// Asked for beside what is unsubscribed from. istiod answers a request that asks for nothing with the removal of everything.
const NOBODY: &str = "/0.0.0.0";

/// What an entry takes beside its name and version: keys, and lengths of at most 5 bytes each.
const VERSION_OVERHEAD_MAX: usize = 18;

/// An entry of `initial_resource_versions`, field 5: a message of a name, field 1, and a version, field 2.
fn push_version(bytes: &mut Vec<u8>, name: &str, version: &str) {
    const LENGTH: &str = "a vector grows";
    let length = |text: &str| 1 + prost::length_delimiter_len(text.len()) + text.len();
    bytes.push(5 << 3 | 2);
    prost::encode_length_delimiter(length(name) + length(version), bytes).expect(LENGTH);
    for (key, text) in [(1 << 3 | 2, name), (2 << 3 | 2, version)] {
        bytes.push(key);
        prost::encode_length_delimiter(text.len(), bytes).expect(LENGTH);
        bytes.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests;
