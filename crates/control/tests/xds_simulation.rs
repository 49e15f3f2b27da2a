//! Conversations with a control plane that changes, repeats itself, sends what cannot be taken and loses connections, by
//! seed. What must hold: after quiet both sides have the same; every refusal names what was bad and nothing else; nothing
//! is applied that is in force already; no workload that was known comes to name a policy that is not, but one whose
//! policy was waited for; nothing goes while bytes of a response come; an address that stays bad keeps nobody cold.
//!
//! Negative control, done by hand: a session that forgets to record a version fails with "in force already"; one that
//! leaves out the initial versions, or drops nothing of what they had no room for, or withholds for ever, fails with
//! "after quiet"; one that withholds nothing fails with "too early"; one to which bytes are no sign of life fails with "gone
//! while"; one that wants all to be good fails with "cold".

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use control::{
    proto::{
        discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
        security::Authorization,
        well_known::Any,
        workload,
    },
    xds::{Kind, on_demand::OnDemand, response::Response, session::Session, withheld::POLICY_PATIENCE},
};
use fastrand::Rng;
use mesh_state::{
    change::Change,
    name::{NamespacedHostname, NetworkId},
    wanted::{Sought, Wanted},
};
use prost::Message;

/// Few names, so that they meet.
const NAMES: u8 = 8;
const STEPS: usize = 400;
const SEEDS: u64 = 300;

#[test]
fn after_quiet_both_sides_have_the_same_when_everything_is_subscribed_to() {
    for seed in 0..SEEDS {
        World::new(seed, false).run();
    }
}

#[test]
fn after_quiet_both_sides_have_the_same_when_names_are_asked_for() {
    for seed in 0..SEEDS {
        World::new(seed, true).run();
    }
}

#[test]
fn after_quiet_both_sides_have_the_same_when_a_stream_has_no_room_for_all_versions() {
    for seed in 0..SEEDS {
        for on_demand in [false, true] {
            let mut world = World::new(seed, on_demand);
            world.session = world.session.with_versions_limit(80);
            world.run();
        }
    }
}

/// A resource at the server.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    version: u64,
    bad: bool,
    aliases: Vec<String>,
    /// Of a workload: a policy that it names, which may not be there.
    policy: Option<String>,
}

/// By type (0 addresses, 1 authorizations) and name.
type Mesh = [BTreeMap<String, Content>; 2];

struct World {
    seed: u64,
    rng: Rng,
    now: Instant,
    on_demand: bool,
    mesh: Mesh,
    versions: u64,
    server: Option<Stream>,
    session: Session,
    /// What has been applied, by type and name.
    applied: [BTreeMap<String, u64>; 2],
    /// Workloads in force of which a version came before the policy that it names, and when the first such came.
    early: BTreeMap<String, Instant>,
    /// Asked for since the beginning.
    asked: BTreeSet<String>,
    /// The server leaves nothing for the next response.
    hurries: bool,
}

/// The server's side of a connection, and what is under way on it.
#[derive(Default)]
struct Stream {
    to_server: VecDeque<Bytes>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    started: [bool; 2],
    /// What the client is known to have, by type: what it said first, and what was sent since.
    sent: [BTreeMap<String, Option<u64>>; 2],
    /// Names and aliases that are subscribed to, where not everything is.
    keys: BTreeSet<String>,
    nonces: u64,
    /// What is bad of each response that is not answered yet.
    unanswered: BTreeMap<String, Vec<String>>,
}

impl World {
    fn new(seed: u64, on_demand: bool) -> Self {
        let session = Session::new(Default::default(), on_demand.then(OnDemand::default));
        Self {
            seed,
            rng: Rng::with_seed(seed),
            now: Instant::now(),
            on_demand,
            mesh: Mesh::default(),
            versions: 0,
            server: None,
            session,
            applied: Default::default(),
            early: BTreeMap::new(),
            asked: BTreeSet::new(),
            hurries: false,
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.rng.u64(0..2000));
            self.time_passes();
            match self.rng.u8(0..20) {
                0 => self.disconnect(),
                1..=5 => self.change(),
                6..=8 => self.push(),
                9 | 10 => self.want(),
                11..=15 => self.client_hears(),
                _ => self.server_hears(),
            }
            if self.server.is_none() && self.rng.u8(0..4) == 0 {
                self.connect();
            }
        }
        let stays_bad = self.quiet();
        assert!(self.session.is_warm(), "seed {}: cold", self.seed);
        let mut expected = self.expected();
        if let Some((kind, name)) = stays_bad {
            // Of whatever version came before it turned bad, if any.
            expected[kind].remove(&name);
            self.applied[kind].remove(&name);
        }
        if self.on_demand {
            // What was asked for by an address that it has lost since may stay, of whatever version, as long as it is there.
            let mesh = &self.mesh[0];
            self.applied[0].retain(|name, _| expected[0].contains_key(name) || !mesh.contains_key(name));
        }
        assert_eq!(self.applied, expected, "seed {}: after quiet", self.seed);
    }

    /// What the client should have: everything, or of addresses what it has asked for.
    fn expected(&self) -> [BTreeMap<String, u64>; 2] {
        let of = |kind: usize| {
            let wanted = |(name, content): &(&String, &Content)| {
                !self.on_demand
                    || kind == 1
                    || self.asked.contains(*name)
                    || content.aliases.iter().any(|alias| self.asked.contains(alias))
            };
            self.mesh[kind].iter().filter(wanted).map(|(name, content)| (name.clone(), content.version)).collect()
        };
        [of(0), of(1)]
    }

    fn disconnect(&mut self) {
        self.server = None;
        self.session.on_lost();
    }

    fn connect(&mut self) {
        let to_server = self.session.on_connected(self.now).into();
        self.server = Some(Stream { to_server, ..Stream::default() });
    }

    /// Everything that is under way arrives, everything bad but one is mended, and what was asked for is asked for again. Says
    /// which is not.
    fn quiet(&mut self) -> Option<(usize, String)> {
        self.hurries = true;
        let mut stays_bad = None;
        for (kind, contents) in self.mesh.iter_mut().enumerate() {
            for (name, content) in contents.iter_mut().filter(|(_, content)| content.bad) {
                if kind == 0 && stays_bad.is_none() {
                    stays_bad = Some((kind, name.clone()));
                    continue;
                }
                self.versions += 1;
                (content.bad, content.version) = (false, self.versions);
            }
        }
        for _ in 0..2 {
            self.now += Duration::from_secs(60);
            if self.server.is_none() {
                self.connect();
            }
            let asked: Vec<Wanted> = self.asked.iter().map(|key| wanted(key)).collect();
            self.ask(&asked);
            for _ in 0..10_000 {
                let stream = self.server.as_ref().expect("connected above");
                if stream.to_server.is_empty() && stream.to_client.is_empty() {
                    self.push();
                }
                if self.server.as_ref().is_some_and(|stream| stream.to_server.is_empty() && stream.to_client.is_empty())
                {
                    break;
                }
                self.server_hears();
                self.client_hears();
            }
            self.now += Duration::from_secs(60);
            self.time_passes();
        }
        stays_bad
    }

    /// A long response comes in pieces.
    fn bytes_come(&mut self) {
        for _ in 0..4 {
            self.now += Duration::from_secs(15);
            self.session.on_bytes(self.now);
            let mut changes = Vec::new();
            self.session.on_time(self.now, &mut changes);
            let gone = changes.iter().find(|change| {
                matches!(change, Change::WorkloadGone(_) | Change::ServiceGone(_) | Change::PolicyGone(_))
            });
            assert!(gone.is_none(), "seed {}: {gone:?} gone while bytes come", self.seed);
            self.apply(changes, false);
        }
    }

    fn time_passes(&mut self) {
        if self.session.next_due().is_some_and(|due| due <= self.now) {
            let mut changes = Vec::new();
            self.session.on_time(self.now, &mut changes);
            self.apply(changes, false);
            assert!(self.session.next_due().is_none_or(|due| due > self.now), "seed {}: still due", self.seed);
        }
    }

    /// Something comes, changes, turns bad or goes.
    fn change(&mut self) {
        self.versions += 1;
        let number = self.rng.u8(0..NAMES);
        let kind = usize::from(self.rng.u8(0..3) == 0);
        let name = match (kind, number % 2) {
            (0, 0) => format!("c//Pod/n/{number}"),
            (0, _) => format!("n/host-{number}"),
            _ => format!("n/policy-{number}"),
        };
        if self.rng.u8(0..4) == 0 {
            self.mesh[kind].remove(&name);
        } else {
            // Addresses wander from one to the other.
            let aliases = vec![format!("/10.0.0.{}", self.rng.u8(0..NAMES))];
            let policy = (kind == 0 && self.rng.bool()).then(|| format!("n/policy-{}", self.rng.u8(0..NAMES)));
            let content = Content { version: self.versions, bad: self.rng.u8(0..6) == 0, aliases, policy };
            self.mesh[kind].insert(name, content);
        }
    }

    fn want(&mut self) {
        if !self.on_demand {
            return;
        }
        let number = self.rng.u8(0..NAMES);
        let key = if self.rng.bool() { format!("/10.0.0.{number}") } else { format!("n/host-{number}") };
        self.asked.insert(key.clone());
        self.ask(&[wanted(&key)]);
    }

    fn ask(&mut self, wanted: &[Wanted]) {
        let mut changes = Vec::new();
        let requests = self.session.on_wanted(wanted, self.now, &mut changes);
        assert_eq!(changes, [], "there is room for all keys");
        if let Some(stream) = &mut self.server {
            stream.to_server.extend(requests);
        }
    }

    /// The server takes a request.
    fn server_hears(&mut self) {
        let Some(stream) = &mut self.server else { return };
        let Some(request) = stream.to_server.pop_front() else { return };
        let request = DeltaDiscoveryRequest::decode(request).expect("a request");
        let kind = usize::from(request.type_url == Kind::Authorization.type_url());
        if !request.response_nonce.is_empty() {
            let bad = stream.unanswered.remove(&request.response_nonce).expect("an answer to what was sent, once");
            let named: Vec<String> = request
                .error_detail
                .iter()
                .flat_map(|status| status.message.split("; "))
                .map(|refusal| refusal.split(": ").next().expect("a name").to_owned())
                .collect();
            assert_eq!(named, bad, "seed {}: what is refused", self.seed);
            return;
        }
        if !stream.started[kind] {
            stream.started[kind] = true;
            assert!(request.node.is_some());
            for (name, version) in request.initial_resource_versions {
                // Of policies it gives no versions, so it does not know which ones the client has.
                let version = version.parse().ok();
                stream.keys.insert(name.clone());
                stream.sent[kind].insert(name, version);
            }
        }
        if self.on_demand && kind == 0 {
            let new: Vec<String> =
                request.subscribe.iter().filter(|key| *key != "*" && !stream.keys.contains(*key)).cloned().collect();
            // Like istiod: what is subscribed to already is no news, and what goes goes last.
            for key in new {
                // It is sent though the client has it, or told that it is not there.
                for (name, version) in &mut stream.sent[0] {
                    if self.mesh[0].get(name).is_some_and(|content| content.aliases.contains(&key)) {
                        *version = None;
                    }
                }
                stream.sent[0].insert(key.clone(), None);
                stream.keys.insert(key);
            }
            let asks = request.subscribe.iter().any(|key| !request.unsubscribe.contains(key));
            let opens = request.unsubscribe.iter().all(|key| key == "*");
            assert!(opens || asks, "seed {}: it asks for nothing, so istiod would remove everything", self.seed);
            for key in request.unsubscribe {
                stream.keys.remove(&key);
            }
        }
    }

    /// The server looks for what a client does not have, and sends some of it.
    fn push(&mut self) {
        let Some(stream) = &mut self.server else { return };
        for (kind, contents) in self.mesh.iter().enumerate() {
            if !stream.started[kind] {
                continue;
            }
            let by_name = self.on_demand && kind == 0;
            let mut response = DeltaDiscoveryResponse::default();
            let mut bad = Vec::new();
            for (name, content) in contents {
                let sent = stream.sent[kind].get(name).copied().flatten();
                let wanted = !by_name
                    || stream.keys.contains(name)
                    || content.aliases.iter().any(|alias| stream.keys.contains(alias));
                // Now and then one is sent again for no reason, or stays for the next response.
                let again = self.rng.u8(0..12) == 0 && kind == 0 && sent.is_some();
                if wanted && (sent != Some(content.version) || again) && (self.hurries || self.rng.u8(0..8) > 0) {
                    stream.sent[kind].insert(name.clone(), Some(content.version));
                    response.resources.push(resource(kind, name, content));
                    bad.extend(content.bad.then(|| name.clone()));
                }
            }
            let answers = |key: &str| {
                contents.iter().any(|(name, content)| *name == *key || content.aliases.iter().any(|alias| alias == key))
            };
            let gone: Vec<String> = stream.sent[kind].keys().filter(|name| !answers(name)).cloned().collect();
            for name in gone {
                stream.sent[kind].remove(&name);
                response.removed_resources.push(name);
            }
            if self.rng.u8(0..10) == 0 {
                response.removed_resources.push("never/was".into());
            }
            if !response.resources.is_empty() || !response.removed_resources.is_empty() {
                stream.nonces += 1;
                response.nonce = stream.nonces.to_string();
                response.type_url = Kind::ALL[kind].type_url().into();
                stream.unanswered.insert(response.nonce.clone(), bad);
                stream.to_client.push_back(response);
            }
        }
    }

    /// The client takes a response.
    fn client_hears(&mut self) {
        if self.server.as_ref().is_some_and(|stream| !stream.to_client.is_empty()) && self.rng.u8(0..8) == 0 {
            self.bytes_come();
        }
        let Some(stream) = &mut self.server else { return };
        // Those of different types overtake each other.
        let at = usize::from(
            stream.to_client.len() > 1
                && stream.to_client[0].type_url != stream.to_client[1].type_url
                && self.rng.bool(),
        );
        let Some(response) = stream.to_client.remove(at) else { return };
        self.early.extend(
            early(&response, &self.applied)
                .filter(|name| !self.early.contains_key(name))
                .map(|name| (name, self.now))
                .collect::<Vec<_>>(),
        );
        let unversioned = response.type_url == Kind::Authorization.type_url();
        let response = Response::read(response.encode_to_vec().into()).expect("a response");
        let (mut receiving, mut changes) = (self.session.on_response(&response), Vec::new());
        for part in response {
            self.session.on_part(&mut receiving, part, self.now, &mut changes);
        }
        stream.to_server.push_back(self.session.on_end(receiving, self.now, &mut changes));
        self.apply(changes, unversioned);
    }

    fn apply(&mut self, changes: Vec<Change>, unversioned: bool) {
        let policies = self.policies_with(&changes);
        for change in changes {
            if let Change::Absent(_) | Change::Unknown(_) = change {
                continue;
            }
            self.must_be_in_time(&change, &policies);
            let (kind, name, version) = read(change);
            let before = match version {
                Some(version) => self.applied[kind].insert(name.clone(), version),
                None => self.applied[kind].remove(&name),
            };
            assert!(before != version || unversioned, "seed {}: {name} {version:?} is in force already", self.seed);
        }
    }

    /// The policies that are in force with these changes.
    fn policies_with(&self, changes: &[Change]) -> BTreeSet<String> {
        let mut policies: BTreeSet<String> = self.applied[1].keys().cloned().collect();
        for change in changes {
            match change {
                Change::Policy(policy) => _ = policies.insert(policy.key.to_string()),
                Change::PolicyGone(key) => _ = policies.remove(key.as_str()),
                _ => {}
            }
        }
        policies
    }

    /// A workload in force does not come to name a policy that is not, but when it has waited for that.
    fn must_be_in_time(&mut self, change: &Change, policies: &BTreeSet<String>) {
        match change {
            Change::Workload(workload) => {
                let name = workload.uid.to_string();
                let waited = self.early.remove(&name).map(|since| self.now - since);
                let is_known = workload.authorization_policies.iter().all(|key| policies.contains(key.as_str()));
                let is_new = !self.applied[0].contains_key(&name);
                let in_time = is_known || is_new || waited.is_some_and(|waited| waited >= POLICY_PATIENCE);
                assert!(in_time, "seed {}: {name} takes effect too early, after {waited:?}", self.seed);
            }
            Change::WorkloadGone(uid) => _ = self.early.remove(&uid.to_string()),
            _ => {}
        }
    }
}

/// The workloads in force of which a response has a version that names a policy that is not.
fn early<'a>(
    response: &'a DeltaDiscoveryResponse,
    applied: &'a [BTreeMap<String, u64>; 2],
) -> impl Iterator<Item = String> + 'a {
    let names_unknown = |resource: &&Resource| {
        let value = resource.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default();
        match workload::Address::decode(value).map(|address| address.kind) {
            Ok(Some(workload::Kind::Workload(workload))) if workload.status != BAD => {
                applied[0].contains_key(&resource.name)
                    && workload.authorization_policies.iter().any(|key| !applied[1].contains_key(key))
            }
            _ => false,
        }
    };
    let is_address = response.type_url == Kind::Address.type_url();
    response.resources.iter().filter(move |_| is_address).filter(names_unknown).map(|resource| resource.name.clone())
}

fn wanted(key: &str) -> Wanted {
    let sought = match key.strip_prefix("/") {
        Some(address) => {
            Sought::Address { network: NetworkId::from(""), address: address.parse().expect("an address") }
        }
        None => Sought::Hostname(NamespacedHostname::parse(key).expect("a key")),
    };
    Wanted::Part { sought, tenant: "tenant".into() }
}

/// No status, IP family or scope.
const BAD: i32 = 9;

/// The version is in the content, too, so that what is applied tells which it was.
fn resource(kind: usize, name: &str, content: &Content) -> Resource {
    let text = content.version.to_string();
    let bad = if content.bad { BAD } else { 0 };
    let (value, version) = match (kind, name.split_once('/')) {
        (0, Some((namespace, hostname))) if !hostname.contains('/') => {
            let service = workload::Service {
                namespace: namespace.into(),
                hostname: hostname.into(),
                name: text.clone(),
                ip_families: bad,
                ..Default::default()
            };
            (workload::Address { kind: Some(workload::Kind::Service(Box::new(service))) }.encode_to_vec(), text)
        }
        (0, _) => {
            let workload = workload::Workload {
                uid: name.into(),
                namespace: "n".into(),
                name: text.clone(),
                status: bad,
                authorization_policies: content.policy.iter().cloned().collect(),
                ..Default::default()
            };
            (workload::Address { kind: Some(workload::Kind::Workload(Box::new(workload))) }.encode_to_vec(), text)
        }
        _ => (Authorization { namespace: text, scope: bad, ..Default::default() }.encode_to_vec(), String::new()),
    };
    let any = Any { type_url: Kind::ALL[kind].type_url().into(), value: value.into() };
    Resource { name: name.into(), version, resource: Some(any), aliases: content.aliases.clone() }
}

/// The type, the name, and the version that came into force, if any.
fn read(change: Change) -> (usize, String, Option<u64>) {
    let version = |text: &str| Some(text.parse().expect("a version"));
    match change {
        Change::Workload(workload) => (0, workload.uid.to_string(), version(workload.name())),
        Change::WorkloadGone(uid) => (0, uid.to_string(), None),
        Change::Service(service) => (0, service.key().to_string(), version(&service.name)),
        Change::ServiceGone(key) => (0, key.to_string(), None),
        Change::Policy(policy) => (1, policy.key.to_string(), version(&policy.namespace)),
        Change::PolicyGone(key) => (1, key.to_string(), None),
        Change::Absent(sought) | Change::Unknown(sought) => unreachable!("not applied here: {sought:?}"),
    }
}
