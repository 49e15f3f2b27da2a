//! What a test's client says and how it hears an end: the counterpart of `serve`, on plain blocking streams.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

/// The longest text read.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// How the other end of a connection ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An orderly end of stream after this many bytes.
    Clean(u64),
    /// A reset after this many bytes.
    Reset(u64),
    /// Nothing more came within the socket's time-out.
    Silence(u64),
}

/// Says `text` to an echo and hears it back.
///
/// # Errors
/// When anything else comes back, or nothing.
pub fn round_trip(mut stream: &TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text).context("say")?;
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).context("hear")?;
    ensure!(heard == text, "said {:?}, heard {:?}", String::from_utf8_lossy(text), String::from_utf8_lossy(&heard));
    Ok(())
}

/// Reads text to a clean end.
///
/// # Errors
/// When the connection breaks first.
pub fn read_text(stream: &TcpStream) -> Result<String> {
    let mut text = String::new();
    stream.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads one line, byte by byte: what follows it stays unread.
///
/// # Errors
/// When the connection ends first.
pub fn read_line(mut stream: &TcpStream) -> Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" || line.len() > 1000 {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
}

/// Reads, whatever comes, to the end, and says what kind of end it was.
///
/// # Errors
/// When it is of no known kind.
pub fn await_end(mut stream: &TcpStream) -> Result<End> {
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(End::Clean(bytes)),
            Ok(length) => bytes += length as u64,
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                    return Ok(End::Reset(bytes));
                }
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(End::Silence(bytes)),
                ErrorKind::Interrupted => {}
                _ => return Err(error).context("read to the end"),
            },
        }
    }
}
