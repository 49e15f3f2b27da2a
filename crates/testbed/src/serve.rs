//! Small TCP servers that run in a pod: one accept thread, one thread a connection, all gone when the [`Server`] is
//! dropped. Not fast; bounded.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// Connections a server holds at once; one more is closed at once. Worst case 1024 stacks of 256 KiB, of which a page
/// or two are touched.
const CONNECTIONS_MAX: usize = 1024;
const STACK_BYTES: usize = 256 * 1024;
/// Longer than the kernel's default of 128 on a listener of std, which 500 connections at once would overflow.
const BACKLOG: i32 = 1024;
/// Endings remembered for [`Server::endings`]. Worst case 16384 x ~64 bytes.
const ENDINGS_MAX: usize = 16_384;

/// How long a test's socket may sit in a read or write before the test fails.
pub const SOCKET_PATIENCE: Duration = Duration::from_secs(20);

/// A listening server. Dropping it closes the listener, shuts down what is open and joins its threads.
pub struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// How one served connection ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Who the server saw at the other end.
    pub peer: SocketAddr,
    /// What the handler returned; `Err` holds the error's text.
    pub result: Result<(), String>,
}

#[derive(Default)]
struct Shared {
    // A test's server, off every data path: clarity beats a lock-free list here.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    open: HashMap<u64, Arc<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
    endings: Vec<Ending>,
    accepted: usize,
    most_at_once: usize,
}

impl Server {
    /// Listens in `namespace` on every IPv4 address at `port` (0: any free one) and serves each connection by
    /// `handler`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start<H>(namespace: &Namespace, port: u16, handler: H) -> Result<Self>
    where
        H: Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
    {
        let listener =
            namespace.run(|| listen(port)).with_context(|| format!("listen on port {port} in {}", namespace.name()))?;
        let address = listener.local_addr()?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared::default());
        let accepting = thread::Builder::new().name("accept".into()).stack_size(STACK_BYTES).spawn({
            let (listener, shared, handler) = (listener.clone(), shared.clone(), Arc::new(handler));
            move || accept(&listener, &shared, &handler)
        })?;
        Ok(Self { address, listener, shared, accepting: Some(accepting) })
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.state().open.len()
    }

    /// The most connections that were open at one moment.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.shared.state().most_at_once
    }

    /// How the finished connections ended, in the order of their ends.
    #[must_use]
    pub fn endings(&self) -> Vec<Ending> {
        self.shared.state().endings.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this wakes a blocked accept with EINVAL; closing the descriptor would not.
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let threads = {
            let mut state = self.shared.state();
            for stream in state.open.values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Sends back all that comes; half-closes when the client has.
///
/// # Errors
/// When the connection breaks.
pub fn echo(stream: &TcpStream, _peer: SocketAddr) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut socket = stream;
    loop {
        let length = socket.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        socket.write_all(&buffer[..length])?;
    }
}

/// Tells the client the address it is seen at, then waits for it to close.
///
/// # Errors
/// When the connection breaks.
pub fn who_am_i(mut stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    writeln!(stream, "{peer}")?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Greets with `name` and then echoes, so that a client knows which backend it reached.
pub fn named(name: &str) -> impl Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static {
    let greeting = format!("{name}\n");
    move |mut stream, peer| {
        stream.write_all(greeting.as_bytes())?;
        echo(stream, peer)
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept<H>(listener: &TcpListener, shared: &Arc<Shared>, handler: &Arc<H>)
where
    H: Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
{
    while let Ok((stream, peer)) = listener.accept() {
        // Without nodelay an echo of small messages waits for delayed acknowledgements, and every latency measured is
        // the kernel's 40 ms.
        let prepared = stream
            .set_nodelay(true)
            .and(stream.set_read_timeout(Some(SOCKET_PATIENCE)))
            .and(stream.set_write_timeout(Some(SOCKET_PATIENCE)));
        let mut state = shared.state();
        if prepared.is_err() || state.open.len() >= CONNECTIONS_MAX {
            continue;
        }
        let stream = Arc::new(stream);
        let key = state.next;
        state.next += 1;
        state.accepted += 1;
        state.open.insert(key, stream.clone());
        state.most_at_once = state.most_at_once.max(state.open.len());
        let (shared_there, handler) = (shared.clone(), handler.clone());
        let spawned = thread::Builder::new().name("serve".into()).stack_size(STACK_BYTES).spawn(move || {
            let result = handler(&stream, peer).map_err(|error| error.to_string());
            let mut state = shared_there.state();
            state.open.remove(&key);
            if state.endings.len() < ENDINGS_MAX {
                state.endings.push(Ending { peer, result });
            }
        });
        match spawned {
            Ok(thread) => state.threads.push(thread),
            Err(_) => {
                state.open.remove(&key);
            }
        }
        state.threads.retain(|thread| !thread.is_finished());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_server_leaves_neither_listener_nor_connection() {
        let namespace = Namespace::create("server").unwrap();
        let server = Server::start(&namespace, 0, echo).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
        let mut client = namespace.run(|| TcpStream::connect(address)).unwrap();
        client.set_read_timeout(Some(SOCKET_PATIENCE)).unwrap();
        client.write_all(b"once").unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!((&answer, server.open(), server.accepted()), (b"once", 1, 1));
        drop(server);
        assert!(matches!(client.read(&mut answer), Ok(0) | Err(_)), "the connection outlived its server");
        assert!(namespace.run(|| TcpStream::connect(address)).is_err(), "the listener outlived its server");
    }
}
