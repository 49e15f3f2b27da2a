//! Runs a test's body as a task of a core, and makes the sockets it needs. What hangs fails after a minute.

#![expect(dead_code, reason = "each test binary uses a part of it")]

use std::{
    cell::Cell,
    future::Future,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    sync::mpsc,
    time::{Duration, Instant},
};

use reactor::{CoreConfig, EngineChoice, Reactor, Runtime, TcpListener, TcpStream, TenantKey};
use socket2::{Domain, Protocol, Socket, Type};

/// What a test waits at most for something that is to happen. Nothing waits for time to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The tenant of a test's body.
pub(crate) const BODY: TenantKey = TenantKey(1);

thread_local! {
    static ENGINE: Cell<EngineChoice> = const { Cell::new(EngineChoice::Auto) };
}

/// Runs a test once on each engine; the cores of its panics are named after it.
pub(crate) fn on_each_engine(test: impl Fn()) {
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        ENGINE.set(engine);
        test();
    }
}

/// The default on the engine that is being tested.
pub(crate) fn config() -> CoreConfig {
    let engine = ENGINE.get();
    CoreConfig { name: format!("{engine:?}"), engine, ..CoreConfig::default() }
}

/// A core that only wakes by what it is woken for: a lost wake hangs, and that fails the test.
pub(crate) fn deep_sleeper() -> CoreConfig {
    CoreConfig { park_max: Duration::from_secs(3600), ..config() }
}

/// Runs `body` on a core of its own and hands out its result.
pub(crate) fn on_core<T, F, Fut>(config: CoreConfig, body: F) -> T
where
    T: Send + 'static,
    F: FnOnce(Reactor) -> Fut + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let (tell, told) = mpsc::channel();
    let core = reactor::start(config, move |reactor| async move {
        let outcome = reactor.spawn(BODY, body(reactor.clone())).await;
        tell.send(outcome).expect("the test waits");
    })
    .expect("the core starts");
    let outcome = told.recv_timeout(PATIENCE).expect("the core hung");
    core.join();
    outcome.expect("the body ran to its end (its panic is above)")
}

/// A socket to connect.
pub(crate) fn unconnected() -> OwnedFd {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket").into()
}

/// A listening socket on a free port of 127.0.0.1.
pub(crate) fn listening() -> (StdListener, SocketAddr) {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// An address whose host answers nothing: a listener whose queue is full drops what asks to connect. What has to stay
/// open for that comes with it.
pub(crate) fn silent() -> (SocketAddr, impl Sized) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queued.push(stream);
    }
    (address, (listener, queued))
}

/// A listener of the core.
pub(crate) fn listen(reactor: &Reactor) -> (TcpListener, SocketAddr) {
    let (listener, address) = listening();
    (reactor.listen(listener.into()).expect("it listens"), address)
}

/// Both ends of a connection, both on this core.
pub(crate) async fn pair(reactor: &Reactor) -> (TcpStream, TcpStream) {
    use reactor::Listener;
    let (listener, address) = listen(reactor);
    let client = reactor.connect(unconnected(), address, PATIENCE).await.expect("it connects");
    (client, listener.accept().await.expect("it accepts"))
}

/// Lets other tasks and the kernel go on until `done` holds.
pub(crate) async fn until(reactor: &Reactor, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        reactor.yield_now().await;
    }
}

/// Fills a socket whose reader does not read, until the kernel has no more to move on.
pub(crate) async fn stuff(reactor: &Reactor, sink: &TcpStream) {
    loop {
        let mut sent = 0;
        while rustix::net::send(sink, &[0; 4096], rustix::net::SendFlags::DONTWAIT).is_ok() {
            sent += 1;
        }
        if sent == 0 {
            return;
        }
        reactor.sleep(Duration::from_millis(10)).await;
    }
}

/// Keeps the CPU busy.
pub(crate) fn spin(how_long: Duration) {
    let began = Instant::now();
    while began.elapsed() < how_long {
        std::hint::spin_loop();
    }
}

/// Works for so long, whatever time the machine takes away meanwhile.
pub(crate) fn work(how_long: Duration) {
    let began = thread_cpu();
    while thread_cpu() - began < how_long {}
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.try_into().expect("not negative"), now.tv_nsec.try_into().expect("below 10^9"))
}

/// Bytes that are the same for every caller and have no short period.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}
