//! `make bench`: what the data path costs the two daemons, per byte, per message and per connection, between two pods of two
//! nodes, beside the same work on a pair of pods that nobody captures. Rounds are interleaved; medians are shown.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use perf_tests::cpu::Meter;
use perf_tests::report::{Format, Row, render};
use perf_tests::serve::{Role, Server};
use perf_tests::{bulk, ping_pong, short_connections};
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};

/// Measures the data path through two nodes. Needs root; ends by itself.
#[derive(Parser)]
struct Arguments {
    /// Interleaved rounds; medians are over them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Seconds of each ping-pong and of each run of short connections
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How the figures are shown
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Two pods between which work is done.
struct Path {
    name: &'static str,
    client: Pod,
    echo: SocketAddr,
    sink: SocketAddr,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    testbed::namespace::require_privileges()?;
    let pods = [
        PodSpec::new("client", NodeId::A),
        PodSpec::new("server", NodeId::B),
        PodSpec::new("plain-client", NodeId::A).uncaptured(),
        PodSpec::new("plain-server", NodeId::B).uncaptured(),
    ];
    let mesh = Mesh::start(MeshSpec::default(), &pods)?;
    let daemons = [NodeId::A, NodeId::B].map(|node| mesh.daemon(node).pid());
    let mut servers = Vec::new();
    let mut paths = Vec::new();
    for (name, client, server) in [("mesh", "client", "server"), ("direct", "plain-client", "plain-server")] {
        let server = mesh.pod(server);
        let echo = serve(&server, Role::Echo, &mut servers)?;
        let sink = serve(&server, Role::Sink, &mut servers)?;
        paths.push(Path { name, client: mesh.pod(client), echo, sink });
    }
    let mut samples: Vec<Row> = Vec::new();
    for round in 1..=arguments.rounds {
        progress(&format!("round {round} of {}", arguments.rounds));
        for path in &paths {
            samples.extend(round_on(path, &daemons, Duration::from_secs(arguments.seconds))?);
        }
    }
    show(&render(&medians(&samples), arguments.format));
    Ok(())
}

fn serve(pod: &Pod, role: Role, servers: &mut Vec<Server>) -> Result<SocketAddr> {
    let listener = pod.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let server = Server::start(listener, role)?;
    let address = pod.at(server.address().port());
    servers.push(server);
    Ok(address)
}

/// All kinds of work once.
fn round_on(path: &Path, daemons: &[u32], duration: Duration) -> Result<Vec<Row>> {
    let connect_to =
        |target: SocketAddr| move || -> io::Result<TcpStream> { path.client.connect(target).map_err(io::Error::other) };
    let (echo, sink) = (connect_to(path.echo), connect_to(path.sink));
    let mut rows = Vec::new();
    for flows in [1, 16] {
        let meter = Meter::start(daemons)?;
        let plan = bulk::Plan { flows, bytes_per_flow: (1 << 30) / flows as u64, ..bulk::Plan::default() };
        let done = bulk::run(&sink, &plan).with_context(|| format!("bulk over {}", path.name))?;
        let row = Row::new(format!("bulk {flows} flows"), path.name).figure("Gbit/s", done.bits_per_second() / 1e9);
        rows.push(row.figure("daemons' CPU ns/KB", nanoseconds(&meter)? / (done.bytes as f64 / 1024.0)));
    }
    for connections in [1, 16, 64] {
        let meter = Meter::start(daemons)?;
        let plan = ping_pong::Plan { connections, message: 64, duration, ..ping_pong::Plan::default() };
        let done = ping_pong::run(&echo, &plan).with_context(|| format!("ping-pong over {}", path.name))?;
        let row = Row::new(format!("ping-pong {connections} x 64 B"), path.name).figure("1/s", done.rate());
        let row = row.figure("daemons' CPU us/exchange", nanoseconds(&meter)? / 1e3 / done.exchanges as f64);
        rows.push(row.spread("latency", &done.latency));
    }
    let meter = Meter::start(daemons)?;
    let plan = short_connections::Plan { in_flight: 16, message: 64, duration, ..short_connections::Plan::default() };
    let done = short_connections::run(&echo, &plan).with_context(|| format!("short connections over {}", path.name))?;
    ensure!(done.failed == 0, "{} short connections failed over {}: {:?}", done.failed, path.name, done.failure);
    let row = Row::new("connect-request-close, 16 in flight", path.name).figure("1/s", done.rate());
    let row = row.figure("daemons' CPU us/connection", nanoseconds(&meter)? / 1e3 / done.completed as f64);
    rows.push(row.spread("latency", &done.latency));
    Ok(rows)
}

/// What both daemons have spent, in nanoseconds.
fn nanoseconds(meter: &Meter) -> Result<f64> {
    Ok(meter.spent()?.iter().map(Duration::as_nanos).sum::<u128>() as f64)
}

/// One row per scenario and path, each figure the median of its rounds.
fn medians(samples: &[Row]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for sample in samples {
        let same = |row: &&Row| row.scenario == sample.scenario && row.path == sample.path;
        if rows.iter().any(|row| same(&row)) {
            continue;
        }
        let rounds: Vec<&Row> = samples.iter().filter(same).collect();
        let mut row = Row::new(&sample.scenario, &sample.path);
        for (index, (name, _)) in sample.figures.iter().enumerate() {
            let mut values: Vec<f64> = rounds.iter().map(|round| round.figures[index].1).collect();
            values.sort_by(f64::total_cmp);
            row = row.figure(name, values[values.len() / 2]);
        }
        rows.push(row);
    }
    rows.sort_by(|one, other| one.scenario.cmp(&other.scenario));
    rows
}

#[expect(clippy::print_stdout, reason = "the figures are what this program answers")]
fn show(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "progress goes beside the figures")]
fn progress(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_one_scenario_and_path_become_their_median() {
        let sample = |path, value| Row::new("a", path).figure("x", value);
        let rows = medians(&[sample("mesh", 3.0), sample("direct", 9.0), sample("mesh", 1.0), sample("mesh", 2.0)]);
        let figures: Vec<(&str, f64)> = rows.iter().map(|row| (row.path.as_str(), row.figures[0].1)).collect();
        assert_eq!(figures, [("mesh", 2.0), ("direct", 9.0)]);
    }
}
