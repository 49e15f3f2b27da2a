//! How the daemon stands, as one page: the admin server says it at `/status`, and `coretunnel status` reads it there.
//! [`ask`] is the way to the daemon, [`table`] what people are shown.

pub(crate) mod ask;
pub(crate) mod table;

use std::{collections::BTreeSet, time::Duration};

use control::{CaSource, Config, MeshSource, PendingPod, Status, Trouble, xds::Kind};
use dataplane::CoreStanding;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::{
    admin::{Answer, Asked},
    readiness,
};

/// How the daemon stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) version: String,
    /// What keeps the daemon from being ready.
    pub(crate) pending: BTreeSet<String>,
    pub(crate) xds: Xds,
    pub(crate) ca: Ca,
    pub(crate) zds: Zds,
    /// The generation published last.
    pub(crate) generation: u64,
    pub(crate) cores: Vec<Core>,
}

/// Where the mesh comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Xds {
    pub(crate) source: String,
    /// `None` where there is nothing to be connected to.
    pub(crate) connected: Option<bool>,
    /// Workloads and services held of it.
    pub(crate) addresses: usize,
    pub(crate) policies: usize,
    pub(crate) last_lost: Option<Past>,
    /// Resources that were refused, which are not in force.
    pub(crate) refused: u64,
    pub(crate) last_refused: Option<Past>,
}

/// Who issues certificates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ca {
    pub(crate) issuer: String,
    pub(crate) issued: u64,
    pub(crate) failed: u64,
    pub(crate) last_failed: Option<Past>,
}

/// The CNI agent, and its pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Zds {
    pub(crate) socket: String,
    pub(crate) connected: bool,
    pub(crate) pods: usize,
    pub(crate) pods_pending: usize,
    /// The first of them.
    pub(crate) pending: Vec<Pending>,
}

/// A pod that could not be captured and is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) uid: String,
    pub(crate) why: String,
}

/// A core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Core {
    pub(crate) core: usize,
    /// `None` when it did not answer in time.
    pub(crate) standing: Option<Standing>,
}

/// What a core answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) generation: u64,
    pub(crate) generation_age_s: f64,
    pub(crate) pods: usize,
    pub(crate) connections: usize,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) why: String,
    pub(crate) ago_s: f64,
}

/// What of the page stays as it is: where the daemon was told to look.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) version: String,
    xds: String,
    is_control_plane: bool,
    ca: String,
    zds: String,
}

impl Places {
    pub(crate) fn new(version: String, config: &Config) -> Self {
        let (xds, is_control_plane) = match &config.mesh {
            MeshSource::Nowhere => ("none".to_owned(), false),
            MeshSource::File(path) => (format!("file {}", path.display()), false),
            MeshSource::Inline(_) => ("LOCAL_XDS".to_owned(), false),
            MeshSource::ControlPlane(plane) => (plane.server.address.to_string(), true),
        };
        let ca = match &config.ca {
            CaSource::Embedded { root_file, .. } => format!("embedded, {}", root_file.display()),
            CaSource::Server { server, .. } => server.address.to_string(),
        };
        let zds = config.zds_socket.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
        Self { version, xds, is_control_plane, ca, zds }
    }

    /// The page of now.
    pub(crate) fn page(&self, status: &Status, cores: &[Option<CoreStanding>]) -> Page {
        let xds = status.xds();
        let mut pending = readiness::silent(cores);
        pending.extend(status.pending().into_iter().map(Into::into));
        Page {
            version: self.version.clone(),
            pending,
            xds: Xds {
                source: self.xds.clone(),
                connected: self.is_control_plane.then_some(xds.connected),
                addresses: xds.held[Kind::Address as usize],
                policies: xds.held[Kind::Authorization as usize],
                last_lost: status.xds_lost().map(Past::from),
                refused: xds.refused.iter().sum(),
                last_refused: status.xds_refused().map(Past::from),
            },
            ca: Ca {
                issuer: self.ca.clone(),
                issued: status.certificates_issued(),
                failed: status.certificates_failed(),
                last_failed: status.certificate_failed().map(Past::from),
            },
            zds: Zds {
                socket: self.zds.clone(),
                connected: status.zds_connected(),
                pods: status.pods_active(),
                pods_pending: status.pods_pending(),
                pending: status.pending_pods().into_iter().map(Pending::from).collect(),
            },
            generation: status.generation(),
            cores: cores.iter().enumerate().map(|(core, standing)| Core::new(core, standing.as_ref())).collect(),
        }
    }
}

impl Core {
    fn new(core: usize, standing: Option<&CoreStanding>) -> Self {
        let standing = standing.map(|standing| Standing {
            generation: standing.generation,
            generation_age_s: standing.generation_age.as_secs_f64(),
            pods: standing.pods,
            connections: standing.connections,
        });
        Self { core, standing }
    }
}

impl From<PendingPod> for Pending {
    fn from(PendingPod { uid, why }: PendingPod) -> Self {
        Self { uid, why }
    }
}

impl From<Trouble> for Past {
    fn from(trouble: Trouble) -> Self {
        Self { ago_s: trouble.ago().as_secs_f64(), why: trouble.why }
    }
}

/// Answers a request on the admin port.
pub(crate) async fn answer(asked: Asked, page: impl AsyncFnOnce() -> Page) -> Answer {
    match (&asked.method, asked.path.as_str()) {
        (&Method::GET, PATH) => {
            let body = serde_json::to_string(&page().await).expect("texts, numbers and lists are JSON");
            Answer { status: StatusCode::OK, content_type: "application/json", body }
        }
        (_, PATH) => Answer::empty(StatusCode::METHOD_NOT_ALLOWED),
        _ => Answer::empty(StatusCode::NOT_FOUND),
    }
}

/// Where the page is.
const PATH: &str = "/status";

/// A time as people say it: the two largest units, no less than a second.
fn spoken(seconds: f64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    // What is no time at all comes from a page that somebody else wrote.
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let first = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let mut left = seconds;
    let parts = UNITS[first..].iter().take(2).map(|(unit, name)| {
        let count = left / unit;
        left %= unit;
        (count, name)
    });
    let parts: Vec<String> = parts
        .enumerate()
        .filter(|(place, (count, _))| *place == 0 || *count > 0)
        .map(|(_, (count, name))| format!("{count}{name}"))
        .collect();
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        for (seconds, told) in [
            (0.0, "0s"),
            (0.9, "0s"),
            (59.0, "59s"),
            (60.0, "1m"),
            (61.5, "1m1s"),
            (3_600.0 * 5.0 + 61.0, "5h1m"),
            (86_400.0 * 3.0 + 59.0, "3d"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(spoken(seconds), told, "{seconds}");
        }
    }

    #[tokio::test]
    async fn the_page_tells_of_every_part_and_of_a_core_that_is_silent() {
        let status = Status::default();
        let places = Places::new("coretunnel 1".to_owned(), &Config::default());
        let standing = CoreStanding {
            core: 0,
            generation: 7,
            generation_age: Duration::from_millis(1_500),
            pods: 2,
            connections: 9,
        };
        let asked = |method, path: &str| Asked { method, path: path.to_owned(), accept: None };
        for (method, path, code) in
            [(Method::GET, "/status", 200), (Method::POST, "/status", 405), (Method::GET, "/", 404)]
        {
            let answer = answer(asked(method, path), async || places.page(&status, &[Some(standing), None])).await;
            assert_eq!(answer.status.as_u16(), code, "{path}");
            if code != 200 {
                continue;
            }
            let page: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
            assert_eq!(page["pending"], serde_json::json!(["core 1", "state manager", "workload proxy manager"]));
            assert_eq!(page["xds"]["source"], "none");
            assert_eq!(page["xds"]["connected"], serde_json::Value::Null);
            assert_eq!(page["zds"]["connected"], false);
            let first = serde_json::json!({"generation": 7, "generation_age_s": 1.5, "pods": 2, "connections": 9});
            assert_eq!(page["cores"][0], serde_json::json!({"core": 0, "standing": first}));
            assert_eq!(page["cores"][1], serde_json::json!({"core": 1, "standing": null}));
        }
    }
}
