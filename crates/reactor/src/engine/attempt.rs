//! An operation as the system call that it is, for an engine that is told of readiness instead of completions.

use std::{
    io,
    os::fd::{AsFd, IntoRawFd},
};

use bytes::Buf;
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};
use socket2::SockRef;

use crate::Chunk;

use super::{
    descriptor::{Descriptor, Direction},
    operation::{Operation, Readiness},
};

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// How a try went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// As a ring would put it: what it brought, or a negative errno.
    Done(i32),
    /// It would have to wait.
    Blocked,
}

/// How far an operation may go, and has gone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) bytes_max: usize,
    pub(crate) sent: usize,
}

impl Operation {
    /// What it works on, and which way.
    pub(crate) fn side(&self) -> (&Descriptor, Direction) {
        match self {
            Self::Accept { socket } => (socket, Direction::In),
            Self::Send { socket, .. } | Self::Post { socket, .. } | Self::Connect { socket, .. } => {
                (socket, Direction::Out)
            }
            Self::Poll { socket, ready: Readiness::Readable } => (socket, Direction::In),
            Self::Poll { socket, ready: Readiness::Writable } => (socket, Direction::Out),
        }
    }

    /// Does it as far as it goes without waiting. The descriptor is non-blocking where the call itself cannot be.
    pub(crate) fn attempt(&mut self, progress: &mut Progress) -> Attempt {
        loop {
            match self.call(progress) {
                Ok(count) => return Attempt::Done(i32::try_from(count).unwrap_or(i32::MAX)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::INPROGRESS | Errno::ALREADY) => {
                    let (descriptor, direction) = self.side();
                    descriptor.blocked(direction);
                    return Attempt::Blocked;
                }
                Err(errno) => return Attempt::Done(-errno.raw_os_error()),
            }
        }
    }

    fn call(&mut self, progress: &mut Progress) -> Result<usize, Errno> {
        match self {
            Self::Accept { socket } => {
                let connection = accept_with(socket.as_fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
                Ok(usize::try_from(connection.into_raw_fd()).expect("a descriptor is not negative"))
            }
            Self::Post { socket, chunk } => {
                errno(SockRef::from(&**socket).send_with_flags(within(chunk, progress), SEND_FLAGS))
            }
            // Done when all is sent that may be. On a ring a short send is a completion, and its future asks again.
            Self::Send { socket, chunk } => loop {
                let bytes = within(chunk, progress);
                progress.sent += errno(SockRef::from(&**socket).send_with_flags(&bytes[progress.sent..], SEND_FLAGS))?;
                if progress.sent >= bytes.len() {
                    return Ok(progress.sent);
                }
            },
            Self::Connect { socket, target } => errno(SockRef::from(&**socket).connect(target)).map(|()| 0),
            // Its readiness is what was to be found out, and only an edge can tell.
            Self::Poll { socket, .. } => match socket.watch_key() {
                Some(_) => Ok(0),
                None => Err(Errno::AGAIN),
            },
        }
    }
}

fn within<'a>(chunk: &'a Chunk, progress: &Progress) -> &'a [u8] {
    let bytes = chunk.chunk();
    &bytes[..bytes.len().min(progress.bytes_max).min(i32::MAX as usize)]
}

fn errno<T>(result: io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
