//! Handshakes beside another tenant. A flight of one (a signature and its checks) is the longest thing that the data plane does
//! without a pause, many times a slice; so a tenant gets one of them a turn, however many it has to do.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::ca::embedded::EmbeddedCa;
use hbone::credential::Credential;
use mesh_state::identity::Identity;
use reactor::{CoreConfig, CoreView, EngineChoice, Listener, Reactor, Runtime, Stream, TenantKey};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

const STORM: TenantKey = TenantKey(1);
const QUIET: TenantKey = TenantKey(2);
/// Handshakes under way at once.
const AT_ONCE: usize = 16;
/// Long polls that make a result.
const FLIGHTS: usize = 200;
const SLICE: Duration = Duration::from_micros(50);

/// The turn of each poll of the storm's that took longer than [`SLICE`]: how many had ended when it did.
type Flights = RefCell<Vec<u64>>;

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).expect("since the thread began"),
        u32::try_from(now.tv_nsec).expect("below 1e9"),
    )
}

/// Runs `future`, and notes its polls that are flights.
async fn noting<T>(core: CoreView, flights: &Flights, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|context| {
        let began = thread_cpu();
        let outcome = Pin::new(&mut future).poll(context);
        if thread_cpu() - began > SLICE {
            flights.borrow_mut().push(core.decisions().last().map_or(0, |turn| turn.serial));
        }
        outcome
    })
    .await
}

/// One handshake, each end of it in a task of its own.
async fn shake(
    reactor: &Reactor,
    listener: &impl Listener,
    to: SocketAddr,
    (by, own): (&Credential, &Identity),
    flights: &Rc<Flights>,
) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    let near = reactor.connect(socket.into(), to, Duration::from_secs(60)).await.expect("it connects").into_io();
    let far = listener.accept().await.expect("it accepts").into_io();
    let (connector, acceptor) = (by.connector(std::slice::from_ref(own)), by.acceptor());
    let (core, seen) = (reactor.view(), flights.clone());
    let accepting = reactor.spawn(STORM, async move { noting(core, &seen, acceptor.accept(far)).await.map(drop) });
    let connected = noting(reactor.view(), flights, connector.connect(near)).await;
    connected.map(drop).expect("they know each other");
    accepting.await.expect("it runs").expect("they know each other");
}

/// The most flights of a storm of handshakes in one turn, beside a tenant that always waits for its own.
fn flights_in_a_turn(engine: EngineChoice, slice: Duration) -> usize {
    let directory = tempfile::tempdir().expect("a directory");
    let now = time::OffsetDateTime::now_utc();
    let ca = EmbeddedCa::open(&directory.path().join("root.pem"), Duration::from_secs(3_600), now).expect("a CA");
    let own = Identity::new("cluster.local", "retail", "web").expect("a good identity");
    let credential = Arc::new(ca.issue(&own, now).expect("issued"));
    let (flights_out, flights_in) = std::sync::mpsc::channel();
    let config = CoreConfig { engine, slice, ..CoreConfig::default() };
    let core = reactor::start(config, move |reactor| async move {
        let flights = Rc::new(Flights::default());
        let mut tasks = Vec::new();
        for _ in 0..AT_ONCE {
            let (inside, flights, credential, own) =
                (reactor.clone(), flights.clone(), credential.clone(), own.clone());
            tasks.push(reactor.spawn::<()>(STORM, async move {
                let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
                let to = listening.local_addr().expect("it is bound");
                let listener = inside.listen(listening.into()).expect("it listens");
                loop {
                    shake(&inside, &listener, to, (&credential, &own), &flights).await;
                }
            }));
        }
        let inside = reactor.clone();
        tasks.push(reactor.spawn::<()>(QUIET, async move {
            loop {
                inside.yield_now().await;
            }
        }));
        while flights.borrow().len() < FLIGHTS {
            reactor.sleep(Duration::from_millis(5)).await;
        }
        flights_out.send(flights.take()).expect("somebody waits");
        for task in tasks {
            task.cancel().await;
        }
    });
    let core = core.expect("a core");
    let flights = flights_in.recv_timeout(Duration::from_secs(120)).expect("in time");
    core.join();
    flights.chunk_by(|one, next| one == next).map(<[_]>::len).max().unwrap_or(0)
}

#[test]
fn a_tenant_gets_one_flight_of_a_handshake_a_turn_while_another_waits() {
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        assert_eq!(flights_in_a_turn(engine, SLICE), 1, "{engine:?}");
    }
    // The control: with turns that are long enough for several.
    assert!(flights_in_a_turn(EngineChoice::Auto, Duration::from_millis(50)) > 1);
}
