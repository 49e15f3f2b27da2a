//! Tests of the settings as a whole; how single values are written is tested beside `values` and `cores`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use clap::CommandFactory;
use proptest::prelude::*;
use telemetry::log::Format;

use super::*;

fn host() -> Host {
    Host { cpus: Cpus { usable: vec![0, 1, 2, 3] }, has_ipv6: true }
}

fn from_variables<const N: usize>(variables: [(&str, &str); N]) -> Result<Settings, Vec<SettingError>> {
    load(&Flags::default(), &Environment::from(variables), &host())
}

/// Sets one flag by its name, through the same parser as `main`.
fn flags(arguments: &[&str]) -> Flags {
    let words = ["coretunnel"].iter().chain(arguments);
    <crate::cli::Cli as clap::Parser>::try_parse_from(words).expect("the words are a command line").settings
}

#[test]
fn defaults_are_those_of_the_reference() {
    let settings = from_variables([]).expect("defaults are good");
    assert_eq!(settings.cores, [0, 1], "a quarter of four CPUs, but at least two");
    assert_eq!(settings.tenant_by, TenantBy::ServiceAccount);
    assert_eq!(settings.engine, EngineChoice::Auto);
    assert_eq!(settings.mesh.cluster, "Kubernetes");
    assert_eq!((&*settings.mesh.trust_domain, &*settings.mesh.network), ("cluster.local", ""));
    assert_eq!(settings.mesh.zds_socket.to_str(), Some("/var/run/ztunnel/ztunnel.sock"));
    assert_eq!(settings.certificates.lifetime, Duration::from_secs(24 * 3600));
    assert_eq!(settings.servers.metrics.to_string(), "[::]:15020");
    assert_eq!(settings.servers.readiness.to_string(), "[::]:15021");
    assert_eq!(settings.servers.admin.to_string(), "127.0.0.1:15000");
    let connections = &settings.connections;
    assert_eq!(connections.termination_deadline, Duration::from_secs(5));
    assert_eq!((connections.stream_window, connections.connection_window), (4 << 20, 16 << 20));
    assert_eq!((connections.frame_size, connections.streams_per_tunnel_max), (1 << 20, 100));
    assert_eq!(connections.tunnel_idle_timeout, Duration::from_secs(300));
    assert_eq!((connections.original_source, connections.response_baggage), (None, true));
    assert!(connections.localhost_tunnel);
    let keepalive = Keepalive { idle: Duration::from_secs(180), interval: Duration::from_secs(180), probes: 9 };
    let sockets = Sockets { packet_mark: 1337, port_reuse: true, keepalive: Some(keepalive), user_timeout: false };
    assert_eq!(settings.sockets, sockets);
    assert_eq!(settings.log.format, Format::Plain);
    assert_eq!(settings.ignored, []);
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_default() {
    let environment = Environment::from([("NODE_NAME", "variable"), ("NETWORK", "net-1"), ("LOG_FORMAT", "nonsense")]);
    let settings = load(&flags(&["--node", "flag", "--log-format", "json"]), &environment, &host());
    let settings = settings.expect("a variable that loses is not even read");
    assert_eq!((settings.mesh.node.as_deref(), &*settings.mesh.network), (Some("flag"), "net-1"));
    assert_eq!(settings.log.format, Format::Json);
    let both = [("ISTIO_META_CLUSTER_ID", "first"), ("CLUSTER_ID", "second")];
    assert_eq!(from_variables(both).expect("good").mesh.cluster, "first");
}

#[test]
fn every_bad_variable_is_reported_with_its_name_its_value_the_cause_and_what_would_be_good() {
    for (name, value, cause, accepted) in [
        ("ZTUNNEL_WORKER_THREADS", "many", "\"many\" is no whole number", "a number of cores"),
        ("ZTUNNEL_WORKER_THREADS", "9", "may use 4 CPUs (0-3)", "0 for all"),
        ("ZTUNNEL_WORKER_THREADS", "-1", "\"\" is no whole number", "a list of CPUs"),
        ("ZTUNNEL_WORKER_THREADS", "101%", "1% to 100%", "25%"),
        ("ZTUNNEL_WORKER_THREADS", "2-1", "2-1 is empty", "0,2-3"),
        ("ZTUNNEL_WORKER_THREADS", "0,0", "CPU 0 is named twice", "a list of CPUs"),
        ("ZTUNNEL_WORKER_THREADS", "0-2,1", "CPU 1 is named twice", "a list of CPUs"),
        ("ZTUNNEL_WORKER_THREADS", "0,7", "may not use CPU 7", "a list of CPUs"),
        ("ZTUNNEL_CPU_LIMIT", "0", "out of range", "above 0"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "-1", "out of range", "quantity"),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "2Gi", "invalid float", "500m"),
        ("TRUST_DOMAIN", "Not A Domain", "", "trust domain"),
        ("INPOD_UDS", "@", "1 bytes", "abstract"),
        ("SECRET_TTL", "59s", "out of range", "1m to 365d"),
        ("IPV6_ENABLED", "maybe", "neither", "true or false"),
        ("CONNECTION_TERMINATION_DEADLINE", "soon", "number", "5s"),
        ("CONNECTION_TERMINATION_DEADLINE", "25h", "out of range", "1d"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "-3", "invalid digit", "seconds"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "18446744073709551615", "out of range", "86400"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0", "out of range", "1 to 65535"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "65536", "out of range", "1 to 65535"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "0s", "out of range", "1s"),
        ("HTTP2_STREAM_WINDOW_SIZE", "65534", "out of range", "65535"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "2147483648", "out of range", "2147483647"),
        ("HTTP2_FRAME_SIZE", "16777216", "out of range", "16777215"),
        ("ENABLE_ORIG_SRC", "perhaps", "neither", "auto"),
        ("ENABLE_RESPONSE_BAGGAGE", "x", "neither", "true or false"),
        ("LOCALHOST_APP_TUNNEL", "x", "neither", "true or false"),
        ("CORETUNNEL_NEW_PODS", "trust", "unknown way", "wait or serve"),
        ("PACKET_MARK", "0", "out of range", "1 to"),
        ("PACKET_MARK", "0x539", "invalid digit", "1 to"),
        ("INPOD_PORT_REUSE", "x", "neither", "true or false"),
        ("KEEPALIVE_ENABLED", "x", "neither", "true or false"),
        ("KEEPALIVE_TIME", "32768s", "out of range", "32767s"),
        ("KEEPALIVE_INTERVAL", "1ms", "out of range", "1s"),
        ("KEEPALIVE_RETRIES", "128", "out of range", "127"),
        ("USER_TIMEOUT_ENABLED", "x", "neither", "true or false"),
        ("RUST_LOG", "info,loud", "\"loud\" is no clause", "LEVEL"),
        ("LOG_FORMAT", "xml", "\"xml\" is neither", "plain or json"),
        ("PROXY_MODE", "dedicated", "never one alone", "shared"),
        ("ENABLE_PROXY", "false", "nothing else", "true"),
        ("XDS_ADDRESS", "http://istiod:15010", "its scheme is http", "https"),
        ("CA_ADDRESS", "http://istiod:15010", "its scheme is http", "embedded"),
        ("XDS_ON_DEMAND", "x", "neither", "true or false"),
        ("FAKE_CA", "true", "fake CA", "--ca embedded"),
        ("COMPLIANCE_POLICY", "pqc", "no compliance policy", "empty"),
    ] {
        let errors = from_variables([(name, value)]).expect_err(name);
        assert_eq!(errors.len(), 1, "{name}={value}: {errors:?}");
        let text = errors[0].to_string();
        let (before, after) = text.split_once("; accepted: ").expect("says what is accepted");
        assert!(before.starts_with(&format!("invalid env var {name}={value} (")), "{text}");
        assert!(before.contains(cause) && after.contains(accepted), "{name}={value}: {text}");
    }
}

#[test]
fn revocation_lists_are_read_from_a_file_when_one_is_named() {
    let of = |variables: &[(&str, &str)], given: &[&str]| {
        let environment = match variables {
            [one] => Environment::from([*one]),
            _ => Environment::default(),
        };
        load(&flags(given), &environment, &host()).expect("it is well-formed").certificates.revocation_file
    };
    let file = |path: &str| Some(PathBuf::from(path));
    assert_eq!(of(&[], &[]), None);
    assert_eq!(of(&[("CRL_PATH", "")], &[]), None, "as a chart leaves it out");
    assert_eq!(of(&[("CRL_PATH", "/crl/ca-crl.pem")], &[]), file("/crl/ca-crl.pem"));
    assert_eq!(of(&[("CRL_PATH", "/crl/ca-crl.pem")], &["--crl-path", "/a"]), file("/a"), "the flag counts");
}

#[test]
fn weights_go_by_namespace_and_are_a_hundred_where_nothing_is_said() {
    let flags = flags(&["--tenant-weights=payments=300, batch=50"]);
    let settings = load(&flags, &Environment::default(), &host()).expect("it is well-formed");
    let weight = |namespace| settings.weights.of(namespace).value();
    assert_eq!([weight("payments"), weight("batch"), weight("other")], [300, 50, 100]);
}

#[test]
fn every_bad_flag_is_reported_as_a_flag() {
    for (name, value) in [
        ("--cores", "x"),
        ("--cores", ""),
        ("--tenant-by", "nobody"),
        ("--tenant-weights", "payments"),
        ("--tenant-weights", "payments=0"),
        ("--tenant-weights", "payments=300,=5"),
        ("--tenant-weights", "payments=300,batch=10001"),
        ("--engine", "io_uring"),
        ("--trust-domain", "a/b"),
        ("--local-xds-path", ""),
        ("--zds-socket", &"x".repeat(108)),
        ("--ca", "http://istiod"),
        ("--xds-address", "https://"),
        ("--ca-root-file", ""),
        ("--secret-ttl", "1"),
        ("--metrics-addr", "nowhere"),
        ("--readiness-addr", "15021"),
        ("--admin-addr", "localhost:15000"),
        ("--termination-deadline", "-1s"),
        ("--pool-max-streams", "lots"),
        ("--pool-idle-timeout", "5"),
        ("--original-source", "no"),
        ("--log", "loud"),
        ("--log-format", "xml"),
    ] {
        let errors = load(&flags(&[&format!("{name}={value}")]), &Environment::default(), &host()).expect_err(name);
        let text = errors[0].to_string();
        assert!(errors.len() == 1 && text.starts_with(&format!("invalid flag {name}={value} (")), "{errors:?}");
    }
}

#[test]
fn all_errors_come_at_once() {
    let environment =
        Environment::from([("LOG_FORMAT", "xml"), ("XDS_ADDRESS", "http://istiod"), ("PACKET_MARK", "x")]);
    let errors = load(&flags(&["--cores", "x", "--metrics-addr", "nowhere"]), &environment, &host());
    assert_eq!(errors.expect_err("five mistakes").len(), 5);
}

#[test]
fn a_value_that_is_no_text_is_reported_and_not_taken_for_nothing() {
    let environment = Environment::default().with("NODE_NAME", OsString::from_vec(vec![b'a', 0xff]));
    let errors = load(&Flags::default(), &environment, &host()).expect_err("it is no UTF-8");
    assert_eq!(errors[0].to_string(), "invalid env var NODE_NAME=a\u{fffd} (it is no UTF-8); accepted: text");
}

#[test]
fn the_mesh_is_described_in_one_place_at_most() {
    assert_eq!(from_variables([]).expect("good").mesh.local, LocalMesh::None);
    let inline = from_variables([("LOCAL_XDS", "workloads: []")]).expect("good").mesh.local;
    assert_eq!(format!("{inline:?}"), "Inline(<13 bytes>)");
    let file = flags(&["--local-xds-path", "/mesh.yaml"]);
    let both = load(&file, &Environment::from([("LOCAL_XDS", "workloads: []")]), &host()).expect_err("both");
    assert!(both[0].to_string().contains("LOCAL_XDS=<13 bytes> (a file is given as well)"), "{both:?}");
    let both = load(&file, &Environment::from([("XDS_ADDRESS", "istiod:1")]), &host()).expect_err("both");
    assert!(
        both[0].to_string().contains("XDS_ADDRESS=istiod:1 (the mesh is described by --local-xds-path"),
        "{both:?}"
    );
}

#[test]
fn a_chart_for_ztunnel_leads_to_istiod_and_a_file_to_the_daemons_own_ca() {
    let in_kubernetes = [("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("LOCAL_XDS", "")];
    let settings = from_variables(in_kubernetes).expect("good");
    assert!(settings.mesh.control_plane.is_some() && settings.certificates.server.is_some());
    let settings = from_variables([("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("LOCAL_XDS", "workloads: []")]);
    let settings = settings.expect("good");
    assert!(settings.mesh.control_plane.is_none() && settings.certificates.server.is_none());
}

#[test]
fn a_chart_for_ztunnel_is_followed_and_what_has_no_effect_is_named() {
    let settings = from_variables([
        ("XDS_ADDRESS", ""),
        ("CA_ADDRESS", ""),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        ("ISTIO_META_CLUSTER_ID", "c1"),
        ("INPOD_ENABLED", "true"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("NODE_NAME", "node-a"),
        ("INSTANCE_IP", "10.0.0.7"),
        ("SERVICE_ACCOUNT", "ztunnel"),
        ("ZTUNNEL_CPU_LIMIT", "16"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
    ])
    .expect("the chart's variables are good");
    assert_eq!(settings.connections.termination_deadline, Duration::from_secs(25));
    let ignored: Vec<&str> = settings.ignored.iter().map(|ignored| ignored.variable.as_str()).collect();
    assert_eq!(ignored, ["ISTIO_META_DNS_CAPTURE", "SERVICE_ACCOUNT"]);
}

#[test]
fn without_ipv6_the_servers_listen_on_ipv4() {
    let no_ipv6 = Host { has_ipv6: false, ..host() };
    for (variables, host) in [([("IPV6_ENABLED", "false")], host()), ([("IPV6_ENABLED", "true")], no_ipv6)] {
        let settings = load(&Flags::default(), &Environment::from(variables), &host).expect("good");
        assert_eq!(settings.servers.metrics.to_string(), "0.0.0.0:15020", "{variables:?}");
    }
}

#[test]
fn the_drain_deadline_leaves_time_before_the_kill_and_never_underflows() {
    for (asked, grace, expected) in [
        (None, None, 5),
        (None, Some(30), 25),
        (None, Some(11), 6),
        (None, Some(10), 9),
        (None, Some(1), 1),
        (None, Some(0), 1),
        (Some(Duration::from_secs(3)), Some(30), 3),
        (Some(Duration::ZERO), None, 0),
    ] {
        assert_eq!(termination(asked, grace), Duration::from_secs(expected), "{asked:?} {grace:?}");
    }
}

#[test]
fn the_help_names_every_variable_that_is_read() {
    let help = crate::cli::Cli::command().render_long_help().to_string();
    for name in VARIABLES {
        assert!(help.contains(name), "{name} is not in --help");
    }
}

/// Every variable that is followed. The property below finds one that is missing here.
const VARIABLES: [&str; 45] = [
    "XDS_ADDRESS",
    "XDS_ROOT_CA",
    "ALT_XDS_HOSTNAME",
    "XDS_ON_DEMAND",
    "CA_ADDRESS",
    "CA_ROOT_CA",
    "ALT_CA_HOSTNAME",
    "AUTH_TOKEN",
    "POD_NAME",
    "POD_NAMESPACE",
    "INSTANCE_IP",
    "ZTUNNEL_WORKER_THREADS",
    "ZTUNNEL_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_REQUEST",
    "NODE_NAME",
    "NETWORK",
    "ISTIO_META_CLUSTER_ID",
    "CLUSTER_ID",
    "TRUST_DOMAIN",
    "LOCAL_XDS_PATH",
    "LOCAL_XDS",
    "INPOD_UDS",
    "SECRET_TTL",
    "IPV6_ENABLED",
    "CONNECTION_TERMINATION_DEADLINE",
    "TERMINATION_GRACE_PERIOD_SECONDS",
    "POOL_MAX_STREAMS_PER_CONNECTION",
    "POOL_UNUSED_RELEASE_TIMEOUT",
    "HTTP2_STREAM_WINDOW_SIZE",
    "HTTP2_CONNECTION_WINDOW_SIZE",
    "HTTP2_FRAME_SIZE",
    "ENABLE_ORIG_SRC",
    "ENABLE_RESPONSE_BAGGAGE",
    "LOCALHOST_APP_TUNNEL",
    "CORETUNNEL_NEW_PODS",
    "PACKET_MARK",
    "INPOD_PORT_REUSE",
    "KEEPALIVE_ENABLED",
    "KEEPALIVE_TIME",
    "KEEPALIVE_INTERVAL",
    "KEEPALIVE_RETRIES",
    "USER_TIMEOUT_ENABLED",
    "RUST_LOG",
    "LOG_FORMAT",
];

/// Something that comes close to what settings look like.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,24}",
        "[0-9]{0,22}(%|m|s|h|d|ms|Gi|,|-)?[0-9]{0,22}",
        "[0-9,\\-]{0,40}",
        "(true|false|auto|info|trace|json)?[=:,.]{0,2}[a-z:]{0,12}",
        "-?[0-9.eE]{0,30}m?",
    ]
}

proptest! {
    #[test]
    fn no_value_of_any_variable_panics_and_what_is_refused_is_named(
        values in prop::collection::vec((0..VARIABLES.len(), value()), 1..6)
    ) {
        let mut environment = Environment::default();
        for (name, value) in &values {
            environment = environment.with(VARIABLES[*name], value.into());
        }
        match load(&Flags::default(), &environment, &host()) {
            Ok(settings) => {
                prop_assert!(!settings.cores.is_empty());
                prop_assert!(settings.cores.iter().all(|cpu| *cpu < 4));
                prop_assert!(settings.connections.termination_deadline <= DAY);
            }
            Err(errors) => {
                for error in errors {
                    let text = error.to_string();
                    prop_assert!(VARIABLES.iter().any(|name| text.contains(name)), "{text}");
                }
            }
        }
    }

    #[test]
    fn no_words_make_the_command_line_panic(
        words in prop::collection::vec(prop_oneof![
            "--[a-z-]{0,20}(=.{0,10})?",
            "(run|preflight|version|proxy|help|ztunnel)",
            "--(cores|node|log|ca|metrics-addr|tenant-by|tenant-weights|engine)",
            value(),
        ], 0..6)
    ) {
        let words = std::iter::once("coretunnel".to_owned()).chain(words);
        if let Ok(cli) = <crate::cli::Cli as clap::Parser>::try_parse_from(words) {
            // What it says is read all the same, and must not panic either.
            drop(load(&cli.settings, &Environment::default(), &host()));
        }
    }
}
