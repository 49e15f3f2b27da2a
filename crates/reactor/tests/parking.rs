//! What can stop a whole core, shown in processes of their own: glommio's parking defect, with the remedy and without,
//! and panics that must end the process.
//!
//! Each test starts this binary again, with the name of the test and of a scene in the environment.

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use reactor::{CoreConfig, EngineChoice, Reactor, Runtime, TenantKey, mailbox};

const SCENE: &str = "REACTOR_TEST_SCENE";
const ENGINES: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Epoll];
/// Exit code of a scene whose core stood still.
const STOOD_STILL: i32 = 86;

/// The scene this process is to play, if it is a child.
fn scene() -> Option<String> {
    std::env::var(SCENE).ok()
}

/// Plays `scene` of the calling `test` in a child; how it ended and what it said.
fn play(test: &str, scene: &str) -> (ExitStatus, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(SCENE, scene)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap(), said)
}

/// A core that gives glommio a turn after every round, while glommio's preemption timer is as short as the defect needs.
fn provoking(heartbeat: Option<Duration>) -> CoreConfig {
    CoreConfig {
        heartbeat,
        host_turn: Duration::ZERO,
        host_preempt: Duration::from_micros(50),
        slice: Duration::from_micros(10),
        park_max: Duration::from_millis(1),
        ..CoreConfig::default()
    }
}

/// Runs a core with a task that is always runnable for `at_most`, and exits by whether it ran all the time. A core that
/// stands still for `patience` will not go on.
fn watch(config: CoreConfig, at_most: Duration, patience: Duration) -> ! {
    let rounds = Arc::new(AtomicU64::new(0));
    let counter = rounds.clone();
    let start = || {
        let counter = counter.clone();
        reactor::start(config.clone(), move |reactor| async move {
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                reactor.yield_now().await;
            }
        })
    };
    // The defect can strike before the core has begun to run, and then there is nothing to watch.
    let _core = (0..10).find_map(|_| start().ok()).expect("one of ten starts succeeds");
    let began = Instant::now();
    let (mut seen, mut since) = (0, Instant::now());
    while began.elapsed() < at_most {
        // The watcher's own pace, not a wait for the core.
        std::thread::park_timeout(Duration::from_millis(20));
        let now = rounds.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > patience {
            std::process::exit(STOOD_STILL);
        }
    }
    std::process::exit(0);
}

#[test]
fn without_the_heartbeat_glommio_parks_for_ever_and_with_it_never() {
    const TEST: &str = "without_the_heartbeat_glommio_parks_for_ever_and_with_it_never";
    match scene().as_deref() {
        None => {}
        Some("without") => watch(provoking(None), Duration::from_secs(10), Duration::from_secs(2)),
        Some("with") => {
            watch(provoking(Some(Duration::from_millis(5))), Duration::from_secs(10), Duration::from_secs(5))
        }
        Some(other) => panic!("no scene {other}"),
    }
    // The defect is a race inside glommio; most rounds show it within a second.
    let stood_still = (0..10).any(|_| play(TEST, "without").0.code() == Some(STOOD_STILL));
    assert!(stood_still, "the defect was not provoked: is glommio fixed? Then the heartbeat can go");
    let (status, said) = play(TEST, "with");
    assert!(status.success(), "{status}: {said}");
}

#[test]
fn a_panicking_root_or_loop_ends_the_process_with_a_message() {
    const TEST: &str = "a_panicking_root_or_loop_ends_the_process_with_a_message";
    /// A waker that panics, to reach the loop itself.
    struct Bomb;
    impl std::task::Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a bomb in the loop");
        }
    }
    let until_it_ends = |core: reactor::CoreThread| core.join();
    let played = scene();
    let (scene, engine) = match played.as_deref().and_then(|scene| scene.split_once(' ')) {
        Some((scene, "epoll")) => (Some(scene), EngineChoice::Epoll),
        Some((scene, _)) => (Some(scene), EngineChoice::Uring),
        None => (None, EngineChoice::Auto),
    };
    let config = CoreConfig { engine, ..CoreConfig::default() };
    match scene {
        None => {}
        Some("root") => {
            let root = |_: Reactor| async { panic!("a bomb in the root") };
            return until_it_ends(reactor::start(config, root).unwrap());
        }
        Some("loop") => {
            let root = |reactor: Reactor| async move {
                let mut sleep = Box::pin(reactor.sleep(Duration::from_millis(1)));
                let waker = Arc::new(Bomb).into();
                assert!(sleep.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
                std::future::pending::<()>().await;
            };
            return until_it_ends(reactor::start(config, root).unwrap());
        }
        Some(other) => panic!("no scene {other}"),
    }
    for (scene, engine) in [("root", "uring"), ("loop", "uring"), ("root", "epoll"), ("loop", "epoll")] {
        let (status, said) = play(TEST, &format!("{scene} {engine}"));
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{engine}: {scene}: {status}: {said}");
        assert!(said.contains(&format!("a bomb in the {scene}")), "{engine}: {scene}: {said}");
        assert!(said.contains("ending the process"), "{scene}: {said}");
    }
}

#[test]
fn a_core_that_cannot_start_says_why() {
    for engine in ENGINES {
        for cpu in [500, 100_000] {
            let nowhere = CoreConfig { name: "nowhere".to_owned(), engine, cpu: Some(cpu), ..CoreConfig::default() };
            let error = reactor::start(nowhere, |_| async {}).unwrap_err().to_string();
            assert!(error.contains("nowhere") && error.contains(&cpu.to_string()), "{error}");
        }
    }
}

#[test]
fn a_pinned_core_runs_on_its_cpu_and_an_idle_one_hardly_at_all() {
    ENGINES.into_iter().for_each(pinned_and_idle);
}

fn pinned_and_idle(engine: EngineChoice) {
    let (tell, told) = mpsc::channel();
    let (sender, receiver) = mailbox::ordered::<()>(1);
    let config = CoreConfig { engine, cpu: Some(0), name: "pinned".to_owned(), ..CoreConfig::default() };
    let core = reactor::start(config, move |reactor| async move {
        let allowed = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let cpus = allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
        let before = reactor.counts().enters;
        reactor.sleep(Duration::from_millis(300)).await;
        tell.send((cpus, reactor.counts().enters - before)).unwrap();
        receiver.recv().await;
        // Another tenant, so that the core is not simply empty when its root ends.
        drop(reactor.spawn(TenantKey(3), std::future::pending::<()>()));
    })
    .unwrap();
    let (cpus, enters) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(cpus, "0");
    assert!(enters <= 12, "a core that waits for one timer entered the kernel {enters} times");
    assert!(!core.is_finished());
    drop(sender);
    core.join();
}
