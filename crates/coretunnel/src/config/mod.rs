//! The settings of the daemon: defaults, then environment, then flags; all errors at once.

mod cores;
mod sources;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use dataplane::TenantBy;
use telemetry::log::{LogConfig, LogError};

pub(crate) use cores::{Cpus, CpuLimits};
pub(crate) use sources::SettingError;
use sources::Reader;

use crate::cli::Flags;

/// Where a missing root is made, relative to the working directory as all of ztunnel's paths.
const CA_ROOT_FILE: &str = "./var/run/secrets/coretunnel/root.pem";

/// Everything the daemon can be told, read and believed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) cores: Vec<usize>,
    pub(crate) tenant_by: TenantBy,
    pub(crate) node: Option<String>,
    pub(crate) network: String,
    pub(crate) cluster: String,
    pub(crate) trust_domain: String,
    pub(crate) local_file: Option<PathBuf>,
    pub(crate) local_inline: Option<String>,
    pub(crate) zds_socket: PathBuf,
    pub(crate) ca_root_file: PathBuf,
    pub(crate) secret_ttl: Duration,
    pub(crate) metrics_addr: SocketAddr,
    pub(crate) readiness_addr: SocketAddr,
    pub(crate) termination_deadline: Duration,
    pub(crate) pool_max_streams: usize,
    pub(crate) pool_idle_timeout: Duration,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) frame_size: u32,
    pub(crate) original_source: Option<bool>,
    pub(crate) response_baggage: bool,
    pub(crate) packet_mark: u32,
    pub(crate) port_reuse: bool,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) user_timeout: bool,
    pub(crate) log: LogConfig,
}

/// TCP keepalive of pods' connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) probes: u32,
}

/// Reads all settings.
///
/// # Errors
/// Every setting that cannot be read or makes no sense, not only the first.
pub(crate) fn load(
    flags: &Flags,
    environment: &dyn Fn(&str) -> Option<String>,
    cpus: &Cpus,
) -> Result<Settings, Vec<SettingError>> {
    let mut read = Reader::new(environment);

    let ipv6 = read.boolean("IPV6_ENABLED", true);
    let wildcard = |port| if ipv6 { SocketAddr::from(([0_u16; 8], port)) } else { SocketAddr::from(([0_u8; 4], port)) };
    let limits = CpuLimits {
        cpu_limit: read.setting(None, &["ZTUNNEL_CPU_LIMIT"], "a number of CPUs", cores::whole),
        resource_limit: read.setting(None, &["ZTUNNEL_RESOURCE_CPU_LIMIT"], "a Kubernetes quantity above 0", cores::quantity),
        resource_request: read.setting(
            None,
            &["ZTUNNEL_RESOURCE_CPU_REQUEST"],
            "a Kubernetes quantity above 0",
            cores::quantity,
        ),
    };
    let cores = read
        .setting(
            Some(("--cores", &flags.cores)),
            &["ZTUNNEL_WORKER_THREADS"],
            "a number of cores, 0 for all, a percentage such as 25%, or a list of CPUs such as 0,2-3",
            |text| cores::parse(text).and_then(|asked| cores::choose(Some(&asked), &limits, cpus)),
        )
        .or_else(|| cores::choose(None, &limits, cpus).ok());

    let deadline = read.setting(
        Some(("--termination-deadline", &flags.termination_deadline)),
        &["CONNECTION_TERMINATION_DEADLINE"],
        "a duration such as 5s or 1m30s",
        duration,
    );
    let grace = read.setting(None, &["TERMINATION_GRACE_PERIOD_SECONDS"], "a number of seconds", whole_u64);

    let keepalive_on = read.boolean("KEEPALIVE_ENABLED", true);
    let keepalive = Keepalive {
        idle: read.setting(None, &["KEEPALIVE_TIME"], "a duration of at least 1s", seconds).unwrap_or(Duration::from_secs(180)),
        interval: read
            .setting(None, &["KEEPALIVE_INTERVAL"], "a duration of at least 1s", seconds)
            .unwrap_or(Duration::from_secs(180)),
        probes: read.setting(None, &["KEEPALIVE_RETRIES"], "a number from 1 to 127", |text| within(text, 1, 127)).unwrap_or(9),
    };
    let local_file = read.text(Some(("--local-xds-path", &flags.local_xds_path)), &["LOCAL_XDS_PATH"]);
    let local_inline = read.text(None, &["LOCAL_XDS"]);
    if local_file.is_some() && local_inline.is_some() {
        read.complain("LOCAL_XDS", "(inline)", "LOCAL_XDS_PATH or --local-xds-path is given too: give one of them");
    }
    if let Some(mode) = read.text(None, &["PROXY_MODE"])
        && mode != "shared"
    {
        read.complain("PROXY_MODE", &mode, "only \"shared\" is supported: one daemon for all pods of the node");
    }
    for unsupported in ["XDS_ADDRESS", "CA_ADDRESS"] {
        // An empty address is ztunnel's way of saying: no control plane.
        if let Some(address) = read.text(None, &[unsupported]) {
            let cure = "a control plane is not supported yet: leave it empty, and give --local-xds-path and --ca embedded";
            read.complain(unsupported, &address, cure);
        }
    }
    read.setting(Some(("--ca", &flags.ca)), &[], "embedded (the only one so far)", |text| match text {
        "embedded" => Ok(()),
        _ => Err("unknown issuer".to_owned()),
    });
    let settings = Settings {
        cores: cores.unwrap_or_default(),
        tenant_by: read
            .setting(
                Some(("--tenant-by", &flags.tenant_by)),
                &[],
                "namespace, service-account or pod",
                |text| match text {
                    "namespace" => Ok(TenantBy::Namespace),
                    "service-account" => Ok(TenantBy::ServiceAccount),
                    "pod" => Ok(TenantBy::Pod),
                    _ => Err("unknown kind of tenant".to_owned()),
                },
            )
            .unwrap_or_default(),
        node: read.text(Some(("--node", &flags.node)), &["NODE_NAME"]),
        network: read.text(Some(("--network", &flags.network)), &["NETWORK"]).unwrap_or_default(),
        cluster: read
            .text(Some(("--cluster", &flags.cluster)), &["ISTIO_META_CLUSTER_ID", "CLUSTER_ID"])
            .unwrap_or_else(|| "Kubernetes".to_owned()),
        trust_domain: read
            .setting(
                Some(("--trust-domain", &flags.trust_domain)),
                &["TRUST_DOMAIN"],
                "a SPIFFE trust domain: lower-case letters, digits, dots, dashes, underscores",
                |text| {
                    mesh_state::identity::Identity::new(text, "namespace", "account")
                        .map(|_| text.to_owned())
                        .map_err(|error| error.to_string())
                },
            )
            .unwrap_or_else(|| "cluster.local".to_owned()),
        local_file: local_file.map(PathBuf::from),
        local_inline,
        zds_socket: read
            .text(Some(("--zds-socket", &flags.zds_socket)), &["INPOD_UDS"])
            .unwrap_or_else(|| "/var/run/ztunnel/ztunnel.sock".to_owned())
            .into(),
        ca_root_file: read
            .text(Some(("--ca-root-file", &flags.ca_root_file)), &[])
            .unwrap_or_else(|| CA_ROOT_FILE.to_owned())
            .into(),
        secret_ttl: read
            .setting(
                Some(("--secret-ttl", &flags.secret_ttl)),
                &["SECRET_TTL"],
                "a duration from 1m to 365d, such as 24h",
                |text| duration(text).and_then(|ttl| in_range(ttl, Duration::from_secs(60), Duration::from_secs(365 * 86_400))),
            )
            .unwrap_or(Duration::from_secs(86_400)),
        metrics_addr: read
            .setting(Some(("--metrics-addr", &flags.metrics_addr)), &[], "an address such as [::]:15020", address)
            .unwrap_or_else(|| wildcard(15020)),
        readiness_addr: read
            .setting(Some(("--readiness-addr", &flags.readiness_addr)), &[], "an address such as [::]:15021", address)
            .unwrap_or_else(|| wildcard(15021)),
        termination_deadline: termination(deadline, grace),
        pool_max_streams: read
            .setting(
                Some(("--pool-max-streams", &flags.pool_max_streams)),
                &["POOL_MAX_STREAMS_PER_CONNECTION"],
                "a number from 1 to 65535",
                |text| within(text, 1, 65_535),
            )
            .map_or(100, |streams| streams as usize),
        pool_idle_timeout: read
            .setting(
                Some(("--pool-idle-timeout", &flags.pool_idle_timeout)),
                &["POOL_UNUSED_RELEASE_TIMEOUT"],
                "a duration from 10ms to 1day",
                |text| duration(text).and_then(|idle| in_range(idle, Duration::from_millis(10), Duration::from_secs(86_400))),
            )
            .unwrap_or(Duration::from_secs(300)),
        stream_window: read.setting(None, &["HTTP2_STREAM_WINDOW_SIZE"], WINDOW, window).unwrap_or(4 << 20),
        connection_window: read.setting(None, &["HTTP2_CONNECTION_WINDOW_SIZE"], WINDOW, window).unwrap_or(16 << 20),
        frame_size: read
            .setting(None, &["HTTP2_FRAME_SIZE"], "a number from 16384 to 16777215", |text| within(text, 16_384, 16_777_215))
            .unwrap_or(1 << 20),
        original_source: read
            .setting(
                Some(("--original-source", &flags.original_source)),
                &["ENABLE_ORIG_SRC"],
                "true, false or auto",
                |text| match text {
                    "auto" => Ok(None),
                    text => sources::truth(text).map(Some),
                },
            )
            .flatten(),
        response_baggage: read.boolean("ENABLE_RESPONSE_BAGGAGE", true),
        packet_mark: read
            .setting(None, &["PACKET_MARK"], "a number from 1 to 4294967295", |text| within(text, 1, u32::MAX))
            .unwrap_or(inpod::socket::PROXY_MARK),
        port_reuse: read.boolean("INPOD_PORT_REUSE", true),
        keepalive: keepalive_on.then_some(keepalive),
        user_timeout: read.boolean("USER_TIMEOUT_ENABLED", false),
        log: LogConfig {
            filter: read
                .setting(Some(("--log", &flags.log)), &["RUST_LOG"], "LEVEL or TARGET=LEVEL, separated by commas", |text| {
                    text.parse().map_err(|error: LogError| error.to_string())
                })
                .unwrap_or_default(),
            format: read
                .setting(Some(("--log-format", &flags.log_format)), &["LOG_FORMAT"], "plain or json", |text| {
                    text.parse().map_err(|error: LogError| error.to_string())
                })
                .unwrap_or_default(),
        },
    };
    read.finish(settings)
}

const WINDOW: &str = "a number of bytes from 65535 to 2147483647";

/// The deadline of a drain: asked for, or five seconds less than what Kubernetes grants, and never less than one.
fn termination(deadline: Option<Duration>, grace_s: Option<u64>) -> Duration {
    let derived = grace_s.map(|grace| match grace {
        11.. => grace - 5,
        _ => grace.saturating_sub(1).max(1),
    });
    deadline.or(derived.map(Duration::from_secs)).unwrap_or(Duration::from_secs(5))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

fn seconds(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|value| in_range(value, Duration::from_secs(1), Duration::from_secs(86_400)))
}

fn in_range(value: Duration, least: Duration, most: Duration) -> Result<Duration, String> {
    if value < least || value > most {
        return Err(format!("out of range {} to {}", humantime::format_duration(least), humantime::format_duration(most)));
    }
    Ok(value)
}

fn within(text: &str, least: u32, most: u32) -> Result<u32, String> {
    match text.parse::<u64>() {
        Ok(value) if (u64::from(least)..=u64::from(most)).contains(&value) => {
            Ok(u32::try_from(value).expect("checked against a limit of 32 bits"))
        }
        Ok(_) => Err("out of range".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn window(text: &str) -> Result<u32, String> {
    within(text, 65_535, 0x7fff_ffff)
}

fn whole_u64(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error: std::num::ParseIntError| error.to_string())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|error: std::net::AddrParseError| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn with(environment: &[(&str, &str)], flags: &Flags) -> Result<Settings, Vec<SettingError>> {
        let environment: HashMap<String, String> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        load(flags, &|name| environment.get(name).cloned(), &Cpus { usable: vec![0, 1, 2, 3] })
    }

    #[test]
    fn defaults_are_the_references() {
        let settings = with(&[], &Flags::default()).expect("defaults are good");
        assert_eq!(settings.cores, [0, 1], "a quarter of four CPUs, but at least two");
        assert_eq!(settings.metrics_addr.to_string(), "[::]:15020");
        assert_eq!(settings.readiness_addr.to_string(), "[::]:15021");
        assert_eq!(settings.zds_socket.to_str(), Some("/var/run/ztunnel/ztunnel.sock"));
        assert_eq!((settings.stream_window, settings.connection_window, settings.frame_size), (4 << 20, 16 << 20, 1 << 20));
        assert_eq!((settings.pool_max_streams, settings.packet_mark), (100, 1337));
        assert_eq!(settings.termination_deadline, Duration::from_secs(5));
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_variable_over_the_default() {
        let flags = Flags { node: Some("flag".into()), ..Flags::default() };
        let settings = with(&[("NODE_NAME", "variable"), ("NETWORK", "net-1")], &flags).expect("good");
        assert_eq!((settings.node.as_deref(), &*settings.network), (Some("flag"), "net-1"));
    }

    #[test]
    fn every_bad_value_is_reported_with_its_name_value_and_what_would_be_good() {
        for (name, value, says) in [
            ("ZTUNNEL_WORKER_THREADS", "many", "a number of cores"),
            ("ZTUNNEL_WORKER_THREADS", "9", "4"),
            ("ZTUNNEL_WORKER_THREADS", "101%", "100"),
            ("ZTUNNEL_RESOURCE_CPU_LIMIT", "-1", "quantity"),
            ("CONNECTION_TERMINATION_DEADLINE", "soon", "duration"),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "-3", "seconds"),
            ("POOL_MAX_STREAMS_PER_CONNECTION", "0", "1 to 65535"),
            ("POOL_UNUSED_RELEASE_TIMEOUT", "0s", "10ms"),
            ("HTTP2_STREAM_WINDOW_SIZE", "1", "65535"),
            ("HTTP2_FRAME_SIZE", "16777216", "16777215"),
            ("KEEPALIVE_RETRIES", "999", "127"),
            ("KEEPALIVE_ENABLED", "maybe", "true or false"),
            ("TRUST_DOMAIN", "Not A Domain", "trust domain"),
            ("SECRET_TTL", "1s", "1m"),
            ("PACKET_MARK", "0", "1 to"),
            ("ENABLE_ORIG_SRC", "perhaps", "auto"),
            ("RUST_LOG", "loud", "LEVEL"),
            ("LOG_FORMAT", "xml", "plain or json"),
            ("PROXY_MODE", "dedicated", "shared"),
            ("XDS_ADDRESS", "https://istiod:15012", "--local-xds-path"),
        ] {
            let errors = with(&[(name, value)], &Flags::default()).expect_err(name);
            assert_eq!(errors.len(), 1, "{name}={value}: {errors:?}");
            let text = errors[0].to_string();
            assert!(text.contains(name) && text.contains(value) && text.contains(says), "{text}");
        }
    }

    #[test]
    fn all_errors_come_at_once_and_name_flags_as_flags() {
        let flags = Flags { cores: Some("x".into()), metrics_addr: Some("nowhere".into()), ..Flags::default() };
        let errors = with(&[("LOG_FORMAT", "xml")], &flags).expect_err("three mistakes");
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 3, "{text:?}");
        assert!(text.iter().any(|line| line.starts_with("invalid flag --cores x ")), "{text:?}");
        assert!(text.iter().any(|line| line.starts_with("invalid env var LOG_FORMAT=xml ")), "{text:?}");
    }

    #[test]
    fn the_drain_deadline_leaves_time_before_the_kill_and_never_underflows() {
        for (deadline, grace, expected) in [
            (None, None, 5),
            (None, Some(30), 25),
            (None, Some(11), 6),
            (None, Some(10), 9),
            (None, Some(1), 1),
            (None, Some(0), 1),
            (Some(Duration::from_secs(3)), Some(30), 3),
        ] {
            assert_eq!(termination(deadline, grace), Duration::from_secs(expected), "{deadline:?} {grace:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_value_of_any_variable_panics(value in "\\PC{0,24}") {
            for name in ["ZTUNNEL_WORKER_THREADS", "ZTUNNEL_RESOURCE_CPU_LIMIT", "SECRET_TTL", "RUST_LOG", "TRUST_DOMAIN", "POOL_UNUSED_RELEASE_TIMEOUT"] {
                let _read = with(&[(name, &value)], &Flags::default());
            }
        }
    }
}
