//! Bytes as fast as they go, in one direction, over some connections; done when the last byte is known to have arrived. Also the
//! noise beside which something else is measured.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Connect, connect_all, joined, spawn};

/// Bytes read or written at once. One buffer per flow.
const BUFFER: usize = 256 << 10;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a `serve::Role::Sink`, which confirms how many arrived.
    Up,
    /// From a `serve::Role::Source`.
    Down,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections.
    pub flows: usize,
    /// Bytes of each.
    pub bytes_per_flow: u64,
    /// Which way.
    pub direction: Direction,
    /// A flow stops after this time even if it has bytes left.
    pub duration_max: Duration,
    /// How long a flow may stand still.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            flows: 4,
            bytes_per_flow: 256 << 20,
            direction: Direction::Up,
            duration_max: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte sent until the last flow's end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Bits per second.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

/// Runs the plan.
///
/// # Errors
/// When a limit is exceeded, a connection can't be opened, breaks or stands still, or not all that was sent arrived.
pub fn run(connect: Connect<'_>, plan: &Plan) -> io::Result<Outcome> {
    let streams = connect_all(connect, plan.flows, plan.patience)?;
    let start = Instant::now();
    let end = start + plan.duration_max;
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(streams.len());
        for stream in &streams {
            running.push(spawn(scope, "bulk", move || match plan.direction {
                Direction::Up => up(stream, plan.bytes_per_flow, end),
                Direction::Down => down(stream, plan.bytes_per_flow, end),
            })?);
        }
        let mut bytes = 0;
        for handle in running {
            bytes += joined(handle)?;
        }
        Ok(Outcome { bytes, elapsed: start.elapsed() })
    })
}

fn up(mut stream: &TcpStream, bytes: u64, end: Instant) -> io::Result<u64> {
    let buffer = vec![b'.'; BUFFER];
    let mut sent = 0;
    while sent < bytes && Instant::now() < end {
        let count = usize::try_from(bytes - sent).unwrap_or(BUFFER).min(BUFFER);
        stream.write_all(&buffer[..count])?;
        sent += count as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    let arrived = u64::from_le_bytes(arrived);
    if arrived != sent {
        return Err(io::Error::other(format!("{sent} bytes were sent, {arrived} arrived")));
    }
    Ok(arrived)
}

fn down(mut stream: &TcpStream, bytes: u64, end: Instant) -> io::Result<u64> {
    stream.write_all(&bytes.to_le_bytes())?;
    let mut buffer = vec![0; BUFFER];
    let mut received = 0;
    while received < bytes && Instant::now() < end {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::Error::other(format!("{bytes} bytes were asked for, {received} arrived")));
        }
        received += count as u64;
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{Role, Server, loopback};

    #[test]
    fn all_bytes_arrive_either_way() {
        for (direction, role) in [(Direction::Up, Role::Sink), (Direction::Down, Role::Source)] {
            let server = Server::start(loopback().unwrap(), role).unwrap();
            let plan = Plan { flows: 3, bytes_per_flow: 1_000_001, direction, ..Plan::default() };
            let outcome = run(&|| TcpStream::connect(server.address()), &plan).unwrap();
            assert_eq!(outcome.bytes, 3_000_003, "{direction:?}");
        }
    }

    #[test]
    fn flows_without_end_stop_in_time() {
        for (direction, role) in [(Direction::Up, Role::Sink), (Direction::Down, Role::Source)] {
            let server = Server::start(loopback().unwrap(), role).unwrap();
            let duration_max = Duration::from_millis(100);
            let plan = Plan { flows: 2, bytes_per_flow: u64::MAX, direction, duration_max, ..Plan::default() };
            let outcome = run(&|| TcpStream::connect(server.address()), &plan).unwrap();
            assert!(outcome.bytes > 0 && outcome.elapsed < Duration::from_secs(5), "{direction:?}: {outcome:?}");
        }
    }

    #[test]
    fn bytes_that_do_not_arrive_fail_the_run() {
        // An echo's first eight bytes are not the count that a sink would have answered.
        let echo = Server::start(loopback().unwrap(), Role::Echo).unwrap();
        let plan = Plan { flows: 1, bytes_per_flow: 1000, ..Plan::default() };
        assert!(run(&|| TcpStream::connect(echo.address()), &plan).is_err());
    }
}
