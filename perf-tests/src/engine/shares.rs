//! How the core's CPU is shared between two tenants that both want all of it, by the engine's own accounts; what the tenants' bytes
//! say stands beside it.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::Run;
use super::child::{Plan, Relay};
use super::relay::{Kind, Route};
use crate::bulk;
use crate::cpu::Meter;
use crate::serve::{Role, Server, loopback};

/// How long both flows have been under way before anything counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// `share_1_3 share_256_1`: of the tenant with the larger weight, and of the one with more connections.
pub(super) fn measure(run: &Run) -> Result<Map<String, Value>> {
    let mut figures = Map::new();
    for (name, weights, flows) in [("share_1_3", [1, 3], [16, 16]), ("share_256_1", [1, 1], [1, 256])] {
        if !run.wants(name) {
            continue;
        }
        let mut shares = Vec::new();
        for _ in 0..run.scale.long_rounds {
            shares.push(share(run, name, weights, flows)?);
        }
        shares.sort_by(f64::total_cmp);
        figures.insert(name.to_owned(), json!(shares[shares.len() / 2]));
    }
    Ok(figures)
}

/// The second tenant's share.
fn share(run: &Run, name: &str, weights: [u32; 2], flows: [usize; 2]) -> Result<f64> {
    let sink = Server::start(loopback()?, Role::Sink)?;
    let route = |tenant: u32| Route { tenant, weight: weights[tenant as usize - 1], to: sink.address() };
    let routes = vec![route(1), route(2)];
    let mut relay = Relay::start(&Plan { kind: Kind::Ours, cpu: run.relay_cpu, buffer: 0, accounts: true, routes })?;
    let time = run.scale.long_sample;
    let addresses = [relay.address(0), relay.address(1)];
    let (charged, busy, bytes) = thread::scope(|scope| -> Result<_> {
        let loads = [0, 1].map(|tenant| {
            let to = addresses[tenant];
            let plan = bulk::Plan {
                flows: flows[tenant],
                bytes_per_flow: u64::MAX,
                // Both go on for longer than what is measured.
                duration_max: WARM_UP * 3 + time,
                patience: Duration::from_secs(20),
                ..bulk::Plan::default()
            };
            scope.spawn(move || bulk::run(&|| TcpStream::connect(to), &plan))
        });
        thread::sleep(WARM_UP);
        let before = [relay.charged(1)?, relay.charged(2)?];
        let meter = Meter::start(&[relay.process()])?;
        thread::sleep(time);
        let busy = meter.spent()?[0].as_secs_f64() / time.as_secs_f64();
        let charged = [relay.charged(1)? - before[0], relay.charged(2)? - before[1]];
        let [first, second] = loads.map(crate::joined);
        Ok((charged, busy, [first?.bytes as f64, second?.bytes as f64]))
    })?;
    let second = |pair: [f64; 2]| pair[1] / (pair[0] + pair[1]);
    let warning = if busy < 0.9 { ", NOT SATURATED: the load did not keep up" } else { "" };
    run.say(&format!(
        "{name}: {:.3} of the CPU, {:.3} of the bytes; accounts hold {:.2} of what the core used, busy {:.0} %{warning}",
        second(charged),
        second(bytes),
        (charged[0] + charged[1]) / 1e9 / (busy * time.as_secs_f64()),
        busy * 100.0,
    ));
    Ok(second(charged))
}
