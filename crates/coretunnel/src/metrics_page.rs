//! The metrics page of the daemon: the cells of all cores, and what the process knows of itself.

use std::fs;

use control::{Termination, XdsStatus, xds};
use hyper::StatusCode;
use reactor::CoreView;
use rustix::process::{Resource, getrlimit};
use telemetry::exposition::{self, Exposition, Kind, Sample};

use crate::{
    admin::{Answer, Asked},
    cores_page,
};

/// What the process knows of itself, read for one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) istio_version: String,
    /// The cores' way into the kernel, and why that one.
    pub(crate) engine: (String, &'static str),
    pub(crate) pods_active: u64,
    pub(crate) pods_pending: u64,
    pub(crate) pods_started: u64,
    pub(crate) pods_stopped: u64,
    /// Of the newest snapshot.
    pub(crate) generation: u64,
    pub(crate) log_lines_dropped: u64,
    /// The conversation with the control plane.
    pub(crate) xds: XdsStatus,
    pub(crate) certificates_issued: u64,
    pub(crate) certificates_failed: u64,
}

/// Answers a request on the metrics port.
pub(crate) fn answer(asked: &Asked, page: &mut Exposition, standing: &Standing, cores: &[CoreView]) -> Answer {
    match asked.path.as_str() {
        "/metrics" | "/stats/prometheus" => Answer {
            status: StatusCode::OK,
            content_type: exposition::content_type(asked.accept.as_deref()),
            body: page.render(&[samples(standing), cores_page::samples(cores)].concat()),
        },
        "/debug/turns" => Answer::text(StatusCode::OK, cores_page::turns(cores)),
        _ => Answer::empty(StatusCode::NOT_FOUND),
    }
}

fn samples(standing: &Standing) -> Vec<Sample> {
    use Kind::{Counter, Gauge};
    let build = vec![("component", "ztunnel".to_owned()), ("tag", standing.istio_version.clone())];
    // Gauges are signed, and no limit at all is the largest one.
    let descriptors_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(i64::MAX as u64);
    let sample = |family, help, kind, value| Sample { family, help, kind, labels: Vec::new(), value };
    let mut samples = vec![
        sample("istio_build", "The mesh's version, and which part of it this is", Gauge, 1),
        sample("workload_manager_active_proxy_count", "Pods captured now", Gauge, standing.pods_active),
        sample("workload_manager_pending_proxy_count", "Pods waiting to be captured", Gauge, standing.pods_pending),
        sample("workload_manager_proxies_started", "Pods ever captured", Counter, standing.pods_started),
        sample("workload_manager_proxies_stopped", "Pods ever let go", Counter, standing.pods_stopped),
        sample("process_open_fds", "Descriptors open now", Gauge, open_descriptors()),
        sample("process_max_fds", "Descriptors that may be open at once", Gauge, descriptors_max),
        sample("coretunnel_snapshot_generation", "The newest generation of the mesh", Gauge, standing.generation),
        sample("coretunnel_log_lines_dropped", "Log lines not written in time", Counter, standing.log_lines_dropped),
        sample("coretunnel_engine", "How the cores reach the kernel, and why so", Gauge, 1),
    ];
    samples[0].labels = build;
    let (engine, reason) = &standing.engine;
    let last = samples.last_mut().expect("there are some");
    last.labels = vec![("engine", engine.clone()), ("reason", (*reason).to_owned())];
    let XdsStatus { connected, messages, message_bytes, held, refused, terminations } = standing.xds;
    samples.push(sample(
        "coretunnel_xds_connected",
        "Whether there is a stream from the control plane",
        Gauge,
        connected.into(),
    ));
    // By family, as the page wants them: all samples of one stand together.
    let mut labelled = |family, help, kind, label, values: Vec<(&str, u64)>| {
        for (name, value) in values {
            samples.push(Sample { family, help, kind, labels: vec![(label, name.to_owned())], value });
        }
    };
    let by_type = |values: [u64; 2]| xds::Kind::ALL.iter().map(|kind| kind.type_url()).zip(values).collect();
    labelled("istio_xds_message", "Responses of the control plane", Counter, "url", by_type(messages));
    labelled("istio_xds_message_bytes", "Their bytes", Counter, "url", by_type(message_bytes));
    labelled("coretunnel_xds_refused", "Resources refused, which the log names", Counter, "url", by_type(refused));
    labelled("coretunnel_xds_resources", "Resources held", Gauge, "url", by_type(held.map(|count| count as u64)));
    let by_reason = Termination::ALL.iter().map(|how| how.label()).zip(terminations).collect();
    labelled("istio_xds_connection_terminations", "Ends of streams", Counter, "reason", by_reason);
    samples.extend([
        sample("coretunnel_certificates_issued", "Certificates issued", Counter, standing.certificates_issued),
        sample("coretunnel_certificates_failed", "Certificates not issued", Counter, standing.certificates_failed),
    ]);
    samples
}

fn open_descriptors() -> u64 {
    // Without /proc nothing of this daemon works; a page without the number is better than no page.
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;

    #[test]
    fn both_paths_answer_any_method_and_others_do_not_exist() {
        let (_cores, mut page) = telemetry::recorder::recorders(1);
        for (method, path, status) in
            [(Method::GET, "/metrics", 200), (Method::POST, "/stats/prometheus", 200), (Method::GET, "/", 404)]
        {
            let asked = Asked { method, path: path.to_owned(), accept: None };
            let xds =
                XdsStatus { connected: true, messages: [5, 6], terminations: [0, 1, 2, 3], ..XdsStatus::default() };
            let standing = Standing {
                pods_active: 3,
                generation: 7,
                istio_version: "1.30".into(),
                engine: ("epoll".into(), "asked"),
                xds,
                ..Standing::default()
            };
            let answer = answer(&asked, &mut page, &standing, &[]);
            assert_eq!(answer.status.as_u16(), status, "{path}");
            if status == 200 {
                for line in [
                    "workload_manager_active_proxy_count 3\n",
                    "coretunnel_snapshot_generation 7\n",
                    "coretunnel_xds_connected 1\n",
                    "istio_xds_message_total{url=\"type.googleapis.com/istio.workload.Address\"} 5\n",
                    "istio_xds_message_total{url=\"type.googleapis.com/istio.security.Authorization\"} 6\n",
                    "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 2\n",
                    "istio_build{component=\"ztunnel\"",
                    "coretunnel_engine{engine=\"epoll\",reason=\"asked\"} 1\n",
                    "# EOF\n",
                ] {
                    assert!(answer.body.contains(line), "{line} in {}", answer.body);
                }
                assert!(!answer.body.contains("process_open_fds 0\n"));
            }
        }
    }
}
