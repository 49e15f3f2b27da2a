//! What is seen of a core from other threads: one that stands still, one that sleeps, and the turns it took.

mod on_core;

use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use on_core::{PATIENCE, spin, thread_cpu};
use reactor::{CoreConfig, Runtime, TenantKey, TurnEnd, Weight, watchdog::Watchdog};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

/// What was logged by any thread of this process, a line each. Only one test listens.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

#[test]
fn a_core_that_blocks_is_seen_by_the_watchdog_with_tenant_and_task() {
    let log = Log::default();
    tracing_subscriber::registry().with(log.clone()).init();

    let (tell, told) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let config = CoreConfig { name: "stuck".to_owned(), ..CoreConfig::default() };
    let core = reactor::start(config, move |reactor| async move {
        reactor.introduce(TenantKey(5), "shop/web", Weight::DEFAULT);
        // Longer than the threshold asleep, which is no standing still.
        reactor.sleep(Duration::from_millis(120)).await;
        tell.send(()).unwrap();
        let blocks = reactor.spawn(TenantKey(5), async move { released.recv().unwrap() });
        blocks.await.unwrap();
        // It gets on for longer than the threshold, in polls that are shorter.
        for _ in 0..20 {
            spin(Duration::from_millis(4));
            reactor.yield_now().await;
        }
        tell.send(()).unwrap();
    })
    .unwrap();
    let view = core.view();
    let watchdog = Watchdog::start(vec![view.clone()], Duration::from_millis(40)).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while view.stalls() == 0 {
        assert!(Instant::now() < deadline, "the watchdog saw nothing");
        std::thread::yield_now();
    }
    release.send(()).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    core.join();
    drop(watchdog);
    let said = log.0.lock().unwrap().join("\n");
    assert!(said.contains("shop/web") && said.contains("watching.rs:") && said.contains("core=\"stuck\""), "{said}");
    let first = said.lines().find(|line| line.contains("does not let its core go on")).unwrap();
    assert!(first.contains("shop/web"), "the sleep was told of: {said}");
    assert!(first.contains("turns_before=") && first.contains(" polls, idle"), "the turns before it: {first}");
    assert!(view.longest_gap() >= Duration::from_millis(40), "{:?}", view.longest_gap());
}

#[test]
fn a_turn_is_written_down_with_why_it_ended() {
    let (tell, told) = mpsc::channel();
    let core = reactor::start(CoreConfig::default(), move |reactor| async move {
        let busy: Vec<_> = (0..2)
            .map(|_| {
                let inside = reactor.clone();
                reactor.spawn(TenantKey(3), async move {
                    for _ in 0..20 {
                        spin(Duration::from_micros(20));
                        inside.yield_now().await;
                    }
                })
            })
            .collect();
        for task in busy {
            task.await.unwrap();
        }
        tell.send(()).unwrap();
    })
    .unwrap();
    let view = core.view();
    told.recv_timeout(PATIENCE).unwrap();
    core.join();
    let decisions = view.decisions();
    assert!(
        decisions.windows(2).all(|pair| pair[0].serial + 1 == pair[1].serial && pair[0].began_ns <= pair[1].began_ns)
    );
    let of_busy: Vec<_> = decisions.iter().filter(|decision| decision.tenant == TenantKey(3)).collect();
    let polls: u32 = of_busy.iter().map(|decision| decision.polls).sum();
    assert_eq!(polls, 42, "every poll of both tasks");
    assert!(of_busy.iter().any(|decision| decision.end == TurnEnd::Time && decision.used_ns >= 40_000), "{of_busy:?}");
    assert_eq!(of_busy.last().unwrap().end, TurnEnd::Idle);
    let account = view.accounts().into_iter().find(|account| account.tenant == TenantKey(3)).unwrap();
    assert_eq!((account.polls, account.turns), (42, of_busy.len() as u64));
    assert_eq!(account.waits.iter().sum::<u64>(), account.turns);
}

/// Of a core, in per mille, while nothing happens: an idle core in its default configuration.
fn idle_cpu(config: CoreConfig, during: Duration) -> f64 {
    on_core::on_core(config, move |reactor| async move {
        reactor.sleep(Duration::from_millis(50)).await;
        let (began, worked) = (Instant::now(), thread_cpu());
        reactor.sleep(during).await;
        (thread_cpu() - worked).as_secs_f64() / began.elapsed().as_secs_f64() * 1e3
    })
}

#[test]
fn an_idle_core_takes_at_most_a_thousandth_of_its_cpu() {
    // Neighbours on the machine cool its caches: the best of three.
    let tries = (0..3).map(|_| idle_cpu(CoreConfig::default(), Duration::from_secs(2)));
    let idle = tries.fold(f64::MAX, f64::min);
    assert!(idle <= 1.0, "{idle} per mille");
    // The control: a core that looks around every half millisecond.
    let restless = CoreConfig { park_max: Duration::from_micros(500), ..CoreConfig::default() };
    assert!(idle_cpu(restless, Duration::from_secs(1)) > 1.0);
}
