//! The settings of the daemon: defaults, then environment, then flags; read and believed, or refused all at once.
//!
//! `Flags` and `Environment` are texts; `sources` says where a text came from, `values` how a single value is written,
//! `cores` which CPUs are meant, `unsupported` which of ztunnel's variables this daemon cannot follow.

mod control_plane;
mod cores;
mod environment;
mod sources;
mod unsupported;
mod values;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use control::{ControlPlane, WarmStart, grpc::Server};
use dataplane::{TenantBy, Weights};
use hbone::{H2Config, pool::PoolConfig};
use mesh_state::identity::Identity;
use reactor::{EngineChoice, Weight};
use telemetry::log::{LogConfig, LogError};

pub(crate) use cores::{CpuLimits, Cpus};
pub(crate) use environment::Environment;
pub(crate) use sources::SettingError;
pub(crate) use unsupported::Ignored;

use crate::{
    cli::{ADMIN, Flags},
    version::{self, ISTIO_VERSION},
};
use sources::{Origin, Reader};
use values::{TRUTH, truth};

/// Everything the daemon was told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The CPUs to pin a core to, one each.
    pub(crate) cores: Vec<usize>,
    pub(crate) tenant_by: TenantBy,
    pub(crate) weights: Weights,
    pub(crate) engine: EngineChoice,
    pub(crate) mesh: Mesh,
    pub(crate) certificates: Certificates,
    /// Where the mesh is kept for the next start.
    pub(crate) warm_start: Option<WarmStart>,
    pub(crate) servers: Servers,
    pub(crate) connections: Connections,
    pub(crate) sockets: Sockets,
    pub(crate) log: LogConfig,
    /// Which mesh's this is, to be shown; no decision depends on it.
    pub(crate) istio_version: String,
    /// Variables that were set and have no effect.
    pub(crate) ignored: Vec<Ignored>,
}

/// Where this is, and who tells of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mesh {
    pub(crate) node: Option<String>,
    pub(crate) network: String,
    pub(crate) cluster: String,
    pub(crate) trust_domain: String,
    pub(crate) local: LocalMesh,
    /// The control plane, where the mesh is not described here.
    pub(crate) control_plane: Option<ControlPlane>,
    /// A path, or `@name` of an abstract socket.
    pub(crate) zds_socket: PathBuf,
}

/// Where the mesh is described.
#[derive(Clone, PartialEq)]
pub(crate) enum LocalMesh {
    /// Nowhere.
    None,
    /// In a file, which is watched.
    File(PathBuf),
    /// In this text.
    Inline(String),
}

/// Who issues certificates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Certificates {
    /// A CA over gRPC; without one, the CA in this daemon.
    pub(crate) server: Option<Server>,
    /// The root of the CA in this daemon.
    pub(crate) root_file: PathBuf,
    pub(crate) lifetime: Duration,
    /// Revocation lists.
    pub(crate) revocation_file: Option<PathBuf>,
}

/// Where the daemon answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Servers {
    pub(crate) metrics: SocketAddr,
    pub(crate) readiness: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// How captured connections are carried.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Connections {
    pub(crate) termination_deadline: Duration,
    pub(crate) streams_per_tunnel_max: usize,
    pub(crate) tunnel_idle_timeout: Duration,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) frame_size: u32,
    /// Must, must not, or where it can.
    pub(crate) original_source: Option<bool>,
    pub(crate) response_baggage: bool,
    pub(crate) localhost_tunnel: bool,
    /// Pods that the mesh does not know yet are served by what the CNI agent says of them.
    pub(crate) serves_new_pods: bool,
}

/// How sockets inside pods are made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sockets {
    pub(crate) packet_mark: u32,
    pub(crate) port_reuse: bool,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) user_timeout: bool,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) probes: u32,
}

/// What the settings depend on besides what was said.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) cpus: Cpus,
    /// The kernel has IPv6, enabled or not: without it the wildcard is IPv4's.
    pub(crate) has_ipv6: bool,
}

/// Reads all settings.
///
/// # Errors
/// Every setting that cannot be read or makes no sense, not only the first.
pub(crate) fn load(flags: &Flags, environment: &Environment, host: &Host) -> Result<Settings, Vec<SettingError>> {
    let mut read = Reader::new(environment);
    let (refused, ignored) = unsupported::look(environment);
    for refused in refused {
        let origin = Origin::Variable { name: refused.variable.to_owned(), value: refused.value };
        read.complain(origin, refused.why, refused.accepted);
    }
    let mesh = mesh(&mut read, flags);
    let settings = Settings {
        cores: cores(&mut read, flags, &host.cpus),
        tenant_by: tenant_by(&mut read, flags),
        weights: weights(&mut read, flags),
        engine: engine(&mut read, flags),
        certificates: certificates(&mut read, flags, &mesh),
        warm_start: warm_start(&mut read, flags),
        mesh,
        servers: servers(&mut read, flags, host.has_ipv6),
        connections: connections(&mut read, flags),
        sockets: sockets(&mut read),
        log: log(&mut read, flags),
        istio_version: read.text(None, &[ISTIO_VERSION]).unwrap_or_else(|| "unknown".to_owned()),
        ignored: read.ignored().into_iter().chain(ignored).collect(),
    };
    let errors = read.errors();
    if errors.is_empty() { Ok(settings) } else { Err(errors) }
}

/// The end of every range of durations: longer than any node runs without a restart of the proxy, and far from where
/// adding to the clock overflows.
const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);
/// How old a kept mesh may be: long enough for a node's restart, short enough that what policy has become since matters
/// little. The file is as new as the last contact with the control plane.
const WARM_START_AGE_MAX: Duration = Duration::from_secs(3600);

fn cores(read: &mut Reader<'_>, flags: &Flags, cpus: &Cpus) -> Vec<usize> {
    const QUANTITY: &str = "a Kubernetes quantity of CPUs above 0, such as 2, 1.5 or 500m";
    let whole = |text: &str| values::number(text, 1..=cores::CPU_MAX);
    let limits = CpuLimits {
        cpu_limit: read.variable("ZTUNNEL_CPU_LIMIT", "a number of CPUs above 0", whole),
        resource_limit: read.variable("ZTUNNEL_RESOURCE_CPU_LIMIT", QUANTITY, cores::quantity),
        resource_request: read.variable("ZTUNNEL_RESOURCE_CPU_REQUEST", QUANTITY, cores::quantity),
    };
    read.setting(
        Some(("--cores", &flags.cores)),
        &["ZTUNNEL_WORKER_THREADS"],
        "a number of cores, 0 for all, a percentage such as 25%, or a list of CPUs such as 0,2-3",
        |text| cores::parse(text).and_then(|asked| cores::choose(&asked, &limits, cpus)),
    )
    .unwrap_or_else(|| cores::by_default(&limits, cpus))
}

fn tenant_by(read: &mut Reader<'_>, flags: &Flags) -> TenantBy {
    let parse = |text: &str| match text {
        "namespace" => Ok(TenantBy::Namespace),
        "service-account" => Ok(TenantBy::ServiceAccount),
        "pod" => Ok(TenantBy::Pod),
        _ => Err("unknown kind of tenant".to_owned()),
    };
    let flag = Some(("--tenant-by", &flags.tenant_by));
    read.setting(flag, &[], "namespace, service-account or pod", parse).unwrap_or_default()
}

fn weights(read: &mut Reader<'_>, flags: &Flags) -> Weights {
    let one = |pair: &str| {
        let (namespace, weight) = pair.split_once('=').ok_or(format!("{pair:?} has no weight"))?;
        let (namespace, weight) = (namespace.trim(), weight.trim());
        if namespace.is_empty() {
            return Err(format!("{pair:?} names no namespace"));
        }
        let value = values::number(weight, Weight::MIN.value()..=Weight::MAX.value());
        let weight = value.map_err(|cause| format!("weight {weight:?} of {namespace}: {cause}"))?;
        Ok((namespace.into(), Weight::new(weight).expect("it is within the bounds")))
    };
    let parse = |text: &str| text.split(',').map(one).collect();
    let flag = Some(("--tenant-weights", &flags.tenant_weights));
    let accepted = "namespaces, each with a weight from 1 to 10000, such as payments=300,batch=50";
    read.setting(flag, &[], accepted, parse).unwrap_or_default()
}

fn new_pods(text: &str) -> Result<bool, String> {
    match text {
        "wait" => Ok(false),
        "serve" => Ok(true),
        _ => Err("unknown way to treat new pods".to_owned()),
    }
}

fn engine(read: &mut Reader<'_>, flags: &Flags) -> EngineChoice {
    let parse = |text: &str| match text {
        "auto" => Ok(EngineChoice::Auto),
        "uring" => Ok(EngineChoice::Uring),
        "epoll" => Ok(EngineChoice::Epoll),
        _ => Err("unknown way into the kernel".to_owned()),
    };
    let flag = Some(("--engine", &flags.engine));
    read.setting(flag, &["CORETUNNEL_ENGINE"], "auto, uring or epoll", parse).unwrap_or_default()
}

fn mesh(read: &mut Reader<'_>, flags: &Flags) -> Mesh {
    let trust_domain = |text: &str| match Identity::new(text, "namespace", "account") {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    };
    // `sun_path` has 108 bytes, of which the last ends the path.
    let socket = |text: &str| match values::path(text) {
        Ok(path) if text.len() <= 107 && text != "@" => Ok(path),
        Ok(_) => Err(format!("{} bytes long", text.len())),
        Err(error) => Err(error),
    };
    let node = read.text(Some(("--node", &flags.node)), &["NODE_NAME"]);
    let cluster = read
        .text(Some(("--cluster", &flags.cluster)), &["ISTIO_META_CLUSTER_ID", "CLUSTER_ID"])
        .unwrap_or_else(|| "Kubernetes".to_owned());
    let local = local_mesh(read, flags);
    let described = match &local {
        LocalMesh::None => None,
        LocalMesh::File(_) => Some("--local-xds-path (LOCAL_XDS_PATH)"),
        LocalMesh::Inline(_) => Some("LOCAL_XDS"),
    };
    Mesh {
        control_plane: control_plane::control_plane(read, flags, node.as_deref(), &cluster, described),
        node,
        network: read.text(Some(("--network", &flags.network)), &["NETWORK"]).unwrap_or_default(),
        cluster,
        trust_domain: read
            .setting(
                Some(("--trust-domain", &flags.trust_domain)),
                &["TRUST_DOMAIN"],
                "a SPIFFE trust domain: lower-case letters, digits, dots, dashes, underscores",
                trust_domain,
            )
            .unwrap_or_else(|| "cluster.local".to_owned()),
        local,
        zds_socket: read
            .setting(
                Some(("--zds-socket", &flags.zds_socket)),
                &["INPOD_UDS"],
                "a path of at most 107 bytes, or @ and the name of an abstract socket",
                socket,
            )
            .unwrap_or_else(|| PathBuf::from("/var/run/ztunnel/ztunnel.sock")),
    }
}

fn local_mesh(read: &mut Reader<'_>, flags: &Flags) -> LocalMesh {
    let flag = Some(("--local-xds-path", &flags.local_xds_path));
    let file = read.setting(flag, &["LOCAL_XDS_PATH"], "the path of a file", values::path);
    match (file, read.text(None, &["LOCAL_XDS"])) {
        (Some(_), Some(text)) => {
            let origin = Origin::Variable { name: "LOCAL_XDS".to_owned(), value: format!("<{} bytes>", text.len()) };
            read.complain(origin, "a file is given as well", "one of LOCAL_XDS and --local-xds-path (LOCAL_XDS_PATH)");
            LocalMesh::None
        }
        (Some(file), None) => LocalMesh::File(file),
        (None, Some(text)) => LocalMesh::Inline(text),
        (None, None) => LocalMesh::None,
    }
}

impl fmt::Debug for LocalMesh {
    /// The settings are logged as one line, and a mesh may be long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Inline(text) => write!(f, "Inline(<{} bytes>)", text.len()),
        }
    }
}

fn certificates(read: &mut Reader<'_>, flags: &Flags, mesh: &Mesh) -> Certificates {
    Certificates {
        server: control_plane::ca(read, flags, &mesh.cluster, mesh.control_plane.as_ref()),
        // Relative to the working directory, as all of ztunnel's own paths are.
        root_file: read
            .setting(
                Some(("--ca-root-file", &flags.ca_root_file)),
                &[],
                "the path of a PEM file, which is made when it is missing",
                values::path,
            )
            .unwrap_or_else(|| PathBuf::from("./var/run/secrets/coretunnel/root.pem")),
        lifetime: read
            .setting(Some(("--secret-ttl", &flags.secret_ttl)), &["SECRET_TTL"], "a duration from 1m to 365d", |text| {
                values::duration(text, SECOND * 60..=DAY * 365)
            })
            .unwrap_or(DAY),
        revocation_file: read.setting(
            Some(("--crl-path", &flags.crl_path)),
            &["CRL_PATH"],
            "the path of a file of X.509 revocation lists, PEM or DER",
            values::path,
        ),
    }
}

fn warm_start(read: &mut Reader<'_>, flags: &Flags) -> Option<WarmStart> {
    let directory = read.setting(
        Some(("--warm-start-dir", &flags.warm_start_dir)),
        &["CORETUNNEL_WARM_START_DIR"],
        "the path of a directory that outlives the container, and that only this daemon's user can write in",
        values::path,
    );
    let age_max = read.setting(
        Some(("--warm-start-max-age", &flags.warm_start_max_age)),
        &["CORETUNNEL_WARM_START_MAX_AGE"],
        "a duration from 1m to 7d",
        |text| values::duration(text, SECOND * 60..=DAY * 7),
    );
    directory.map(|directory| WarmStart {
        directory,
        age_max: age_max.unwrap_or(WARM_START_AGE_MAX),
        program: version::brief(),
    })
}

fn servers(read: &mut Reader<'_>, flags: &Flags, has_ipv6: bool) -> Servers {
    const ADDRESS: &str = "an IP address and a port, such as 0.0.0.0:15020 or [::]:15020";
    let dual_stack = read.variable("IPV6_ENABLED", TRUTH, truth).unwrap_or(true) && has_ipv6;
    let wildcard = |port| match dual_stack {
        true => SocketAddr::from(([0_u16; 8], port)),
        false => SocketAddr::from(([0_u8; 4], port)),
    };
    let mut server = |flag, default| read.setting(Some(flag), &[], ADDRESS, values::address).unwrap_or(default);
    Servers {
        metrics: server(("--metrics-addr", &flags.metrics_addr), wildcard(15020)),
        readiness: server(("--readiness-addr", &flags.readiness_addr), wildcard(15021)),
        admin: server(("--admin-addr", &flags.admin_addr), ADMIN),
    }
}

fn connections(read: &mut Reader<'_>, flags: &Flags) -> Connections {
    const WINDOW: &str = "a number of bytes from 65535 to 2147483647";
    let window = |text: &str| values::number(text, 65_535..=0x7fff_ffff);
    let (h2, pool) = (H2Config::default(), PoolConfig::default());
    let asked = read.setting(
        Some(("--termination-deadline", &flags.termination_deadline)),
        &["CONNECTION_TERMINATION_DEADLINE"],
        "a duration from 0s to 1d, such as 5s or 1m30s",
        |text| values::duration(text, Duration::ZERO..=DAY),
    );
    let grace_s = read.variable("TERMINATION_GRACE_PERIOD_SECONDS", "a number of seconds from 0 to 86400", |text| {
        values::number(text, 0..=86_400)
    });
    Connections {
        termination_deadline: termination(asked, grace_s),
        streams_per_tunnel_max: read
            .setting(
                Some(("--pool-max-streams", &flags.pool_max_streams)),
                &["POOL_MAX_STREAMS_PER_CONNECTION"],
                "a number from 1 to 65535",
                |text| values::number(text, 1..=65_535),
            )
            .unwrap_or(pool.streams_per_tunnel_max),
        tunnel_idle_timeout: read
            .setting(
                Some(("--pool-idle-timeout", &flags.pool_idle_timeout)),
                &["POOL_UNUSED_RELEASE_TIMEOUT"],
                "a duration from 1s to 1d",
                |text| values::duration(text, SECOND..=DAY),
            )
            .unwrap_or(pool.idle_timeout),
        stream_window: read.variable("HTTP2_STREAM_WINDOW_SIZE", WINDOW, window).unwrap_or(h2.stream_window),
        connection_window: read
            .variable("HTTP2_CONNECTION_WINDOW_SIZE", WINDOW, window)
            .unwrap_or(h2.connection_window),
        frame_size: read
            .variable("HTTP2_FRAME_SIZE", "a number of bytes from 16384 to 16777215", |text| {
                values::number(text, 16_384..=16_777_215)
            })
            .unwrap_or(h2.frame_size),
        original_source: read
            .setting(
                Some(("--original-source", &flags.original_source)),
                &["ENABLE_ORIG_SRC"],
                "true, false or auto",
                |text| if text == "auto" { Ok(None) } else { truth(text).map(Some) },
            )
            .flatten(),
        response_baggage: read.variable("ENABLE_RESPONSE_BAGGAGE", TRUTH, truth).unwrap_or(true),
        serves_new_pods: read
            .setting(Some(("--new-pods", &flags.new_pods)), &["CORETUNNEL_NEW_PODS"], "wait or serve", new_pods)
            .unwrap_or(false),
        localhost_tunnel: read.variable("LOCALHOST_APP_TUNNEL", TRUTH, truth).unwrap_or(true),
    }
}

/// The deadline of a drain: what was asked for, else some seconds less than what Kubernetes grants before it kills, and
/// never less than one.
fn termination(asked: Option<Duration>, grace_s: Option<u64>) -> Duration {
    let derived = grace_s.map(|grace| match grace {
        11.. => grace - 5,
        _ => grace.saturating_sub(1).max(1),
    });
    asked.or(derived.map(Duration::from_secs)).unwrap_or(Duration::from_secs(5))
}

fn sockets(read: &mut Reader<'_>) -> Sockets {
    // The kernel takes no more (MAX_TCP_KEEPIDLE), and refusing it here is better than in every pod.
    const KEEPALIVE: &str = "a duration from 1s to 32767s";
    let seconds = |text: &str| values::duration(text, SECOND..=SECOND * 32_767);
    let keepalive = Keepalive {
        idle: read.variable("KEEPALIVE_TIME", KEEPALIVE, seconds).unwrap_or(SECOND * 180),
        interval: read.variable("KEEPALIVE_INTERVAL", KEEPALIVE, seconds).unwrap_or(SECOND * 180),
        probes: read
            .variable("KEEPALIVE_RETRIES", "a number from 1 to 127", |text| values::number(text, 1..=127))
            .unwrap_or(9),
    };
    let keepalive_on = read.variable("KEEPALIVE_ENABLED", TRUTH, truth).unwrap_or(true);
    Sockets {
        packet_mark: read
            .variable("PACKET_MARK", "a number from 1 to 4294967295", |text| values::number(text, 1..=u32::MAX))
            .unwrap_or(inpod::socket::PROXY_MARK),
        port_reuse: read.variable("INPOD_PORT_REUSE", TRUTH, truth).unwrap_or(true),
        keepalive: keepalive_on.then_some(keepalive),
        user_timeout: read.variable("USER_TIMEOUT_ENABLED", TRUTH, truth).unwrap_or(false),
    }
}

fn log(read: &mut Reader<'_>, flags: &Flags) -> LogConfig {
    let text_of = |error: LogError| error.to_string();
    LogConfig {
        filter: read
            .setting(
                Some(("--log", &flags.log)),
                &["RUST_LOG"],
                "LEVEL or TARGET=LEVEL, separated by commas, such as info,access=debug",
                |text| text.parse().map_err(text_of),
            )
            .unwrap_or_default(),
        format: read
            .setting(Some(("--log-format", &flags.log_format)), &["LOG_FORMAT"], "plain or json", |text| {
                text.parse().map_err(text_of)
            })
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
