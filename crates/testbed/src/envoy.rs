//! A real Envoy as the other end of a tunnel: its configuration for either side of HBONE, its process, what it says.
//! Only for `tests/interop_envoy.rs`; where Envoy comes from is `perf-tests/interop/install-envoy`'s matter.
//!
//! ```text
//!   connection -> Envoy: tcp_proxy, CONNECT --mTLS, h2--> pod:15008, a daemon's          (Dialler)
//!   a daemon --mTLS, h2--> Envoy: pod:15008, CONNECT ended -> the authority's address    (Acceptor)
//! ```
//! With Envoy in the way the client must close first: in 1.40 an application that closes first loses the end of its
//! data (envoyproxy/envoy#47378), so such a test would measure Envoy.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificate::Leaf;
use crate::launcher::{self, Launcher};
use crate::log::{Line, Log, Mark};
use crate::mesh::Pod;
use crate::redirect::INBOUND_HBONE_PORT;
use crate::wait;

/// A start takes some 100 ms; shared CPUs make it longer.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Envoy would keep lines of its access log for 10 s, which is longer than a test waits.
const FLUSH_EVERY_MS: &str = "20";
/// How long Envoy waits for its own connections and handshakes.
const CONNECT_TIMEOUT: &str = "5s";
/// Between the first GOAWAY, which forbids nothing yet, and the last.
const DRAIN_TIMEOUT: &str = "0.2s";
/// Envoy's defaults of 1024 would be what a test of many connections finds.
const CIRCUIT_BREAKER: u32 = 100_000;
/// Where the key of a tunnel's client and its certificate lie, and what it trusts.
const LEAF: &str = "leaf.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "roots.pem";

/// A running Envoy. Dropping it kills it.
pub struct Envoy {
    child: Child,
    log: Log,
    // After the child, which would otherwise be killed by its launcher's end rather than by `drop`.
    _launcher: Launcher,
    _directory: TempDir,
}

/// The HBONE server that an Envoy is to be.
#[derive(Clone, Debug)]
pub struct Acceptor {
    /// Whose certificates it accepts.
    pub peers: Peers,
    /// What becomes of a CONNECT.
    pub answer: Answer,
    /// Streams that it allows each tunnel at once.
    pub streams_max: u32,
    /// CONNECTs after which it says goodbye to a tunnel with GOAWAY; 0 for never.
    pub goodbye_after: u32,
}

/// The HBONE client that an Envoy is to be.
#[derive(Clone, Debug)]
pub struct Dialler {
    /// The port at the loopback whose connections go into tunnels.
    pub port: u16,
    /// Where the tunnels lead.
    pub hop: SocketAddr,
    /// What each CONNECT asks for.
    pub authority: SocketAddr,
    /// The one identity it accepts there.
    pub expected: String,
}

/// Identities by their URI names.
#[derive(Clone, Debug)]
pub enum Peers {
    /// This one.
    Exactly(String),
    /// All that begin like this.
    Prefix(String),
}

/// What becomes of a CONNECT.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A connection to its authority.
    Forward,
    /// This status.
    Status(u16),
    /// As [`Answer::Forward`] if this identity asks; 403 for all others.
    ForwardOnlyFor(String),
}

impl Envoy {
    /// Starts an HBONE server at the HBONE port of `pod`, which must not be captured for real. It presents `leaf` and
    /// trusts what is in `roots`, a PEM file.
    ///
    /// # Errors
    /// When there is no Envoy (with the command that installs it) or it exits.
    pub fn accept(pod: &Pod, leaf: &Leaf, roots: &Path, acceptor: &Acceptor) -> Result<Self> {
        Self::start(pod, leaf, roots, |directory| acceptor.configuration(pod, directory))
    }

    /// Starts an HBONE client in `pod`, which must not be captured. It presents `leaf` and trusts what is in `roots`, a PEM
    /// file.
    ///
    /// # Errors
    /// When there is no Envoy (with the command that installs it) or it exits.
    pub fn dial(pod: &Pod, leaf: &Leaf, roots: &Path, dialler: &Dialler) -> Result<Self> {
        Self::start(pod, leaf, roots, |directory| {
            let (listener, cluster) = (dialler.listener(), dialler.cluster(directory));
            json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } })
        })
    }

    fn start(pod: &Pod, leaf: &Leaf, roots: &Path, configuration: impl FnOnce(&Path) -> Value) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("coretunnel-envoy-").tempdir()?;
        write_credentials(directory.path(), leaf, roots)?;
        let file = directory.path().join("envoy.json");
        fs::write(&file, configuration(directory.path()).to_string())?;

        let launcher = Launcher::start(true)?;
        let mut command = launcher::command(&binary()?);
        command
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            // One worker, so that one pool of tunnels: Envoy keeps one for each.
            .args(["--concurrency", "1", "--disable-hot-restart"])
            // The alerts it gets from a peer are said there and nowhere else.
            .args(["--log-level", "info", "--component-log-level", "connection:debug"])
            .args(["--file-flush-interval-msec", FLUSH_EVERY_MS])
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = launcher.spawn(&pod.netns, command)?;
        let log = Log::default();
        log.follow(child.stdout.take().expect("stdout was piped above"))?;
        log.follow(child.stderr.take().expect("stderr was piped above"))?;
        let mut envoy = Self { child, log, _launcher: launcher, _directory: directory };
        envoy.await_start(&pod.name)?;
        Ok(envoy)
    }

    /// What it says: lines of its own, and one of JSON for each connection and each CONNECT that has ended.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for the line about a CONNECT that has ended after `mark`. What it has by which name: see `REQUEST` and
    /// `TUNNELLED`.
    ///
    /// # Errors
    /// When none comes that `wanted` accepts.
    pub fn await_connect(&self, mark: Mark, what: &str, wanted: impl Fn(&Line) -> bool) -> Result<Line> {
        let patience = Duration::from_secs(5);
        self.log.await_line(mark, what, patience, |line| line.has("event", "connect") && wanted(line))
    }

    /// Waits until it says that its peer refused a handshake by an alert.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn await_alert(&self) -> Result<Line> {
        self.log.await_line(Log::start(), "a TLS alert", Duration::from_secs(5), |line| line.text().contains("_ALERT_"))
    }

    /// Lines about CONNECTs that have ended since `mark`.
    #[must_use]
    pub fn connects_since(&self, mark: Mark) -> Vec<Line> {
        self.log.since(mark).into_iter().filter(|line| line.has("event", "connect")).collect()
    }

    fn await_start(&mut self, pod: &str) -> Result<()> {
        // Its listeners listen by then; a connection made now waits in their backlog for a worker.
        let started = |log: &Log| log.all().iter().any(|line| line.text().contains("starting workers"));
        let (child, log) = (&mut self.child, &self.log);
        let exit = wait::until_some("Envoy to start", START_PATIENCE, || match child.try_wait() {
            Ok(Some(status)) => Some(Some(status)),
            _ => started(log).then_some(None),
        })
        .with_context(|| format!("Envoy in {pod} said:\n{}", log.tail(Log::start())))?;
        if let Some(status) = exit {
            bail!("Envoy in {pod} exited at its start ({status}); it said:\n{}", log.tail(Log::start()));
        }
        Ok(())
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server's line about a CONNECT says.
const REQUEST: [(&str, &str); 15] = [
    ("event", "connect"),
    ("peer", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("own", "%DOWNSTREAM_LOCAL_URI_SAN%"),
    ("tls", "%DOWNSTREAM_TLS_VERSION%"),
    ("cipher", "%DOWNSTREAM_TLS_CIPHER%"),
    ("sni", "%REQUESTED_SERVER_NAME%"),
    ("protocol", "%PROTOCOL%"),
    ("method", "%REQ(:METHOD)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("baggage", "%REQ(BAGGAGE)%"),
    ("forwarded", "%REQ(FORWARDED)%"),
    ("traceparent", "%REQ(TRACEPARENT)%"),
    ("status", "%RESPONSE_CODE%"),
    ("received", "%BYTES_RECEIVED%"),
    ("tunnel", "%DOWNSTREAM_REMOTE_ADDRESS%"),
];

/// What a client's line about a CONNECT says.
const TUNNELLED: [(&str, &str); 7] = [
    ("event", "connect"),
    ("peer", "%UPSTREAM_PEER_URI_SAN%"),
    ("answer", "%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers:TYPED)%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("failure", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("received", "%BYTES_RECEIVED%"),
    ("tunnel", "%UPSTREAM_LOCAL_ADDRESS%"),
];

/// What a server's line about a tunnel's end, or its failed handshake, says.
const ARRIVAL: [(&str, &str); 2] = [("event", "tunnel"), ("failure", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%")];

/// What Envoy calls them.
const TUNNELS: &str = "tunnels";
const API: &str = "type.googleapis.com/envoy";

impl Acceptor {
    fn configuration(&self, pod: &Pod, directory: &Path) -> Value {
        let answered = match self.answer {
            Answer::Status(status) => json!({ "direct_response": { "status": status } }),
            Answer::Forward | Answer::ForwardOnlyFor(_) => json!({ "route": {
                "cluster": "applications",
                "timeout": "0s",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            }}),
        };
        let mut route = json!({ "match": { "connect_matcher": {} } });
        merge(&mut route, answered);
        let router = typed("http.router", "extensions.filters.http.router.v3.Router", json!({}));
        let filters = match &self.answer {
            Answer::ForwardOnlyFor(identity) => vec![only_for(identity), router],
            Answer::Forward | Answer::Status(_) => vec![router],
        };
        let connections = json!({
            "stat_prefix": TUNNELS,
            "codec_type": "HTTP2",
            "common_http_protocol_options": { "max_requests_per_connection": self.goodbye_after },
            "drain_timeout": DRAIN_TIMEOUT,
            "http2_protocol_options": { "allow_connect": true, "max_concurrent_streams": self.streams_max },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
            "http_filters": filters,
            "access_log": [access_log(&REQUEST)],
        });
        let (kind, manager) = (
            "network.http_connection_manager",
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        );
        let tls = json!({ "require_client_certificate": true, "common_tls_context": tls(directory, &self.peers) });
        json!({ "static_resources": {
            "listeners": [{
                "name": "hbone",
                "address": socket_address((pod.address, INBOUND_HBONE_PORT).into()),
                "access_log": [access_log(&ARRIVAL)],
                "filter_chains": [{
                    "transport_socket": transport_socket("DownstreamTlsContext", tls),
                    "filters": [typed(kind, manager, connections)],
                }],
            }],
            "clusters": [{
                "name": "applications",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": CONNECT_TIMEOUT,
                "original_dst_lb_config": { "use_http_header": true, "http_header_name": ":authority" },
                "circuit_breakers": circuit_breakers(),
            }],
        }})
    }
}

impl Dialler {
    fn listener(&self) -> Value {
        let proxy = json!({
            "stat_prefix": TUNNELS,
            "cluster": TUNNELS,
            "max_connect_attempts": 1,
            "tunneling_config": { "hostname": self.authority.to_string(), "propagate_response_headers": true },
            "access_log": [access_log(&TUNNELLED)],
        });
        let proxy = typed("network.tcp_proxy", "extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy);
        json!({
            "name": TUNNELS,
            "address": socket_address((Ipv4Addr::LOCALHOST, self.port).into()),
            "filter_chains": [{ "filters": [proxy] }],
        })
    }

    fn cluster(&self, directory: &Path) -> Value {
        let tls = json!({ "common_tls_context": tls(directory, &Peers::Exactly(self.expected.clone())) });
        json!({
            "name": TUNNELS,
            "type": "STATIC",
            "connect_timeout": CONNECT_TIMEOUT,
            "load_assignment": {
                "cluster_name": TUNNELS,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket_address(self.hop) } }] }],
            },
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{API}.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": {} },
            }},
            "transport_socket": transport_socket("UpstreamTlsContext", tls),
            "circuit_breakers": circuit_breakers(),
        })
    }
}

/// The binary: `ENVOY_BIN`, else where `install-envoy` puts it.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn binary() -> Result<PathBuf> {
    let path = match env::var_os("ENVOY_BIN") {
        Some(path) => path.into(),
        None => {
            // <target>/<profile>/deps/<the test>
            let running = env::current_exe().context("find the running program")?;
            running.ancestors().nth(3).unwrap_or(Path::new("target")).join("interop/envoy")
        }
    };
    ensure!(
        path.is_file(),
        "no Envoy at {}: run perf-tests/interop/install-envoy, with the same CARGO_TARGET_DIR, or set ENVOY_BIN",
        path.display()
    );
    Ok(path)
}

fn write_credentials(directory: &Path, leaf: &Leaf, roots: &Path) -> Result<()> {
    let (chain, key) = leaf.presented();
    let chain: Vec<_> = chain.iter().map(|certificate| pem::Pem::new("CERTIFICATE", certificate.as_ref())).collect();
    fs::write(directory.join(LEAF), pem::encode_many(&chain))?;
    fs::write(directory.join(KEY), pem::encode(&pem::Pem::new("PRIVATE KEY", key.secret_der())))?;
    // The embedded CA keeps its key in the same file, which is none of Envoy's business.
    let text = fs::read(roots).with_context(|| format!("read {}", roots.display()))?;
    let mut certificates = pem::parse_many(text).with_context(|| format!("read {}", roots.display()))?;
    certificates.retain(|section| section.tag() == "CERTIFICATE");
    ensure!(!certificates.is_empty(), "no certificate in {}", roots.display());
    fs::write(directory.join(ROOTS), pem::encode_many(&certificates)).context("write the roots")
}

fn tls(directory: &Path, peers: &Peers) -> Value {
    let file = |name: &str| json!({ "filename": directory.join(name) });
    let matcher = match peers {
        Peers::Exactly(identity) => json!({ "exact": identity }),
        Peers::Prefix(prefix) => json!({ "prefix": prefix }),
    };
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{ "certificate_chain": file(LEAF), "private_key": file(KEY) }],
        "validation_context": {
            "trusted_ca": file(ROOTS),
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": matcher }],
        },
    })
}

fn transport_socket(context: &str, mut tls: Value) -> Value {
    let kind = format!("{API}.extensions.transport_sockets.tls.v3.{context}");
    merge(&mut tls, json!({ "@type": kind }));
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": tls })
}

fn only_for(identity: &str) -> Value {
    let policy = json!({
        "permissions": [{ "any": true }],
        "principals": [{ "authenticated": { "principal_name": { "exact": identity } } }],
    });
    let rules = json!({ "rules": { "action": "ALLOW", "policies": { "only": policy } } });
    typed("http.rbac", "extensions.filters.http.rbac.v3.RBAC", rules)
}

fn access_log(fields: &[(&str, &str)]) -> Value {
    let format = fields.iter().map(|&(name, format)| (name.to_owned(), format.into())).collect();
    let lines = json!({ "log_format": { "json_format": Value::Object(format) } });
    let mut log = typed("stdout", "extensions.access_loggers.stream.v3.StdoutAccessLog", lines);
    merge(&mut log, json!({ "name": "envoy.access_loggers.stdout" }));
    log
}

fn typed(name: &str, kind: &str, mut configuration: Value) -> Value {
    merge(&mut configuration, json!({ "@type": format!("{API}.{kind}") }));
    json!({ "name": format!("envoy.filters.{name}"), "typed_config": configuration })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn circuit_breakers() -> Value {
    let most = CIRCUIT_BREAKER;
    json!({ "thresholds": [{ "max_connections": most, "max_pending_requests": most, "max_requests": most }] })
}

fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}
