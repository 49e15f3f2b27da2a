//! Requests at a rate that does not yield to the answers: request n of a connection is due at a time fixed before the first is sent,
//! and its latency counts from that time, so a path that stalls is charged for every request that was due meanwhile. Several paths
//! run side by side at the same times; a direct one among them tells what the machine itself adds.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use crate::spread::Spread;
use crate::{Connect, check_message, connect_all, invalid, joined, spawn};

/// Requests of one connection.
pub const REQUESTS_MAX: u64 = 10_000_000;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections per path. The requests of all paths' connections are spread evenly over an interval, so that none waits for
    /// another's to be sent.
    pub connections: usize,
    /// Requests per second, over all connections of a path.
    pub rate: f64,
    /// Bytes of a request, and of its answer: the other end echoes.
    pub message: usize,
    /// How long requests are sent before any of them counts.
    pub warm_up: Duration,
    /// How long requests that count are sent.
    pub duration: Duration,
    /// How long answers are waited for after the last request was due.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            connections: 4,
            rate: 400.0,
            message: 128,
            warm_up: Duration::from_millis(500),
            duration: Duration::from_secs(5),
            patience: Duration::from_secs(2),
        }
    }
}

/// A way to the echo server.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// How it is called in the outcome.
    pub name: &'a str,
    /// How it is entered.
    pub connect: Connect<'a>,
}

/// What a path did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The path's name.
    pub name: String,
    /// From the time a request was due until the last byte of its answer. One that was not answered is in it with the time it was
    /// waited for, which is a lower bound.
    pub latency: Spread,
    /// From the time a request was due until the generator began to send it: when it is not small against the latency, the
    /// generator (or the path's back pressure) was late.
    pub send_lag: Spread,
    /// Requests that were answered, of those that count.
    pub answered: u64,
    /// Requests that were not.
    pub unanswered: u64,
}

/// Runs the plan over all `paths` at once.
///
/// # Errors
/// When a limit is exceeded or a connection can't be opened; a connection that breaks later leaves its requests unanswered.
pub fn run(paths: &[Path<'_>], plan: &Plan) -> io::Result<Vec<Outcome>> {
    check_message(plan.message)?;
    let schedule = Schedule::new(plan, paths.len())?;
    let mut streams = Vec::with_capacity(paths.len());
    for path in paths {
        streams.push(connect_all(path.connect, plan.connections, plan.patience)?);
    }

    // Late enough for every thread to have begun.
    let start = Instant::now() + Duration::from_millis(20 + plan.connections as u64 * paths.len() as u64 / 10);
    let outcome = |path: &Path<'_>| Outcome {
        name: path.name.to_owned(),
        latency: Spread::default(),
        send_lag: Spread::default(),
        answered: 0,
        unanswered: 0,
    };
    let mut outcomes: Vec<Outcome> = paths.iter().map(outcome).collect();
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (path, streams) in streams.iter().enumerate() {
            for (number, stream) in streams.iter().enumerate() {
                let due = move |request| start + schedule.offset(path, number, request);
                let receiver = spawn(scope, "receiver", move || receive(stream, plan, schedule, &due))?;
                let sender = spawn(scope, "sender", move || send(stream, plan, schedule, &due))?;
                running.push((path, sender, receiver));
            }
        }
        for (path, sender, receiver) in running {
            let outcome = &mut outcomes[path];
            outcome.send_lag.add(&joined(sender));
            let received = joined(receiver);
            outcome.latency.add(&received.latency);
            outcome.answered += received.answered;
            outcome.unanswered += received.unanswered;
        }
        Ok(outcomes)
    })
}

/// When requests are due.
#[derive(Clone, Copy)]
struct Schedule {
    /// Between two requests of one connection.
    interval: Duration,
    connections: u32,
    paths: usize,
    requests: u64,
    /// The first that counts.
    first: u64,
}

impl Schedule {
    fn new(plan: &Plan, paths: usize) -> io::Result<Self> {
        let connections = u32::try_from(plan.connections).ok().filter(|count| *count > 0);
        let connections = connections.ok_or_else(|| invalid(format!("{} connections", plan.connections)))?;
        let interval = Duration::try_from_secs_f64(f64::from(connections) / plan.rate).ok();
        let interval = interval.filter(|interval| *interval >= Duration::from_micros(1));
        let interval = interval.ok_or_else(|| invalid(format!("{} requests per second", plan.rate)))?;
        let within = |time: Duration| u64::try_from(time.as_nanos() / interval.as_nanos()).unwrap_or(u64::MAX);
        let first = within(plan.warm_up);
        let requests = within(plan.warm_up.saturating_add(plan.duration));
        if requests <= first || requests > REQUESTS_MAX {
            let count = requests - first.min(requests);
            return Err(invalid(format!("{count} requests per connection: between 1 and {REQUESTS_MAX}")));
        }
        Ok(Self { interval, connections, paths, requests, first })
    }

    fn offset(self, path: usize, connection: usize, request: u64) -> Duration {
        let place = (connection * self.paths + path) as f64 / (self.paths as f64 * f64::from(self.connections));
        let phase = self.interval.mul_f64(place);
        Duration::from_nanos((self.interval.as_nanos() as u64).saturating_mul(request)) + phase
    }
}

fn send(mut stream: &TcpStream, plan: &Plan, schedule: Schedule, due: &dyn Fn(u64) -> Instant) -> Spread {
    // A sleeping thread is woken up to 50 us late by default; that would be counted as latency.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let message = vec![b'.'; plan.message];
    let mut lag = Spread::default();
    for request in 0..schedule.requests {
        let due = due(request);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if request >= schedule.first {
            lag.record(due.elapsed());
        }
        if stream.write_all(&message).is_err() {
            break;
        }
    }
    lag
}

struct Received {
    latency: Spread,
    answered: u64,
    unanswered: u64,
}

fn receive(mut stream: &TcpStream, plan: &Plan, schedule: Schedule, due: &dyn Fn(u64) -> Instant) -> Received {
    let end = due(schedule.requests - 1) + plan.patience;
    let mut answer = vec![0; plan.message];
    let mut received = Received { latency: Spread::default(), answered: 0, unanswered: 0 };
    let mut open = true;
    for request in 0..schedule.requests {
        open = open && read_until(&mut stream, &mut answer, end).is_ok();
        if request < schedule.first {
            continue;
        }
        if open {
            received.latency.record(due(request).elapsed());
            received.answered += 1;
        } else {
            received.latency.record(end - due(request));
            received.unanswered += 1;
        }
    }
    received
}

/// Fills `answer`, however many timeouts of the socket that takes, but not beyond `end`.
fn read_until(stream: &mut &TcpStream, answer: &mut [u8], end: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < answer.len() {
        match stream.read(&mut answer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{self, Server};

    fn short() -> Plan {
        let (warm_up, duration) = (Duration::from_millis(50), Duration::from_millis(300));
        Plan { connections: 2, rate: 200.0, message: 16, warm_up, duration, patience: Duration::from_millis(300) }
    }

    #[test]
    fn every_request_is_sent_at_its_time_and_answered() {
        let echo = Server::start(serve::loopback().unwrap(), serve::Role::Echo).unwrap();
        let address = echo.address();
        let path = Path { name: "direct", connect: &|| TcpStream::connect(address) };
        let outcomes = run(&[path, Path { name: "again", ..path }], &short()).unwrap();
        assert_eq!(outcomes.len(), 2);
        for outcome in outcomes {
            assert_eq!((outcome.answered, outcome.unanswered), (60, 0), "{}", outcome.name);
            assert_eq!((outcome.latency.count(), outcome.send_lag.count()), (60, 60));
            assert!(outcome.latency.quantile(0.5) >= outcome.send_lag.quantile(0.0), "{}", outcome.name);
        }
    }

    /// The negative control of open loop: a generator that waits for answers would send one request into the stall and report one
    /// long latency; here every request that was due is charged.
    #[test]
    fn a_stall_is_charged_to_every_request_that_was_due_in_it() {
        let stall = Duration::from_millis(200);
        let listener = serve::loopback().unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                thread::sleep(stall);
                let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
            let plan = Plan { connections: 1, warm_up: Duration::ZERO, rate: 100.0, ..short() };
            let path = Path { name: "stalled", connect: &|| TcpStream::connect(address) };
            let outcome = run(&[path], &plan).unwrap().remove(0);
            assert_eq!(outcome.answered, 30);
            // 18 of 30 were due in the stall (the generator begins 20 ms after it); half of those wait for 80 ms and more.
            assert!(outcome.latency.quantile(0.7) > Duration::from_millis(60), "{:?}", outcome.latency.quantile(0.7));
        });
    }

    #[test]
    fn requests_that_are_never_answered_count_with_the_time_they_were_waited_for() {
        let listener = serve::loopback().unwrap();
        let address = listener.local_addr().unwrap();
        let path = Path { name: "silent", connect: &|| TcpStream::connect(address) };
        let outcome = run(&[path], &short()).unwrap().remove(0);
        assert_eq!((outcome.answered, outcome.unanswered), (0, 60));
        assert!(outcome.latency.quantile(0.0) >= Duration::from_millis(290), "{:?}", outcome.latency.quantile(0.0));
    }

    #[test]
    fn impossible_plans_are_refused() {
        for plan in [
            Plan { connections: 0, ..short() },
            Plan { rate: 0.0, ..short() },
            Plan { rate: f64::NAN, ..short() },
            Plan { rate: -1.0, ..short() },
            Plan { message: 0, ..short() },
            Plan { duration: Duration::ZERO, ..short() },
            Plan { duration: Duration::from_secs(1 << 40), ..short() },
        ] {
            let error = run(&[], &plan).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{plan:?}");
        }
    }
}
