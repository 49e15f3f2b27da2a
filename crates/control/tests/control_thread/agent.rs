//! A CNI agent for tests: it says what the test says, byte by byte, and hears what the control thread answers.

use std::{
    fs::File,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use inpod::zds::socket::{Received, ZdsSocket};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::net::UnixListener;

const HELLO: &[u8] = &[0x08, 0x01];
const ACK: &[u8] = &[0x0A, 0x00];
pub(crate) const SNAPSHOT: &[u8] = &[0x1A, 0x00];

/// A pod that is added: its uid, and the service account that it runs as.
fn add(uid: &str, service_account: &str) -> Vec<u8> {
    let info = [field(0x0A, uid.as_bytes()), field(0x12, b"shop"), field(0x1A, service_account.as_bytes())].concat();
    field(0x0A, &[field(0x0A, uid.as_bytes()), field(0x12, &info)].concat())
}

pub(crate) fn add_without_info(uid: &str) -> Vec<u8> {
    field(0x0A, &field(0x0A, uid.as_bytes()))
}

pub(crate) fn del(uid: &str) -> Vec<u8> {
    field(0x12, &field(0x12, uid.as_bytes()))
}

pub(crate) fn keep(uid: &str) -> Vec<u8> {
    field(0x2A, &field(0x0A, uid.as_bytes()))
}

fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).ok().filter(|length| *length < 0x80).expect("a short field");
    [&[tag, length], content].concat()
}

/// Where control threads connect to.
pub(crate) struct Agent(UnixListener);

impl Agent {
    pub(crate) fn listen(path: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket");
        rustix::net::bind(&listener, &SocketAddrUnix::new(path).expect("a short path")).expect("the path is free");
        rustix::net::listen(&listener, 4).expect("bound");
        Self(UnixListener::from_std(listener.into()).expect("inside a runtime"))
    }

    /// The next connection, once it has said hello.
    pub(crate) async fn accept(&self) -> Connection {
        let (stream, _) = self.0.accept().await.expect("it connects");
        let fd = OwnedFd::from(stream.into_std().expect("inside a runtime"));
        let ear = ZdsSocket::from_fd(fd.try_clone().expect("descriptors are left")).expect("inside a runtime");
        let connection = Connection { ear, fd };
        assert_eq!(connection.hear().await, HELLO);
        connection
    }
}

/// One control thread.
pub(crate) struct Connection {
    ear: ZdsSocket,
    fd: OwnedFd,
}

impl Connection {
    /// Adds a pod in the network namespace of the test.
    pub(crate) fn add(&self, uid: &str, service_account: &str) {
        self.send_with_netns(&add(uid, service_account));
    }

    pub(crate) fn send_with_netns(&self, packet: &[u8]) {
        let netns = File::open("/proc/thread-self/ns/net").expect("/proc is mounted");
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        let descriptors = [netns.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for one");
        rustix::net::sendmsg(&self.fd, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL).expect("sent");
    }

    /// Sends a packet without a descriptor; false once the control thread has hung up.
    pub(crate) fn send(&self, packet: &[u8]) -> bool {
        rustix::net::send(&self.fd, packet, SendFlags::NOSIGNAL).is_ok()
    }

    pub(crate) async fn hear_ack(&self) {
        let heard = self.hear().await;
        assert_eq!(heard, ACK, "{}", String::from_utf8_lossy(&heard));
    }

    /// Hears a nack that says `why`.
    pub(crate) async fn hear_nack(&self, why: &str) {
        let heard = self.hear().await;
        let text = String::from_utf8_lossy(&heard);
        assert!(heard != ACK && text.contains(why), "{why:?} is not in {text:?}");
    }

    /// Whatever comes next; nothing once the control thread has hung up.
    async fn hear(&self) -> Vec<u8> {
        match self.ear.receive().await {
            Ok(Received::Packet { packet, .. }) => packet,
            Ok(Received::Closed) | Err(_) => Vec::new(),
        }
    }

    /// Waits until the control thread has hung up.
    pub(crate) async fn hear_the_end(&self) {
        while !self.hear().await.is_empty() {}
    }
}
