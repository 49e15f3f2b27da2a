//! The metrics page of the daemon: the cells of all cores, and what the process knows of itself.

use std::fs;

use hyper::StatusCode;
use rustix::process::{Resource, getrlimit};
use telemetry::exposition::{self, Exposition, Kind, ProcessGauge};

use crate::{
    admin::{Answer, Asked},
    version,
};

/// Pods, as the control thread counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    pub(crate) active: u64,
    pub(crate) pending: u64,
    pub(crate) started: u64,
    pub(crate) stopped: u64,
}

/// Answers a request on the metrics port.
pub(crate) fn answer(asked: &Asked, page: &mut Exposition, pods: Pods, generation: u64, log_dropped: u64) -> Answer {
    match asked.path.as_str() {
        "/metrics" | "/stats/prometheus" => Answer {
            status: StatusCode::OK,
            content_type: exposition::content_type(asked.accept.as_deref()),
            body: page.render(&gauges(pods, generation, log_dropped)),
        },
        _ => Answer::empty(StatusCode::NOT_FOUND),
    }
}

fn gauges(pods: Pods, generation: u64, log_dropped: u64) -> Vec<ProcessGauge> {
    let gauge = |name, kind, value| ProcessGauge { name, labels: Vec::new(), kind, value };
    let build = vec![("component", "ztunnel".to_owned()), ("tag", version::istio_version())];
    vec![
        ProcessGauge { name: "istio_build", labels: build, kind: Kind::Gauge, value: 1 },
        gauge("workload_manager_active_proxy_count", Kind::Gauge, pods.active),
        gauge("workload_manager_pending_proxy_count", Kind::Gauge, pods.pending),
        gauge("workload_manager_proxies_started", Kind::Counter, pods.started),
        gauge("workload_manager_proxies_stopped", Kind::Counter, pods.stopped),
        gauge("process_open_fds", Kind::Gauge, open_descriptors()),
        gauge("process_max_fds", Kind::Gauge, getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)),
        gauge("coretunnel_snapshot_generation", Kind::Gauge, generation),
        gauge("coretunnel_log_lines_dropped", Kind::Counter, log_dropped),
    ]
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
        for (method, path, status) in [
            (Method::GET, "/metrics", 200),
            (Method::POST, "/stats/prometheus", 200),
            (Method::GET, "/", 404),
        ] {
            let asked = Asked { method, path: path.to_owned(), accept: None };
            let answer = answer(&asked, &mut page, Pods { active: 3, ..Pods::default() }, 7, 0);
            assert_eq!(answer.status.as_u16(), status, "{path}");
            if status == 200 {
                for line in ["workload_manager_active_proxy_count 3\n", "coretunnel_snapshot_generation 7\n", "istio_build{component=\"ztunnel\"", "# EOF\n"] {
                    assert!(answer.body.contains(line), "{line} in {}", answer.body);
                }
                assert!(!answer.body.contains("process_open_fds 0\n"));
            }
        }
    }
}
