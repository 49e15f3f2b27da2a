//! Packets and descriptors over the CNI agent's Unix socket. It knows no message; what a packet says is `wire`'s.
#![expect(unsafe_code, reason = "tokio's AsyncFd asks for a promise about its descriptor")]

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::zds::wire::PACKET_MAX;

/// One connection. Needs a tokio runtime with I/O, so it belongs to the control thread.
#[derive(Debug)]
pub struct ZdsSocket(AsyncFd<OwnedFd>);

/// What came in.
#[derive(Debug)]
pub enum Received {
    /// One whole packet.
    Packet {
        /// Its bytes, at most [`PACKET_MAX`].
        packet: Vec<u8>,
        /// The descriptors that came with it: close-on-exec, and closed when dropped.
        descriptors: Vec<OwnedFd>,
    },
    /// The agent has closed the connection.
    Closed,
}

impl ZdsSocket {
    /// Connects to the socket at `address`: a path, or `@name` for one in the abstract namespace.
    ///
    /// A Unix socket connects at once or not at all. `EAGAIN` says that the agent's queue is full, and no readiness
    /// would ever tell that there is room again, so it is an error like any other: back off and try anew.
    ///
    /// # Errors
    /// No socket there, nobody listens, or the address is too long.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn connect(address: &str) -> Result<Self, ConnectError> {
        let failed = |source: io::Error| ConnectError { address: address.to_owned(), source };
        let unix = match address.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            None => SocketAddrUnix::new(address),
        };
        let unix = unix.map_err(|error| failed(error.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|error| failed(error.into()))?;
        rustix::net::connect(&fd, &unix).map_err(|error| failed(error.into()))?;
        Self::from_fd(fd).map_err(failed)
    }

    /// Takes over a connected `SOCK_SEQPACKET`.
    ///
    /// # Errors
    /// The kernel refuses to watch it.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an OwnedFd names one open descriptor until it is dropped, which only dropping the AsyncFd does:
        // nothing here takes it out.
        let registered = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(Self(registered))
    }

    /// The next packet. Cancel-safe: a packet is taken whole or not at all.
    ///
    /// An empty packet reads like the end of the connection, and is treated so: it would be refused anyway.
    ///
    /// # Errors
    /// The packet, or its descriptors, did not fit; then nothing of it is left open. Or the connection broke.
    pub async fn receive(&self) -> Result<Received, ReceiveError> {
        let receive = |fd: &OwnedFd| match receive_now(fd.as_fd()) {
            Err(ReceiveError::Io(error)) => Err(error),
            outcome => Ok(outcome),
        };
        self.0.async_io(Interest::READABLE, receive).await?
    }

    /// Sends one packet. Cancel-safe: it is sent whole or not at all.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let send = |fd: &OwnedFd| Ok(rustix::net::send(fd, packet, SendFlags::NOSIGNAL)?);
        self.0.async_io(Interest::WRITABLE, send).await.map(|_all| ())
    }
}

/// Why there is no connection to the agent.
#[derive(Debug, thiserror::Error)]
#[error("failed to connect to the Istio CNI node agent over {address}, is the node agent healthy? {source}")]
pub struct ConnectError {
    /// The socket's path or `@name`.
    pub address: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// Why a packet could not be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Over [`PACKET_MAX`]: its end is lost.
    #[error("a packet of more than {PACKET_MAX} bytes was cut")]
    Cut,
    /// More descriptors than any request may carry.
    #[error("a packet lost descriptors: it carried more than any request may, or they ran out here (see ulimit -n)")]
    DescriptorsCut,
    /// The connection itself.
    #[error("the connection to the CNI agent broke: {0}")]
    Io(#[from] io::Error),
}

impl ReceiveError {
    /// Whether the connection still works, so that the agent can be told.
    pub fn is_of_packet(&self) -> bool {
        match self {
            Self::Cut | Self::DescriptorsCut => true,
            Self::Io(_) => false,
        }
    }
}

/// Room for one more than a request may carry, so that the session can say what was wrong. Alignment makes it three.
const DESCRIPTORS_ROOM: usize = 2;

fn receive_now(fd: BorrowedFd<'_>) -> Result<Received, ReceiveError> {
    let mut packet = vec![0; PACKET_MAX];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_ROOM))];
    // Closes what is left in it when dropped.
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let got = rustix::net::recvmsg(fd, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ReceiveError::DescriptorsCut);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::Cut);
    }
    if got.bytes == 0 {
        return Ok(Received::Closed);
    }
    packet.truncate(got.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(Received::Packet { packet, descriptors })
}
