//! Load that is simple and exact: what a path through the mesh costs and how long it takes, seen from outside. Knows nothing of the
//! mesh: a path is a function that connects. One blocking thread per connection and direction, so that what is measured is the
//! path and not a runtime of the generator's own.
//!
//! | question | module |
//! |---|---|
//! | how long does a request take at a given rate, whatever else goes on? | [`open_loop`] |
//! | how many requests pass, one after the other, over open connections? | [`ping_pong`] |
//! | how many connections, each with one request? | [`short_connections`] |
//! | how many bytes per second? | [`bulk`] |
//! | what is at the other end | [`serve`] |
//! | what did it cost a process | [`cpu`] |
//! | what does the engine cost, and how does it share? | [`engine`] |
//! | how is it shown | [`report`], [`spread`] |

pub mod bulk;
pub mod cpu;
pub mod engine;
pub mod open_loop;
pub mod ping_pong;
pub mod report;
pub mod serve;
pub mod short_connections;
pub mod spread;

use std::io;
use std::net::TcpStream;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

/// How a path is entered: from inside a pod's network namespace, or directly. Called from the thread that runs a scenario, and from
/// threads of its own by [`short_connections`].
pub type Connect<'a> = &'a (dyn Fn() -> io::Result<TcpStream> + Sync);

/// Connections of one scenario. Worst case: two threads with 256 KiB stacks and two socket buffers each.
pub const CONNECTIONS_MAX: usize = 2048;
/// Bytes of one message. Worst case: two buffers of it per connection.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Stack of a generator's thread.
const STACK: usize = 256 << 10;

/// Connects `count` times and prepares the sockets: no delay, and nothing blocks longer than `patience`.
fn connect_all(connect: Connect<'_>, count: usize, patience: Duration) -> io::Result<Vec<TcpStream>> {
    if count == 0 || count > CONNECTIONS_MAX {
        return Err(invalid(format!("{count} connections: between 1 and {CONNECTIONS_MAX}")));
    }
    (0..count).map(|_| connect().and_then(|stream| prepare(stream, patience))).collect()
}

fn prepare(stream: TcpStream, patience: Duration) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn check_message(len: usize) -> io::Result<()> {
    if len == 0 || len > MESSAGE_MAX {
        return Err(invalid(format!("a message of {len} bytes: between 1 and {MESSAGE_MAX}")));
    }
    Ok(())
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn_scoped(scope, run)
}

fn joined<T>(handle: ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
