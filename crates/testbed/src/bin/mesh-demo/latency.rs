//! The quiet tenant beside a noisy one: round trips at a steady rate, timed from when each should have been sent, alone
//! and under two kinds of noise.
//!
//! An uncaptured pair runs the same schedule at the same time: what it suffers is the machine's share, not the
//! daemons'.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use testbed::client;
use testbed::mesh::{Mesh, Pod};
use testbed::serve::echo;

use crate::screen::Screen;

const QUIET_PORT: u16 = 9000;
const NOISE_PORT: u16 = 9001;
const CHURN_PORT: u16 = 9002;
const MESSAGE_BYTES: usize = 1024;
const MESSAGES_PER_SECOND: u32 = 500;
const MEASURED: Duration = Duration::from_secs(6);
/// The first connection's handshake is no steady state.
const WARM_UP: Duration = Duration::from_millis(500);
const BULK_STREAMS: usize = 8;
const CHURNERS: usize = 8;

/// What the noisy tenant does.
#[derive(Clone, Copy)]
enum Noise {
    None,
    Bulk,
    Churn,
}

struct Sample {
    tunnelled: Histogram<u64>,
    direct: Histogram<u64>,
    noise: String,
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
    let [web, shop, spy, store, plain, still] =
        ["web", "shop", "spy", "store", "plain", "still"].map(|name| mesh.pod(name));
    let _servers = [
        shop.serve(QUIET_PORT, echo)?,
        still.serve(QUIET_PORT, echo)?,
        store.serve(NOISE_PORT, drink)?,
        store.serve(CHURN_PORT, echo)?,
    ];
    let mut rows = vec![["microseconds", "p50", "p90", "p99", "max", "messages", "noise"].map(String::from).to_vec()];
    let mut direct = Vec::new();
    for (name, noise) in
        [("alone", Noise::None), ("beside bulk streams", Noise::Bulk), ("beside new connections", Noise::Churn)]
    {
        let sample = screen.step(&format!("measuring {name}"), || {
            measure((&web, shop.at(QUIET_PORT)), (&plain, still.at(QUIET_PORT)), (&spy, &store), noise)
        })?;
        rows.push(row(&format!("in tunnels, {name}"), &sample.tunnelled, &sample.noise));
        direct.push(row(&format!("no mesh, {name}"), &sample.direct, &sample.noise));
    }
    rows.extend(direct);
    screen.table(&rows);
    screen.say("Today's figures of this machine, whatever they are; docs/PERFORMANCE.md has those measured with care.");
    Ok(())
}

fn measure(quiet: (&Pod, SocketAddr), direct: (&Pod, SocketAddr), noisy: (&Pod, &Pod), noise: Noise) -> Result<Sample> {
    let stop = AtomicBool::new(false);
    let units = AtomicU64::new(0);
    let connect = |(pod, target): (&Pod, SocketAddr)| pod.connect(target);
    let (tunnelled, beside) = (connect(quiet)?, connect(direct)?);
    thread::scope(|scope| {
        let workers: Vec<_> = match noise {
            Noise::None => vec![],
            Noise::Bulk => (0..BULK_STREAMS).map(|_| scope.spawn(|| pour(noisy, &stop, &units))).collect(),
            Noise::Churn => (0..CHURNERS).map(|_| scope.spawn(|| churn(noisy, &stop, &units))).collect(),
        };
        // Out of phase by half a period, so that the two never wait for each other's wake-up.
        let calibrating = scope.spawn(|| open_loop(&beside, period() / 2));
        let before = (Instant::now(), units.load(Ordering::Relaxed));
        let tunnelled = open_loop(&tunnelled, Duration::ZERO);
        let per_second =
            units.load(Ordering::Relaxed).saturating_sub(before.1) as f64 / before.0.elapsed().as_secs_f64();
        let direct = calibrating.join().map_err(|_| anyhow!("the calibrating thread panicked"))?;
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a noisy thread panicked"))?.context("the noisy tenant")?;
        }
        let noise = match noise {
            Noise::None => "-".into(),
            Noise::Bulk => format!("{:.0} MB/s in {BULK_STREAMS} streams", per_second / 1e6),
            Noise::Churn => format!("{per_second:.0} connections/s"),
        };
        Ok(Sample {
            tunnelled: tunnelled.context("the quiet tenant")?,
            direct: direct.context("the direct pair")?,
            noise,
        })
    })
}

fn period() -> Duration {
    Duration::from_secs(1) / MESSAGES_PER_SECOND
}

/// Sends on schedule whatever comes back, and times each reply from its message's place in the schedule.
fn open_loop(stream: &TcpStream, phase: Duration) -> Result<Histogram<u64>> {
    let count = u32::try_from((WARM_UP + MEASURED).as_millis() / period().as_millis())?;
    let begin = Instant::now() + Duration::from_millis(20) + phase;
    let intended = move |number: u32| begin + period() * number;
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> Result<()> {
            let mut out = stream;
            for number in 0..count {
                thread::sleep(intended(number).saturating_duration_since(Instant::now()));
                out.write_all(&[0; MESSAGE_BYTES])?;
            }
            Ok(stream.shutdown(Shutdown::Write)?)
        });
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        let mut message = [0; MESSAGE_BYTES];
        let mut input = stream;
        for number in 0..count {
            input.read_exact(&mut message).with_context(|| format!("reply {number} of {count}"))?;
            if intended(number) >= begin + WARM_UP {
                let late = Instant::now().saturating_duration_since(intended(number));
                histogram.record(u64::try_from(late.as_micros())?.max(1))?;
            }
        }
        sending.join().map_err(|_| anyhow!("the sending thread panicked"))??;
        ensure!(client::await_end(stream)? == client::End::Clean(0), "the quiet tenant's connection did not end well");
        Ok(histogram)
    })
}

/// Sends as fast as it can; counts bytes.
fn pour((from, to): (&Pod, &Pod), stop: &AtomicBool, bytes: &AtomicU64) -> Result<()> {
    let mut stream = from.connect(to.at(NOISE_PORT))?;
    let block = vec![0; 128 * 1024];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&block)?;
        bytes.fetch_add(block.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Connects, asks, closes, as fast as it can; counts connections.
fn churn((from, to): (&Pod, &Pod), stop: &AtomicBool, connections: &AtomicU64) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        client::round_trip(&from.connect(to.at(CHURN_PORT))?, b"hello")?;
        connections.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn drink(mut stream: &TcpStream, _peer: SocketAddr) -> io::Result<()> {
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

fn row(name: &str, histogram: &Histogram<u64>, noise: &str) -> Vec<String> {
    let quantiles = [0.5, 0.9, 0.99].map(|quantile| histogram.value_at_quantile(quantile).to_string());
    let mut row = vec![name.to_owned()];
    row.extend(quantiles);
    row.extend([histogram.max().to_string(), histogram.len().to_string(), noise.to_owned()]);
    row
}
