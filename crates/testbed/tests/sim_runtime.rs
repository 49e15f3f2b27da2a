//! What the simulated runtime promises: the same seed takes the same way, bytes arrive whole and in order, time passes
//! only when nothing else can happen.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use reactor::{Chunk, Listener, Runtime, Stream, TaskEnded, TenantKey};
use testbed::sim::{SimRuntime, SimSocket, SimStream, Weather};

const TENANT: TenantKey = TenantKey(1);
const SECOND: Duration = Duration::from_secs(1);

fn host(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// The two ends of a connection.
async fn pair(world: &SimRuntime) -> (SimStream, SimStream) {
    let listener = world.listen(SimSocket::listening(host(2), 80)).expect("the port is free");
    let target = listener.local_addr().expect("it has one");
    let client = world.connect(SimSocket::from(host(1)), target, SECOND).await.expect("somebody listens");
    (client, listener.accept().await.expect("it has arrived"))
}

async fn read_all(stream: &SimStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let lease = stream.receive(1000).await?;
        if lease.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(lease.as_ref());
    }
}

/// 200 kB one way with a half-close, and an answer after it.
fn transfer(seed: u64) -> (u64, Duration, usize) {
    let world = SimRuntime::new(seed, Weather::default());
    let data: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[(n % 4) as usize]).collect();
    let inside = world.clone();
    let sent = data.clone();
    let received = world
        .block_on(async {
            let (client, server) = pair(&inside).await;
            let writing = inside.spawn(TENANT, async move {
                client.send(Chunk::from(Bytes::from(sent))).await.expect("the server reads");
                client.shutdown_write().expect("it is open");
                read_all(&client).await
            });
            let received = read_all(&server).await.expect("a clean end");
            server.send(Chunk::from(Bytes::from_static(b"thanks"))).await.expect("the client reads");
            drop(server);
            assert_eq!(writing.await.expect("no panic").expect("a clean end"), b"thanks", "seed {seed}");
            received
        })
        .unwrap_or_else(|stalled| panic!("{stalled}"));
    assert!(received == data, "seed {seed}: bytes differ");
    (world.trace(), world.passed(), world.lent_bytes())
}

#[test]
fn the_same_seed_takes_the_same_way_and_another_seed_another() {
    assert_eq!(transfer(7), transfer(7));
    assert_ne!(transfer(7).0, transfer(8).0);
}

#[test]
fn bytes_arrive_whole_and_in_order_whatever_the_seed_and_no_buffer_stays_lent() {
    for seed in 0..200 {
        let (_, passed, lent) = transfer(seed);
        assert!(passed > Duration::ZERO, "seed {seed}");
        assert_eq!(lent, 0, "seed {seed}");
    }
}

#[test]
fn an_hour_passes_at_once_when_nothing_else_can_happen() {
    let world = SimRuntime::new(1, Weather::default());
    world.block_on(world.sleep(Duration::from_secs(3600))).expect("an alarm is armed");
    assert_eq!(world.passed(), Duration::from_secs(3600));
}

#[test]
fn a_connect_is_refused_where_nobody_listens_and_times_out_where_nothing_answers() {
    let world = SimRuntime::new(1, Weather::default());
    let target = SocketAddr::new(host(2), 80);
    let refused = world.block_on(world.connect(SimSocket::from(host(1)), target, SECOND)).expect("it ends");
    assert_eq!(refused.err().expect("refused").kind(), io::ErrorKind::ConnectionRefused);
    world.blackhole(target);
    let before = world.passed();
    let silent = world.block_on(world.connect(SimSocket::from(host(1)), target, SECOND)).expect("it ends");
    assert_eq!(silent.err().expect("nobody answered").kind(), io::ErrorKind::TimedOut);
    assert_eq!(world.passed() - before, SECOND);
}

#[test]
fn a_reset_reaches_the_other_end_and_a_close_with_unread_bytes_is_one() {
    for abort in [true, false] {
        let world = SimRuntime::new(3, Weather::default());
        let inside = world.clone();
        let error = world
            .block_on(async {
                let (client, server) = pair(&inside).await;
                if abort {
                    server.reset_on_drop();
                } else {
                    client.send(Chunk::from(Bytes::from_static(b"never read"))).await.expect("there is room");
                }
                drop(server);
                read_all(&client).await.expect_err("a reset, not an end")
            })
            .unwrap_or_else(|stalled| panic!("{stalled}"));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "abort: {abort}");
    }
}

#[test]
fn a_send_that_is_given_up_tears_the_stream() {
    let world = SimRuntime::new(4, Weather { window: 10, ..Weather::default() });
    let inside = world.clone();
    world
        .block_on(async {
            let (client, server) = pair(&inside).await;
            {
                let sending = client.send(Chunk::from(Bytes::from(vec![0; 100])));
                let waiting = inside.sleep(SECOND);
                futures_util::future::select(std::pin::pin!(sending), std::pin::pin!(waiting)).await;
            }
            assert!(client.shutdown_write().is_err(), "a torn stream has no clean end");
            drop(client);
            assert!(read_all(&server).await.is_err());
        })
        .unwrap_or_else(|stalled| panic!("{stalled}"));
}

#[test]
fn a_panic_ends_its_task_alone_and_is_counted() {
    let world = SimRuntime::new(5, Weather::default());
    let (bad, good) = (world.spawn(TENANT, async { panic!("on purpose") }), world.spawn(TENANT, async { 7 }));
    let (bad, good) = world.block_on(async { (bad.await, good.await) }).expect("both end");
    assert_eq!((bad, good), (Err::<(), _>(TaskEnded::Panicked), Ok(7)));
    assert_eq!(world.panics(), 1);
}

#[test]
fn a_wait_for_what_never_comes_is_reported_with_its_seed() {
    let world = SimRuntime::new(42, Weather::default());
    let stalled = world.block_on(std::future::pending::<()>()).expect_err("nothing can happen");
    assert_eq!(stalled.seed, 42);
}
