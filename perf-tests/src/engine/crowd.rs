//! The other end of thousands of connections, and bursts over them, on one thread each: a thread per connection, as the rest of
//! the generators have it, would measure the scheduler. Not for latency.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

/// Connections at most: with both ends in this process and two descriptors each in a relay, below a limit of 20,000.
pub const CONNECTIONS_MAX: usize = 9000;
/// Connections that are being opened at a time, below what listeners let wait.
const OPENING: usize = 64;
/// How long one may take to open, or a burst to come back.
const PATIENCE: Duration = Duration::from_secs(20);

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("not within {PATIENCE:?}"))
}

/// Echoes on any number of connections. Dropping it closes them all.
pub struct Echo {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Begins to serve on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is no port or no thread.
    pub fn start() -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let thread = thread::Builder::new().name("crowd-echo".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::task::spawn_local(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => drop(tokio::task::spawn_local(echo(stream))),
                            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                        }
                    }
                });
                let _ = stopped.await;
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 2048];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

/// Open connections on which nothing goes on, unless [`Crowd::bursts`] is called.
pub struct Crowd {
    runtime: Runtime,
    streams: Vec<TcpStream>,
}

impl Crowd {
    /// Opens `count` connections to an echo; each has had one byte there and back, so all are known to be relayed.
    ///
    /// # Errors
    /// When one can't be opened, or is not answered in time.
    pub fn open(to: SocketAddr, count: usize) -> io::Result<Self> {
        if count > CONNECTIONS_MAX {
            return Err(crate::invalid(format!("{count} connections: at most {CONNECTIONS_MAX}")));
        }
        let runtime = runtime()?;
        let streams = runtime.block_on(async {
            let mut opening = JoinSet::new();
            let mut streams = Vec::with_capacity(count);
            for _ in 0..count {
                if opening.len() == OPENING {
                    streams.extend(opened(&mut opening).await?);
                }
                opening.spawn(async move {
                    let mut stream = TcpStream::connect(to).await?;
                    stream.set_nodelay(true)?;
                    stream.write_all(b".").await?;
                    stream.read_exact(&mut [0]).await?;
                    Ok::<_, io::Error>(stream)
                });
            }
            while let Some(stream) = opened(&mut opening).await? {
                streams.push(stream);
            }
            Ok::<_, io::Error>(streams)
        })?;
        Ok(Self { runtime, streams })
    }

    /// Sends `message` bytes on all at once every `period`, until `stop` is raised, and reads them back. How many came back.
    ///
    /// # Errors
    /// When one breaks or a burst does not come back in time.
    pub fn bursts(&mut self, message: usize, period: Duration, stop: &AtomicBool) -> io::Result<u64> {
        let sent = vec![b'.'; message];
        let mut exchanges = 0;
        let Self { runtime, streams } = self;
        runtime.block_on(async {
            while !stop.load(Ordering::Acquire) {
                let next = Instant::now() + period;
                let burst = async {
                    for stream in streams.iter_mut() {
                        stream.write_all(&sent).await?;
                    }
                    let mut answer = vec![0; message];
                    for stream in streams.iter_mut() {
                        stream.read_exact(&mut answer).await?;
                        exchanges += 1;
                    }
                    Ok::<_, io::Error>(())
                };
                tokio::time::timeout(PATIENCE, burst).await.map_err(|_| slow())??;
                tokio::time::sleep_until(next.into()).await;
            }
            Ok(exchanges)
        })
    }
}

async fn opened(opening: &mut JoinSet<io::Result<TcpStream>>) -> io::Result<Option<TcpStream>> {
    let next = tokio::time::timeout(PATIENCE, opening.join_next()).await.map_err(|_| slow())?;
    next.map(|joined| joined.map_err(io::Error::other)?).transpose()
}

/// Runs `noise` on a thread of its own while `quiet` runs; what both came to. `noise` ends when its flag is raised.
///
/// # Errors
/// What either says.
pub fn beside<Q, N: Send>(
    noise: impl FnOnce(&AtomicBool) -> anyhow::Result<N> + Send,
    quiet: impl FnOnce() -> anyhow::Result<Q>,
) -> anyhow::Result<(Q, N)> {
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let seen = Arc::clone(&stop);
        let noisy = scope.spawn(move || noise(&seen));
        let outcome = quiet();
        stop.store(true, Ordering::Release);
        let noise = crate::joined(noisy)?;
        Ok((outcome?, noise))
    })
}
