//! Both ends of many small exchanges on one thread. What the load spends goes into sockets and not into switching between threads,
//! so that the relay between the ends is what is busy, and one sample is like the next: with a thread per connection and end, as
//! the other generators have it, samples of the same relay differed by half.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::invalid;
use crate::serve::loopback;

/// Bytes of one message, which fits into every socket buffer and is read at once.
pub const MESSAGE_MAX: usize = 4 << 10;
/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events taken at a time.
const EVENTS: usize = 256;
/// Names the listener among the events.
const LISTENER: u64 = u64::MAX;

/// What is exchanged.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Connections under way at a time.
    pub connections: usize,
    /// Bytes of a request, and of its answer.
    pub message: usize,
    /// Exchanges of a connection, after which another one takes its place.
    pub exchanges: u64,
    /// For how long.
    pub duration: Duration,
    /// Connections in all.
    pub connections_max: u64,
}

/// A listener, the ends that it accepted, and the ends that make requests.
pub struct BothEnds {
    epoll: OwnedFd,
    listener: TcpListener,
    ends: Vec<Option<End>>,
    vacant: Vec<usize>,
    /// Of clients, and of ends that were accepted.
    open: [usize; 2],
}

struct End {
    stream: TcpStream,
    side: Side,
}

enum Side {
    /// Echoes.
    Server,
    /// Makes requests.
    Client {
        /// Bytes of the answer that have not come; none before the first request.
        missing: usize,
        /// Exchanges yet to make.
        left: u64,
    },
}

/// What became of an end.
enum Step {
    Goes,
    /// An exchange is complete, and another under way.
    Answered,
    /// The last one is complete.
    Done,
}

impl BothEnds {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub fn listen() -> io::Result<Self> {
        let listener = loopback()?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self { epoll, listener, ends: Vec::new(), vacant: Vec::new(), open: [0, 0] })
    }

    /// Where the requests are answered.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Makes requests to `to`, from where they have to come back to [`BothEnds::address`]. How many were answered.
    ///
    /// # Errors
    /// When a limit is exceeded, a connection breaks, or nothing moves for ten seconds.
    pub fn run(&mut self, to: SocketAddr, plan: &Plan) -> io::Result<u64> {
        if plan.message == 0 || plan.message > MESSAGE_MAX {
            return Err(invalid(format!("a message of {} bytes: between 1 and {MESSAGE_MAX}", plan.message)));
        }
        let end = Instant::now() + plan.duration;
        let (mut answered, mut begun) = (0, 0);
        for _ in 0..plan.connections {
            self.connect(to, plan)?;
            begun += 1;
        }
        let mut buffer = vec![b'.'; 2 * MESSAGE_MAX];
        let mut events = Vec::with_capacity(EVENTS);
        while self.open[0] > 0 && Instant::now() < end {
            for event in self.wait(&mut events)? {
                let index = event.data.u64();
                if index == LISTENER {
                    self.accept()?;
                    continue;
                }
                let index = usize::try_from(index).expect("it was made from one");
                let flags = event.flags;
                let ended = flags.contains(EventFlags::RDHUP);
                match self.step(index, ended, &mut buffer, plan.message)? {
                    Step::Goes => {}
                    Step::Answered => answered += 1,
                    Step::Done => {
                        answered += 1;
                        self.close(index);
                        if begun < plan.connections_max {
                            begun += 1;
                            self.connect(to, plan)?;
                        }
                    }
                }
            }
        }
        self.end(&mut events)?;
        Ok(answered)
    }

    fn wait<'a>(&self, events: &'a mut Vec<Event>) -> io::Result<std::vec::Drain<'a, Event>> {
        let patience = Timespec::try_from(PATIENCE).expect("ten seconds");
        events.clear();
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&patience))?;
        if events.is_empty() {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("nothing has moved for {PATIENCE:?}")));
        }
        Ok(events.drain(..))
    }

    fn connect(&mut self, to: SocketAddr, plan: &Plan) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => self.add(socket.into(), Side::Client { missing: 0, left: plan.exchanges }),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    self.add(stream, Side::Server)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// One registration for all that will come: an edge is enough, because what comes is read at once, up to its end where
    /// the edge tells of one.
    fn add(&mut self, stream: TcpStream, side: Side) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.ends.push(None);
            self.ends.len() - 1
        });
        let wanted = match side {
            Side::Client { .. } => EventFlags::IN | EventFlags::OUT,
            Side::Server => EventFlags::IN | EventFlags::RDHUP,
        };
        epoll::add(&self.epoll, &stream, EventData::new_u64(index as u64), wanted | EventFlags::ET)?;
        self.open[usize::from(matches!(side, Side::Server))] += 1;
        self.ends[index] = Some(End { stream, side });
        Ok(())
    }

    fn close(&mut self, index: usize) {
        if let Some(End { side, .. }) = self.ends[index].take() {
            self.open[usize::from(matches!(side, Side::Server))] -= 1;
            self.vacant.push(index);
        }
    }

    fn step(&mut self, index: usize, ended: bool, buffer: &mut [u8], message: usize) -> io::Result<Step> {
        let Some(End { stream, side }) = &mut self.ends[index] else { return Ok(Step::Goes) };
        match side {
            Side::Server => {
                loop {
                    let answered = match stream.read(buffer) {
                        Ok(0) => break self.close(index),
                        Ok(count) => stream.write_all(&buffer[..count]),
                        Err(error) => Err(error),
                    };
                    match answered {
                        // The last request of a client that left, and its end, can come in one piece: there is one edge for
                        // both, and the kernel has no further one for an end that was read with the request.
                        Ok(()) if ended => {}
                        Ok(()) => break,
                        Err(error) => match error.kind() {
                            ErrorKind::WouldBlock => break,
                            // The client is done, and has closed with an answer unread.
                            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => break self.close(index),
                            _ => return Err(error),
                        },
                    }
                }
                Ok(Step::Goes)
            }
            Side::Client { missing, left } => {
                if *missing == 0 {
                    if let Some(error) = SockRef::from(&*stream).take_error()? {
                        return Err(error);
                    }
                    stream.write_all(&buffer[..message])?;
                    *missing = message;
                    return Ok(Step::Goes);
                }
                let count = match stream.read(buffer) {
                    Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the answer was cut")),
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Goes),
                    Err(error) => return Err(error),
                };
                *missing = missing.checked_sub(count).ok_or_else(|| invalid("more than was asked for".to_owned()))?;
                if *missing > 0 {
                    return Ok(Step::Goes);
                }
                *left -= 1;
                if *left == 0 {
                    return Ok(Step::Done);
                }
                stream.write_all(&buffer[..message])?;
                *missing = message;
                Ok(Step::Answered)
            }
        }
    }

    /// Closes what is open, and waits until the relay has done so too: what it does then would be in the next sample.
    fn end(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        for index in 0..self.ends.len() {
            if matches!(self.ends[index], Some(End { side: Side::Client { .. }, .. })) {
                self.close(index);
            }
        }
        let mut buffer = [0; MESSAGE_MAX];
        while self.open[1] > 0 {
            for event in self.wait(events)? {
                let index = event.data.u64();
                if index == LISTENER {
                    self.accept()?;
                } else {
                    let index = usize::try_from(index).expect("it was made from one");
                    let Some(End { stream, .. }) = &mut self.ends[index] else { continue };
                    let over = loop {
                        match stream.read(&mut buffer) {
                            Ok(0) => break true,
                            Ok(_) => {}
                            Err(error) => break error.kind() != ErrorKind::WouldBlock,
                        }
                    };
                    if over {
                        self.close(index);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan =
        Plan { connections: 3, message: 64, exchanges: 1, duration: Duration::from_secs(10), connections_max: 50 };

    #[test]
    fn connections_and_their_exchanges_are_counted_exactly() {
        let mut ends = BothEnds::listen().unwrap();
        let to = ends.address().unwrap();
        assert_eq!(ends.run(to, &PLAN).unwrap(), 50);
        assert_eq!(ends.run(to, &Plan { exchanges: 20, connections_max: 3, ..PLAN }).unwrap(), 60);
        assert_eq!(ends.open, [0, 0], "nothing is left over for the next run");
    }

    #[test]
    fn a_client_of_another_run_that_comes_late_and_is_gone_already_holds_nobody_up() {
        let mut ends = BothEnds::listen().unwrap();
        let to = ends.address().unwrap();
        // As a relay leaves them that was asked at the end of a run: a request and its end in one piece, not yet accepted.
        let late: Vec<TcpStream> = (0..5)
            .map(|_| {
                let mut late = TcpStream::connect(to).unwrap();
                late.write_all(b"a request").unwrap();
                late.shutdown(std::net::Shutdown::Write).unwrap();
                late
            })
            .collect();
        assert_eq!(ends.run(to, &PLAN).unwrap(), 50);
        assert_eq!(ends.open, [0, 0], "nothing is left over for the next run");
        drop(late);
    }

    #[test]
    fn it_ends_by_its_time() {
        let mut ends = BothEnds::listen().unwrap();
        let plan = Plan { exchanges: u64::MAX, duration: Duration::from_millis(50), ..PLAN };
        let (to, began) = (ends.address().unwrap(), Instant::now());
        assert!(ends.run(to, &plan).unwrap() > 0);
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(ends.open, [0, 0]);
    }

    #[test]
    fn a_relay_that_is_not_there_fails_the_run() {
        let closed = loopback().unwrap().local_addr().unwrap();
        assert!(BothEnds::listen().unwrap().run(closed, &PLAN).is_err());
    }
}
