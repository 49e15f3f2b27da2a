//! The quiet tenant beside a noisy one: round trips at a steady rate, timed from when each should have been sent, alone
//! and under two kinds of noise.
//!
//! An uncaptured pair runs the same schedule at the same time: what it suffers is the machine's share, not the daemons'.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use perf_tests::serve::{Role, Server};
use perf_tests::{bulk, open_loop, short_connections};
use testbed::mesh::{Mesh, Pod};

use crate::screen::Screen;

const MESSAGE_BYTES: usize = 1024;
const MESSAGES_PER_SECOND: f64 = 500.0;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(6);
/// Noise begins before the warm-up and ends after the last answer.
const NOISE: Duration = Duration::from_secs(7);
const BULK_STREAMS: usize = 8;
const CHURNERS: usize = 8;

/// What the noisy tenant does.
#[derive(Clone, Copy)]
enum Noise {
    None,
    Bulk,
    Churn,
}

/// Clients, where they go, and the servers there.
struct Stage {
    web: Pod,
    shop: SocketAddr,
    plain: Pod,
    still: SocketAddr,
    spy: Pod,
    sink: SocketAddr,
    churn: SocketAddr,
    _servers: Vec<Server>,
}

pub(crate) fn quiet_and_noisy(screen: &Screen, mesh: &Mesh) -> Result<()> {
    screen.section("A quiet tenant beside a noisy one");
    screen.say(&format!(
        "retail: {MESSAGES_PER_SECOND} messages of {MESSAGE_BYTES} bytes a second, from web to shop and back on one \
         connection, for {} s.\n\
         rivals: from spy to store, on the same two nodes and cores, as much as they can get.\n\
         Latency counts from when a message should have been sent, so that no stall hides behind what it held back.",
        MEASURED.as_secs()
    ));
    let stage = Stage::set(mesh)?;
    let mut rows = vec![["microseconds", "p50", "p90", "p99", "max", "messages", "noise"].map(String::from).to_vec()];
    let mut direct = Vec::new();
    for (name, noise) in
        [("alone", Noise::None), ("beside bulk streams", Noise::Bulk), ("beside new connections", Noise::Churn)]
    {
        let (outcomes, noise) = screen.step(&format!("measuring {name}"), || stage.measure(noise))?;
        let [tunnelled, calibrating] = outcomes.as_slice() else { return Err(anyhow!("two paths were measured")) };
        rows.push(row(&format!("in tunnels, {name}"), tunnelled, &noise));
        direct.push(row(&format!("no mesh, {name}"), calibrating, &noise));
    }
    rows.extend(direct);
    screen.table(&rows);
    screen.say("Today's figures of this machine, whatever they are; docs/PERFORMANCE.md says how to measure.");
    Ok(())
}

impl Stage {
    fn set(mesh: &Mesh) -> Result<Self> {
        let [web, shop, spy, store, plain, still] =
            ["web", "shop", "spy", "store", "plain", "still"].map(|name| mesh.pod(name));
        let mut servers = Vec::new();
        let mut serve = |pod: &Pod, role: Role| -> Result<SocketAddr> {
            let server = Server::start(pod.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?, role)?;
            let address = pod.at(server.address().port());
            servers.push(server);
            Ok(address)
        };
        let (shop, still) = (serve(&shop, Role::Echo)?, serve(&still, Role::Echo)?);
        let (sink, churn) = (serve(&store, Role::Sink)?, serve(&store, Role::Echo)?);
        Ok(Self { web, shop, plain, still, spy, sink, churn, _servers: servers })
    }

    /// The quiet tenant's and the calibrating pair's outcomes, and how much noise there was.
    fn measure(&self, noise: Noise) -> Result<(Vec<open_loop::Outcome>, String)> {
        thread::scope(|scope| {
            let noisy = scope.spawn(|| self.make(noise));
            let outcomes = self.round_trips();
            let noise = noisy.join().map_err(|_| anyhow!("the noisy tenant's generator panicked"))?;
            Ok((outcomes?, noise.context("the noisy tenant")?))
        })
    }

    fn round_trips(&self) -> Result<Vec<open_loop::Outcome>> {
        let tunnelled = || connect(&self.web, self.shop);
        let direct = || connect(&self.plain, self.still);
        let paths = [
            open_loop::Path { name: "tunnelled", connect: &tunnelled },
            open_loop::Path { name: "direct", connect: &direct },
        ];
        let plan = open_loop::Plan {
            connections: 1,
            rate: MESSAGES_PER_SECOND,
            message: MESSAGE_BYTES,
            warm_up: WARM_UP,
            duration: MEASURED,
            ..open_loop::Plan::default()
        };
        let outcomes = open_loop::run(&paths, &plan)?;
        for outcome in &outcomes {
            ensure!(outcome.unanswered == 0, "{}: {} messages were not answered", outcome.name, outcome.unanswered);
        }
        Ok(outcomes)
    }

    fn make(&self, noise: Noise) -> Result<String> {
        match noise {
            Noise::None => Ok("-".into()),
            Noise::Bulk => {
                let plan = bulk::Plan {
                    flows: BULK_STREAMS,
                    bytes_per_flow: u64::MAX,
                    duration_max: NOISE,
                    ..bulk::Plan::default()
                };
                let outcome = bulk::run(&|| connect(&self.spy, self.sink), &plan)?;
                Ok(format!("{:.1} Gbit/s in {BULK_STREAMS} streams", outcome.bits_per_second() / 1e9))
            }
            Noise::Churn => {
                let plan = short_connections::Plan {
                    in_flight: CHURNERS,
                    duration: NOISE,
                    ..short_connections::Plan::default()
                };
                let outcome = short_connections::run(&|| connect(&self.spy, self.churn), &plan)?;
                let failure = outcome.failure.as_deref().unwrap_or("none");
                ensure!(outcome.failed == 0, "{} connections failed, the first: {failure}", outcome.failed);
                Ok(format!("{:.0} connections/s", outcome.rate()))
            }
        }
    }
}

fn connect(pod: &Pod, target: SocketAddr) -> io::Result<TcpStream> {
    pod.connect(target).map_err(io::Error::other)
}

fn row(name: &str, outcome: &open_loop::Outcome, noise: &str) -> Vec<String> {
    let latency = &outcome.latency;
    let times = [latency.quantile(0.5), latency.quantile(0.9), latency.quantile(0.99), latency.longest()];
    let mut row = vec![name.to_owned()];
    row.extend(times.map(|time| time.as_micros().to_string()));
    row.extend([outcome.answered.to_string(), noise.to_owned()]);
    row
}
