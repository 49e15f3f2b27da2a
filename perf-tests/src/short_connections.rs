//! Connections that carry one request each: connect, send, read the answer, close. A number of them is always under way. Says what
//! a connection costs; requests over open ones are `ping_pong`.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::spread::Spread;
use crate::{CONNECTIONS_MAX, Connect, check_message, invalid, joined, prepare, spawn};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections under way at a time.
    pub in_flight: usize,
    /// Bytes of the request, and of its answer: the other end echoes.
    pub message: usize,
    /// For how long.
    pub duration: Duration,
    /// Connections in all. Each leaves a port in TIME_WAIT for a minute, and a client has 28,232 to one address.
    pub connections_max: u64,
    /// How long one step may take.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            in_flight: 16,
            message: 128,
            duration: Duration::from_secs(3),
            connections_max: 20_000,
            patience: Duration::from_secs(5),
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Connections that were answered and closed.
    pub completed: u64,
    /// Connections that were not.
    pub failed: u64,
    /// The first failure.
    pub failure: Option<String>,
    /// From the first connect to the last close.
    pub elapsed: Duration,
    /// Of a completed one, from connect to the last byte of the answer.
    pub latency: Spread,
}

impl Outcome {
    /// Completed connections per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.completed as f64 / self.elapsed.as_secs_f64()
    }
}

/// Runs the plan against an echo server.
///
/// # Errors
/// When a limit is exceeded or a thread can't be started. A failing connection is counted, not an error.
pub fn run(connect: Connect<'_>, plan: &Plan) -> io::Result<Outcome> {
    check_message(plan.message)?;
    if plan.in_flight == 0 || plan.in_flight > CONNECTIONS_MAX {
        return Err(invalid(format!("{} in flight: between 1 and {CONNECTIONS_MAX}", plan.in_flight)));
    }
    let begun = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(plan.in_flight);
        for _ in 0..plan.in_flight {
            running.push(spawn(scope, "short", || one_after_another(connect, plan, start + plan.duration, &begun))?);
        }
        let mut latency = Spread::default();
        let (mut failed, mut failure) = (0, None);
        for handle in running {
            let (own, failures, first) = joined(handle);
            latency.add(&own);
            failed += failures;
            failure = failure.or(first);
        }
        Ok(Outcome { completed: latency.count(), failed, failure, elapsed: start.elapsed(), latency })
    })
}

fn one_after_another(
    connect: Connect<'_>,
    plan: &Plan,
    end: Instant,
    begun: &AtomicU64,
) -> (Spread, u64, Option<String>) {
    let (mut latency, mut failed, mut failure) = (Spread::default(), 0, None);
    let mut answer = vec![0; plan.message];
    while Instant::now() < end && begun.fetch_add(1, Ordering::Relaxed) < plan.connections_max {
        let began = Instant::now();
        match one(connect, plan, &mut answer) {
            Ok(()) => latency.record(began.elapsed()),
            Err(error) => {
                failed += 1;
                failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
    (latency, failed, failure)
}

fn one(connect: Connect<'_>, plan: &Plan, answer: &mut [u8]) -> io::Result<()> {
    let mut stream = prepare(connect()?, plan.patience)?;
    answer.fill(b'.');
    stream.write_all(answer)?;
    stream.read_exact(answer)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::serve::{Role, Server, loopback};

    #[test]
    fn connections_are_bounded_in_count_and_each_is_accounted_for() {
        let echo = Server::start(loopback().unwrap(), Role::Echo).unwrap();
        let plan = Plan { in_flight: 4, connections_max: 50, ..Plan::default() };
        let outcome = run(&|| TcpStream::connect(echo.address()), &plan).unwrap();
        assert_eq!((outcome.completed, outcome.failed), (50, 0), "{:?}", outcome.failure);
    }

    #[test]
    fn failures_are_counted_and_the_first_is_told() {
        let closed = loopback().unwrap().local_addr().unwrap();
        let plan = Plan { in_flight: 2, connections_max: 10, ..Plan::default() };
        let outcome = run(&|| TcpStream::connect(closed), &plan).unwrap();
        assert_eq!((outcome.completed, outcome.failed), (0, 10));
        assert!(outcome.failure.is_some());
    }
}
