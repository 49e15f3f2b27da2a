//! The CNI node agent's half of ZDS (behaviour.md §2.1-2.2): a SOCK_SEQPACKET server that hands pods' namespaces to a
//! daemon, scripted by a test.
//!
//! It keeps the real agent's timings, and can also say what a real agent never would. Written from the wire contract,
//! not from `inpod`, so that the two check each other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::namespace::Namespace;

/// What the daemon has for its hello, and for each answer.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// An idle connection is looked at this often ...
const IDLE_PROBE_EVERY: Duration = Duration::from_secs(5);
/// ... for this long. Anything the daemon says then is a protocol error.
const IDLE_PROBE: Duration = Duration::from_millis(10);
/// Five connections a second are accepted.
const ACCEPT_EVERY: Duration = Duration::from_millis(200);
const PACKET_BYTES_MAX: usize = 1024;
/// Connections remembered; an upgrade has two.
const CONNECTIONS_MAX: usize = 16;

/// `ZdsHello { version: V1 }`.
const HELLO: [u8; 2] = [0x08, 0x01];

/// A pod as the agent announces it.
#[derive(Clone, Debug)]
pub struct PodRecord {
    /// Name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Its network namespace; none makes the agent send a Keep in a snapshot.
    pub netns: Option<Namespace>,
}

/// A daemon's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Taken.
    Ack,
    /// Refused, with the daemon's words.
    Nack(String),
    /// It closed the connection instead.
    Closed,
    /// Nothing within [`ANSWER_PATIENCE`].
    Silence,
}

/// A listening agent.
pub struct ZdsAgent {
    path: PathBuf,
    shared: Arc<Shared>,
    listening: Option<Listening>,
}

struct Listening {
    socket: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, PodRecord>,
    /// Oldest first.
    connections: Vec<Connection>,
    accepted: usize,
    /// What went wrong on any connection, for a failing test to print.
    complaints: Vec<String>,
    refused_in_snapshot: Vec<String>,
}

struct Connection {
    number: usize,
    commands: mpsc::Sender<Command>,
    in_sync: bool,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Send { packet: Vec<u8>, fds: Vec<OwnedFd>, answer: mpsc::Sender<Answer> },
    Close,
}

impl ZdsAgent {
    /// Listens at `path`.
    ///
    /// # Errors
    /// When the socket can't be made there.
    pub fn start(path: &Path) -> Result<Self> {
        let mut agent = Self { path: path.to_owned(), shared: Arc::default(), listening: None };
        agent.listen()?;
        Ok(agent)
    }

    /// Makes a pod known and, once a daemon is connected and in sync, awaits its answer.
    ///
    /// # Errors
    /// When no daemon is there within `patience`, or it refuses or is silent.
    pub fn add_pod(&self, uid: &str, pod: PodRecord, patience: Duration) -> Result<()> {
        let packet = add_packet(uid, &pod);
        let netns = pod.netns.clone().context("a pod is added with its namespace")?;
        self.shared.state().pods.insert(uid.to_owned(), pod);
        match self.request(&packet, &[netns.fd()], patience)? {
            Answer::Ack => Ok(()),
            other => bail!("the daemon answered the Add of pod {uid} with {other:?}"),
        }
    }

    /// Makes a pod known to the snapshots of later connections only.
    pub fn register_pod(&self, uid: &str, pod: PodRecord) {
        self.shared.state().pods.insert(uid.to_owned(), pod);
    }

    /// Forgets a pod's namespace, so that the next snapshot says Keep.
    pub fn forget_netns(&self, uid: &str) {
        if let Some(pod) = self.shared.state().pods.get_mut(uid) {
            pod.netns = None;
        }
    }

    /// Forgets a pod without a word, so that the next snapshot doesn't name it.
    pub fn forget_pod(&self, uid: &str) {
        self.shared.state().pods.remove(uid);
    }

    /// Forgets a pod and tells every connected daemon. True when at least one acknowledged.
    ///
    /// # Errors
    /// When a daemon refuses or is silent.
    pub fn del_pod(&self, uid: &str) -> Result<bool> {
        self.shared.state().pods.remove(uid);
        let numbers: Vec<usize> = self.shared.state().connections.iter().map(|connection| connection.number).collect();
        let mut acknowledged = false;
        for number in numbers {
            match self.request_on(number, &del_packet(uid), &[])? {
                Answer::Ack => acknowledged = true,
                // A daemon of before an upgrade that has gone by now.
                Answer::Closed => {}
                other => bail!("the daemon answered the Del of pod {uid} with {other:?}"),
            }
        }
        Ok(acknowledged)
    }

    /// Sends any bytes with any descriptors to the most recently connected daemon and returns what it does.
    ///
    /// # Errors
    /// When none is there within `patience`, or a descriptor can't be duplicated.
    pub fn request(&self, packet: &[u8], fds: &[BorrowedFd<'_>], patience: Duration) -> Result<Answer> {
        let number = self.await_in_sync(patience)?;
        self.request_on(number, packet, fds)
    }

    /// Waits until a daemon is connected and has answered the whole snapshot; tells which connection since the agent's
    /// start that is.
    ///
    /// # Errors
    /// When none is within `patience`.
    pub fn await_in_sync(&self, patience: Duration) -> Result<usize> {
        self.await_connection(patience, 0)
    }

    /// Like [`Self::await_in_sync`], for a connection younger than `number`.
    ///
    /// # Errors
    /// When none is within `patience`.
    pub fn await_newer_than(&self, number: usize, patience: Duration) -> Result<usize> {
        self.await_connection(patience, number + 1)
    }

    /// Drops every connection and the listener, as a crash of the agent does. Pods stay known.
    pub fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            // On Linux this wakes a blocked accept.
            let _ = rustix::net::shutdown(&*listening.socket, rustix::net::Shutdown::Both);
            let _ = listening.thread.join();
            let _ = fs::remove_file(&self.path);
        }
        let connections = std::mem::take(&mut self.shared.state().connections);
        for mut connection in connections {
            let _ = connection.commands.send(Command::Close);
            if let Some(thread) = connection.thread.take() {
                let _ = thread.join();
            }
        }
    }

    /// Stops and listens again.
    ///
    /// # Errors
    /// When the socket can't be made again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.listen()
    }

    /// Connections accepted since the agent was made.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// What daemons refused in snapshots, as `uid: words`.
    #[must_use]
    pub fn refused_in_snapshot(&self) -> Vec<String> {
        self.shared.state().refused_in_snapshot.clone()
    }

    /// Protocol errors of daemons so far.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().complaints.clone()
    }

    fn listen(&mut self) -> Result<()> {
        let _ = fs::remove_file(&self.path);
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&self.path)?)
            .with_context(|| format!("bind {}", self.path.display()))?;
        rustix::net::listen(&socket, 16)?;
        let socket = Arc::new(socket);
        let (there, shared) = (socket.clone(), self.shared.clone());
        let thread = thread::Builder::new().name("zds-accept".into()).spawn(move || accept(&there, &shared))?;
        self.listening = Some(Listening { socket, thread });
        Ok(())
    }

    fn await_connection(&self, patience: Duration, at_least: usize) -> Result<usize> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            if let Some(connection) =
                state.connections.last().filter(|connection| connection.in_sync && connection.number >= at_least)
            {
                return Ok(connection.number);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "no daemon in sync with the agent at {} within {patience:?} ({} connections so far, complaints: {:?})",
                self.path.display(),
                state.accepted,
                state.complaints
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poison| poison.into_inner().0, |(state, _)| state);
        }
    }

    fn request_on(&self, number: usize, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<_>>>()?;
        let (answer, answered) = mpsc::channel();
        let command = Command::Send { packet: packet.to_owned(), fds, answer };
        let sent = match self.shared.state().connections.iter().find(|connection| connection.number == number) {
            Some(connection) => connection.commands.send(command).is_ok(),
            None => false,
        };
        if !sent {
            return Ok(Answer::Closed);
        }
        // A connection that ends drops the sender, and with it the wait.
        Ok(answered.recv().unwrap_or(Answer::Closed))
    }
}

impl Drop for ZdsAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `WorkloadRequest { add: AddWorkload { uid, workload_info } }`.
#[must_use]
pub fn add_packet(uid: &str, pod: &PodRecord) -> Vec<u8> {
    let info =
        [field(1, pod.name.as_bytes()), field(2, pod.namespace.as_bytes()), field(3, pod.service_account.as_bytes())]
            .concat();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

/// `WorkloadRequest { del: DelWorkload { uid } }`; the uid is field 2 here.
#[must_use]
pub fn del_packet(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

/// `WorkloadRequest { keep: KeepWorkload { uid } }`.
#[must_use]
pub fn keep_packet(uid: &str) -> Vec<u8> {
    field(5, &field(1, uid.as_bytes()))
}

/// `WorkloadRequest { snapshot_sent: {} }`.
#[must_use]
pub fn snapshot_packet() -> Vec<u8> {
    field(3, &[])
}

/// A length-delimited protobuf field.
#[must_use]
pub fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}

fn accept(socket: &OwnedFd, shared: &Arc<Shared>) {
    let mut next_accept = Instant::now();
    while let Ok(stream) = rustix::net::accept_with(socket, SocketFlags::CLOEXEC) {
        thread::sleep(next_accept.saturating_duration_since(Instant::now()));
        next_accept = Instant::now() + ACCEPT_EVERY;
        let mut state = shared.state();
        state.accepted += 1;
        let number = state.accepted;
        let (commands, orders) = mpsc::channel();
        let shared_there = shared.clone();
        let Ok(thread) = thread::Builder::new()
            .name("zds-peer".into())
            .spawn(move || serve(&stream, number, &orders, &shared_there))
        else {
            continue;
        };
        state.connections.push(Connection { number, commands, in_sync: false, thread: Some(thread) });
        if state.connections.len() > CONNECTIONS_MAX {
            state.connections.remove(0);
        }
    }
}

fn serve(stream: &OwnedFd, number: usize, orders: &mpsc::Receiver<Command>, shared: &Shared) {
    let result = converse(stream, number, orders, shared);
    let mut state = shared.state();
    if let Err(error) = result {
        state.complaints.push(format!("connection {number}: {error:#}"));
    }
    state.connections.retain(|connection| connection.number != number);
    drop(state);
    shared.changed.notify_all();
}

fn converse(stream: &OwnedFd, number: usize, orders: &mpsc::Receiver<Command>, shared: &Shared) -> Result<()> {
    match receive(stream, ANSWER_PATIENCE)? {
        Received::Packet(packet) if packet == HELLO => {}
        other => bail!("expected a hello, got {other:?}"),
    }
    let snapshot: Vec<(String, PodRecord)> =
        shared.state().pods.iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
    for (uid, pod) in snapshot {
        let answer = match &pod.netns {
            Some(netns) => exchange(stream, &add_packet(&uid, &pod), &[netns.fd()])?,
            None => exchange(stream, &keep_packet(&uid), &[])?,
        };
        match answer {
            Answer::Ack => {}
            Answer::Nack(words) => shared.state().refused_in_snapshot.push(format!("{uid}: {words}")),
            Answer::Closed | Answer::Silence => bail!("in the snapshot pod {uid} was answered with {answer:?}"),
        }
    }
    let answer = exchange(stream, &snapshot_packet(), &[])?;
    ensure!(answer == Answer::Ack, "SnapshotSent was answered with {answer:?}");
    if let Some(connection) = shared.state().connections.iter_mut().find(|connection| connection.number == number) {
        connection.in_sync = true;
    }
    shared.changed.notify_all();
    loop {
        match orders.recv_timeout(IDLE_PROBE_EVERY) {
            Ok(Command::Send { packet, fds, answer }) => {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                let outcome = exchange(stream, &packet, &fds)?;
                let closed = outcome == Answer::Closed;
                if closed {
                    // Out of the list before the test hears of it, so that it can wait for the next connection.
                    shared.state().connections.retain(|connection| connection.number != number);
                }
                let _ = answer.send(outcome);
                if closed {
                    return Ok(());
                }
            }
            Ok(Command::Close) | Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => match receive(stream, IDLE_PROBE)? {
                Received::Silence => {}
                Received::Closed => return Ok(()),
                Received::Packet(packet) => bail!("the daemon spoke unasked: {packet:02x?}"),
            },
        }
    }
}

#[derive(Debug)]
enum Received {
    Packet(Vec<u8>),
    Closed,
    Silence,
}

fn exchange(stream: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer> {
    match send(stream, packet, fds) {
        Ok(()) => {}
        Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Ok(Answer::Closed),
        Err(error) => return Err(error).context("send to the daemon"),
    }
    match receive(stream, ANSWER_PATIENCE)? {
        Received::Packet(packet) => parse_answer(&packet),
        Received::Closed => Ok(Answer::Closed),
        Received::Silence => Ok(Answer::Silence),
    }
}

fn send(stream: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the control buffer has room for 8 descriptors");
    }
    rustix::net::sockopt::set_socket_timeout(stream, rustix::net::sockopt::Timeout::Send, Some(ANSWER_PATIENCE))?;
    rustix::net::sendmsg(stream, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

fn receive(stream: &OwnedFd, patience: Duration) -> Result<Received> {
    rustix::net::sockopt::set_socket_timeout(stream, rustix::net::sockopt::Timeout::Recv, Some(patience))?;
    let mut buffer = [0; PACKET_BYTES_MAX];
    match rustix::net::recv(stream, &mut buffer, RecvFlags::TRUNC) {
        Ok((0, _)) | Err(Errno::CONNRESET) => Ok(Received::Closed),
        Ok((length, sent)) => {
            ensure!(sent <= buffer.len(), "the daemon sent {sent} bytes, of which an agent reads {PACKET_BYTES_MAX}");
            Ok(Received::Packet(buffer[..length].to_vec()))
        }
        Err(Errno::AGAIN) => Ok(Received::Silence),
        Err(error) => Err(error).context("receive from the daemon"),
    }
}

/// `WorkloadResponse { ack: Ack { error } }`.
fn parse_answer(packet: &[u8]) -> Result<Answer> {
    let broken = || anyhow!("not a WorkloadResponse: {packet:02x?}");
    let ack = delimited(packet, 1).ok_or_else(broken)?;
    if ack.is_empty() {
        return Ok(Answer::Ack);
    }
    let words = delimited(ack, 1).ok_or_else(broken)?;
    Ok(Answer::Nack(String::from_utf8_lossy(words).into_owned()))
}

/// The content of `bytes` if they are exactly one length-delimited field of that number.
fn delimited(bytes: &[u8], number: u8) -> Option<&[u8]> {
    let (&tag, mut rest) = bytes.split_first()?;
    let mut length = 0_usize;
    let mut shift = 0;
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
        if shift > 21 {
            return None;
        }
    }
    (tag == number << 3 | 2 && rest.len() == length).then_some(rest)
}

#[cfg(test)]
mod tests {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};
    use std::io::IoSliceMut;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn record(netns: Option<&Namespace>) -> PodRecord {
        PodRecord { name: "p".into(), namespace: "n".into(), service_account: "s".into(), netns: netns.cloned() }
    }

    /// A daemon's half, by hand.
    struct FakeDaemon(OwnedFd);

    impl FakeDaemon {
        fn connect(path: &Path) -> Self {
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                    .unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
            rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
                .unwrap();
            send(&socket, &HELLO, &[]).unwrap();
            Self(socket)
        }

        fn receive(&self) -> (Vec<u8>, usize) {
            let mut bytes = [0; PACKET_BYTES_MAX];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let message = rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .unwrap();
            let fds = control
                .drain()
                .map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => fds.count(),
                    _ => 0,
                })
                .sum();
            (bytes[..message.bytes].to_vec(), fds)
        }

        fn expect(&self, packet: &[u8], fds: usize, answer: &[u8]) {
            let (got, got_fds) = self.receive();
            assert_eq!((got.as_slice(), got_fds), (packet, fds));
            send(&self.0, answer, &[]).unwrap();
        }
    }

    fn agent() -> (tempfile::TempDir, ZdsAgent) {
        let directory = tempfile::tempdir().unwrap();
        let agent = ZdsAgent::start(&directory.path().join("zds.sock")).unwrap();
        (directory, agent)
    }

    #[test]
    fn packets_are_the_bytes_of_the_wire_contract() {
        assert_eq!(
            add_packet("u", &record(None)),
            [0x0a, 14, 0x0a, 1, b'u', 0x12, 9, 0x0a, 1, b'p', 0x12, 1, b'n', 0x1a, 1, b's']
        );
        assert_eq!(del_packet("u"), [0x12, 3, 0x12, 1, b'u']);
        assert_eq!(keep_packet("u"), [0x2a, 3, 0x0a, 1, b'u']);
        assert_eq!(snapshot_packet(), [0x1a, 0]);
        assert_eq!(parse_answer(&[0x0a, 0]).unwrap(), Answer::Ack);
        assert_eq!(parse_answer(&[0x0a, 3, 0x0a, 1, b'x']).unwrap(), Answer::Nack("x".into()));
        assert!(parse_answer(&[0x0a]).is_err());
    }

    #[test]
    fn a_snapshot_an_add_and_a_del_are_answered_in_order() {
        let (_directory, agent) = agent();
        let netns = Namespace::create("pod").unwrap();
        agent.register_pod("known", record(Some(&netns)));
        agent.register_pod("lost", record(None));
        let daemon = FakeDaemon::connect(&agent.path);
        daemon.expect(&add_packet("known", &record(None)), 1, &[0x0a, 0]);
        daemon.expect(&keep_packet("lost"), 0, &[0x0a, 3, 0x0a, 1, b'?']);
        daemon.expect(&snapshot_packet(), 0, &[0x0a, 0]);
        thread::scope(|scope| {
            scope.spawn(|| {
                daemon.expect(&add_packet("new", &record(None)), 1, &[0x0a, 0]);
                daemon.expect(&del_packet("new"), 0, &[0x0a, 0]);
            });
            agent.add_pod("new", record(Some(&netns)), PATIENCE).unwrap();
            assert!(agent.del_pod("new").unwrap());
        });
        assert_eq!(agent.refused_in_snapshot(), ["lost: ?"]);
    }

    #[test]
    fn a_restart_closes_and_the_next_connection_gets_a_new_snapshot() {
        let (_directory, mut agent) = agent();
        let daemon = FakeDaemon::connect(&agent.path);
        daemon.expect(&snapshot_packet(), 0, &[0x0a, 0]);
        let first = agent.await_in_sync(PATIENCE).unwrap();
        agent.restart().unwrap();
        assert_eq!(daemon.receive(), (vec![], 0), "the connection outlived the restart");
        let daemon = FakeDaemon::connect(&agent.path);
        daemon.expect(&snapshot_packet(), 0, &[0x0a, 0]);
        assert!(agent.await_newer_than(first, PATIENCE).unwrap() > first);
    }

    #[test]
    fn a_daemon_that_closes_instead_of_answering_is_told_from_one_that_refuses() {
        let (_directory, agent) = agent();
        let daemon = FakeDaemon::connect(&agent.path);
        daemon.expect(&snapshot_packet(), 0, &[0x0a, 0]);
        let number = agent.await_in_sync(PATIENCE).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                daemon.expect(&[0xff], 0, &[0x0a, 4, 0x0a, 2, b'n', b'o']);
                daemon.receive();
            });
            assert_eq!(agent.request(&[0xff], &[], PATIENCE).unwrap(), Answer::Nack("no".into()));
            assert_eq!(agent.request_on(number, &[0xff], &[]).unwrap(), Answer::Closed);
        });
    }
}
