//! A quiet tenant beside three kinds of noise, three ways: as tenants of one core, with the noise in a second process on the same
//! core (what sharing nothing would give), and all as one tenant (what no fairness would give).

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::Run;
use super::child::{Plan, Relay};
use super::crowd::{Crowd, Echo, beside};
use super::relay::{Kind, Route};
use super::victim::{P99, Victim};
use crate::serve::{Role, Server, loopback};
use crate::{bulk, short_connections};

const PATIENCE: Duration = Duration::from_secs(20);
/// Between two bursts.
const BURST_PERIOD: Duration = Duration::from_millis(500);
/// How long a piece of noise is, after which it looks whether it is to stop.
const PIECE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
enum Noise {
    Bulk,
    Churn,
    Burst,
}

#[derive(Clone, Copy)]
enum Way {
    Ours,
    Control,
    OneTenant,
}

const NOISES: [(&str, Noise); 3] =
    [("victim_p99_bulk", Noise::Bulk), ("victim_p99_churn", Noise::Churn), ("victim_p99_burst", Noise::Burst)];
const WAYS: [(&str, Way); 3] = [("ours", Way::Ours), ("control", Way::Control), ("one_tenant", Way::OneTenant)];

/// `victim_p99_bulk victim_p99_churn victim_p99_burst`, each of `ours`, `control` and `one_tenant`, in microseconds.
pub(super) fn measure(run: &Run) -> Result<Map<String, Value>> {
    if !NOISES.iter().any(|(name, _)| run.wants(name)) {
        return Ok(Map::new());
    }
    let mut victim = Victim::start(run.load_cpu)?;
    if !victim.real_time() {
        run.say("no real-time priority for the victim (chrt -f 50): its latency has its own waiting for a CPU in it");
    }
    let mut figures = Map::new();
    for (name, noise) in NOISES.into_iter().filter(|(name, _)| run.wants(name)) {
        let mut seen = WAYS.map(|_| Vec::new());
        for _ in 0..run.scale.long_rounds {
            for ((way_name, way), seen) in WAYS.iter().zip(&mut seen) {
                let (p99, waited, amount) = sample(run, &mut victim, noise, *way)?;
                run.say(&format!(
                    "{name}, {way_name}: p99 {:.0} us (its turns came within {waited:.0} us), direct {:.0} us; noise {amount:.0} {}",
                    p99.relayed,
                    p99.direct,
                    noise.unit()
                ));
                seen.push(p99.relayed);
            }
        }
        let mut object = Map::new();
        for ((way_name, _), mut seen) in WAYS.iter().zip(seen) {
            seen.sort_by(f64::total_cmp);
            object.insert((*way_name).to_owned(), json!(seen[seen.len() / 2]));
        }
        figures.insert(name.to_owned(), Value::Object(object));
    }
    Ok(figures)
}

fn sample(run: &Run, victim: &mut Victim, noise: Noise, way: Way) -> Result<(P99, f64, f64)> {
    let sink = Server::start(loopback()?, Role::Sink)?;
    let echo = Echo::start()?;
    let noise_to = if matches!(noise, Noise::Bulk) { sink.address() } else { echo.address() };
    let noisy = Route { tenant: if matches!(way, Way::OneTenant) { 1 } else { 2 }, weight: 1, to: noise_to };
    let quiet = Route { tenant: 1, weight: 1, to: victim.echo() };
    let start = |routes| {
        Relay::start(&Plan { kind: Kind::Ours, cpu: run.relay_cpu, buffer: 0, accounts: true, copy: false, routes })
    };
    let (mut relay, second) = match way {
        Way::Control => (start(vec![quiet])?, Some(start(vec![noisy])?)),
        Way::Ours | Way::OneTenant => (start(vec![quiet, noisy])?, None),
    };
    let noise_at = second.as_ref().map_or_else(|| relay.address(1), |second| second.address(0));
    let crowd = match noise {
        Noise::Burst => Some(Crowd::open(noise_at, run.scale.burst)?),
        Noise::Bulk | Noise::Churn => None,
    };
    let (quiet_at, time) = (relay.address(0), run.scale.long_sample);
    let (p99, amount) = beside(|stop| noise.make(noise_at, crowd, stop), || victim.measure(quiet_at, time))?;
    Ok((p99, relay.waited_p99(1)?, amount))
}

impl Noise {
    fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "MB",
            Self::Churn => "connections",
            Self::Burst => "exchanges",
        }
    }

    /// Until `stop`; how much it was.
    fn make(self, to: SocketAddr, crowd: Option<Crowd>, stop: &AtomicBool) -> Result<f64> {
        let connect = || TcpStream::connect(to);
        let mut amount = 0.0;
        if let Some(mut crowd) = crowd {
            return Ok(crowd.bursts(1000, BURST_PERIOD, stop)? as f64);
        }
        while !stop.load(Ordering::Acquire) {
            amount += match self {
                Self::Bulk => {
                    let (flows, bytes_per_flow) = (16, u64::MAX);
                    let (duration_max, direction) = (PIECE * 4, bulk::Direction::Up);
                    let plan = bulk::Plan { flows, bytes_per_flow, direction, duration_max, patience: PATIENCE };
                    bulk::run(&connect, &plan)?.bytes as f64 / 1e6
                }
                Self::Churn | Self::Burst => {
                    let plan = short_connections::Plan {
                        in_flight: 16,
                        message: 64,
                        duration: PIECE,
                        connections_max: 10_000,
                        patience: PATIENCE,
                    };
                    short_connections::run(&connect, &plan)?.completed as f64
                }
            };
        }
        Ok(amount)
    }
}
