//! CPU per operation of our relay against tokio's, with accounts and without; memory of idle connections; CPU of an idle core.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::Run;
use super::both_ends::{self, BothEnds};
use super::child::{Plan, Relay};
use super::crowd::{Crowd, Echo};
use super::paired::Paired;
use super::relay::{Kind, Route};
use crate::bulk;
use crate::cpu::Meter;
use crate::serve::{Role, Server, loopback};

const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request and its answer.
const MESSAGE: usize = 64;
/// Of one sample: leaves half of the ports that a client has to one address.
const SHORT_CONNECTIONS_MAX: u64 = 10_000;

/// A load, on as many connections.
#[derive(Clone, Copy)]
enum Load {
    PingPong(usize),
    Short(usize),
    Bulk(usize),
}

const LOADS: [(&str, Load); 7] = [
    ("pp1", Load::PingPong(1)),
    ("pp16", Load::PingPong(16)),
    ("pp64", Load::PingPong(64)),
    ("pp256", Load::PingPong(256)),
    ("crr16", Load::Short(16)),
    ("bulk1", Load::Bulk(1)),
    ("bulk16", Load::Bulk(16)),
];

/// The load that runs with accounts and without.
const ACCOUNTS: (&str, Load) = ("accounts_cost", Load::PingPong(16));

/// `pp1 pp16 pp64 pp256 crr16 bulk1 bulk16 accounts_cost idle_kib idle_cpu_pct`.
pub(super) fn measure(run: &Run) -> Result<Map<String, Value>> {
    let mut ends = BothEnds::listen()?;
    let sink = Server::start(loopback()?, Role::Sink)?;
    let route = |to| Route { tenant: 1, weight: 1, to };
    let routes = vec![route(ends.address()?), route(sink.address())];
    let plan = |kind, buffer, accounts| Plan {
        kind,
        cpu: run.relay_cpu,
        buffer,
        accounts,
        copy: false,
        routes: routes.clone(),
    };
    let mut ours = Relay::start(&plan(Kind::Ours, 0, true))?;
    let silent = Relay::start(&plan(Kind::Ours, 0, false))?;
    let tokio = Relay::start(&plan(Kind::Tokio, 16 << 10, true))?;
    let tokio_bulk = Relay::start(&plan(Kind::Tokio, 64 << 10, true))?;

    let mut ratios: Vec<Paired> = LOADS.iter().map(|_| Paired::default()).collect();
    let mut accounts = Paired::default();
    for round in 0..run.scale.rounds {
        for ((name, load), ratio) in LOADS.iter().zip(&mut ratios).filter(|((name, _), _)| run.wants(name)) {
            let other = if matches!(load, Load::Bulk(_)) { &tokio_bulk } else { &tokio };
            let before = ours.engine()?;
            let (own, theirs) = both(run, &mut ends, *load, round, &ours, other)?;
            let after = ours.engine()?;
            ratio.add(own, theirs);
            let count = |name: &str| after[name].as_f64().unwrap_or(0.0) - before[name].as_f64().unwrap_or(0.0);
            run.say(&format!(
                "round {}: {name} {own:.1} {unit}, tokio {theirs:.1}: {:.2} ({:.0} enters, {:.0} parks, {:.0} operations)",
                round + 1,
                own / theirs,
                count("enters"),
                count("parks"),
                count("operations"),
                unit = load.unit(),
            ));
        }
        if run.wants(ACCOUNTS.0) {
            let (with, without) = both(run, &mut ends, ACCOUNTS.1, round, &ours, &silent)?;
            accounts.add(with, without);
        }
    }
    let mut figures = Map::new();
    for ((name, _), ratio) in LOADS.iter().zip(&ratios).chain([(&ACCOUNTS, &accounts)]) {
        if !run.wants(name) {
            continue;
        }
        let [low, median, high] = ratio.quartiles();
        let warning = if ratio.is_wide() { ", WIDE: the machine was not quiet" } else { "" };
        run.say(&format!("{name}: {median:.3} (quartiles {low:.3} to {high:.3}{warning})"));
        figures.insert((*name).to_owned(), json!(median));
    }
    drop((silent, tokio, tokio_bulk));
    if run.wants("idle_cpu_pct") {
        figures.insert("idle_cpu_pct".to_owned(), json!(idle_cpu(run, &ours)?));
    }
    drop(ours);
    if run.wants("idle_kib") {
        figures.insert("idle_kib".to_owned(), json!(idle_memory(run)?));
    }
    Ok(figures)
}

impl Load {
    fn unit(self) -> &'static str {
        match self {
            Self::PingPong(_) => "us/exchange",
            Self::Short(_) => "us/connection",
            Self::Bulk(_) => "us/MB",
        }
    }
}

/// What one unit of the load costs either, the one that goes first alternating by round.
fn both(run: &Run, ends: &mut BothEnds, load: Load, round: usize, first: &Relay, second: &Relay) -> Result<(f64, f64)> {
    if round.is_multiple_of(2) {
        let own = cost(run, ends, load, first)?;
        Ok((own, cost(run, ends, load, second)?))
    } else {
        let theirs = cost(run, ends, load, second)?;
        Ok((cost(run, ends, load, first)?, theirs))
    }
}

/// CPU of the relay per unit, in microseconds.
fn cost(run: &Run, ends: &mut BothEnds, load: Load, relay: &Relay) -> Result<f64> {
    let duration = run.scale.sample;
    let (echo, sink) = (relay.address(0), relay.address(1));
    let small = |connections, exchanges, connections_max| both_ends::Plan {
        connections,
        message: MESSAGE,
        exchanges,
        duration,
        connections_max,
    };
    let meter = Meter::start(&[relay.process()])?;
    let units = match load {
        Load::PingPong(connections) => ends.run(echo, &small(connections, u64::MAX, connections as u64))? as f64,
        Load::Short(in_flight) => ends.run(echo, &small(in_flight, 1, SHORT_CONNECTIONS_MAX))? as f64,
        Load::Bulk(flows) => {
            let (bytes_per_flow, direction) = (u64::MAX, bulk::Direction::Up);
            let plan = bulk::Plan { flows, bytes_per_flow, direction, duration_max: duration, patience: PATIENCE };
            bulk::run(&|| TcpStream::connect(sink), &plan)?.bytes as f64 / 1e6
        }
    };
    ensure!(units > 0.0, "nothing was done in {duration:?}");
    Ok(meter.spent()?[0].as_secs_f64() * 1e6 / units)
}

/// In per cent of a CPU.
fn idle_cpu(run: &Run, relay: &Relay) -> Result<f64> {
    let time = run.scale.long_sample;
    let meter = Meter::start(&[relay.process()])?;
    std::thread::sleep(time);
    let percent = meter.spent()?[0].as_secs_f64() / time.as_secs_f64() * 100.0;
    run.say(&format!("idle core: {percent:.3} % of a CPU"));
    Ok(percent)
}

/// Resident KiB of the relay per connection that had one exchange and is idle since.
fn idle_memory(run: &Run) -> Result<f64> {
    let echo = Echo::start()?;
    let routes = vec![Route { tenant: 1, weight: 1, to: echo.address() }];
    let relay =
        Relay::start(&Plan { kind: Kind::Ours, cpu: run.relay_cpu, buffer: 0, accounts: true, copy: false, routes })?;
    // What the first connections bring into memory once is no connection's own.
    drop(Crowd::open(relay.address(0), 64)?);
    let before = relay.resident()?;
    let crowd = Crowd::open(relay.address(0), run.scale.idle)?;
    let kib = (relay.resident()? - before) / 1024.0 / run.scale.idle as f64;
    drop(crowd);
    run.say(&format!("{} idle connections: {kib:.2} KiB each", run.scale.idle));
    Ok(kib)
}
