//! Shares of a core between tenants that move bytes over real sockets, what the kernel does for them included.
//!
//! Both ends of every connection are on the core itself: what saturates it needs no other CPU, and all that its sockets
//! cost is spent in its own entries into the kernel. A charge is checked against work done, not against itself.

mod on_core;

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use on_core::{PATIENCE, config, on_core, on_each_engine, pair, spin, thread_cpu, until};
use reactor::{Account, Chunk, CoreConfig, Reactor, Runtime, Stream, TenantKey, TurnEnd, Weight};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HERE: TenantKey = TenantKey(11);
const THERE: TenantKey = TenantKey(12);

/// What a tenant does on its connections, all the time.
#[derive(Clone, Copy, Debug)]
enum Traffic {
    /// As many bytes as go, in chunks of so many.
    Bulk { chunk: usize },
    /// A message of so many bytes there, and one back.
    PingPong { message: usize },
    /// None: tasks that only work.
    None,
}

/// Lets `tenant` do `traffic` on so many connections until the end of the core.
async fn saturate(reactor: &Reactor, tenant: TenantKey, connections: usize, traffic: Traffic) {
    let begun = Rc::new(Cell::new(0));
    for _ in 0..connections {
        if matches!(traffic, Traffic::None) {
            for _ in 0..2 {
                let (inside, begun) = (reactor.clone(), begun.clone());
                let works = async move {
                    begun.set(begun.get() + 1);
                    loop {
                        spin(Duration::from_micros(5));
                        inside.yield_now().await;
                    }
                };
                reactor.spawn::<()>(tenant, works).detach();
            }
            continue;
        }
        let (near, far) = pair(reactor).await;
        let (here, there) = (begun.clone(), begun.clone());
        let (near_task, far_task) = match traffic {
            Traffic::Bulk { chunk } => {
                let bytes = Bytes::from(vec![7; chunk]);
                let near = reactor.spawn(tenant, async move {
                    here.set(here.get() + 1);
                    loop {
                        near.send(Chunk::from(bytes.clone())).await.expect("the far end reads");
                    }
                });
                let far = reactor.spawn(tenant, async move {
                    there.set(there.get() + 1);
                    loop {
                        assert!(!far.receive(64 << 10).await.expect("the near end sends").is_empty());
                    }
                });
                (near, far)
            }
            Traffic::PingPong { message } => {
                let bytes = Bytes::from(vec![7; message]);
                let echo = |stream: reactor::TcpStream, bytes: Bytes, counter: Rc<Cell<usize>>| async move {
                    counter.set(counter.get() + 1);
                    loop {
                        let mut missing = bytes.len();
                        while missing > 0 {
                            missing -= stream.receive(missing).await.expect("the other end sends").len();
                        }
                        stream.send(Chunk::from(bytes.clone())).await.expect("the other end reads");
                    }
                };
                near.send(Chunk::from(bytes.clone())).await.expect("it is connected");
                let near = reactor.spawn::<()>(tenant, echo(near, bytes.clone(), here));
                (near, reactor.spawn(tenant, echo(far, bytes, there)))
            }
            Traffic::None => unreachable!("it was dealt with"),
        };
        near_task.detach();
        far_task.detach();
    }
    until(reactor, "all connections run", || begun.get() == 2 * connections).await;
}

/// What a tenant used, and what its core's thread used, during some time.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu_ns: f64,
    bytes: f64,
    thread_ns: f64,
}

async fn used<const N: usize>(reactor: &Reactor, tenants: [TenantKey; N], during: Duration) -> [Used; N] {
    reactor.sleep(during / 5).await;
    let read = || {
        let accounts = reactor.accounts();
        let of = |tenant| accounts.iter().find(|account| account.tenant == tenant).expect("it has run").clone();
        (tenants.map(of), thread_cpu())
    };
    let (before, thread_before) = read();
    reactor.sleep(during).await;
    let (after, thread_after) = read();
    let thread_ns = (thread_after - thread_before).as_nanos() as f64;
    std::array::from_fn(|tenant| {
        let grown = |of: fn(&Account) -> u64| (of(&after[tenant]) - of(&before[tenant])) as f64;
        Used { cpu_ns: grown(Account::cpu_ns), bytes: grown(|account| account.sent_bytes), thread_ns }
    })
}

/// Both tenants on one core, each with its weight, connections and traffic.
fn beside(tenants: [(u32, usize, Traffic); 2], during: Duration) -> [Used; 2] {
    on_core(config(), move |reactor| async move {
        for (key, (weight, connections, traffic)) in [HERE, THERE].into_iter().zip(tenants) {
            reactor.introduce(key, "a tenant", Weight::new(weight).expect("within bounds"));
            saturate(&reactor, key, connections, traffic).await;
        }
        used(&reactor, [HERE, THERE], during).await
    })
}

/// One tenant alone, and the core's own part.
fn alone(connections: usize, traffic: Traffic, during: Duration) -> [Used; 2] {
    on_core(config(), move |reactor| async move {
        saturate(&reactor, HERE, connections, traffic).await;
        used(&reactor, [HERE, TenantKey::CORE], during).await
    })
}

const DURING: Duration = Duration::from_secs(1);
const BULK: Traffic = Traffic::Bulk { chunk: 64 << 10 };

/// Runs what depends on how the machine shares its time up to three times: a machine that takes the CPU away between a
/// clock and the work it times spoils a figure, and never mends one.
fn one_of_three(what: &str, attempt: impl Fn() -> Result<(), String>) {
    let began = Instant::now();
    let failures: Vec<_> = (0..3).map_while(|_| attempt().err()).collect();
    assert!(failures.len() < 3, "{what}: {failures:?}");
    assert!(began.elapsed() < PATIENCE);
}

fn near(what: &str, value: f64, wanted: f64, within: f64) -> Result<(), String> {
    if (value / wanted - 1.0).abs() <= within { Ok(()) } else { Err(format!("{what} is {value}, not {wanted}")) }
}

#[test]
fn what_a_tenant_alone_is_charged_is_what_its_core_worked() {
    on_each_engine(|| {
        for (name, connections, traffic) in [
            ("bulk", 4, BULK),
            ("small", 16, Traffic::PingPong { message: 64 }),
            ("one connection", 1, Traffic::PingPong { message: 64 }),
        ] {
            one_of_three(name, || {
                let [used, core] = alone(connections, traffic, DURING / 2);
                let part = |used: Used| used.cpu_ns / used.thread_ns;
                near("all", part(used) + part(core), 1.0, 0.15)?;
                // What a build without optimization spends on its own rounds is the core's.
                near("the tenant's", part(used), 1.0, if cfg!(debug_assertions) { 0.3 } else { 0.15 })
            });
        }
    });
}

#[test]
fn weights_of_one_to_three_are_shares_of_one_to_three_with_the_kernels_part() {
    on_each_engine(|| {
        one_of_three("1:3", || {
            let [light, heavy] = beside([(100, 8, BULK), (300, 8, BULK)], DURING);
            near("CPU", heavy.cpu_ns / light.cpu_ns, 3.0, 0.1)
        });
        // The control: the same with equal weights.
        one_of_three("1:1", || {
            let [one, other] = beside([(300, 8, BULK), (300, 8, BULK)], DURING);
            near("CPU", other.cpu_ns / one.cpu_ns, 1.0, 0.1)
        });
    });
}

#[test]
fn two_hundred_and_fifty_six_connections_get_no_more_than_one() {
    on_each_engine(|| {
        one_of_three("256:1", || {
            let [many, one] = beside([(100, 256, BULK), (100, 1, BULK)], DURING);
            near("CPU", many.cpu_ns / one.cpu_ns, 1.0, 0.15)
        });
    });
}

/// Without the kernel's part (`queue.charge` in `books.rs`) the tenant that lives in the kernel gets half as much again.
#[test]
fn who_lives_in_the_kernel_gets_as_much_as_who_asks_nothing_of_it() {
    on_each_engine(|| {
        for traffic in [Traffic::PingPong { message: 64 }, BULK] {
            one_of_three("1:1", || {
                let [kernels, own] = beside([(100, 8, traffic), (100, 1, Traffic::None)], DURING / 2);
                near(&format!("{traffic:?}: CPU"), kernels.cpu_ns / own.cpu_ns, 1.0, 0.1)
            });
        }
    });
}

#[test]
fn what_the_kernel_does_for_one_tenant_is_not_charged_to_another() {
    on_each_engine(|| {
        let small = Traffic::PingPong { message: 64 };
        one_of_three("calibration", || {
            let per_byte = |used: Used| used.cpu_ns / used.bytes;
            // Beside a tenant that asks nothing of the kernel, all of the kernel's time is the other one's; and the limits
            // for those who do not run alone hold in both cases. The machine changes its pace: the middle of five pairs.
            let mut errors = [const { Vec::new() }; 2];
            for _ in 0..5 {
                let [bulk_only, _] = beside([(100, 8, BULK), (100, 1, Traffic::None)], DURING / 5);
                let [bulk, messages] = beside([(100, 8, BULK), (100, 16, small)], DURING / 5);
                let [messages_only, _] = beside([(100, 16, small), (100, 1, Traffic::None)], DURING / 5);
                errors[0].push(per_byte(bulk) / per_byte(bulk_only));
                errors[1].push(per_byte(messages) / per_byte(messages_only));
            }
            let [bulk, messages] = errors.map(|mut ratios| {
                ratios.sort_by(f64::total_cmp);
                ratios[ratios.len() / 2]
            });
            near("bulk", bulk, 1.0, 0.15)?;
            near("small", messages, 1.0, 0.15)
        });
    });
}

/// The polls of the turns in which `HERE` asks for 64 sends, each in a task of its own, with another tenant busy or not.
fn turns_of_64_sends(bytes: usize, beside_another: bool) -> Vec<(u32, TurnEnd)> {
    // A slice so long that no turn ends for want of time, however slow the machine.
    on_core(CoreConfig { slice: Duration::from_millis(50), ..config() }, move |reactor| async move {
        let mut streams = Vec::new();
        for _ in 0..64 {
            streams.push(pair(&reactor).await);
        }
        if beside_another {
            saturate(&reactor, THERE, 1, Traffic::None).await;
        }
        let asked = Rc::new(Cell::new(0));
        let tasks = streams.into_iter().map(|(near, far)| {
            let asked = asked.clone();
            reactor.spawn(HERE, async move {
                asked.set(asked.get() + 1);
                let sent = near.send(Chunk::from(Bytes::from(vec![0; bytes]))).await;
                drop((sent, far));
            })
        });
        let _tasks: Vec<_> = tasks.collect();
        let (here, last) = (reactor.view(), reactor.view().decisions().last().expect("this one").serial);
        // Asleep, not looking all the time: this is a tenant as well.
        while asked.get() < 64 {
            reactor.sleep(Duration::from_millis(1)).await;
        }
        let turns = here.decisions().into_iter().filter(|turn| turn.tenant == HERE && turn.serial > last);
        // Later polls see to what was sent, and ask for nothing.
        let mut left = 64_u32;
        let asking = turns.take_while(|turn| {
            let asks = left > 0;
            left = left.saturating_sub(turn.polls);
            asks
        });
        asking.map(|turn| (turn.polls, turn.end)).collect()
    })
}

#[test]
fn while_another_tenant_waits_a_turn_asks_the_kernel_for_no_more_than_eight_sends_or_64_kib() {
    on_each_engine(|| {
        let small = turns_of_64_sends(64, true);
        assert!(small.iter().all(|(polls, _)| *polls <= 8), "{small:?}");
        assert!(small.contains(&(8, TurnEnd::Requests)), "{small:?}");
        let large = turns_of_64_sends(16 << 10, true);
        assert!(large.iter().all(|(polls, _)| *polls <= 4), "{large:?}");
        assert!(large.contains(&(4, TurnEnd::Requests)), "{large:?}");
        // The control: with the core to itself it asks for up to four times as much, since somebody may wake meanwhile.
        let alone = turns_of_64_sends(16 << 10, false);
        assert!(alone.iter().any(|(polls, _)| *polls > 8) && alone.iter().all(|(polls, _)| *polls <= 16), "{alone:?}");
    });
}

/// All futures, each polled whenever the task is.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

#[test]
fn a_single_poll_that_asks_for_more_than_an_entry_carries_is_served_beside_another_tenant_and_alone() {
    on_each_engine(|| {
        for beside_another in [true, false] {
            let received = on_core(config(), move |reactor| async move {
                let mut near = Vec::new();
                let mut far = Vec::new();
                for _ in 0..100 {
                    let (one, other) = pair(&reactor).await;
                    near.push(one);
                    far.push(other);
                }
                if beside_another {
                    saturate(&reactor, THERE, 1, Traffic::None).await;
                }
                let receives = reactor.spawn(HERE, async move {
                    let all = near.iter().map(|stream| stream.receive(64 << 10));
                    join_all(all).await.into_iter().map(|received| received.unwrap().len()).sum::<usize>()
                });
                let sends = reactor.spawn(HERE, async move {
                    let all = far.iter().map(|stream| stream.send(Chunk::from(Bytes::from(vec![1; 10]))));
                    join_all(all).await.into_iter().for_each(|sent| sent.unwrap());
                });
                sends.await.unwrap();
                receives.await.unwrap()
            });
            assert_eq!(received, 1_000, "beside another: {beside_another}");
        }
    });
}

#[test]
fn bytes_are_counted_for_the_tenant_that_moves_them_whichever_way_they_go() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (near, far) = pair(&reactor).await;
            let sends = reactor.spawn(HERE, async move {
                near.send(Chunk::from(Bytes::from(vec![1; 1_000]))).await.unwrap();
                let mut missing = 300;
                while missing > 0 {
                    missing -= near.receive(missing).await.unwrap().len();
                }
            });
            let answers = reactor.spawn(THERE, async move {
                let mut io = far.into_io();
                io.read_exact(&mut [0; 1_000]).await.unwrap();
                io.write_all(&[2; 300]).await.unwrap();
            });
            sends.await.unwrap();
            answers.await.unwrap();
            let accounts = reactor.accounts();
            for (tenant, received, sent) in [(HERE, 300, 1_000), (THERE, 1_000, 300), (TenantKey::CORE, 0, 0)] {
                let account = accounts.iter().find(|account| account.tenant == tenant).unwrap();
                assert_eq!((account.received_bytes, account.sent_bytes), (received, sent), "{account:?}");
            }
            let here = accounts.iter().find(|account| account.tenant == HERE).unwrap();
            assert!(here.operations >= 2 && here.kernel_ns > 0, "{here:?}");
        });
    });
}
