//! What the data plane relies on of its runtime, asked of all three alike: a core on io_uring, a core on epoll, and the
//! simulation.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    pin::pin,
    sync::mpsc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Either, join, select},
};
use reactor::{Chunk, CoreConfig, EngineChoice, Listener, Reactor, Runtime, Spliced, Stream, TenantKey};
use socket2::{Domain, Protocol, Socket, Type};
use testbed::sim::{SimRuntime, SimSocket, Weather};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TENANT: TenantKey = TenantKey(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime, and the sockets that it takes.
trait Site: Clone + 'static {
    type Runtime: Runtime;
    fn runtime(&self) -> &Self::Runtime;
    /// A socket that listens, and how it is reached.
    fn listening(&self) -> (<Self::Runtime as Runtime>::Socket, SocketAddr);
    fn connecting(&self) -> <Self::Runtime as Runtime>::Socket;
}

type StreamOf<S> = <<S as Site>::Runtime as Runtime>::Stream;

impl Site for Reactor {
    type Runtime = Self;

    fn runtime(&self) -> &Self {
        self
    }

    fn listening(&self) -> (std::os::fd::OwnedFd, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        (listener.into(), address)
    }

    fn connecting(&self) -> std::os::fd::OwnedFd {
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket").into()
    }
}

#[derive(Clone)]
struct Simulated(SimRuntime);

impl Site for Simulated {
    type Runtime = SimRuntime;

    fn runtime(&self) -> &SimRuntime {
        &self.0
    }

    fn listening(&self) -> (SimSocket, SocketAddr) {
        // Ports are free again when their listener is gone, and a draw seldom meets one that is not.
        let port = u16::try_from(1_024 + self.0.draw() % 30_000).expect("it is below 2^16");
        let host = IpAddr::from([10, 0, 0, 2]);
        (SimSocket::listening(host, port), SocketAddr::new(host, port))
    }

    fn connecting(&self) -> SimSocket {
        SimSocket::from(IpAddr::from([10, 0, 0, 1]))
    }
}

/// Asks each runtime.
macro_rules! of_each_runtime {
    ($($fact:ident),* $(,)?) => {$(
        #[test]
        fn $fact() {
            for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
                let (tell, told) = mpsc::channel();
                let config = CoreConfig { name: format!("{engine:?}"), engine, ..CoreConfig::default() };
                let core = reactor::start(config, move |reactor| async move {
                    let ended = reactor.spawn(TENANT, facts::$fact(reactor.clone())).await;
                    tell.send(ended).expect("the test waits");
                });
                let ended = told.recv_timeout(PATIENCE).expect("it hangs");
                core.expect("the core starts").join();
                ended.unwrap_or_else(|error| panic!("{engine:?}: {error}"));
            }
            for seed in 0..8 {
                let world = SimRuntime::new(seed, Weather::default());
                let asked = world.spawn(TENANT, facts::$fact(Simulated(world.clone())));
                let ended = world.block_on(asked).unwrap_or_else(|stalled| panic!("{stalled}"));
                ended.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
        }
    )*};
}

of_each_runtime!(
    a_direction_that_has_ended_leaves_the_other_open,
    a_receive_brings_at_most_its_room_and_loses_nothing_when_it_is_dropped,
    an_accept_that_is_dropped_loses_no_connection,
    a_drop_is_an_end_and_a_drop_after_reset_on_drop_is_none,
    a_send_that_is_given_up_tears_the_stream,
    a_splice_moves_everything_and_then_tells_the_end,
    a_splice_tells_whose_end_broke,
    a_connection_to_nobody_is_refused,
    both_ends_know_each_others_addresses,
    the_adapter_carries_what_the_stream_did,
    a_sleep_never_ends_early,
);

async fn pair<S: Site>(site: &S) -> (StreamOf<S>, StreamOf<S>) {
    let (socket, address) = site.listening();
    let listener = site.runtime().listen(socket).expect("it listens");
    let client = site.runtime().connect(site.connecting(), address, PATIENCE).await.expect("it connects");
    (client, listener.accept().await.expect("it accepts"))
}

fn data(length: usize) -> Bytes {
    (0..length).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

async fn read_all(stream: &impl Stream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let lease = stream.receive(10_000).await?;
        if lease.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&lease);
    }
}

async fn read_exactly(stream: &impl Stream, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        let lease = stream.receive(count - all.len()).await.unwrap();
        assert!(!lease.is_empty(), "an end after {} bytes", all.len());
        all.extend_from_slice(&lease);
    }
    all
}

async fn send(stream: &impl Stream, bytes: Bytes) -> io::Result<()> {
    stream.send(Chunk::from(bytes)).await
}

mod facts {
    use super::*;

    pub(super) async fn a_direction_that_has_ended_leaves_the_other_open(site: impl Site) {
        let (client, server) = pair(&site).await;
        send(&client, data(50_000)).await.unwrap();
        client.shutdown_write().unwrap();
        assert!(read_all(&server).await.unwrap() == data(50_000));
        assert!(server.receive(1).await.unwrap().is_empty(), "the end stays one");
        send(&server, data(9)).await.unwrap();
        drop(server);
        assert!(read_all(&client).await.unwrap() == data(9));
    }

    pub(super) async fn a_receive_brings_at_most_its_room_and_loses_nothing_when_it_is_dropped(site: impl Site) {
        let (client, server) = pair(&site).await;
        let sending = async {
            send(&client, data(300_000)).await.unwrap();
            client.shutdown_write().unwrap();
        };
        let receiving = async {
            let mut all = Vec::new();
            for room in [1, 4_000, 70_000].into_iter().cycle() {
                // Simulated time passes only while nobody runs, so the one who gives up has to sleep.
                let pause = site.runtime().sleep(Duration::from_micros(100));
                match select(pin!(server.receive(room)), pin!(pause)).await {
                    Either::Left((lease, _)) => {
                        let lease = lease.unwrap();
                        assert!(lease.len() <= room);
                        if lease.is_empty() {
                            return all;
                        }
                        all.extend_from_slice(&lease);
                    }
                    Either::Right(_dropped) => {}
                }
            }
            unreachable!("the cycle has no end");
        };
        let ((), all) = join(sending, receiving).await;
        assert!(all == data(300_000));
    }

    pub(super) async fn an_accept_that_is_dropped_loses_no_connection(site: impl Site) {
        let (socket, address) = site.listening();
        let listener = site.runtime().listen(socket).unwrap();
        for _ in 0..20 {
            assert!(listener.accept().now_or_never().is_none());
            let connecting = site.runtime().connect(site.connecting(), address, PATIENCE);
            let (client, server) = join(connecting, listener.accept()).await;
            let (client, server) = (client.unwrap(), server.unwrap());
            assert_eq!(client.local_addr().unwrap(), server.peer_addr().unwrap());
        }
    }

    pub(super) async fn a_drop_is_an_end_and_a_drop_after_reset_on_drop_is_none(site: impl Site) {
        for reset in [false, true] {
            let (client, server) = pair(&site).await;
            send(&server, data(5)).await.unwrap();
            assert!(read_exactly(&client, 5).await == data(5));
            assert!(server.receive(5).now_or_never().is_none());
            if reset {
                server.reset_on_drop();
            }
            drop(server);
            match read_all(&client).await {
                Ok(rest) => assert!(!reset && rest.is_empty()),
                Err(error) => assert!(reset && error.kind() == io::ErrorKind::ConnectionReset, "{error}"),
            }
        }
    }

    pub(super) async fn a_send_that_is_given_up_tears_the_stream(site: impl Site) {
        let (client, server) = pair(&site).await;
        let flood = send(&client, data(32 << 20));
        let pause = site.runtime().sleep(Duration::from_millis(20));
        let given_up = matches!(select(pin!(flood), pin!(pause)).await, Either::Right(_));
        assert!(given_up, "nobody reads");
        assert_eq!(send(&client, data(1)).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(client.shutdown_write().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(client);
        assert_eq!(read_all(&server).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    pub(super) async fn a_splice_moves_everything_and_then_tells_the_end(site: impl Site) {
        let (near, source) = pair(&site).await;
        let (sink, far) = pair(&site).await;
        let sending = site.runtime().spawn(TENANT, async move {
            send(&near, data(600_000)).await.unwrap();
            near.shutdown_write().unwrap();
            near
        });
        let reading = site.runtime().spawn(TENANT, async move { read_all(&far).await.unwrap() });
        // It begins where a receive ended.
        let first = source.receive(1_000).await.unwrap();
        let mut moved = first.len();
        sink.send(Chunk::from(first)).await.unwrap();
        loop {
            match source.splice_to(&sink).await {
                Spliced::Moved(bytes) => moved += bytes,
                Spliced::End => break,
                other => panic!("{other:?}"),
            }
        }
        sink.shutdown_write().unwrap();
        assert_eq!(moved, 600_000);
        assert!(reading.await.unwrap() == data(600_000));
        drop(sending.await.unwrap());
    }

    pub(super) async fn a_splice_tells_whose_end_broke(site: impl Site) {
        let (near, source) = pair(&site).await;
        let (sink, far) = pair(&site).await;
        near.reset_on_drop();
        drop(near);
        assert!(matches!(source.splice_to(&sink).await, Spliced::SourceBroke(_)));
        send(&sink, data(3)).await.unwrap();
        assert!(read_exactly(&far, 3).await == data(3));

        let (near, source) = pair(&site).await;
        far.reset_on_drop();
        drop(far);
        loop {
            send(&near, data(1_000)).await.unwrap();
            match source.splice_to(&sink).await {
                // The reset is still on its way.
                Spliced::Moved(_) => {}
                Spliced::SinkBroke(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(sink.shutdown_write().is_err(), "it is torn");
    }

    pub(super) async fn a_connection_to_nobody_is_refused(site: impl Site) {
        let (socket, address) = site.listening();
        drop(site.runtime().listen(socket).unwrap());
        let refused = site.runtime().connect(site.connecting(), address, PATIENCE).await;
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }

    pub(super) async fn both_ends_know_each_others_addresses(site: impl Site) {
        let (client, server) = pair(&site).await;
        assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
        assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
        assert_eq!(server.original_dst().unwrap(), server.local_addr().unwrap());
    }

    pub(super) async fn the_adapter_carries_what_the_stream_did(site: impl Site) {
        let (client, server) = pair(&site).await;
        assert!(server.receive(10).now_or_never().is_none());
        let (mut client, mut server) = (client.into_io(), server.into_io());
        let sending = async {
            client.write_all(&data(200_000)).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answering = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            server.write_all(b"thanks").await.unwrap();
            server.shutdown().await.unwrap();
            got
        };
        let (answer, got) = join(sending, answering).await;
        assert!(got == data(200_000) && answer == b"thanks");
    }

    pub(super) async fn a_sleep_never_ends_early(site: impl Site) {
        let runtime = site.runtime();
        for duration in [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(3)] {
            let deadline = runtime.now() + duration;
            runtime.sleep_until(deadline).await;
            assert!(runtime.now() >= deadline, "{duration:?}");
        }
    }
}
