//! A real istiod: its discovery server with ambient enabled and its CA with impersonation checks, on a Kubernetes that
//! is only objects. Only for `tests/interop_istiod.rs`; the program is `perf-tests/interop`.
//!
//! It listens in the network namespace of each daemon, as a cluster's does on its virtual address. Nothing fills in what
//! an API server would: UIDs, cluster addresses and statuses are in the objects that a test writes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::Source;
use crate::istio_peer::IstioPeer;
use crate::mesh::{Mesh, MeshSpec, Pod};
use crate::namespace::Namespace;

/// Whose tokens the CA lets ask for others' certificates.
const NODE_ACCOUNT: &str = "ztunnel";
const SYSTEM: &str = "istio-system";

/// An istiod. Dropping it kills it.
pub struct Istiod {
    /// `None` while it is away.
    peer: Option<IstioPeer>,
    /// What a start restores: the CA's root and key. After the process that writes there.
    state: TempDir,
    objects: BTreeMap<Key, Value>,
    tokens: BTreeMap<String, Value>,
    /// Where daemons reach it.
    places: Vec<(Namespace, u16)>,
}

/// Kind, namespace, name of an object.
type Key = (String, String, String);

/// A step in the exchange of the CA's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// A new root is trusted beside the old ones.
    Trust,
    /// The newest root signs.
    Sign,
    /// Only the newest root is trusted.
    Forget,
}

/// A request for a certificate as it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whose.
    pub identity: String,
    /// gRPC's code by its name, `OK` for one that was issued.
    pub code: String,
}

/// A message of a discovery stream. `sent` and `removed` are of a response, `subscribe`, `unsubscribe`,
/// `versions` and `error` of a request.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Counted from 1, in the order they were opened.
    pub stream: u64,
    /// The node's id, in the first request of a stream.
    pub node: String,
    /// `Address` or `Authorization`.
    pub kind: String,
    /// Whether istiod sent it.
    pub is_response: bool,
    /// Names that are asked for.
    pub subscribe: Vec<String>,
    /// Names that are asked for no longer.
    pub unsubscribe: Vec<String>,
    /// Names and versions that the daemon has already.
    pub versions: BTreeMap<String, String>,
    /// Why it refuses the response.
    pub error: String,
    /// Names of resources.
    pub sent: Vec<String>,
    /// Names of resources that are gone.
    pub removed: Vec<String>,
}

impl Istiod {
    /// Starts one that knows of nothing.
    ///
    /// # Errors
    /// When there is none (with the command that builds it) or it exits.
    pub fn start() -> Result<Self> {
        let state = tempfile::Builder::new().prefix("coretunnel-istiod-").tempdir()?;
        let peer = Some(launch(state.path())?);
        Ok(Self { peer, state, objects: BTreeMap::new(), tokens: BTreeMap::new(), places: Vec::new() })
    }

    /// Kills it, and its connections with it. What is put and deleted until [`Self::resume`] happens while it is away.
    pub fn stop(&mut self) {
        self.peer = None;
    }

    /// Starts it again on its cluster's objects, with its CA's root, and where it was reached before.
    ///
    /// # Errors
    /// When it exits, or one of its ports was taken meanwhile.
    pub fn resume(&mut self) -> Result<()> {
        let peer = launch(self.state.path())?;
        // All objects before anybody can ask: an istiod answers when its informers are in sync.
        put(&peer, self.objects.values())?;
        for grant in self.tokens.values() {
            peer.order("PUT", "/token", &grant.to_string())?;
        }
        for (namespace, port) in &self.places {
            listen(&peer, namespace, *port)?;
        }
        self.peer = Some(peer);
        Ok(())
    }

    /// What it said since its start, for an error's text.
    #[must_use]
    pub fn said(&self) -> String {
        self.peer.as_ref().map_or_else(String::new, IstioPeer::said)
    }

    /// Listens in the namespace of the daemon of `node`, and says how it is reached there and what proves that daemon.
    ///
    /// # Errors
    /// When it can't.
    pub fn reached_from(&mut self, namespace: &Namespace, node: &str) -> Result<Source> {
        let port = listen(self.running()?, namespace, 0)?;
        self.places.push((namespace.clone(), port));
        let pod = daemon_of(node);
        // Without an address it is no workload; its node is what the CA goes by.
        self.put(&[json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod, "namespace": SYSTEM, "uid": uid(SYSTEM, &pod) },
            "spec": { "serviceAccountName": NODE_ACCOUNT, "nodeName": node },
            "status": { "phase": "Running" },
        })])?;
        self.grant_token_of(node, NODE_ACCOUNT)?;
        let root_pem = self.root_file().to_string_lossy().into_owned();
        Ok(Source::ControlPlane { address: format!("https://localhost:{port}"), root_pem, token: token_of(node) })
    }

    /// The file with the roots it signs by and those it still trusts.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.state.path().join("root.pem")
    }

    /// Lets the token of `node`'s daemon stand for `account` in the system's namespace; `ztunnel` is the one that may ask
    /// for others' certificates.
    ///
    /// # Errors
    /// When it is gone.
    pub fn grant_token_of(&mut self, node: &str, account: &str) -> Result<()> {
        let (pod, token) = (daemon_of(node), token_of(node));
        let account = json!({ "namespace": SYSTEM, "serviceAccount": account, "pod": pod, "uid": uid(SYSTEM, &pod) });
        let grant = json!({ "token": token, "account": account });
        if let Some(peer) = &self.peer {
            peer.order("PUT", "/token", &grant.to_string())?;
        }
        self.tokens.insert(token, grant);
        Ok(())
    }

    /// Makes the token of `node`'s daemon one that nobody knows.
    ///
    /// # Errors
    /// When it is gone.
    pub fn revoke_token_of(&mut self, node: &str) -> Result<()> {
        let token = token_of(node);
        if let Some(peer) = &self.peer {
            peer.order("DELETE", "/token", &token)?;
        }
        self.tokens.remove(&token);
        Ok(())
    }

    /// Creates or replaces objects, and the namespaces they are in.
    ///
    /// # Errors
    /// When one isn't of a kind that istio reads.
    pub fn put(&mut self, objects: &[Value]) -> Result<()> {
        let mut all: Vec<Value> = Vec::new();
        for object in objects {
            let name = text(&object["metadata"]["namespace"]);
            let key = ("Namespace".to_owned(), String::new(), name.clone());
            if !name.is_empty() && !self.objects.contains_key(&key) {
                let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
                self.objects.insert(key, namespace.clone());
                all.push(namespace);
            }
            all.push(object.clone());
        }
        if let Some(peer) = &self.peer {
            put(peer, all.iter())?;
        }
        self.objects.extend(objects.iter().map(|object| (key(object), object.clone())));
        Ok(())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        ensure!(self.objects.remove(&key).is_some(), "no {kind} {namespace}/{name} was put");
        if let Some(peer) = &self.peer {
            peer.order("DELETE", &format!("/objects/{kind}/{namespace}/{name}"), "")?;
        }
        Ok(())
    }

    /// Creates `pod`, running and ready.
    ///
    /// # Errors
    /// When it is gone.
    pub fn put_pod(&mut self, pod: &Pod) -> Result<()> {
        self.put(&[pod_object(pod, true)])
    }

    /// Says of `pod` whether it is ready.
    ///
    /// # Errors
    /// When it is gone.
    pub fn set_ready(&mut self, pod: &Pod, ready: bool) -> Result<()> {
        self.put(&[pod_object(pod, ready)])
    }

    /// Deletes `pod`.
    ///
    /// # Errors
    /// When there is none such.
    pub fn delete_pod(&mut self, pod: &Pod) -> Result<()> {
        self.delete("Pod", &pod.namespace, &pod.name)
    }

    /// What it would tell one that asks for everything, by resource names: `addresses` and `policies`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn index(&self) -> Result<Value> {
        self.running()?.order("GET", "/index", "")
    }

    fn running(&self) -> Result<&IstioPeer> {
        self.peer.as_ref().context("istiod is away")
    }

    /// Messages of its discovery streams so far, in order.
    ///
    /// # Errors
    /// When it is gone.
    pub fn frames(&self) -> Result<Vec<Frame>> {
        let answer = self.running()?.order("GET", "/frames", "")?;
        Ok(answer.as_array().context("frames are a list")?.iter().map(Frame::parse).collect())
    }

    /// Closes every connection there is, and says how many that were.
    ///
    /// # Errors
    /// When it is gone.
    pub fn disconnect(&self) -> Result<u64> {
        self.running()?.order("POST", "/disconnect", "")?["closed"].as_u64().context("no count")
    }

    /// A step in the exchange of the CA's root.
    ///
    /// # Errors
    /// When it is gone.
    pub fn rotate(&self, step: Rotation) -> Result<()> {
        let name = match step {
            Rotation::Trust => "trust",
            Rotation::Sign => "sign",
            Rotation::Forget => "forget",
        };
        self.running()?.order("POST", "/ca/rotate", name).map(drop)
    }

    /// Answers requests for certificates with gRPC's `code` (by its name) instead; with "" it issues again.
    ///
    /// # Errors
    /// When there is no such code.
    pub fn refuse_certificates(&self, code: &str) -> Result<()> {
        let fault = json!({ "code": code, "message": "refused by the test" });
        self.running()?.order("PUT", "/ca/fault", &fault.to_string()).map(drop)
    }

    /// Issues certificates for at most so many seconds from now on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn shorten_certificates(&self, seconds: u32) -> Result<()> {
        self.running()?.order("PUT", "/ca/ttl", &format!("{seconds}s")).map(drop)
    }

    /// Requests for certificates so far, in the order they were answered.
    ///
    /// # Errors
    /// When it is gone.
    pub fn calls(&self) -> Result<Vec<Call>> {
        let answer = self.running()?.order("GET", "/ca/calls", "")?;
        let calls = answer.as_array().context("calls are a list")?.iter();
        Ok(calls.map(|call| Call { identity: text(&call["identity"]), code: text(&call["code"]) }).collect())
    }
}

impl MeshSpec {
    /// With a real istiod in the place of files.
    #[must_use]
    pub fn with_istiod() -> Self {
        Self { istiod: true, ..Self::default() }
    }
}

impl Mesh {
    /// The real istiod.
    ///
    /// # Panics
    /// When the mesh has none: a slip in the test.
    #[must_use]
    pub fn istiod(&self) -> &Istiod {
        self.istiod.as_ref().expect("the mesh was started with one")
    }

    /// The real istiod, to end it or to put another in its place.
    ///
    /// # Panics
    /// When the mesh has none: a slip in the test.
    pub fn istiod_mut(&mut self) -> &mut Istiod {
        self.istiod.as_mut().expect("the mesh was started with one")
    }
}

impl Frame {
    fn parse(value: &Value) -> Self {
        let names = |field: &str| value[field].as_array().into_iter().flatten().map(text).collect();
        let map = |field: &str| value[field].as_object().cloned().unwrap_or_default();
        let kind = text(&value["type"]);
        Self {
            stream: value["stream"].as_u64().unwrap_or(0),
            node: text(&value["node"]),
            kind: kind.rsplit('.').next().unwrap_or(&kind).to_owned(),
            is_response: value["response"].as_bool().unwrap_or(false),
            subscribe: names("subscribe"),
            unsubscribe: names("unsubscribe"),
            versions: map("versions").iter().map(|(name, version)| (name.clone(), text(version))).collect(),
            error: text(&value["error"]),
            sent: map("sent").keys().cloned().collect(),
            removed: names("removed"),
        }
    }
}

/// A service of `namespace` whose `port` is `target` of the pods with this label `app`.
#[must_use]
pub fn service(namespace: &str, name: &str, address: Ipv4Addr, port: u16, app: &str, target: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "selector": { "app": app },
            "ports": [{ "name": "tcp", "port": port, "targetPort": target, "protocol": "TCP" }],
        },
    })
}

fn launch(state: &Path) -> Result<IstioPeer> {
    IstioPeer::start("istiod", |command| {
        command
            .arg("-state")
            .arg(state)
            .env("PILOT_ENABLE_AMBIENT", "true")
            .env("CA_TRUSTED_NODE_ACCOUNTS", format!("{SYSTEM}/{NODE_ACCOUNT}"))
            .env("POD_NAMESPACE", SYSTEM);
    })
}

fn put<'a>(peer: &IstioPeer, objects: impl Iterator<Item = &'a Value>) -> Result<()> {
    let documents: Vec<String> = objects.map(Value::to_string).collect();
    peer.order("PUT", "/objects", &documents.join("\n---\n")).map(drop)
}

/// At `port` of the loopback in `namespace`, 0 for any; says which.
fn listen(peer: &IstioPeer, namespace: &Namespace, port: u16) -> Result<u16> {
    let order = json!({ "netns": namespace.path(), "port": port });
    let answer = peer.order("POST", "/listen", &order.to_string())?;
    let port = answer["port"].as_u64().context("an answer without a port")?;
    u16::try_from(port).context("a port")
}

fn key(object: &Value) -> Key {
    let metadata = &object["metadata"];
    (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

fn pod_object(pod: &Pod, ready: bool) -> Value {
    let redirection = if pod.captured { json!({ "ambient.istio.io/redirection": "enabled" }) } else { json!({}) };
    let ready = if ready { "True" } else { "False" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "uid": uid(&pod.namespace, &pod.name),
            "labels": { "app": pod.name }, "annotations": redirection,
        },
        "spec": {
            "serviceAccountName": pod.service_account,
            "nodeName": pod.node.map(|node| node.to_string()),
        },
        "status": {
            "phase": "Running", "podIP": pod.address, "podIPs": [{ "ip": pod.address }],
            "conditions": [{ "type": "Ready", "status": ready }],
        },
    })
}

fn uid(namespace: &str, pod: &str) -> String {
    format!("uid-of-{namespace}-{pod}")
}

fn daemon_of(node: &str) -> String {
    // As `Daemon` calls itself.
    format!("coretunnel-{node}")
}

fn token_of(node: &str) -> String {
    format!("token-of-{node}")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
