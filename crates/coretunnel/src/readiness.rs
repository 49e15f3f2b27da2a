//! Whether the daemon is ready: nothing is pending, and every core has just proved that it schedules.

use std::{collections::BTreeSet, time::Duration};

use dataplane::CoreStanding;
use hyper::{Method, StatusCode};

use crate::admin::{Answer, Asked};

/// How long a core may take to answer. A core that is kept from its mailbox for longer does not serve its pods either.
/// Below the second that kubelet waits, so that it hears which core it is.
const CORE_TIMEOUT: Duration = Duration::from_millis(500);

/// Answers a request on the readiness port.
pub(crate) async fn answer(asked: Asked, pending: impl AsyncFnOnce() -> BTreeSet<String>) -> Answer {
    match (&asked.method, asked.path.as_str()) {
        (&Method::GET, "/healthz/ready") => verdict(&pending().await),
        (_, "/healthz/ready") => Answer::empty(StatusCode::METHOD_NOT_ALLOWED),
        _ => Answer::empty(StatusCode::NOT_FOUND),
    }
}

fn verdict(pending: &BTreeSet<String>) -> Answer {
    if pending.is_empty() {
        return Answer::text(StatusCode::OK, "ready\n".to_owned());
    }
    let names = pending.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    // 500 and not 503, as the reference answers.
    Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {names}\n"))
}

/// How each of `count` cores stands; `None` for one that did not answer in time.
pub(crate) async fn standings(
    answers: async_channel::Receiver<CoreStanding>,
    count: usize,
) -> Vec<Option<CoreStanding>> {
    let mut standings = vec![None; count];
    let collecting = async {
        while standings.iter().any(Option::is_none) {
            let Ok(standing) = answers.recv().await else { return };
            standings[standing.core] = Some(standing);
        }
    };
    // Whether all have answered or the time was over is told by who is left.
    let _in_time = tokio::time::timeout(CORE_TIMEOUT, collecting).await;
    standings
}

/// Those that did not answer, by name.
pub(crate) fn silent(standings: &[Option<CoreStanding>]) -> BTreeSet<String> {
    let silent = standings.iter().enumerate().filter(|(_, standing)| standing.is_none());
    silent.map(|(core, _)| format!("core {core}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, path: &str) -> Asked {
        Asked { method, path: path.to_owned(), accept: None }
    }

    fn pending(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn it_is_ready_when_nothing_is_pending_and_names_what_is() {
        for (method, path, names, status, body) in [
            (Method::GET, "/healthz/ready", &[][..], 200, "ready\n"),
            (
                Method::GET,
                "/healthz/ready",
                &["state manager", "core 1"],
                500,
                "not ready, pending: core 1, state manager\n",
            ),
            (Method::POST, "/healthz/ready", &[], 405, ""),
            (Method::GET, "/", &[], 404, ""),
        ] {
            let row = format!("{method} {path} {names:?}");
            let answer = answer(asked(method, path), async || pending(names)).await;
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, body), "{row}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_does_not_answer_is_named() {
        let (answer, answers) = async_channel::bounded(3);
        for core in [2, 0] {
            let generation_age = Duration::ZERO;
            answer
                .try_send(CoreStanding { core, generation: 7, generation_age, pods: 1, connections: 2 })
                .expect("room");
        }
        let standings = standings(answers, 3).await;
        assert_eq!(silent(&standings), pending(&["core 1"]));
        assert_eq!(standings[2].map(|standing| standing.generation), Some(7));
    }
}
