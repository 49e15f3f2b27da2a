//! Delta discovery as a control plane serves it: full pushes, deltas, versions echoed on reconnect, names asked for (and, as
//! istiod does, the workloads of the client's node without being asked, and those of a service with it). What
//! a test wants beyond that it sends as it is: wrong nonces, bad resources, anything. Behind [`crate::control_plane`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::{Future, ready};
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use control::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use control::proto::security::Authorization;
use control::proto::well_known::{self, Any};
use control::proto::workload::{self, Address, Service, Workload};
use control::xds::Kind;
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{Outgoing, Recorded};

/// Responses that wait for a stream. No test has more under way.
const RESPONSES_MAX: usize = 4096;
/// The version of what was sent and has changed since.
const NO_LONGER: &str = "(no longer)";

/// A discovery server. Clones are the same one.
#[derive(Clone)]
pub struct XdsServer {
    state: Arc<Mutex<State>>,
    /// Counts whatever happens.
    events: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By type (as in [`Kind::ALL`]) and name.
    mesh: [BTreeMap<String, Resource>; 2],
    streams: BTreeMap<usize, Stream>,
    streams_ever: usize,
    nonces: u64,
    requests: Vec<Seen>,
    /// Resources per response.
    per_response: usize,
    /// Keys that are asked for and get no answer, and resources that are not sent.
    muted: Option<fn(&str) -> bool>,
    /// Responses that stand beside the mesh.
    recorded: Vec<Bytes>,
    acknowledged: usize,
}

type Sent = Outgoing<DeltaDiscoveryResponse>;

/// A stream.
struct Stream {
    responses: mpsc::Sender<Result<Sent, Status>>,
    started: [bool; 2],
    by_name: [bool; 2],
    /// Name and version of what the client has.
    sent: [HashMap<String, String>; 2],
    keys: BTreeSet<String>,
    /// Of the client.
    node: String,
}

/// A request that a client sent.
#[derive(Clone, Debug)]
pub struct Seen {
    /// On which stream, counted from 0 since the server was made.
    pub stream: usize,
    /// What it said.
    pub request: DeltaDiscoveryRequest,
    /// Headers of its stream that are text.
    pub headers: BTreeMap<String, String>,
}

impl Seen {
    /// Of which type.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::of(&self.request.type_url)
    }

    /// Why it refuses something, if it does.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.request.error_detail.as_ref().map(|status| status.message.as_str())
    }
}

impl Default for XdsServer {
    fn default() -> Self {
        let state = State { per_response: usize::MAX, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), events: watch::Sender::new(0) }
    }
}

impl XdsServer {
    /// Sets and removes resources, and pushes what that makes different to every stream.
    pub fn update(&self, set: impl IntoIterator<Item = Resource>, remove: &[&str]) {
        let mut state = self.lock();
        for resource in set {
            let kind = kind_of(&resource) as usize;
            if state.mesh[kind].get(&resource.name) == Some(&resource) {
                continue;
            }
            for stream in state.streams.values_mut() {
                // What a client has of it is another content, whatever the versions say.
                if let Some(version) = stream.sent[kind].get_mut(&resource.name) {
                    *version = NO_LONGER.to_owned();
                }
            }
            state.mesh[kind].insert(resource.name.clone(), resource);
        }
        for name in remove {
            state.mesh.iter_mut().for_each(|mesh| drop(mesh.remove(*name)));
        }
        let streams: Vec<usize> = state.streams.keys().copied().collect();
        for stream in streams {
            for kind in Kind::ALL {
                state.push(stream, kind, false);
            }
        }
        drop(state);
        self.happened();
    }

    /// Makes the workloads and services these and no others, and pushes what that makes different to every stream.
    pub fn set_addresses(&self, set: Vec<Resource>) {
        let state = self.lock();
        let gone: Vec<String> = state.mesh[Kind::Address as usize]
            .keys()
            .filter(|name| !set.iter().any(|resource| resource.name == **name))
            .cloned()
            .collect();
        drop(state);
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        self.update(set, &gone);
    }

    /// Changes the mesh and tells nobody: as a server that was restarted with another one.
    pub fn replace(&self, set: impl IntoIterator<Item = Resource>) {
        let mut state = self.lock();
        state.mesh = Default::default();
        for resource in set {
            let kind = kind_of(&resource);
            state.mesh[kind as usize].insert(resource.name.clone(), resource);
        }
    }

    /// No response has more resources than this, so a push comes in several.
    pub fn split(&self, resources: usize) {
        self.lock().per_response = resources;
    }

    /// Leaves these keys without an answer when they are asked for, and sends no resources of these names.
    pub fn mute(&self, muted: fn(&str) -> bool) {
        self.lock().muted = Some(muted);
    }

    /// Sends what was muted.
    pub fn unmute(&self) {
        self.lock().muted = None;
        self.update([], &[]);
    }

    /// Sends a response to every stream, exactly as it is.
    pub fn send(&self, response: &DeltaDiscoveryResponse) {
        for stream in self.lock().streams.values() {
            drop(stream.responses.try_send(Ok(Outgoing::Message(response.clone()))));
        }
    }

    /// From now on, each new stream gets these encoded responses after its first subscription to addresses, whatever it
    /// says that it has: a large mesh beside the small one that is changed and watched, as a server that was replaced by one
    /// with other versions.
    pub fn record(&self, responses: Vec<Bytes>) {
        self.lock().recorded = responses;
    }

    /// Sends the recorded responses to the streams there are: a full push.
    pub fn push_recorded(&self) {
        let state = self.lock();
        for stream in state.streams.values() {
            stream.send_all(&state.recorded);
        }
    }

    /// Answers to responses so far, refusals included.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.lock().acknowledged
    }

    /// Ends every stream: in order, or with a status.
    pub fn end(&self, status: Option<&Status>) {
        let mut state = self.lock();
        for stream in std::mem::take(&mut state.streams).into_values() {
            if let Some(status) = status {
                drop(stream.responses.try_send(Err(status.clone())));
            }
        }
        drop(state);
        self.happened();
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        self.lock().requests.clone()
    }

    /// The answers to responses so far: type, nonce, refusal.
    #[must_use]
    pub fn answers(&self) -> Vec<Seen> {
        let requests = self.requests();
        requests.into_iter().filter(|seen| !seen.request.response_nonce.is_empty()).collect()
    }

    /// Streams ever opened.
    #[must_use]
    pub fn streams_ever(&self) -> usize {
        self.lock().streams_ever
    }

    /// Streams open now.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.lock().streams.len()
    }

    /// Waits until something holds of this server. For tests on a runtime; the caller bounds it in time.
    ///
    /// # Panics
    /// Never: the server is this one.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut events = self.events.subscribe();
        while !holds(self) {
            events.changed().await.expect("the sender is in self");
        }
    }

    pub(crate) async fn serve(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        Grpc::new(Recorded::default()).streaming(Serve(self.clone()), request).await
    }

    fn open(&self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> ResponseStream {
        let (metadata, _, mut incoming) = request.into_parts();
        let headers = metadata.into_headers();
        let texts =
            headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        let headers: BTreeMap<String, String> = texts.collect();
        let (responses, to_send) = mpsc::channel(RESPONSES_MAX);
        let mut state = self.lock();
        let number = state.streams_ever;
        state.streams_ever += 1;
        let (started, by_name, sent) = Default::default();
        state
            .streams
            .insert(number, Stream { responses, started, by_name, sent, keys: BTreeSet::new(), node: String::new() });
        drop(state);
        self.happened();
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = incoming.message().await {
                server.on_request(number, request, &headers);
            }
            server.lock().streams.remove(&number);
            server.happened();
        });
        ResponseStream(to_send)
    }

    fn on_request(&self, number: usize, mut request: DeltaDiscoveryRequest, headers: &BTreeMap<String, String>) {
        let mut state = self.lock();
        if !state.recorded.is_empty() {
            request.initial_resource_versions.clear();
        }
        state.acknowledged += usize::from(!request.response_nonce.is_empty());
        state.requests.push(Seen { stream: number, request: request.clone(), headers: headers.clone() });
        let kind = Kind::of(&request.type_url);
        let muted = state.muted;
        if let (Some(kind), Some(stream)) = (kind, state.streams.get_mut(&number)) {
            let index = kind as usize;
            let first = !std::mem::replace(&mut stream.started[index], true);
            if first {
                stream.by_name[index] = !request.subscribe.is_empty();
                stream.node = request.node.as_ref().and_then(node_name).unwrap_or_default();
                stream.keys.extend(request.initial_resource_versions.keys().cloned());
                stream.sent[index].extend(request.initial_resource_versions);
            }
            let is_heard = |key: &String| key != "*" && !muted.is_some_and(|muted| muted(key));
            let asked: BTreeSet<String> = request.subscribe.into_iter().filter(is_heard).collect();
            // Like istiod: nothing is said of a subscription that there is, and what goes goes last.
            let answers = asked.iter().any(|key| !stream.keys.contains(key));
            stream.keys.extend(asked.clone());
            for key in request.unsubscribe {
                stream.keys.remove(&key);
            }
            if first || answers {
                state.answer_asked(number, kind, &asked);
                state.push(number, kind, first);
            }
            if first
                && kind == Kind::Address
                && let Some(stream) = state.streams.get(&number)
            {
                stream.send_all(&state.recorded);
            }
        }
        drop(state);
        self.happened();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn happened(&self) {
        self.events.send_modify(|events| *events += 1);
    }
}

impl Stream {
    fn send_all(&self, recorded: &[Bytes]) {
        for response in recorded {
            // A stream that has ended is removed by its own task.
            drop(self.responses.try_send(Ok(Outgoing::Encoded(response.clone()))));
        }
    }
}

impl State {
    /// What is asked for is sent though it was sent before, and what is not there is told.
    fn answer_asked(&mut self, number: usize, kind: Kind, asked: &BTreeSet<String>) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let index = kind as usize;
        for key in asked {
            let mut there = false;
            for (name, resource) in &self.mesh[index] {
                if name == key || resource.aliases.contains(key) {
                    there = true;
                    stream.sent[index].remove(name);
                }
            }
            if !there {
                // Sent, and gone: the next push says so.
                stream.sent[index].insert(key.clone(), String::new());
            }
        }
    }

    /// Sends a stream what it does not have; with `always` though it should be nothing.
    fn push(&mut self, number: usize, kind: Kind, always: bool) {
        let index = kind as usize;
        let Some(stream) = self.streams.get_mut(&number).filter(|stream| stream.started[index]) else { return };
        let mesh = &self.mesh[index];
        let is_asked = |name: &str, resource: &Resource| {
            stream.keys.contains(name) || resource.aliases.iter().any(|alias| stream.keys.contains(alias))
        };
        let comes_along = |resource: &Resource| {
            let Some(workload) = workload_of(resource) else { return false };
            let serves = |key: &String| mesh.get(key).is_some_and(|service| is_asked(key, service));
            (!stream.node.is_empty() && workload.node == stream.node) || workload.services.keys().any(serves)
        };
        let wanted = |name: &str, resource: &Resource| {
            !stream.by_name[index] || is_asked(name, resource) || comes_along(resource)
        };
        // Without a version nobody can say that it is the same.
        let has = |name: &str, resource: &Resource| {
            stream.sent[index].get(name).is_some_and(|version| *version == resource.version)
                && (!always || !resource.version.is_empty())
        };
        let mut resources: Vec<Resource> = Vec::new();
        for (name, resource) in &self.mesh[index] {
            let is_muted = self.muted.is_some_and(|muted| muted(name));
            if !is_muted && wanted(name, resource) && !has(name, resource) {
                resources.push(resource.clone());
            }
        }
        let removed: Vec<String> =
            stream.sent[index].keys().filter(|name| !mesh.contains_key(*name)).cloned().collect();
        for name in &removed {
            stream.sent[index].remove(name);
        }
        for resource in &resources {
            stream.sent[index].insert(resource.name.clone(), resource.version.clone());
        }
        if resources.is_empty() && removed.is_empty() && !always {
            return;
        }
        let mut removed = Some(removed);
        loop {
            let rest = resources.split_off(resources.len().min(self.per_response));
            self.nonces += 1;
            let response = DeltaDiscoveryResponse {
                system_version_info: String::new(),
                resources,
                type_url: kind.type_url().into(),
                nonce: format!("nonce-{}", self.nonces),
                removed_resources: removed.take().unwrap_or_default(),
            };
            // A stream that has ended is removed by its own task.
            drop(stream.responses.try_send(Ok(Outgoing::Message(response))));
            if rest.is_empty() {
                break;
            }
            resources = rest;
        }
    }
}

/// What the client says its node is.
fn node_name(node: &Node) -> Option<String> {
    match node.metadata.as_ref()?.fields.get("NODE_NAME")?.kind.as_ref()? {
        well_known::Kind::Text(name) => Some(name.clone()),
        _ => None,
    }
}

fn workload_of(resource: &Resource) -> Option<Workload> {
    match Address::decode(resource.resource.as_ref()?.value.clone()).ok()?.kind? {
        workload::Kind::Workload(workload) => Some(*workload),
        workload::Kind::Service(_) => None,
    }
}

/// How an IPv4 address is asked for.
fn alias(network: &str, address: &[u8]) -> Option<String> {
    Some(format!("{network}/{}", std::net::Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)))
}

/// A workload as a resource, with its addresses as aliases.
#[must_use]
pub fn workload(version: &str, workload: Workload) -> Resource {
    let aliases = workload.addresses.iter().filter_map(|address| alias(&workload.network, address)).collect();
    let name = workload.uid.clone();
    let address = Address { kind: Some(workload::Kind::Workload(Box::new(workload))) };
    resource(Kind::Address, &name, version, aliases, &address)
}

/// A service as a resource, with its addresses as aliases.
#[must_use]
pub fn service(version: &str, service: Service) -> Resource {
    let name = format!("{}/{}", service.namespace, service.hostname);
    let aliases = service.addresses.iter().filter_map(|vip| alias(&vip.network, &vip.address)).collect();
    let address = Address { kind: Some(workload::Kind::Service(Box::new(service))) };
    resource(Kind::Address, &name, version, aliases, &address)
}

/// A policy as a resource; istiod gives it no version.
#[must_use]
pub fn policy(policy: &Authorization) -> Resource {
    let name = format!("{}/{}", policy.namespace, policy.name);
    resource(Kind::Authorization, &name, "", Vec::new(), policy)
}

/// The resource with a version that tells its content, as istiod gives one.
#[must_use]
pub fn hashed(mut resource: Resource) -> Resource {
    let mut hasher = std::hash::DefaultHasher::new();
    resource.resource.as_ref().map(|any| &any.value).hash(&mut hasher);
    resource.version = hasher.finish().to_string();
    resource
}

/// Anything as a resource.
#[must_use]
pub fn resource(kind: Kind, name: &str, version: &str, aliases: Vec<String>, message: &impl Message) -> Resource {
    let any = Any { type_url: kind.type_url().into(), value: message.encode_to_vec().into() };
    Resource { version: version.into(), resource: Some(any), name: name.into(), aliases }
}

fn kind_of(resource: &Resource) -> Kind {
    let type_url = resource.resource.as_ref().map_or("", |any| any.type_url.as_str());
    Kind::of(type_url).expect("a test's mesh holds addresses and authorizations; send anything else as it is")
}

struct Serve(XdsServer);

impl StreamingService<DeltaDiscoveryRequest> for Serve {
    type Response = Sent;
    type ResponseStream = ResponseStream;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        Box::pin(ready(Ok(Response::new(self.0.open(request)))))
    }
}

/// What is sent on a stream.
struct ResponseStream(mpsc::Receiver<Result<Sent, Status>>);

impl futures_util::Stream for ResponseStream {
    type Item = Result<Sent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
