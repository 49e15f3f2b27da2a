//! A relay's process as the run sees it: started, asked, ended. It dies with its standard input, which closes when this process
//! ends in whatever way, Ctrl-C and SIGKILL included.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use reactor::WAIT_BOUNDS;
use serde_json::Value;

use super::relay::{Kind, Route};

/// How a relay is to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which.
    pub kind: Kind,
    /// Where.
    pub cpu: usize,
    /// Bytes of tokio's buffers.
    pub buffer: usize,
    /// Whether the engine keeps accounts.
    pub accounts: bool,
    /// Whether bulk is copied and not spliced.
    pub copy: bool,
    /// What it listens for.
    pub routes: Vec<Route>,
}

/// A running relay. Dropping it ends it.
pub struct Relay {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    addresses: Vec<SocketAddr>,
}

impl Relay {
    /// Starts one from this very program and waits until it listens.
    ///
    /// # Errors
    /// When it does not start; its own words are on standard error.
    pub fn start(plan: &Plan) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("relay").arg(match plan.kind {
            Kind::Ours => "ours",
            Kind::Tokio => "tokio",
        });
        command.args(["--cpu", &plan.cpu.to_string(), "--buffer", &plan.buffer.to_string()]);
        if plan.copy {
            command.arg("--copy");
        }
        if !plan.accounts {
            command.arg("--no-accounts");
        }
        for Route { tenant, weight, to } in &plan.routes {
            command.args(["--route", &format!("{tenant},{weight},{to}")]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a relay")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("pipes were asked for")
        };
        let mut relay = Self { child, input: Some(input), output: BufReader::new(output), addresses: Vec::new() };
        let said = relay.line()?;
        let addresses = said["addresses"].as_array().context("a relay did not say where it listens")?;
        for address in addresses {
            relay.addresses.push(address.as_str().context("an address is a string")?.parse()?);
        }
        Ok(relay)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("a relay said {line:?}; did it fail (see above)?"))
    }

    /// Where the route of this number is entered.
    #[must_use]
    pub fn address(&self, route: usize) -> SocketAddr {
        self.addresses[route]
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What the engine has charged to `tenant` so far, in nanoseconds.
    ///
    /// # Errors
    /// When it has no account.
    pub fn charged(&mut self, tenant: u32) -> Result<f64> {
        let said = self.engine()?;
        let accounts = said["accounts"].as_array().context("no accounts")?;
        let own = accounts.iter().find(|account| account["tenant"] == tenant);
        own.and_then(|own| own["cpu_ns"].as_f64()).with_context(|| format!("tenant {tenant} has no account in {said}"))
    }

    /// Below which time 99 of 100 turns of `tenant` came so far since it had something to do, in microseconds and by the classes
    /// of the engine's histogram.
    ///
    /// # Errors
    /// When it has no account.
    pub fn waited_p99(&mut self, tenant: u32) -> Result<f64> {
        let said = self.engine()?;
        let accounts = said["accounts"].as_array().context("no accounts")?;
        let own = accounts.iter().find(|account| account["tenant"] == tenant);
        let waits = own.and_then(|own| own["waits"].as_array()).context("no waits")?;
        let waits: Vec<u64> = waits.iter().filter_map(Value::as_u64).collect();
        let most = waits.iter().sum::<u64>() * 99 / 100;
        let mut below = 0;
        let class = waits.iter().position(|count| {
            below += count;
            below >= most
        });
        Ok(class.and_then(|class| WAIT_BOUNDS.get(class)).map_or(f64::INFINITY, |bound| bound.as_secs_f64() * 1e6))
    }

    /// Accounts and counts of the engine. A relay on tokio has none.
    ///
    /// # Errors
    /// When it is gone.
    pub fn engine(&mut self) -> Result<Value> {
        let input = self.input.as_mut().context("the relay was ended")?;
        input.write_all(b"accounts\n").context("asking a relay")?;
        self.line()
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS {line:?}"))?;
        Ok(kib * 1024.0)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.input.take());
        // A core whose root task waits forever ends with the process, which has no more to do; it is not waited for to agree.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
