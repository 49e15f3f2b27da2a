//! The relays that are compared, each as a process of its own on one CPU: the data plane's on the engine, and one with the same
//! logic on tokio's single-threaded runtime. A relay listens once per route, says where on its first line, answers `accounts`, and
//! ends when its standard input does, so it can't outlive who started it.

use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use reactor::{CoreConfig, Listener, Reactor, Runtime, TenantKey, Weight};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::cpus;

/// How long a connection to the other end may take. It is on this machine.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted: bursts of thousands must not be dropped by the listener.
const BACKLOG: i32 = 4096;
/// How long an accept that failed (out of descriptors) waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Which relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// The data plane's, on the engine.
    Ours,
    /// The same logic on tokio's current_thread runtime.
    Tokio,
}

/// What a relay is to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Which relay
    pub kind: Kind,
    /// The CPU it runs on
    #[arg(long)]
    pub cpu: usize,
    /// Bytes of each of tokio's two buffers per connection; the engine's relay sizes its own
    #[arg(long, default_value_t = 16 << 10)]
    pub buffer: usize,
    /// Let the engine copy bulk, and not splice it
    #[arg(long)]
    pub copy: bool,
    /// Let the engine keep no accounts
    #[arg(long)]
    pub no_accounts: bool,
    /// `tenant,weight,address`: listens for the tenant and relays to the address
    #[arg(long = "route", value_parser = route, required = true)]
    pub routes: Vec<Route>,
}

/// One listener.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Whose traffic it is.
    pub tenant: u32,
    /// The share of the tenant.
    pub weight: u32,
    /// Where it goes.
    pub to: SocketAddr,
}

fn route(text: &str) -> Result<Route> {
    let fields: Vec<&str> = text.split(',').collect();
    let [tenant, weight, to] = fields[..] else { return Err(anyhow!("{text:?} is not tenant,weight,address")) };
    let number = |what: &str, text: &str| text.parse().with_context(|| format!("{what} {text:?}"));
    let to = to.parse().with_context(|| format!("address {to:?}"))?;
    Ok(Route { tenant: number("tenant", tenant)?, weight: number("weight", weight)?, to })
}

/// Runs a relay until standard input ends.
///
/// # Errors
/// When it can't be pinned, listen or start.
pub fn serve(options: &Options) -> Result<()> {
    cpus::pin(options.cpu)?;
    let listeners: Vec<(Route, TcpListener)> =
        options.routes.iter().map(|route| Ok((*route, listener()?))).collect::<io::Result<_>>().context("listening")?;
    let addresses: Vec<String> =
        listeners.iter().map(|(_, listener)| Ok(listener.local_addr()?.to_string())).collect::<io::Result<_>>()?;
    match options.kind {
        Kind::Ours => ours(options, listeners, &addresses),
        Kind::Tokio => tokio(options.buffer, listeners, &addresses),
    }
}

fn listener() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn say(value: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

fn ours(options: &Options, listeners: Vec<(Route, TcpListener)>, addresses: &[String]) -> Result<()> {
    let mut config = CoreConfig { cpu: Some(options.cpu), accounts: !options.no_accounts, ..CoreConfig::default() };
    if options.copy {
        config.pipes_max = 0;
    }
    let core = reactor::start(config, move |reactor| async move {
        for (route, listener) in listeners {
            let weight = Weight::new(route.weight).unwrap_or(Weight::DEFAULT);
            let tenant = TenantKey(route.tenant);
            reactor.introduce(tenant, &format!("tenant {}", route.tenant), weight);
            reactor.spawn(tenant, accept(reactor.clone(), tenant, listener, route.to)).detach();
        }
        std::future::pending().await
    })?;
    say(&json!({ "addresses": addresses }))?;
    let view = core.view();
    for line in io::stdin().lock().lines() {
        if line? == "accounts" {
            let accounts: Vec<_> = view
                .accounts()
                .iter()
                .map(|account| {
                    json!({ "tenant": account.tenant.0, "cpu_ns": account.cpu_ns(), "polls": account.polls,
                    "operations": account.operations, "received": account.received_bytes, "sent": account.sent_bytes,
                    "waits": account.waits })
                })
                .collect();
            let counts = view.counts();
            say(&json!({ "accounts": accounts, "enters": counts.enters, "parks": counts.parks,
                "operations": counts.ops_completed }))?;
        }
    }
    Ok(())
}

async fn accept(reactor: Reactor, tenant: TenantKey, listener: TcpListener, to: SocketAddr) {
    let Ok(listener) = reactor.listen(listener.into()) else { return };
    loop {
        let Ok(client) = listener.accept().await else {
            reactor.sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let own = reactor.clone();
        let relay = async move {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            let server = own.connect(socket.into(), to, CONNECT_MAX).await?;
            dataplane::relay_plain(client, server).await
        };
        reactor.spawn(tenant, relay).detach();
    }
}

fn tokio(buffer: usize, listeners: Vec<(Route, TcpListener)>, addresses: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    say(&json!({ "addresses": addresses }))?;
    // The runtime stays on this thread; standard input is waited for on another.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        drop(stop);
    });
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        for (route, listener) in listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::task::spawn_local(accept_on_tokio(listener, route.to, buffer));
        }
        let _ = stopped.await;
        Ok(())
    })
}

async fn accept_on_tokio(listener: tokio::net::TcpListener, to: SocketAddr, buffer: usize) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        tokio::task::spawn_local(async move {
            client.set_nodelay(true)?;
            let mut server = tokio::net::TcpStream::connect(to).await?;
            server.set_nodelay(true)?;
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, buffer, buffer).await
        });
    }
}
