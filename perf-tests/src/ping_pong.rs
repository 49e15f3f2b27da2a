//! Requests one after the other over open connections: each waits for the answer to the one before it. Says what an exchange costs
//! and how many pass; not what a user feels when something stalls (see `open_loop`).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::spread::Spread;
use crate::{Connect, check_message, connect_all, joined, spawn};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections, each with one exchange at a time.
    pub connections: usize,
    /// Bytes of a request, and of its answer: the other end echoes.
    pub message: usize,
    /// For how long.
    pub duration: Duration,
    /// Exchanges of one connection at most.
    pub exchanges_max: u64,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            connections: 16,
            message: 128,
            duration: Duration::from_secs(3),
            exchanges_max: u64::MAX,
            patience: Duration::from_secs(5),
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exchanges that were completed.
    pub exchanges: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Of each exchange.
    pub latency: Spread,
}

impl Outcome {
    /// Exchanges per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.exchanges as f64 / self.elapsed.as_secs_f64()
    }
}

/// Runs the plan against an echo server.
///
/// # Errors
/// When a limit is exceeded, a connection can't be opened, or one breaks or is silent for too long.
pub fn run(connect: Connect<'_>, plan: &Plan) -> io::Result<Outcome> {
    check_message(plan.message)?;
    let streams = connect_all(connect, plan.connections, plan.patience)?;
    let start = Instant::now();
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(streams.len());
        for stream in &streams {
            running.push(spawn(scope, "ping-pong", move || exchange(stream, plan, start + plan.duration))?);
        }
        let mut latency = Spread::default();
        for handle in running {
            latency.add(&joined(handle)?);
        }
        Ok(Outcome { exchanges: latency.count(), elapsed: start.elapsed(), latency })
    })
}

fn exchange(mut stream: &TcpStream, plan: &Plan, end: Instant) -> io::Result<Spread> {
    let request = vec![b'.'; plan.message];
    let mut answer = vec![0; plan.message];
    let mut latency = Spread::default();
    let mut began = Instant::now();
    while began < end && latency.count() < plan.exchanges_max {
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        let now = Instant::now();
        latency.record(now - began);
        began = now;
    }
    Ok(latency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{Role, Server, loopback};

    #[test]
    fn exchanges_are_bounded_in_count_and_in_time() {
        let echo = Server::start(loopback().unwrap(), Role::Echo).unwrap();
        let connect = || TcpStream::connect(echo.address());
        let counted = Plan { connections: 3, exchanges_max: 10, ..Plan::default() };
        assert_eq!(run(&connect, &counted).unwrap().exchanges, 30);

        let timed = Plan { connections: 1, duration: Duration::from_millis(100), ..Plan::default() };
        let outcome = run(&connect, &timed).unwrap();
        assert!(outcome.exchanges > 0 && outcome.elapsed < Duration::from_secs(2), "{outcome:?}");
    }

    #[test]
    fn a_connection_that_breaks_fails_the_run() {
        let sink = Server::start(loopback().unwrap(), Role::Sink).unwrap();
        let plan = Plan { connections: 1, patience: Duration::from_millis(50), ..Plan::default() };
        assert!(run(&|| TcpStream::connect(sink.address()), &plan).is_err());
    }
}
