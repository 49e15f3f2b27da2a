//! `ZdsSocket` over real sockets, with the test as the agent.

use std::{
    fs, io,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use inpod::{
    Netns,
    zds::{
        session::{Action, Session},
        socket::{ReceiveError, Received, ZdsSocket},
        wire,
    },
};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::{
    descriptors::{none_left_open, open},
    namespace,
    packets::{ACK, HELLO, SNAPSHOT, add, del, keep, nack_text},
};

/// Runs an async test that leaves no descriptor open, the runtime's included.
fn run(test: impl AsyncFnOnce() + Send) {
    none_left_open(|| {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(test());
    });
}

fn pair() -> (ZdsSocket, OwnedFd) {
    let (ours, agents) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (ZdsSocket::from_fd(ours).unwrap(), agents)
}

fn send(agent: &OwnedFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut room = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = rustix::net::sendmsg(agent, &[IoSlice::new(packet)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, packet.len());
}

fn hear(agent: &OwnedFd) -> Vec<u8> {
    let mut packet = vec![0; 1024];
    let (length, _) = rustix::net::recv(agent, &mut packet[..], RecvFlags::DONTWAIT).unwrap();
    packet.truncate(length);
    packet
}

fn null() -> OwnedFd {
    fs::File::open("/dev/null").unwrap().into()
}

#[test]
fn a_packet_arrives_with_its_descriptor_which_is_the_namespace_and_closed_on_exec() {
    run(async || {
        let (socket, agent) = pair();
        let netns = namespace::empty();
        send(&agent, &add("u"), &[netns.as_fd()]);
        let Received::Packet { packet, mut descriptors } = socket.receive().await.unwrap() else { panic!("closed") };
        assert_eq!(packet, add("u"));
        let fd = descriptors.remove(0);
        assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(Netns::from_fd(fd).unwrap().id(), netns.id());
        assert!(descriptors.is_empty());
    });
}

#[test]
fn packets_keep_their_boundaries_in_both_directions() {
    run(async || {
        let (socket, agent) = pair();
        for packet in [SNAPSHOT, &del("a"), &keep("b")] {
            send(&agent, packet, &[]);
        }
        for expected in [SNAPSHOT, &del("a"), &keep("b")] {
            let Received::Packet { packet, descriptors } = socket.receive().await.unwrap() else { panic!("closed") };
            assert_eq!((&packet[..], descriptors.len()), (expected, 0));
        }
        socket.send(HELLO).await.unwrap();
        socket.send(ACK).await.unwrap();
        assert_eq!([hear(&agent), hear(&agent)], [HELLO, ACK]);
    });
}

#[test]
fn a_receive_waits_for_its_packet_and_may_be_given_up() {
    run(async || {
        let (socket, agent) = pair();
        let mut waiting = Box::pin(socket.receive());
        let nothing = std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
        assert!(nothing, "no packet yet");
        send(&agent, SNAPSHOT, &[]);
        drop(waiting);
        assert!(matches!(socket.receive().await.unwrap(), Received::Packet { packet, .. } if packet == SNAPSHOT));
    });
}

#[test]
fn a_packet_of_exactly_the_limit_is_whole_and_one_more_byte_is_an_error() {
    run(async || {
        let (socket, agent) = pair();
        send(&agent, &[7; wire::PACKET_MAX], &[]);
        assert!(matches!(socket.receive().await.unwrap(), Received::Packet { packet, .. } if packet == [7; 1024]));
        let fd = null();
        let before = open();
        send(&agent, &[7; wire::PACKET_MAX + 1], &[fd.as_fd()]);
        let error = socket.receive().await.unwrap_err();
        assert!(matches!(error, ReceiveError::Cut) && error.is_of_packet(), "{error}");
        assert_eq!(open(), before, "its descriptor is closed");
        send(&agent, SNAPSHOT, &[]);
        assert!(socket.receive().await.is_ok(), "the next packet is not touched");
    });
}

#[test]
fn two_descriptors_are_both_received_and_five_are_an_error_that_leaves_none_open() {
    run(async || {
        let (socket, agent) = pair();
        let fd = null();
        let before = open();
        send(&agent, &add("u"), &[fd.as_fd(); 2]);
        let received = socket.receive().await.unwrap();
        assert!(matches!(&received, Received::Packet { descriptors, .. } if descriptors.len() == 2));
        assert_eq!(open().len(), before.len() + 2);
        drop(received);
        assert_eq!(open(), before);
        send(&agent, &add("u"), &[fd.as_fd(); 5]);
        let error = socket.receive().await.unwrap_err();
        assert!(matches!(error, ReceiveError::DescriptorsCut) && error.is_of_packet(), "{error}");
        assert_eq!(open(), before);
    });
}

#[test]
fn an_agent_that_hangs_up_is_noticed_by_either_side_of_the_talk() {
    run(async || {
        let (socket, agent) = pair();
        drop(agent);
        assert!(matches!(socket.receive().await, Ok(Received::Closed)));
        let error = socket.send(ACK).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn an_answer_that_the_agent_never_read_breaks_the_next_receive() {
    run(async || {
        let (socket, agent) = pair();
        socket.send(ACK).await.unwrap();
        drop(agent);
        match socket.receive().await {
            Err(ReceiveError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            other => panic!("{other:?}"),
        }
    });
}

fn agent_at(address: &SocketAddrUnix) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&listener, address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    listener
}

#[test]
fn it_connects_by_path_and_by_abstract_name() {
    run(async || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zds.sock");
        let name = format!("inpod-test-{}", path.display());
        let rows = [
            (path.to_str().unwrap().to_owned(), SocketAddrUnix::new(&path).unwrap()),
            (format!("@{name}"), SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()),
        ];
        for (address, unix) in rows {
            let listener = agent_at(&unix);
            let socket = ZdsSocket::connect(&address).unwrap();
            let agent = rustix::net::accept(&listener).unwrap();
            socket.send(HELLO).await.unwrap();
            assert_eq!(hear(&agent), HELLO, "{address}");
            send(&agent, SNAPSHOT, &[]);
            assert!(matches!(socket.receive().await.unwrap(), Received::Packet { .. }), "{address}");
        }
    });
}

#[test]
fn a_connect_that_fails_says_where_to_and_what_to_look_at() {
    run(async || {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        drop(agent_at(&SocketAddrUnix::new(path("dead")).unwrap()));
        let full = agent_at(&SocketAddrUnix::new(path("full")).unwrap());
        let _first = ZdsSocket::connect(&path("full")).unwrap();
        let rows = [
            (path("absent"), io::ErrorKind::NotFound),
            (path("dead"), io::ErrorKind::ConnectionRefused),
            (path("full"), io::ErrorKind::WouldBlock),
            (path(&"long".repeat(40)), io::Error::from_raw_os_error(libc::ENAMETOOLONG).kind()),
        ];
        for (address, kind) in rows {
            let error = ZdsSocket::connect(&address).unwrap_err();
            assert_eq!(error.source.kind(), kind, "{error}");
            assert!(error.to_string().contains(&address), "{error}");
            assert!(error.to_string().contains("is the node agent healthy?"), "{error}");
        }
        drop(full);
    });
}

/// Packets of a misbehaving agent, with their number of descriptors, through socket and session together.
#[test]
fn bad_packets_over_a_real_socket_are_nacked_and_leave_nothing_open() {
    let long = [7; 1500];
    let rows: &[(&str, &[u8], usize, &str)] = &[
        ("truncated", &add("u")[..7], 1, "no ZDS message"),
        ("no descriptor", &add("u"), 0, "no control message"),
        ("two descriptors", &add("u"), 2, "came with 2 descriptors"),
        ("five descriptors", &add("u"), 5, "a packet lost descriptors"),
        ("descriptor on a del", &del("u"), 1, "DelWorkload came with 1"),
        ("unknown payload", b"\x22\x00", 0, "nothing known"),
        ("too long", &long, 1, "more than 1024 bytes"),
        ("keep after the snapshot", &keep("u"), 0, "protocol error"),
        ("second snapshot", SNAPSHOT, 0, "protocol error"),
    ];
    for (row, packet, descriptors, why) in rows {
        run(async || {
            let (socket, agent) = pair();
            let fd = null();
            let mut session = Session::new();
            perform(&socket, session.on_connected()).await;
            assert_eq!(hear(&agent), HELLO, "{row}");
            let before = open();
            send(&agent, SNAPSHOT, &[]);
            assert!(!next(&socket, &mut session).await, "{row}");
            assert_eq!(hear(&agent), ACK, "{row}");
            send(&agent, packet, &vec![fd.as_fd(); *descriptors]);
            assert!(next(&socket, &mut session).await, "{row}: the connection ends");
            let said = nack_text(&hear(&agent)).unwrap_or_else(|| panic!("{row}: acked"));
            assert!(said.contains(why), "{row}: {said}");
            assert_eq!(open(), before, "{row}");
        });
    }
}

/// Takes the next packet to the session; true if the connection is to end.
async fn next(socket: &ZdsSocket, session: &mut Session) -> bool {
    let actions = match socket.receive().await {
        Ok(Received::Packet { packet, descriptors }) => session.on_packet(Instant::now(), &packet, descriptors),
        Err(error) if error.is_of_packet() => session.on_unreadable(error.to_string()),
        other => panic!("{other:?}"),
    };
    perform(socket, actions).await
}

async fn perform(socket: &ZdsSocket, actions: Vec<Action>) -> bool {
    let mut over = false;
    for action in actions {
        match action {
            Action::Send(packet) => socket.send(&packet).await.unwrap(),
            Action::Disconnect(_) | Action::Exit(_) => over = true,
            Action::StartPod(_) | Action::StopPod(_) => panic!("{action:?}"),
        }
    }
    over
}
