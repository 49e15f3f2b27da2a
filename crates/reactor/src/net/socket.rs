//! A connected descriptor, shared by its stream and the operations under way on it, and how it is to be closed.

use std::{
    cell::Cell,
    io,
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    time::Duration,
};

use socket2::{SockAddr, SockRef};

use crate::engine::descriptor::{Descriptor, Direction};

/// The stream's hold on its socket. Dropping it decides between FIN and RST; the descriptor closes when the kernel has
/// let go of it, which the stream's operations, cancelled with it, delay by a slice at most.
pub(crate) struct Socket {
    descriptor: Rc<Descriptor>,
    reset: Cell<bool>,
    sending: Cell<Sending>,
    nonblocking: Cell<bool>,
}

/// What is known about the bytes that went out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Whole,
    /// A send is under way, or has failed, or was dropped in the middle.
    Torn,
}

impl Socket {
    pub(crate) fn new(descriptor: Rc<Descriptor>) -> Self {
        Self { descriptor, reset: Cell::new(false), sending: Cell::new(Sending::Whole), nonblocking: Cell::new(false) }
    }

    pub(crate) fn descriptor(&self) -> Rc<Descriptor> {
        self.descriptor.clone()
    }

    /// Whoever calls the kernel past the engine tells it here that there was nothing to read, or no room.
    pub(crate) fn blocked(&self, direction: Direction) {
        self.descriptor.blocked(direction);
    }

    /// As [`Socket::blocked`], after a read that was shorter than it might have been.
    pub(crate) fn drained(&self) {
        self.descriptor.drained();
    }

    /// For the calls that have no flag for it.
    pub(crate) fn make_nonblocking(&self) -> io::Result<()> {
        if !self.nonblocking.replace(true) {
            rustix::io::ioctl_fionbio(&*self.descriptor, true)?;
        }
        Ok(())
    }

    pub(crate) fn options(&self) -> SockRef<'_> {
        SockRef::from(&*self.descriptor)
    }

    pub(crate) fn reset_on_drop(&self) {
        self.reset.set(true);
    }

    /// A send begins; until [`Socket::sent`] the stream is torn.
    pub(crate) fn begin_send(&self) -> io::Result<()> {
        self.whole()?;
        self.sending.set(Sending::Torn);
        Ok(())
    }

    /// The send that began has sent everything.
    pub(crate) fn sent(&self) {
        self.sending.set(Sending::Whole);
    }

    /// A send past the engine has failed.
    pub(crate) fn failed(&self, error: &io::Error) {
        self.descriptor.send_failed(error.raw_os_error().unwrap_or(libc::EIO));
    }

    /// A receive brought nothing: the peer has ended its direction.
    ///
    /// # Errors
    /// It has not: the connection was cut, and a send was told.
    pub(crate) fn ended(&self) -> io::Result<()> {
        if self.descriptor.is_cut() {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        Ok(())
    }

    /// Whether what went out is what was meant to, so that more may follow.
    pub(crate) fn whole(&self) -> io::Result<()> {
        match self.sending.get() {
            Sending::Whole => Ok(()),
            Sending::Torn => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the stream is torn: an earlier send is under way, has failed or was abandoned",
            )),
        }
    }

    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.whole()?;
        self.options().shutdown(Shutdown::Write)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        canonical(&self.options().peer_addr()?)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        canonical(&self.options().local_addr()?)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.get() || self.sending.get() == Sending::Torn {
            // A socket that takes no linger any more has no peer to tell.
            let _gone = self.options().set_linger(Some(Duration::ZERO));
        }
    }
}

/// An address as the mesh knows it: IPv4 is IPv4 also on a dual-stack socket.
pub(crate) fn canonical(address: &SockAddr) -> io::Result<SocketAddr> {
    let Some(address) = address.as_socket() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket"));
    };
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
