//! `perf-tests`: the generator as a command, between any two ends of a path: `perf-tests serve echo` at one, a scenario at the other.
//! What runs through two nodes of a mesh and needs namespaces is testbed's.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use perf_tests::report::{Format, Row, render};
use perf_tests::serve::{Role, Server};
use perf_tests::{bulk, cpu, open_loop, ping_pong, short_connections};

/// Load that is simple and exact: latency at a rate, exchanges, connections, bytes, and what they cost a process.
///
/// Example: `perf-tests serve echo --listen 127.0.0.1:7000 &` and `perf-tests open-loop --to 127.0.0.1:7000 --rate 1000`
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Be the other end: runs until it is killed
    Serve {
        /// What to do with a connection
        role: ServedRole,
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Requests at a fixed rate to an echo; latency counts from when each was due
    OpenLoop {
        #[command(flatten)]
        common: Common,
        /// Another way to the same server, loaded at the same time, as the calibration
        #[arg(long)]
        direct: Option<SocketAddr>,
        /// Requests per second, over all connections
        #[arg(long, default_value_t = 400.0)]
        rate: f64,
        /// Open connections
        #[arg(long, default_value_t = 4)]
        connections: usize,
        /// Bytes of a request and of its answer
        #[arg(long, default_value_t = 128)]
        message: usize,
    },
    /// Requests to an echo, each after the answer to the one before
    PingPong {
        #[command(flatten)]
        common: Common,
        /// Open connections
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Bytes of a request and of its answer
        #[arg(long, default_value_t = 128)]
        message: usize,
    },
    /// Connections to an echo with one request each
    ShortConnections {
        #[command(flatten)]
        common: Common,
        /// Connections under way at a time
        #[arg(long, default_value_t = 16)]
        in_flight: usize,
        /// Connections in all
        #[arg(long, default_value_t = 20_000)]
        connections_max: u64,
        /// Bytes of a request and of its answer
        #[arg(long, default_value_t = 128)]
        message: usize,
    },
    /// Bytes to a sink, or from a source
    Bulk {
        #[command(flatten)]
        common: Common,
        /// Which way
        #[arg(long, value_enum, default_value = "up")]
        direction: Way,
        /// Connections
        #[arg(long, default_value_t = 4)]
        flows: usize,
        /// MiB per connection
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
        mib: u64,
    },
}

/// What every scenario takes.
#[derive(Args)]
struct Common {
    /// The server
    #[arg(long)]
    to: SocketAddr,
    /// For how many seconds (bulk: at most)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Also the CPU time of these processes meanwhile
    #[arg(long = "pid")]
    processes: Vec<u32>,
    /// How figures are shown
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum ServedRole {
    /// Send back what comes
    Echo,
    /// Read to the end, then answer how many bytes came
    Sink,
    /// Send as many bytes as are asked for
    Source,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// To a sink
    Up,
    /// From a source
    Down,
}

fn main() -> Result<()> {
    match Arguments::parse().scenario {
        Scenario::Serve { role, listen } => {
            let role = match role {
                ServedRole::Echo => Role::Echo,
                ServedRole::Sink => Role::Sink,
                ServedRole::Source => Role::Source,
            };
            let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
            let server = Server::start(listener, role)?;
            show(&format!("listening on {}\n", server.address()));
            loop {
                thread::park();
            }
        }
        Scenario::OpenLoop { common, direct, rate, connections, message } => {
            let plan =
                open_loop::Plan { connections, rate, message, duration: common.duration(), ..Default::default() };
            let to = common.connect();
            let calibrate = || TcpStream::connect(direct.unwrap_or(common.to));
            let mut paths = vec![open_loop::Path { name: "path", connect: &to }];
            if direct.is_some() {
                paths.push(open_loop::Path { name: "direct", connect: &calibrate });
            }
            let title = format!("open loop, {rate}/s on {connections} connections, {message} B");
            common.report(|| {
                let outcomes = open_loop::run(&paths, &plan)?;
                let units = outcomes[0].answered as f64;
                let row = |outcome: &open_loop::Outcome| {
                    Row::new(&title, &outcome.name)
                        .spread("latency", &outcome.latency)
                        .figure("send lag p99 us", outcome.send_lag.quantile(0.99).as_secs_f64() * 1e6)
                        .figure("unanswered", outcome.unanswered as f64)
                };
                Ok((outcomes.iter().map(row).collect(), units))
            })
        }
        Scenario::PingPong { common, connections, message } => {
            let plan = ping_pong::Plan { connections, message, duration: common.duration(), ..Default::default() };
            common.report(|| {
                let outcome = ping_pong::run(&common.connect(), &plan)?;
                let row = Row::new(format!("ping-pong, {connections} connections, {message} B"), "path");
                let row = row.figure("exchanges/s", outcome.rate()).spread("latency", &outcome.latency);
                Ok((vec![row], outcome.exchanges as f64))
            })
        }
        Scenario::ShortConnections { common, in_flight, connections_max, message } => {
            let duration = common.duration();
            let plan = short_connections::Plan { in_flight, message, duration, connections_max, ..Default::default() };
            common.report(|| {
                let outcome = short_connections::run(&common.connect(), &plan)?;
                let row = Row::new(format!("connect-request-close, {in_flight} in flight, {message} B"), "path");
                let row = row.figure("connections/s", outcome.rate()).spread("latency", &outcome.latency);
                Ok((vec![row.figure("failed", outcome.failed as f64)], outcome.completed as f64))
            })
        }
        Scenario::Bulk { common, direction, flows, mib } => {
            let direction = match direction {
                Way::Up => bulk::Direction::Up,
                Way::Down => bulk::Direction::Down,
            };
            let (bytes_per_flow, duration_max) = (mib << 20, common.duration());
            let plan = bulk::Plan { flows, bytes_per_flow, direction, duration_max, ..Default::default() };
            common.report(|| {
                let outcome = bulk::run(&common.connect(), &plan)?;
                let row = Row::new(format!("bulk, {direction:?}, {flows} flows"), "path");
                Ok((vec![row.figure("Gbit/s", outcome.bits_per_second() / 1e9)], outcome.bytes as f64))
            })
        }
    }
}

impl Common {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn connect(&self) -> impl Fn() -> io::Result<TcpStream> + Sync + use<> {
        let to = self.to;
        move || TcpStream::connect(to)
    }

    /// Shows the rows of `measure`, the first of them with what the processes spent per unit.
    fn report(&self, measure: impl FnOnce() -> io::Result<(Vec<Row>, f64)>) -> Result<()> {
        let meter = cpu::Meter::start(&self.processes).context("read the CPU time of --pid")?;
        let (mut rows, units) = measure().with_context(|| format!("measure against {}", self.to))?;
        for (process, spent) in self.processes.iter().zip(meter.spent()?) {
            let first = rows.remove(0);
            let name = format!("CPU ns/unit of {process}");
            rows.insert(0, first.figure(&name, spent.as_nanos() as f64 / units.max(1.0)));
        }
        show(&render(&rows, self.format));
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "a command whose result is what it prints")]
fn show(text: &str) {
    print!("{text}");
}
