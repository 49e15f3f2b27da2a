//! The metrics page of the daemon: the cells of all cores, and what the process knows of itself.

use std::fs;

use hyper::StatusCode;
use rustix::process::{Resource, getrlimit};
use telemetry::exposition::{self, Exposition, Kind, Sample};

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
            body: page.render(&samples(pods, generation, log_dropped)),
        },
        _ => Answer::empty(StatusCode::NOT_FOUND),
    }
}

fn samples(pods: Pods, generation: u64, log_dropped: u64) -> Vec<Sample> {
    let sample = |family, help, kind, value| Sample { family, help, kind, labels: Vec::new(), value };
    let build = vec![("component", "ztunnel".to_owned()), ("tag", version::istio_version())];
    let descriptors_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    vec![
        Sample {
            labels: build,
            ..sample("istio_build", "The mesh's version, and which part of it this is", Kind::Gauge, 1)
        },
        sample("workload_manager_active_proxy_count", "Pods captured now", Kind::Gauge, pods.active),
        sample("workload_manager_pending_proxy_count", "Pods waiting to be captured", Kind::Gauge, pods.pending),
        sample("workload_manager_proxies_started", "Pods ever captured", Kind::Counter, pods.started),
        sample("workload_manager_proxies_stopped", "Pods ever let go", Kind::Counter, pods.stopped),
        sample("process_open_fds", "Descriptors open now", Kind::Gauge, open_descriptors()),
        sample("process_max_fds", "Descriptors that may be open at once", Kind::Gauge, descriptors_max),
        sample("coretunnel_snapshot_generation", "The newest generation of the mesh", Kind::Gauge, generation),
        sample(
            "coretunnel_log_lines_dropped",
            "Log lines that could not be written in time",
            Kind::Counter,
            log_dropped,
        ),
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
        for (method, path, status) in
            [(Method::GET, "/metrics", 200), (Method::POST, "/stats/prometheus", 200), (Method::GET, "/", 404)]
        {
            let asked = Asked { method, path: path.to_owned(), accept: None };
            let answer = answer(&asked, &mut page, Pods { active: 3, ..Pods::default() }, 7, 0);
            assert_eq!(answer.status.as_u16(), status, "{path}");
            if status == 200 {
                for line in [
                    "workload_manager_active_proxy_count 3\n",
                    "coretunnel_snapshot_generation 7\n",
                    "istio_build{component=\"ztunnel\"",
                    "# EOF\n",
                ] {
                    assert!(answer.body.contains(line), "{line} in {}", answer.body);
                }
                assert!(!answer.body.contains("process_open_fds 0\n"));
            }
        }
    }
}
