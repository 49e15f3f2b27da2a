//! The command line: what can be said, and how it is explained. Values stay text here; `config` reads them, so that
//! flags and environment variables are read by the same code and all errors are reported at once.

use std::net::{Ipv4Addr, SocketAddr};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where the daemon tells how it stands, and `status` asks: ztunnel's admin port, for this host alone.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// What stands below the flags in `-h`.
const EXAMPLES: &str = "\
Examples:
  coretunnel preflight
      what stands in the way on this host, one line each, with the cure
  coretunnel status
      how the daemon that runs here stands: control plane, CA, CNI agent, cores
  coretunnel --node node-a --xds-address https://istiod.istio-system.svc:15012
      a mesh and certificates from istiod, as ztunnel has them; in Kubernetes without any flag
  coretunnel --node node-a --local-xds-path mesh.yaml --ca-root-file /etc/coretunnel/root.pem
      a mesh described by a file; daemons that share the root file trust each other
  coretunnel --cores 0,2-3 --tenant-by namespace
      three cores, pinned to CPU 0, 2 and 3, where whole namespaces take turns
  coretunnel --log info,access=debug --log-format json
      also a line for each connection when it opens

A setting is taken from its flag, else from its environment variable, else it is the default. \
Bad ones are reported all at once, with exit code 2.";

/// What `--help` adds: the settings that few need, so they have no flag, as with ztunnel.
const VARIABLES: &str = "\
Settings that have an environment variable only:
  LOCAL_XDS                     the text of a mesh file, instead of --local-xds-path
  XDS_ROOT_CA, CA_ROOT_CA       whom the server's certificate must come from: a file, SYSTEM, or PEM
                                [./var/run/secrets/istio/root-cert.pem]
  ALT_XDS_HOSTNAME, ALT_CA_HOSTNAME
                                another name that the server's certificate may be for
  AUTH_TOKEN                    a token or its file, which is read for each use [./var/run/secrets/tokens/istio-token]
  XDS_HEADER_*, CA_HEADER_*     a header of each stream or call, by the rest of the variable's name
  XDS_ON_DEMAND                 ask for workloads and services when they are needed, not for all [false]
  POD_NAME, POD_NAMESPACE, INSTANCE_IP
                                this proxy, as the control plane is told
  ISTIO_META_*, ISTIO_METAJSON_*
                                more that it is told: texts, and JSON
  IPV6_ENABLED                  false: servers listen on IPv4 only [true]
  ZTUNNEL_CPU_LIMIT             CPUs of which --cores takes percentages, and its default a quarter
  ZTUNNEL_RESOURCE_CPU_LIMIT    the container's CPU limit: the default number of cores
  ZTUNNEL_RESOURCE_CPU_REQUEST  the container's CPU request: the default number of cores is no less
  PACKET_MARK                   SO_MARK of all sockets inside pods; the CNI's rules know it [1337]
  INPOD_PORT_REUSE              share ports inside pods with the daemon that is replaced [true]
  ENABLE_RESPONSE_BAGGAGE       tell peers about the server in answers to CONNECT [true]
  LOCALHOST_APP_TUNNEL          reach applications that want a PROXY header on loopback [true]
  HTTP2_STREAM_WINDOW_SIZE      bytes in flight per stream [4194304]
  HTTP2_CONNECTION_WINDOW_SIZE  bytes in flight per tunnel [16777216]
  HTTP2_FRAME_SIZE              bytes of the largest DATA frame accepted [1048576]
  KEEPALIVE_ENABLED             TCP keepalive inside pods [true]
  KEEPALIVE_TIME                idle time before the first probe [180s]
  KEEPALIVE_INTERVAL            time between probes [180s]
  KEEPALIVE_RETRIES             unanswered probes until the connection is given up [9]
  USER_TIMEOUT_ENABLED          give up unacknowledged data after the same time [false]

Durations are written as 5s, 10m or 1h30m; sizes are bytes. An empty variable counts as not set. \
An empty XDS_ADDRESS or CA_ADDRESS says that there is none. \
Variables of ztunnel that this daemon cannot follow (the DNS proxy's) are named in the log at the \
start, or refused.

SIGTERM or SIGINT ends the daemon: listeners close at once, connections may finish until the termination deadline. A \
second SIGINT ends it at once.

Exit codes: 0 told to end, 1 could not start or go on, 2 a setting cannot be used.";

/// A node proxy for ambient service mesh.
#[derive(Debug, Parser)]
#[command(
    name = "coretunnel",
    version,
    about = "A node proxy for ambient service mesh: captures the TCP traffic of this node's pods and carries it in mutually \
             authenticated HTTP/2 CONNECT tunnels (HBONE).",
    long_about = "A node proxy for ambient service mesh.\n\n\
             One daemon per node. It is told of pods by the CNI agent, listens inside their network namespaces, and \
             carries their TCP traffic between workloads in mutually authenticated HTTP/2 CONNECT tunnels (HBONE), \
             enforcing L4 policy. It takes the place of istio's ztunnel: same ports, same environment variables, same \
             CNI socket.\n\n\
             Each core runs its own reactor; every pod has a home core, and tenants take turns on it.",
    after_help = EXAMPLES,
    after_long_help = format!("{VARIABLES}\n\n{EXAMPLES}"),
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) settings: Flags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the proxy (the default).
    #[command(after_help = EXAMPLES, after_long_help = VARIABLES)]
    Run(Box<Flags>),
    /// Check the host and the settings without starting: one line per finding, with the cure. Exit code 1 when
    /// something would keep the proxy from running.
    Preflight {
        /// How to print the findings.
        #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
        format: OutputFormat,
        #[command(flatten)]
        settings: Box<Flags>,
    },
    /// Tell how a running daemon stands: control plane, CA, CNI agent, each core's generation, pods and connections.
    /// Exit code 1 when no daemon answers.
    Status {
        /// Where the daemon's admin server is.
        #[arg(long, value_name = "ADDR", default_value_t = ADMIN)]
        admin_addr: SocketAddr,
        /// How to print it.
        #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
        format: OutputFormat,
    },
    /// Print what was built.
    Version,
    /// As ztunnel is started: `proxy ztunnel`. Runs the proxy; words after `proxy` are ignored.
    #[command(hide = true)]
    Proxy {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        ignored: Vec<String>,
    },
}

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// All settings, as text.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Flags {
    /// Cores to run on: a number of them, `0` for all, a percentage of the CPUs (`25%`), or a list of CPUs to pin to
    /// (`0,2-3`). [env: ZTUNNEL_WORKER_THREADS] [default: a quarter of the CPUs, at least 2; all that a CPU limit grants]
    #[arg(long, value_name = "N|N%|LIST", help_heading = "Cores and tenants")]
    pub(crate) cores: Option<String>,
    /// What takes turns on a core and is charged for it: `namespace`, `service-account` or `pod`.
    /// [default: service-account]
    #[arg(long, value_name = "WHAT", help_heading = "Cores and tenants")]
    pub(crate) tenant_by: Option<String>,
    /// Shares of a core's CPU time by namespace, relative to each other: `payments=300,batch=50` gives the tenants of
    /// payments six times what those of batch get when both want all. 1 to 10000. [default: 100 each]
    #[arg(long, value_name = "NAMESPACE=WEIGHT,..", help_heading = "Cores and tenants")]
    pub(crate) tenant_weights: Option<String>,
    /// How cores reach the kernel: `uring`, `epoll`, or `auto`: io_uring where it is to be had, else epoll; log and
    /// metrics say which and why. [env: CORETUNNEL_ENGINE] [default: auto]
    #[arg(long, value_name = "WAY", help_heading = "Cores and tenants")]
    pub(crate) engine: Option<String>,

    /// This node's name; workloads of other nodes are not local. [env: NODE_NAME] [default: none, any may be local]
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) node: Option<String>,
    /// The network this node is on. [env: NETWORK] [default: the one without a name]
    #[arg(long, value_name = "ID", help_heading = "Mesh")]
    pub(crate) network: Option<String>,
    /// The cluster of workloads that name none. [env: ISTIO_META_CLUSTER_ID, CLUSTER_ID] [default: Kubernetes]
    #[arg(long, value_name = "ID", help_heading = "Mesh")]
    pub(crate) cluster: Option<String>,
    /// The trust domain of workloads that name none. [env: TRUST_DOMAIN] [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", help_heading = "Mesh")]
    pub(crate) trust_domain: Option<String>,
    /// The control plane, `https://HOST:PORT`: workloads, services and policies by delta xDS. [env: XDS_ADDRESS]
    /// [default: istiod in Kubernetes, none elsewhere or with a file]
    #[arg(long, value_name = "URL", help_heading = "Mesh")]
    pub(crate) xds_address: Option<String>,
    /// A YAML file of workloads, services and policies; watched, and read again when it changes. [env: LOCAL_XDS_PATH]
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) local_xds_path: Option<String>,
    /// Where the mesh is kept for a start that does not wait for the control plane: a directory that outlives the
    /// container and that nobody else can write in. A daemon that starts again serves the pods it knew, by the policy it
    /// knew, and asks the control plane for the difference only. Certificates and keys are never kept.
    /// [env: CORETUNNEL_WARM_START_DIR] [default: none, each start waits]
    #[arg(long, value_name = "DIR", help_heading = "Mesh")]
    pub(crate) warm_start_dir: Option<String>,
    /// How old a kept mesh may be, 1m to 7d: since it was last known to be the control plane's. An older one is passed
    /// over, and the start waits. [env: CORETUNNEL_WARM_START_MAX_AGE] [default: 1h]
    #[arg(long, value_name = "DURATION", help_heading = "Mesh")]
    pub(crate) warm_start_max_age: Option<String>,
    /// The CNI agent's socket; `@name` is an abstract one. [env: INPOD_UDS] [default: /var/run/ztunnel/ztunnel.sock]
    #[arg(long, value_name = "PATH", help_heading = "Mesh")]
    pub(crate) zds_socket: Option<String>,

    /// Who issues certificates: a CA's `https://HOST:PORT`, or `embedded`, a CA inside the daemon. [env: CA_ADDRESS]
    /// [default: the control plane's; embedded where there is none]
    #[arg(long, value_name = "URL|embedded", help_heading = "Certificates")]
    pub(crate) ca: Option<String>,
    /// The embedded CA's root, certificate and key in one PEM file. Made when it is missing; daemons that share it trust
    /// each other. [default: ./var/run/secrets/coretunnel/root.pem]
    #[arg(long, value_name = "FILE", help_heading = "Certificates")]
    pub(crate) ca_root_file: Option<String>,
    /// How long a certificate is valid, 1m to 365d; renewed at half of it. [env: SECRET_TTL] [default: 24h]
    #[arg(long, value_name = "DURATION", help_heading = "Certificates")]
    pub(crate) secret_ttl: Option<String>,
    /// Revocation lists of the mesh's CAs, PEM (any number) or DER, 4 MiB at most; read again when the file changes.
    /// Peers whose certificate they name, or a CA's above it, are refused, and their tunnels that are up closed. A list
    /// past its next update still counts; a file that cannot be read is told and leaves the last lists in force.
    /// [env: CRL_PATH] [default: none, nobody is revoked]
    #[arg(long, value_name = "FILE", help_heading = "Certificates")]
    pub(crate) crl_path: Option<String>,

    /// Where metrics are served, at `/metrics` and `/stats/prometheus`. [default: `[::]:15020`]
    #[arg(long, value_name = "ADDR", help_heading = "Servers")]
    pub(crate) metrics_addr: Option<String>,
    /// Where readiness is told, at `/healthz/ready`. [default: `[::]:15021`]
    #[arg(long, value_name = "ADDR", help_heading = "Servers")]
    pub(crate) readiness_addr: Option<String>,
    /// Where `coretunnel status` is answered, at `/status`. Whoever reaches it reads it: keep it on loopback.
    /// [default: `127.0.0.1:15000`]
    #[arg(long, value_name = "ADDR", help_heading = "Servers")]
    pub(crate) admin_addr: Option<String>,

    /// How long connections may take to end once the daemon is told to, 0s to 1d.
    /// [env: CONNECTION_TERMINATION_DEADLINE] [default: 5s less than TERMINATION_GRACE_PERIOD_SECONDS, else 5s]
    #[arg(long, value_name = "DURATION", help_heading = "Connections")]
    pub(crate) termination_deadline: Option<String>,
    /// Streams per tunnel, 1 to 65535. [env: POOL_MAX_STREAMS_PER_CONNECTION] [default: 100]
    #[arg(long, value_name = "N", help_heading = "Connections")]
    pub(crate) pool_max_streams: Option<String>,
    /// How long an unused tunnel is kept, 1s to 1d. [env: POOL_UNUSED_RELEASE_TIMEOUT] [default: 5m]
    #[arg(long, value_name = "DURATION", help_heading = "Connections")]
    pub(crate) pool_idle_timeout: Option<String>,
    /// What connections of a pod do until the control plane tells of it: `wait`, for 5s at most; or `serve`, as the pod that
    /// the CNI agent names, by its service account in --trust-domain: out of it always, into it only while no policy in
    /// the mesh selects workloads, since nobody can say yet whether one selects this pod.
    /// [env: CORETUNNEL_NEW_PODS] [default: wait]
    #[arg(long, value_name = "WHAT", help_heading = "Connections")]
    pub(crate) new_pods: Option<String>,
    /// Keep clients' addresses towards applications: `true`, or the pod is not served; `false`; `auto`, where it can be
    /// done. [env: ENABLE_ORIG_SRC] [default: auto]
    #[arg(long, value_name = "WHEN", help_heading = "Connections")]
    pub(crate) original_source: Option<String>,

    /// What is logged: LEVEL or TARGET=LEVEL, separated by commas, where a level is off, error, warn, info, debug or
    /// trace. The access log's target is `access`. [env: RUST_LOG] [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Log")]
    pub(crate) log: Option<String>,
    /// What a line looks like: `plain` or `json`. [env: LOG_FORMAT] [default: plain]
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    pub(crate) log_format: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_and_ztunnels_arguments_are_understood() {
        assert!(Cli::parse_from(["coretunnel"]).command.is_none());
        let flags = Cli::parse_from(["coretunnel", "--cores", "2"]);
        assert_eq!(flags.settings.cores.as_deref(), Some("2"));
        let run = Cli::parse_from(["coretunnel", "run", "--node", "a"]);
        assert!(matches!(run.command, Some(Command::Run(flags)) if flags.node.as_deref() == Some("a")));
        assert!(matches!(Cli::parse_from(["coretunnel", "proxy", "ztunnel"]).command, Some(Command::Proxy { .. })));
    }
}
