//! A process with a quiet tenant: 1 kB every millisecond in open loop to its own echo, through a relay and directly. It runs in a
//! process of its own so that it can have real-time priority: what it then waits for is the relay and not its own CPU.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cpus;
use crate::open_loop::{Path, Plan, run};
use crate::serve::{Role, Server, loopback};

/// What a measurement came to, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct P99 {
    /// Through the relay.
    pub relayed: f64,
    /// Straight to the echo at the same times: what the machine itself adds.
    pub direct: f64,
}

/// The process's own part: says where its echo is; then for each line `address milliseconds` loads it and says what it saw.
///
/// # Errors
/// When it can't be pinned, or a load fails.
pub fn serve(cpu: usize) -> Result<()> {
    cpus::pin(cpu)?;
    let echo = Server::start(loopback()?, Role::Echo)?;
    say(&json!({ "echo": echo.address().to_string() }))?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (to, time) = line.split_once(' ').with_context(|| format!("{line:?} is not an address and a time"))?;
        let to: SocketAddr = to.parse()?;
        let plan = Plan {
            connections: 1,
            rate: 1000.0,
            message: 1000,
            warm_up: Duration::from_millis(300),
            duration: Duration::from_millis(time.parse()?),
            patience: Duration::from_secs(5),
        };
        let paths = [
            Path { name: "relayed", connect: &|| TcpStream::connect(to) },
            Path { name: "direct", connect: &|| TcpStream::connect(echo.address()) },
        ];
        let outcomes = run(&paths, &plan)?;
        let p99 = |path: usize| outcomes[path].latency.quantile(0.99).as_secs_f64() * 1e6;
        say(&json!({ "relayed": p99(0), "direct": p99(1), "unanswered": outcomes[0].unanswered }))?;
    }
    Ok(())
}

fn say(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// That process, as the run sees it. Dropping it ends it.
pub struct Victim {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    echo: SocketAddr,
    real_time: bool,
}

impl Victim {
    /// Starts it, with real-time priority if this process may give it (`chrt`).
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(cpu: usize) -> Result<Self> {
        let allowed = Command::new("chrt").args(["-f", "50", "true"]).stderr(Stdio::null()).status();
        let real_time = allowed.is_ok_and(|status| status.success());
        let own = std::env::current_exe()?;
        let mut command = if real_time {
            let mut command = Command::new("chrt");
            command.args(["-f", "50"]).arg(&own);
            command
        } else {
            Command::new(&own)
        };
        command.args(["victim", "--cpu", &cpu.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the victim")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("pipes were asked for")
        };
        let echo = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut victim = Self { child, input: Some(input), output: BufReader::new(output), echo, real_time };
        victim.echo = victim.line()?["echo"].as_str().context("the victim did not say where its echo is")?.parse()?;
        Ok(victim)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the victim said {line:?}; did it fail (see above)?"))
    }

    /// Where a relay has to bring its requests.
    #[must_use]
    pub fn echo(&self) -> SocketAddr {
        self.echo
    }

    /// Whether it has real-time priority.
    #[must_use]
    pub fn real_time(&self) -> bool {
        self.real_time
    }

    /// Sends for `time` through the relay at `to`.
    ///
    /// # Errors
    /// When it is gone, or requests were not answered at all.
    pub fn measure(&mut self, to: SocketAddr, time: Duration) -> Result<P99> {
        let input = self.input.as_mut().context("the victim was ended")?;
        writeln!(input, "{to} {}", time.as_millis()).context("asking the victim")?;
        let said = self.line()?;
        if said["unanswered"] != 0 {
            bail!("requests of the victim were lost: {said}");
        }
        let figure = |name: &str| said[name].as_f64().with_context(|| format!("no {name} in {said}"));
        Ok(P99 { relayed: figure("relayed")?, direct: figure("direct")? })
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
