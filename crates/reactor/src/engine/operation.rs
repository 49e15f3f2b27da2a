//! What the kernel is asked to do, and what it brought: each operation owns its descriptor and its buffer.

use std::{
    fmt, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    rc::Rc,
};

use bytes::Buf;
use io_uring::{opcode, squeue, types::Fd};
use socket2::SockAddr;

use super::descriptor::Descriptor;
use crate::{Chunk, Lease, bill::Work};

/// One request to the kernel, with everything it refers to.
///
/// What the kernel writes to or reads from is on the heap, so that moving the operation does not move it.
pub(crate) enum Operation {
    /// The next connection; it comes close-on-exec and non-blocking.
    Accept { socket: Rc<Descriptor> },
    /// As much of the chunk as goes at once, after there is room for some.
    Send { socket: Rc<Descriptor>, chunk: Chunk },
    /// The whole chunk if it goes at once, which is no news; anything else is.
    Post { socket: Rc<Descriptor>, chunk: Chunk },
    /// A connection to the address.
    Connect { socket: Rc<Descriptor>, target: Box<SockAddr> },
    /// Readiness, without bytes or a buffer.
    Poll { socket: Rc<Descriptor>, ready: Readiness },
}

/// What [`Operation::Poll`] waits for. An error or a hang-up ends either.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Readiness {
    /// Bytes or FIN.
    Readable,
    /// Room in the socket's send buffer.
    Writable,
}

/// What an operation's future resolves to.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) outcome: io::Result<Brought>,
}

/// What the kernel brought.
#[derive(Debug)]
pub(crate) enum Brought {
    /// By [`Operation::Accept`].
    Connection(OwnedFd),
    /// By [`Operation::Send`] and [`Operation::Post`]: what is left to send, usually nothing.
    Rest(Chunk),
    /// By [`Operation::Connect`] and [`Operation::Poll`].
    Done,
}

impl Completion {
    /// Takes out what nobody needs to see of a completion that was no news: a buffer.
    pub(crate) fn spent(&mut self) -> Option<Self> {
        match &mut self.outcome {
            Ok(Brought::Rest(rest)) => {
                let spent = std::mem::replace(rest, Chunk::from(Lease::empty()));
                Some(Self { outcome: Ok(Brought::Rest(spent)) })
            }
            _ => None,
        }
    }
}

impl Operation {
    /// What it costs to hand it to the kernel for so many bytes.
    pub(crate) fn submitted(&self, bytes: usize) -> Work {
        match self {
            Self::Send { .. } | Self::Post { .. } => Work::Send(bytes),
            Self::Connect { .. } => Work::Connect,
            Self::Accept { .. } | Self::Poll { .. } => Work::Armed,
        }
    }

    /// What it takes of an entry if all is there that it waits for, its bytes apart: a connection in the backlog is accepted
    /// where it is asked for.
    pub(crate) fn cost_at_once(&self) -> u64 {
        let done = if let Self::Accept { .. } = self { Work::Accepted.cost() } else { 0 };
        self.submitted(0).cost() + done
    }

    /// What the kernel's `result` has cost.
    pub(crate) fn completed(&self, result: i32) -> Work {
        match (self, usize::try_from(result)) {
            (Self::Accept { .. }, Ok(_)) => Work::Accepted,
            _ => Work::Completed,
        }
    }

    /// Bytes that the kernel may move for it at most.
    pub(crate) fn bytes_max(&mut self) -> usize {
        match self {
            Self::Send { chunk, .. } | Self::Post { chunk, .. } => chunk.chunk().len(),
            Self::Accept { .. } | Self::Connect { .. } | Self::Poll { .. } => 0,
        }
    }

    /// Whether a `result` says no more than that the expected has happened: nobody needs to be woken for it.
    pub(crate) fn is_no_news(&self, result: i32) -> bool {
        match self {
            Self::Post { chunk, .. } => usize::try_from(result).is_ok_and(|count| count == chunk.len()),
            _ => false,
        }
    }

    /// The request as the kernel reads it, for no more than `bytes_max` bytes. It holds addresses into `self`'s heap
    /// memory. A send that is cut moves less, which its future deals with as with any short one.
    pub(crate) fn entry(&mut self, bytes_max: usize) -> squeue::Entry {
        match self {
            Self::Accept { socket } => opcode::Accept::new(Fd(socket.as_raw_fd()), ptr::null_mut(), ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build(),
            // Without MSG_WAITALL: with it the kernel goes on after a short send by itself, and when that meets a reset, the
            // completion tells of the bytes and the error is lost; the next send hears of EPIPE, as after an orderly end.
            Self::Send { socket, chunk } => {
                let bytes = chunk.chunk();
                let len = bytes.len().min(bytes_max).min(i32::MAX as usize) as u32;
                opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
            }
            // MSG_WAITALL, so that a short one is a failure to the ring, and told. The kernel does not go on by itself: it must
            // not wait.
            Self::Post { socket, chunk } => {
                let bytes = chunk.chunk();
                let len = bytes.len().min(bytes_max).min(i32::MAX as usize) as u32;
                let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
                opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), len).flags(flags).build()
            }
            Self::Connect { socket, target } => {
                opcode::Connect::new(Fd(socket.as_raw_fd()), target.as_ptr().cast(), target.len()).build()
            }
            Self::Poll { socket, ready } => {
                let events = match ready {
                    Readiness::Readable => libc::POLLIN | libc::POLLRDHUP,
                    Readiness::Writable => libc::POLLOUT,
                };
                opcode::PollAdd::new(Fd(socket.as_raw_fd()), events as u32).build()
            }
        }
    }

    /// What the kernel's `result` makes of the operation.
    pub(crate) fn complete(self, result: i32) -> Completion {
        let count = match (usize::try_from(result), &self) {
            (Ok(count), _) => count,
            (Err(_), Self::Post { .. }) if matches!(-result, libc::EAGAIN | libc::EINTR) => 0,
            (Err(_), operation) => {
                if let Self::Send { socket, .. } | Self::Post { socket, .. } = operation {
                    // Here and not when its future hears of it: a receive may be asked first.
                    socket.send_failed(-result);
                }
                return Completion { outcome: Err(io::Error::from_raw_os_error(-result)) };
            }
        };
        let brought = match self {
            #[expect(unsafe_code, reason = "the kernel names an accepted connection by number only")]
            Self::Accept { .. } => {
                // SAFETY: a successful accept hands over a new descriptor, and this completion is seen once.
                Brought::Connection(unsafe { OwnedFd::from_raw_fd(result) })
            }
            Self::Send { mut chunk, .. } | Self::Post { mut chunk, .. } => {
                chunk.advance(count);
                Brought::Rest(chunk)
            }
            Self::Connect { .. } | Self::Poll { .. } => Brought::Done,
        };
        Completion { outcome: Ok(brought) }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, socket) = match self {
            Self::Accept { socket } => ("accept", socket),
            Self::Send { socket, .. } => ("send", socket),
            Self::Post { socket, .. } => ("post", socket),
            Self::Connect { socket, .. } => ("connect", socket),
            Self::Poll { socket, .. } => ("poll", socket),
        };
        write!(formatter, "{name} on descriptor {}", socket.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::submit::{Limit, Load};

    #[test]
    fn an_entry_beside_another_tenant_carries_no_more_accepts_than_it_has_time_for() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let accept = Operation::Accept { socket: Rc::new(Descriptor::new(listening.into())) };
        let load = |count: u64| Load { cost_ns: count * accept.cost_at_once(), bytes: 0, ..Load::default() };
        let carried = (1..1000).take_while(|count| Limit::CONTENDED.holds(load(*count))).count();
        assert!((10..=20).contains(&carried), "{carried}, each of which may find a connection");
    }
}
