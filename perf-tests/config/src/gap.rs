//! How long a core stands still while configuration comes: the longest time between two answers under a steady load, with
//! idle connections beside, during full pushes on a live stream and by reconnects to a server with other versions, against
//! the same load for the same time without.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use perf_tests::serve::{Role, Server};
use testbed::mesh::{NodeId, Pod, PodSpec};

use crate::load::{Load, Window};
use crate::stage::Stage;
use crate::world::World;
use crate::{median, tell};

const PORT: u16 = 8080;
const IDLE_PORT: u16 = 8081;
/// No window is shorter, so that the longest of some thousand gaps is told and not of some ten.
const WINDOW_MIN: Duration = Duration::from_secs(2);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) idle: usize,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// By size: the median over rounds of the longest gap with a push less the one without, in milliseconds; the larger of
    /// both kinds of push.
    pub(crate) gaps_ms: Vec<(u32, f64)>,
    /// Connections that failed.
    pub(crate) failed: usize,
}

/// Three windows, one after the other.
struct Round {
    quiet: Window,
    push: Window,
    reconnect: Window,
    push_took: Duration,
}

pub(crate) fn measure(sizes: &[u32], plan: Plan) -> Result<Gaps> {
    let pods = ["client", "server"].map(|name| PodSpec::new(name, NodeId::A));
    let stage = Stage::start(&pods, &[])?;
    let (client, server) = (stage.mesh.pod("client"), stage.mesh.pod("server"));
    let echo = server.netns.run(|| TcpListener::bind((server.address, PORT)))?;
    let _echo = Server::start(echo, Role::Echo)?;
    let idle = Idle::start(&client, &server, plan.idle)?;
    tell(&format!("{} idle connections, 1000 requests a second", plan.idle));
    let mut gaps = Gaps::default();
    for &workloads in sizes {
        let versions = [0, 1].map(|revision| World { workloads }.encoded(revision));
        let bytes: usize = versions[0].iter().map(Bytes::len).sum();
        tell(&format!("{workloads} workloads, {} MB in {} responses", bytes / 1_000_000, versions[0].len()));
        let load = Load::start(|| client.connect(server.at(PORT)))?;
        let mut times = Vec::new();
        for round in 0..plan.rounds {
            times.push(one_round(&stage, &versions)?);
            tell(&format!("round {} of {}: a push took {:.1} s", round + 1, plan.rounds, times[round].1.as_secs_f64()));
        }
        let trace = load.end()?;
        gaps.failed += trace.failed;
        let rounds = times.iter().map(|([began, pushed, quiet_from, back_from, end], took)| {
            Ok(Round {
                push: trace.window(*began, *pushed)?,
                quiet: trace.window(*quiet_from, *back_from)?,
                reconnect: trace.window(*back_from, *end)?,
                push_took: *took,
            })
        });
        let rounds = rounds.collect::<Result<Vec<Round>>>()?;
        let with = |of: fn(&Round) -> Window| median(rounds.iter().map(|round| of(round).gap_ms - round.quiet.gap_ms));
        let (pushed, reconnected) = (with(|round| round.push), with(|round| round.reconnect));
        let told = |of: fn(&Round) -> Window| {
            let gap = median(rounds.iter().map(|round| of(round).gap_ms));
            format!("gap {gap:.2} ms, p99.9 {:.2} ms", median(rounds.iter().map(|round| of(round).p999_ms)))
        };
        tell(&format!(
            "{workloads}: quiet {}; push {} in {:.1} s; reconnect {}; longest gap more: {pushed:.2}, {reconnected:.2} ms",
            told(|round| round.quiet),
            told(|round| round.push),
            median(rounds.iter().map(|round| round.push_took.as_secs_f64())),
            told(|round| round.reconnect),
        ));
        gaps.gaps_ms.push((workloads, pushed.max(reconnected)));
    }
    gaps.failed += idle.end()?;
    let installs = stage.daemon().metrics()?.sum("coretunnel_config_apply_gap_seconds", &[]);
    tell(&format!("the daemon's own word: coretunnel_config_apply_gap_seconds is {installs}"));
    Ok(gaps)
}

/// The times between which the push, the pause and the reconnect were, and how long the push took.
fn one_round(stage: &Stage, versions: &[Vec<Bytes>; 2]) -> Result<([Instant; 5], Duration)> {
    let xds = stage.xds();
    xds.record(versions[0].clone());
    let answers = xds.acknowledged() + versions[0].len();
    let began = Instant::now();
    xds.push_recorded();
    let took = stage.settled(answers)?.duration_since(began);
    let window = pause_until(began + WINDOW_MIN).duration_since(began);
    let pushed = Instant::now();
    let quiet_from = pushed;
    let back_from = pause_until(quiet_from + window);
    xds.record(versions[1].clone());
    // An answer to the server's own small mesh is one of each kind.
    let (answers, streams) = (xds.acknowledged() + 2 + versions[1].len(), xds.streams_ever());
    stage.mesh.control_plane().disconnect();
    stage.settled(answers)?;
    ensure!(xds.streams_ever() > streams, "it did not connect again");
    let end = pause_until(back_from + window);
    Ok(([began, pushed, quiet_from, back_from, end], took))
}

fn pause_until(due: Instant) -> Instant {
    thread::sleep(due.saturating_duration_since(Instant::now()));
    Instant::now()
}

/// Connections that stay.
struct Idle {
    clients: Vec<TcpStream>,
    stop: Arc<AtomicBool>,
    listener: TcpListener,
    server: JoinHandle<Vec<TcpStream>>,
}

impl Idle {
    fn start(client: &Pod, server: &Pod, count: usize) -> Result<Self> {
        let listener = server.netns.run(|| TcpListener::bind((server.address, IDLE_PORT)))?;
        let (accepting, stop) = (listener.try_clone()?, Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let accepted = thread::Builder::new().name("hold".into()).spawn(move || {
            let mut held = Vec::new();
            while let Ok((stream, _)) = accepting.accept()
                && !stopped.load(Ordering::Acquire)
            {
                held.push(stream);
            }
            held
        })?;
        let target: SocketAddr = server.at(IDLE_PORT);
        let clients: Result<Vec<TcpStream>> = (0..count).map(|_| client.connect(target)).collect();
        Ok(Self { clients: clients.context("idle connections")?, stop, listener, server: accepted })
    }

    /// How many are not there any more. None says anything, so a reading that does not wait is an end.
    fn end(self) -> Result<usize> {
        let mut failed = 0;
        for client in &self.clients {
            client.set_nonblocking(true)?;
            let open = matches!(client.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            failed += usize::from(!open);
        }
        self.stop.store(true, Ordering::Release);
        let _ended = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        drop(self.server.join());
        Ok(failed)
    }
}
