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
use mesh_state::{change::Change, wanted::Wanted};
use prost::Message;

use super::{
    Kind,
    convert::{self, Defaults},
    kept::{Kept, What},
    on_demand::{self, OnDemand},
    response::{Part, Response},
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

/// A stream that was not told of everything held, and has been quiet for so long, has sent all there is.
const QUIET_AFTER: Duration = Duration::from_secs(10);

/// The conversation.
pub struct Session {
    node: Node,
    defaults: Defaults,
    addresses: Subscription,
    authorizations: Subscription,
    /// `None` subscribes to everything.
    on_demand: Option<OnDemand>,
    versions_bytes_max: usize,
}

/// What is held of one type. A resource takes about 100 bytes here, beside its name, which it shares with the mesh.
#[derive(Default)]
struct Subscription {
    held: HashMap<Arc<str>, Held, SameEachTime>,
    /// A whole response has been taken.
    warm: bool,
    /// Held, and this stream's server does not know it: so it cannot tell that it has gone.
    unconfirmed: HashSet<Arc<str>, SameEachTime>,
    /// When this stream brought the last response.
    responded_at: Option<Instant>,
}

/// So that a conversation can be repeated: what a stream has room for depends on the order.
type SameEachTime = BuildHasherDefault<DefaultHasher>;

struct Held {
    /// Empty where the server gives none.
    version: Box<str>,
    what: What,
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
    pub fn new(node: Node, defaults: Defaults, on_demand: Option<OnDemand>) -> Self {
        let (addresses, authorizations) = (Subscription::default(), Subscription::default());
        Self { node, defaults, addresses, authorizations, on_demand, versions_bytes_max: VERSIONS_BYTES_MAX }
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

    /// The stream has ended. It tells no more what there is.
    pub fn on_lost(&mut self) {
        for kind in Kind::ALL {
            self.subscription(kind).responded_at = None;
        }
    }

    /// When [`Session::on_time`] has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        let due = |of: &Subscription| of.responded_at.filter(|_| !of.unconfirmed.is_empty()).map(|at| at + QUIET_AFTER);
        due(&self.addresses).into_iter().chain(due(&self.authorizations)).min()
    }

    /// Drops what a quiet stream has not confirmed.
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
                    receiving.refused.add(&name, &cause);
                }
            }
            Part::Unreadable { cause } => receiving.refused.add("a resource whose name is unreadable", &cause),
            Part::Removed(name) => {
                if let Some(on_demand) = self.on_demand.as_mut().filter(|_| kind == Kind::Address) {
                    on_demand.on_removed(&name, now);
                }
                self.drop_resource(kind, &name, changes);
            }
        }
    }

    /// All its parts are taken or refused: the answer.
    pub fn on_end(&mut self, receiving: Receiving, now: Instant) -> Bytes {
        let Receiving { kind, type_url, nonce, refused } = receiving;
        if let Some(kind) = kind {
            let subscription = self.subscription(kind);
            subscription.warm |= refused.count == 0;
            subscription.responded_at = Some(now);
        }
        let error_detail = refused.into_status();
        DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() }
            .encode_to_vec()
            .into()
    }

    /// Cores lack these. `None` where there is nothing to ask: everything is subscribed to, or it is asked for already.
    pub fn on_wanted<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = &'a Wanted>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) -> Option<Bytes> {
        let keys = wanted.into_iter().filter_map(on_demand::key);
        let asks = self.on_demand.as_mut()?.want(keys, now);
        for name in &asks.dropped {
            self.drop_resource(Kind::Address, name, changes);
        }
        let (subscribe, unsubscribe) = (asks.subscribe, asks.unsubscribe);
        (!subscribe.is_empty() || !unsubscribe.is_empty()).then(|| subscription(subscribe, unsubscribe))
    }

    /// Whether the mesh is known well enough to decide by: of every type that is subscribed to as a whole, one whole
    /// response has been taken.
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
            self.subscription(kind).held.insert(name, Held { version, what });
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
        let held = subscription.held.get_key_value(&*resource.name);
        let is_held = held.is_some_and(|(_, held)| !held.version.is_empty() && *held.version == resource.version);
        let name = held.map_or_else(|| Arc::from(resource.name.as_str()), |(name, _)| name.clone());
        if !is_held {
            let change = convert::change(kind, &name, &resource, &self.defaults);
            let change = change.map_err(|refusal| (resource.name.clone(), refusal.to_string()))?;
            let what = match &change {
                Change::Workload(_) => What::Workload,
                Change::Service(_) => What::Service,
                _ => What::Policy,
            };
            let held = Held { version: resource.version.into(), what };
            if let Some(before) = self.subscription(kind).held.insert(name.clone(), held)
                && before.what != what
            {
                changes.extend(before.what.gone(&name));
            }
            changes.push(change);
        }
        if let Some(on_demand) = self.on_demand.as_mut().filter(|_| kind == Kind::Address) {
            on_demand.on_taken(&name, &resource.aliases, now);
        }
        Ok(())
    }

    fn drop_resource(&mut self, kind: Kind, name: &str, changes: &mut Vec<Change>) {
        let subscription = self.subscription(kind);
        subscription.unconfirmed.remove(name);
        if let Some((name, held)) = subscription.held.remove_entry(name) {
            changes.extend(held.what.gone(&name));
        }
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
            requests.push(subscription(std::mem::take(&mut subscribe), Vec::new()));
            bytes = 0;
        }
        bytes += length;
        subscribe.push(name);
    }
    if !subscribe.is_empty() {
        requests.push(subscription(subscribe, Vec::new()));
    }
    requests
}

/// A later request for addresses by name.
fn subscription(subscribe: Vec<String>, unsubscribe: Vec<String>) -> Bytes {
    let type_url = Kind::Address.type_url().to_owned();
    let request = DeltaDiscoveryRequest { type_url, subscribe, unsubscribe, ..Default::default() };
    request.encode_to_vec().into()
}

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
