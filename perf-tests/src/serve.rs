//! What is at the other end of a path: a server that echoes, swallows or produces bytes. One thread per connection; connections
//! above the limit are closed at once. Not a test of anything by itself.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{CONNECTIONS_MAX, STACK};

/// Bytes read or written at once. One buffer per connection.
const BUFFER: usize = 64 << 10;
/// How long a connection may be silent.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends back what it receives; ends when the client does.
    Echo,
    /// Reads to the end, answers with the number of bytes (eight, little endian) and closes.
    Sink,
    /// Reads a number (eight bytes, little endian), sends as many bytes and closes.
    Source,
}

/// A listener on a free port of 127.0.0.1.
///
/// # Errors
/// When there is none.
pub fn loopback() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// A running server. Dropping it closes the listener; open connections end when their clients do.
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves what `listener` accepts, which may have been made in another network namespace.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(listener: TcpListener, role: Role) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (own, seen) = (listener.try_clone()?, Arc::clone(&stopped));
        let accepting = thread::Builder::new().name("accept".to_owned()).stack_size(STACK);
        let accepting = accepting.spawn(move || accept(&own, role, &seen))?;
        Ok(Self { address, listener, stopped, accepting: Some(accepting) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // On Linux this ends a blocked accept; closing the descriptor would not.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, role: Role, stopped: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    while !stopped.load(Ordering::Acquire) {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or a client that left before it was accepted; a stopped listener ends the loop.
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let ends = Arc::clone(&open);
        let thread = thread::Builder::new().name("serve".to_owned()).stack_size(STACK);
        let serving = thread.spawn(move || {
            let _ = serve(stream, role);
            ends.fetch_sub(1, Ordering::Relaxed);
        });
        if serving.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(mut stream: TcpStream, role: Role) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(IDLE_MAX))?;
    let mut buffer = vec![0; BUFFER];
    match role {
        Role::Echo => loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return stream.shutdown(Shutdown::Write);
            }
            stream.write_all(&buffer[..count])?;
        },
        Role::Sink => {
            let mut total = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&u64::to_le_bytes(total)),
                    count => total += count as u64,
                }
            }
        }
        Role::Source => {
            let mut wanted = [0; 8];
            stream.read_exact(&mut wanted)?;
            let mut left = u64::from_le_bytes(wanted);
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                stream.write_all(&buffer[..count])?;
                left -= count as u64;
            }
            stream.shutdown(Shutdown::Write)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_does_what_it_says() {
        for (role, sent, expected) in [
            (Role::Echo, b"hello".to_vec(), b"hello".to_vec()),
            (Role::Sink, vec![7; 300_000], 300_000_u64.to_le_bytes().to_vec()),
            (Role::Source, 300_000_u64.to_le_bytes().to_vec(), vec![0; 300_000]),
        ] {
            let server = Server::start(loopback().unwrap(), role).unwrap();
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            assert!(received == expected, "{role:?}: {} bytes", received.len());
        }
    }

    #[test]
    fn a_dropped_server_no_longer_listens() {
        let server = Server::start(loopback().unwrap(), Role::Echo).unwrap();
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}
