//! Moves known bytes both ways over one connection and checks each byte as it arrives, with either side closing first.
//!
//! The receiver compares with the bytes themselves, which tells more than a hash does: the offset of the first wrong
//! byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::serve::SOCKET_PATIENCE;

/// A prime, so that no power-of-two error of a buffer maps the pattern onto itself.
const PERIOD: usize = 1_048_573;
const CHUNK: usize = 256 * 1024;
/// What the side that closes second keeps back until it has seen the other's end: proof that a half-closed connection
/// still carries data.
pub const TAIL_BYTES: u64 = 100_003;

/// Endless pseudo-random bytes, one block for the whole process; a flow starts at an offset of its own, so two flows
/// can't be mistaken.
pub struct Pattern {
    bytes: Vec<u8>,
}

/// Who sends its end of stream first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The side that connected.
    Client,
    /// The side that accepted.
    Server,
}

/// One side of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Bytes each way.
    pub bytes: u64,
    /// Where in the pattern this side's bytes begin.
    pub sends: usize,
    /// Where in the pattern the other side's bytes begin.
    pub receives: usize,
    /// Whether this side sends its end without waiting for the other's.
    pub closes_first: bool,
}

impl Default for Pattern {
    fn default() -> Self {
        let mut random = fastrand::Rng::with_seed(0x5eed);
        let mut bytes = vec![0; PERIOD];
        random.fill(&mut bytes);
        bytes.extend_from_within(..CHUNK);
        Self { bytes }
    }
}

impl Pattern {
    fn window(&self, offset: u64, length: usize) -> &[u8] {
        let start = usize::try_from(offset % PERIOD as u64).expect("less than PERIOD");
        &self.bytes[start..start + length]
    }
}

impl Side {
    /// The client's side of transfer number `flow`.
    #[must_use]
    pub fn client(flow: usize, bytes: u64, first: First) -> Self {
        Self { bytes, sends: flow * 7919, receives: flow * 7919 + 4001, closes_first: first == First::Client }
    }

    /// The server's side of transfer number `flow`.
    #[must_use]
    pub fn server(flow: usize, bytes: u64, first: First) -> Self {
        Self { bytes, sends: flow * 7919 + 4001, receives: flow * 7919, closes_first: first == First::Server }
    }
}

/// Sends and receives at once until both directions have ended.
///
/// # Errors
/// When a byte differs, is missing or is one too many, or the connection breaks or stalls.
pub fn run(stream: &TcpStream, pattern: &Pattern, side: Side) -> Result<()> {
    stream.set_read_timeout(Some(SOCKET_PATIENCE))?;
    stream.set_write_timeout(Some(SOCKET_PATIENCE))?;
    let (ended, other_ended) = mpsc::channel();
    thread::scope(|scope| {
        let sending = scope.spawn(move || send(stream, pattern, side, &other_ended));
        let received = receive(stream, pattern, side);
        drop(ended);
        let sent = sending.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        match (received, sent) {
            (Err(received), Err(sent)) => Err(anyhow!("{received:#}; and {sent:#}")),
            (received, sent) => received.and(sent),
        }
    })
}

fn send(mut stream: &TcpStream, pattern: &Pattern, side: Side, other_ended: &mpsc::Receiver<()>) -> Result<()> {
    let kept_back = if side.closes_first { 0 } else { TAIL_BYTES.min(side.bytes) };
    let mut sent = 0;
    for end in [side.bytes - kept_back, side.bytes] {
        while sent < end {
            let length = usize::try_from((end - sent).min(CHUNK as u64)).expect("at most CHUNK");
            stream
                .write_all(pattern.window(side.sends as u64 + sent, length))
                .with_context(|| format!("send after {sent} of {} bytes", side.bytes))?;
            sent += length as u64;
        }
        if !side.closes_first && sent < side.bytes {
            // Comes as an error, when the receiving half has ended and dropped its end of the channel.
            let _ = other_ended.recv();
        }
    }
    stream.shutdown(Shutdown::Write).context("half-close")
}

fn receive(mut stream: &TcpStream, pattern: &Pattern, side: Side) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let length =
            stream.read(&mut buffer).with_context(|| format!("receive after {received} of {} bytes", side.bytes))?;
        if length == 0 {
            ensure!(received == side.bytes, "a clean end after {received} of {} bytes", side.bytes);
            return Ok(());
        }
        let expected = pattern.window(side.receives as u64 + received, length);
        if buffer[..length] != *expected {
            let wrong = buffer.iter().zip(expected).position(|(got, want)| got != want).unwrap_or(length);
            return Err(anyhow!("byte {} of {} is wrong", received + wrong as u64, side.bytes));
        }
        received += length as u64;
        ensure!(received <= side.bytes, "{received} bytes where {} were sent", side.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn both_orders_of_closing_carry_every_byte() {
        let pattern = Pattern::default();
        for first in [First::Client, First::Server] {
            let (client, server) = pair();
            thread::scope(|scope| {
                let serving = scope.spawn(|| run(&server, &pattern, Side::server(3, 3_000_000, first)));
                run(&client, &pattern, Side::client(3, 3_000_000, first)).unwrap();
                serving.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn a_wrong_byte_a_short_and_a_long_stream_are_told_apart() {
        let pattern = Pattern::default();
        let rows: [(&str, u64, usize); 3] =
            [("a clean end after 999", 999, 0), ("1001 bytes where", 1001, 0), ("byte 0 of 1000", 1000, 1)];
        for (expected, sent, shift) in rows {
            let (client, mut server) = pair();
            server.write_all(pattern.window(4001 + shift as u64, usize::try_from(sent).unwrap())).unwrap();
            drop(server);
            let side = Side { bytes: 1000, sends: 0, receives: 4001, closes_first: true };
            let error = format!("{:#}", receive(&client, &pattern, side).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
