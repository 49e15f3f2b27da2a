//! Bulk at as little cost to the load as there is: pages of a file go out by sendfile(2), and what arrives is discarded unread
//! (`MSG_TRUNC`, tcp(7)). Both ends of all flows are on one thread. With read and write at the ends, a relay that splices is the
//! cheapest of the three, waits for them half of the time, and shares nothing out.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::time::Timespec;
use socket2::{Domain, Protocol, Socket, Type};

use crate::serve::loopback;

/// What is sent, or discarded, before another flow may have its turn.
const PIECE: usize = 256 << 10;
/// How often the stop is looked at, at least.
const LOOK: Duration = Duration::from_millis(20);
const EVENTS: usize = 64;

/// Where flows end.
pub struct Flood {
    listener: TcpListener,
}

impl Flood {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub fn listen() -> io::Result<Self> {
        let listener = loopback()?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where a relay has to bring the bytes.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Sends on so many flows to `to` until `stop` is raised. How many bytes.
    ///
    /// # Errors
    /// When a flow can't be opened or breaks.
    pub fn run(&self, to: SocketAddr, flows: usize, stop: &AtomicBool) -> io::Result<u64> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &self.listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let pages = memfd_create("flood", MemfdFlags::CLOEXEC)?;
        ftruncate(&pages, PIECE as u64)?;
        let mut ends: Vec<End> = Vec::new();
        for _ in 0..flows {
            let socket = connect(to)?;
            epoll::add(&epoll, &socket, EventData::new_u64(ends.len() as u64), EventFlags::OUT)?;
            ends.push(End { socket, sends: true });
        }
        let mut sent = 0;
        let mut unread = vec![0; PIECE];
        let mut events = Vec::with_capacity(EVENTS);
        let look = Timespec::try_from(LOOK).expect("some milliseconds");
        while !stop.load(Ordering::Acquire) {
            events.clear();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&look))?;
            for event in events.drain(..) {
                let index = event.data.u64();
                if index == LISTENER {
                    self.accept(&epoll, &mut ends)?;
                    continue;
                }
                let end = &ends[usize::try_from(index).expect("it was made from one")];
                if end.sends {
                    sent += end.send(&pages)?;
                } else {
                    end.discard(&mut unread)?;
                }
            }
        }
        Ok(sent)
    }

    fn accept(&self, epoll: &OwnedFd, ends: &mut Vec<End>) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    epoll::add(epoll, &stream, EventData::new_u64(ends.len() as u64), EventFlags::IN)?;
                    ends.push(End { socket: stream.into(), sends: false });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Names the listener among the events.
const LISTENER: u64 = u64::MAX;

struct End {
    socket: OwnedFd,
    /// The others discard.
    sends: bool,
}

impl End {
    fn send(&self, pages: &impl AsFd) -> io::Result<u64> {
        match sendfile(&self.socket, pages, Some(&mut 0), PIECE) {
            Ok(count) => Ok(count as u64),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn discard(&self, unread: &mut [u8]) -> io::Result<()> {
        match recv(&self.socket, unread, RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.connect(&to.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn bytes_are_discarded_where_they_arrive() {
        let (flood, stop) = (Flood::listen().unwrap(), AtomicBool::new(false));
        let to = flood.address().unwrap();
        let sent = thread::scope(|scope| {
            let run = scope.spawn(|| flood.run(to, 3, &stop));
            thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Release);
            run.join().unwrap()
        });
        assert!(sent.unwrap() > 64 << 20, "far more than sockets hold");
    }
}
