//! How the core's CPU is shared between two tenants that both want all of it, by the engine's own accounts; what the tenants' bytes
//! say stands beside it.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::Run;
use super::child::{Plan, Relay};
use super::crowd::beside;
use super::flood::Flood;
use super::relay::{Kind, Route};
use crate::cpu::Meter;

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
    // A load of its own for each: a single one would share its own time out by flows.
    let floods = [Flood::listen()?, Flood::listen()?];
    let mut routes = Vec::new();
    for (tenant, flood) in (1..).zip(&floods) {
        routes.push(Route { tenant, weight: weights[routes.len()], to: flood.address()? });
    }
    // Copying, which costs more than the load does: a tenant is to want more CPU than it gets all of the time.
    let plan = Plan { kind: Kind::Ours, cpu: run.relay_cpu, buffer: 0, accounts: true, copy: true, routes };
    let mut relay = Relay::start(&plan)?;
    let time = run.scale.long_sample;
    let at = [relay.address(0), relay.address(1)];
    let ((charged, busy), bytes) = beside(
        |stop| {
            thread::scope(|scope| {
                let first = scope.spawn(|| floods[0].run(at[0], flows[0], stop));
                let second = floods[1].run(at[1], flows[1], stop)?;
                Ok([crate::joined(first)?, second])
            })
        },
        || {
            thread::sleep(WARM_UP);
            let before = [relay.charged(1)?, relay.charged(2)?];
            let meter = Meter::start(&[relay.process()])?;
            thread::sleep(time);
            let busy = meter.spent()?[0].as_secs_f64() / time.as_secs_f64();
            Ok(([relay.charged(1)? - before[0], relay.charged(2)? - before[1]], busy))
        },
    )?;
    let bytes = [bytes[0] as f64, bytes[1] as f64];
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
