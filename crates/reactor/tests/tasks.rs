//! Tasks and tenants of a core: ends, panics, turns, charges, limits.

mod on_core;

use std::{
    cell::{Cell, RefCell},
    future::pending,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::Waker,
    time::{Duration, Instant},
};

use on_core::{BODY, config, on_core, on_each_engine, spin, until, work};
use reactor::{CoreConfig, Reactor, Runtime, TaskEnded, TenantKey};

/// Raises a flag when it is dropped.
struct Raised(Rc<Cell<bool>>);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn tasks_wait_for_each_other_and_hand_out_their_results() {
    on_each_engine(|| {
        let sum = on_core(config(), |reactor| async move {
            let doubled = reactor.spawn(BODY, async { 21 * 2 });
            let inner = reactor.clone();
            let task = reactor.spawn(TenantKey(2), async move {
                inner.yield_now().await;
                doubled.await.unwrap() + 1
            });
            task.await.unwrap()
        });
        assert_eq!(sum, 43);
    });
}

#[test]
fn a_dropped_or_cancelled_task_is_gone_and_a_detached_one_goes_on() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let [dropped, cancelled, detached] = [(); 3].map(|()| Rc::new(Cell::new(false)));
            let held = Raised(dropped.clone());
            let task = reactor.spawn(BODY, async move {
                pending::<()>().await;
                drop(held);
            });
            reactor.yield_now().await;
            drop(task);
            until(&reactor, "the dropped task's future is dropped", || dropped.get()).await;

            let held = Raised(cancelled.clone());
            let task = reactor.spawn(BODY, async move {
                pending::<()>().await;
                drop(held);
            });
            assert_eq!(task.cancel().await, None);
            assert!(cancelled.get(), "cancel() waits until the future is gone");
            assert_eq!(reactor.spawn(BODY, async { 5 }).cancel().await, None, "it never ran");

            let held = Raised(detached.clone());
            reactor.spawn(BODY, async move { drop(held) }).detach();
            until(&reactor, "the detached task runs", || detached.get()).await;
            assert_eq!(reactor.counts().tasks, 2, "this body and the root");
        });
    });
}

#[test]
fn a_panic_ends_its_task_alone() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let other = reactor.spawn(BODY, {
                let reactor = reactor.clone();
                async move {
                    for _ in 0..100 {
                        reactor.yield_now().await;
                    }
                    "well"
                }
            });
            let dropped = Rc::new(Cell::new(false));
            let held = Raised(dropped.clone());
            let panicking = reactor.spawn(TenantKey(2), async move {
                let _held = held;
                panic!("on purpose");
            });
            assert_eq!(panicking.await, Err::<(), _>(TaskEnded::Panicked));
            assert!(dropped.get());
            reactor.spawn(TenantKey(2), async { panic!("on purpose, and nobody waits") }).detach();
            assert_eq!(other.await, Ok("well"));
            until(&reactor, "the detached task's panic is counted", || reactor.counts().tasks_panicked == 2).await;
            assert_eq!(reactor.counts().tasks, 2, "this body and the root");
        });
    });
}

/// Longest run of busy polls between two polls of a task of `quiet`, beside twenty busy tasks of tenant 10.
async fn longest_wait(reactor: &Reactor, quiet: TenantKey) -> u32 {
    let polls = Rc::new(Cell::new(0_u32));
    let busy: Vec<_> = (0..20)
        .map(|_| {
            let (reactor, polls) = (reactor.clone(), polls.clone());
            reactor.clone().spawn(TenantKey(10), async move {
                loop {
                    spin(Duration::from_micros(10));
                    polls.set(polls.get() + 1);
                    reactor.yield_now().await;
                }
            })
        })
        .collect();
    until(reactor, "all busy tasks run", || polls.get() >= 20).await;
    let inner = reactor.clone();
    let waits = reactor.spawn(quiet, async move {
        let mut longest = 0;
        inner.yield_now().await;
        for _ in 0..200 {
            let before = polls.get();
            inner.yield_now().await;
            longest = longest.max(polls.get() - before);
        }
        longest
    });
    let longest = waits.await.unwrap();
    drop(busy);
    longest
}

#[test]
fn a_busy_tenant_delays_another_by_one_slice() {
    on_each_engine(|| {
        // A slice of 50 us holds five polls of at least 10 us; time that the machine takes away makes it hold fewer.
        let slice = CoreConfig { slice: Duration::from_micros(50), ..config() };
        let other = on_core(slice.clone(), |reactor| async move { longest_wait(&reactor, TenantKey(11)).await });
        assert!(other <= 5, "{other} busy polls in one turn");
        let same = on_core(slice, |reactor| async move { longest_wait(&reactor, TenantKey(10)).await });
        assert!(same >= 19, "a tenant queues behind its own backlog, or this test shows nothing: {same}");
    });
}

#[test]
fn a_tenant_that_slept_is_served_within_a_slice_of_each_runnable_tenant() {
    on_each_engine(|| {
        const BUSY_TENANTS: u32 = 3;
        on_core(config(), |reactor| async move {
            let began = Rc::new(RefCell::new(Vec::<Instant>::new()));
            let busy: Vec<_> = (0..60)
                .map(|task| {
                    let (reactor, began) = (reactor.clone(), began.clone());
                    reactor.clone().spawn(TenantKey(10 + task % BUSY_TENANTS), async move {
                        loop {
                            began.borrow_mut().push(Instant::now());
                            spin(Duration::from_micros(10));
                            reactor.yield_now().await;
                        }
                    })
                })
                .collect();
            let inner = reactor.clone();
            let quiet = reactor.spawn(TenantKey(20), async move {
                let mut longest = 0;
                for _ in 0..50 {
                    let deadline = inner.now() + Duration::from_millis(2);
                    inner.sleep_until(deadline).await;
                    assert!(inner.now() >= deadline, "never early");
                    let due = deadline + Duration::from_millis(1);
                    longest = longest.max(began.borrow().iter().rev().take_while(|began| **began > due).count());
                    began.borrow_mut().clear();
                }
                longest
            });
            let longest = quiet.await.unwrap();
            drop(busy);
            // The round under way ends first (a slice and the poll that overruns it), then a turn for each of the others.
            assert!(longest <= 6 + 5 * BUSY_TENANTS as usize, "{longest} polls of others came first");
        });
    });
}

#[test]
fn work_is_charged_to_its_tenant() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            reactor.spawn(TenantKey(7), async { work(Duration::from_millis(5)) }).await.unwrap();
            reactor.yield_now().await;
            let account = |tenant| reactor.accounts().into_iter().find(|account| account.tenant == tenant).unwrap();
            let charged = account(TenantKey(7));
            assert!(charged.user_ns >= 4_900_000 && charged.polls == 1, "{charged:?}");
            let core = account(TenantKey::CORE);
            assert!(core.cpu_ns() < charged.cpu_ns(), "{core:?} {charged:?}");
        });
    });
}

#[test]
fn a_task_beyond_the_limit_is_refused_until_one_ends() {
    on_each_engine(|| {
        on_core(CoreConfig { tasks_max: 3, ..config() }, |reactor| async move {
            let third = reactor.spawn(BODY, pending::<()>());
            assert_eq!(reactor.spawn(BODY, async {}).await, Err(TaskEnded::Refused));
            assert_eq!(reactor.counts().tasks_refused, 1);
            third.cancel().await;
            assert_eq!(reactor.spawn(BODY, async {}).await, Ok(()));
        });
    });
}

#[test]
fn a_sleep_beyond_the_limit_ends_in_time_all_the_same() {
    on_each_engine(|| {
        on_core(CoreConfig { timers_max: 1, ..config() }, |reactor| async move {
            let held = reactor.spawn(BODY, reactor.sleep(Duration::from_secs(600)));
            until(&reactor, "the only timer is taken", || reactor.counts().timers == 1).await;
            let deadline = reactor.now() + Duration::from_millis(5);
            reactor.sleep_until(deadline).await;
            assert!(reactor.now() >= deadline);
            assert!(reactor.counts().timers_over_limit > 0);
            held.cancel().await;
            assert_eq!(reactor.counts().timers, 0, "a dropped sleep is disarmed");
        });
    });
}

#[test]
fn sleeps_end_in_the_order_of_their_deadlines() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            let now = reactor.now();
            let tasks = [30, 10, 80, 20, 0].map(|after| {
                let (reactor, order) = (reactor.clone(), order.clone());
                reactor.clone().spawn(BODY, async move {
                    reactor.sleep_until(now + Duration::from_millis(after)).await;
                    order.borrow_mut().push(after);
                })
            });
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.borrow(), [0, 10, 20, 30, 80]);
        });
    });
}

#[test]
fn the_end_of_the_root_drops_every_task_on_its_core() {
    on_each_engine(|| {
        let dropped = Arc::new(AtomicBool::new(false));
        struct Flag(Arc<AtomicBool>, std::thread::ThreadId, Option<Reactor>);
        impl Drop for Flag {
            fn drop(&mut self) {
                assert_eq!(std::thread::current().id(), self.1);
                if let Some(reactor) = self.2.take() {
                    // A destructor that starts something new while everything ends.
                    reactor.spawn(BODY, async {}).detach();
                }
                self.0.store(true, Ordering::Release);
            }
        }
        let (tell, told) = mpsc::channel::<Waker>();
        let flag = dropped.clone();
        let core = reactor::start(config(), move |reactor| async move {
            let held = Flag(flag, std::thread::current().id(), Some(reactor.clone()));
            reactor
                .spawn(BODY, async move {
                    std::future::poll_fn(|context| {
                        tell.send(context.waker().clone()).unwrap();
                        std::task::Poll::<()>::Pending
                    })
                    .await;
                    drop(held);
                })
                .detach();
            reactor.yield_now().await;
            reactor.sleep(Duration::from_millis(1)).await;
        })
        .unwrap();
        let waker = told.recv_timeout(on_core::PATIENCE).unwrap();
        core.join();
        assert!(dropped.load(Ordering::Acquire));
        waker.wake_by_ref();
        waker.wake();
    });
}

#[test]
fn draws_differ() {
    on_each_engine(|| {
        let draws = on_core(config(), |reactor| async move { [(); 4].map(|()| reactor.draw()) });
        let other = on_core(config(), |reactor| async move { reactor.draw() });
        let mut all = [draws.as_slice(), &[other]].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 5);
    });
}
