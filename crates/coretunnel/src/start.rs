//! Starts everything, in the order in which each part needs the one before, and ends it the other way round.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc, sync::atomic::Ordering, time::Duration};

use anyhow::Context;
use control::Status;
use dataplane::{Cores, CoresConfig};
use mesh_state::name::NetworkId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use telemetry::exposition::Exposition;
use tokio::task::LocalSet;

use crate::{
    admin,
    config::{LocalMesh, Settings, Sockets},
    metrics_page::{self, Pods},
    preflight,
    publisher::{Publisher, retire},
    readiness,
    signal::Signals,
    version,
};

/// What cores may ask of the control thread and have not been heard. One request is about 100 bytes; a core that finds
/// the channel full asks again with its next connection.
const WANTED_MAX: usize = 1_024;

/// After the drain's deadline: how long the cores may take to end. They need milliseconds.
const CORES_END: Duration = Duration::from_secs(2);

/// Runs the daemon until it was told to stop and has drained.
///
/// # Errors
/// What kept it from starting, or ended it.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    let log = telemetry::log::init(&settings.log)?;
    tracing::info!("version: {}", version::line());
    // Every captured connection takes two descriptors, every core some locked memory.
    raise("open files", Resource::Nofile);
    raise("locked memory", Resource::Memlock);
    let findings = preflight::examine(&settings);
    if preflight::blocks_start(&findings) {
        anyhow::bail!("this host cannot run coretunnel:\n{}", preflight::table(&findings));
    }
    tracing::info!(?settings, "settings");

    let (wanted_sender, wanted) = async_channel::bounded(WANTED_MAX);
    let (recorders, page) = telemetry::recorder::recorders(settings.cores.len());
    let cores = CoresConfig {
        cores: settings.cores.iter().enumerate().map(|(index, cpu)| core(index, *cpu)).collect(),
        engine: engine(&settings),
        sockets: socket_options(&settings.sockets),
        wanted: wanted_sender,
        recorders,
    };
    let (cores, home) = Cores::start(cores).context("cannot start the cores; `coretunnel preflight` tells more")?;
    let cores = Rc::new(RefCell::new(cores));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control thread's runtime")?;
    let dropped = log.dropped();
    let ended = LocalSet::new().block_on(&runtime, async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let status = Status::default();
        tokio::task::spawn_local(retire(cores.clone(), home));
        serve_metrics(&settings, page, status.clone(), dropped)?;
        serve_readiness(&settings, cores.clone(), status.clone())?;

        let (stop, stopped) = async_channel::bounded::<()>(1);
        let mut control = tokio::task::spawn_local(control::run(
            control_config(&settings),
            Publisher::new(cores.clone()),
            wanted,
            status,
            async move {
                // Dropping the sender says the same.
                let _told = stopped.recv().await;
            },
        ));
        let signal = tokio::select! {
            signal = signals.first() => signal,
            ended = &mut control => {
                return ended.context("the control task panicked")?.context("the control plane ended");
            }
        };
        tracing::info!(signal, deadline = ?settings.connections.termination_deadline, "draining");
        // Control goes on meanwhile: a policy that changes during the drain still closes what it refuses.
        drain(&cores, settings.connections.termination_deadline, &mut signals).await;
        drop(stop);
        Ok(())
    });
    // Whatever ended it: the cores are told, and end.
    cores.borrow().drain(Duration::ZERO);
    if cores.borrow().ended()
        && let Ok(cores) = Rc::try_unwrap(cores)
    {
        cores.into_inner().join();
    }
    drop(log);
    ended
}

/// Lets the cores drain until the deadline, or until a second SIGINT.
async fn drain(cores: &RefCell<Cores>, deadline: Duration, signals: &mut Signals) {
    cores.borrow().drain(deadline);
    let ending = async {
        while !cores.borrow().ended() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = ending => {}
        () = tokio::time::sleep(deadline + CORES_END) => {
            tracing::error!("the cores did not end within their time; ending without them");
        }
        () = signals.interrupted() => tracing::warn!("second SIGINT: ending at once"),
    }
}

fn serve_metrics(
    settings: &Settings,
    page: Exposition,
    status: Status,
    dropped: Arc<std::sync::atomic::AtomicU64>,
) -> anyhow::Result<()> {
    let listener = admin::listen("metrics", settings.servers.metrics)?;
    let page = Rc::new(RefCell::new(page));
    tokio::task::spawn_local(admin::serve(listener, move |asked| {
        let pods = Pods {
            active: status.pods_active() as u64,
            pending: status.pods_pending() as u64,
            started: status.proxies_started(),
            stopped: status.proxies_stopped(),
        };
        let dropped = dropped.load(Ordering::Relaxed);
        let answer = metrics_page::answer(&asked, &mut page.borrow_mut(), pods, status.generation(), dropped);
        async move { answer }
    }));
    Ok(())
}

fn serve_readiness(settings: &Settings, cores: Rc<RefCell<Cores>>, status: Status) -> anyhow::Result<()> {
    let listener = admin::listen("readiness", settings.servers.readiness)?;
    tokio::task::spawn_local(admin::serve(listener, move |asked| {
        let (cores, status) = (cores.clone(), status.clone());
        readiness::answer(asked, async move || {
            let (answers, count) = {
                let cores = cores.borrow();
                (cores.ping(), cores.len())
            };
            let mut pending: BTreeSet<String> = readiness::silent_cores(answers, count).await;
            pending.extend(status.pending().into_iter().map(Into::into));
            pending
        })
    }));
    Ok(())
}

fn core(index: usize, cpu: usize) -> reactor::CoreConfig {
    reactor::CoreConfig { name: format!("core-{index}"), cpu: Some(cpu), ..reactor::CoreConfig::default() }
}

fn engine(settings: &Settings) -> dataplane::Config {
    let Settings { mesh, connections, tenant_by, .. } = settings;
    let default = dataplane::Config::default();
    dataplane::Config {
        node: mesh.node.as_deref().map(Into::into),
        network: NetworkId::from(mesh.network.as_str()),
        tenant_by: *tenant_by,
        keep_source: connections.original_source,
        response_baggage: connections.response_baggage,
        h2: hbone::H2Config {
            stream_window: connections.stream_window,
            connection_window: connections.connection_window,
            frame_size: connections.frame_size,
            ..default.h2
        },
        pool: hbone::pool::PoolConfig {
            streams_per_tunnel_max: connections.streams_per_tunnel_max,
            idle_timeout: connections.tunnel_idle_timeout,
            ..default.pool
        },
        ..default
    }
}

fn socket_options(sockets: &Sockets) -> inpod::socket::SocketOptions {
    let Sockets { packet_mark, port_reuse, keepalive, user_timeout } = *sockets;
    inpod::socket::SocketOptions {
        mark: Some(packet_mark),
        reuse_port: port_reuse,
        keepalive: keepalive.map(|keepalive| inpod::socket::Keepalive {
            idle: keepalive.idle,
            interval: keepalive.interval,
            probes_max: keepalive.probes,
        }),
        user_timeout: keepalive
            .filter(|_| user_timeout)
            .map(|keepalive| keepalive.idle + keepalive.interval * keepalive.probes),
    }
}

fn control_config(Settings { mesh, certificates, .. }: &Settings) -> control::Config {
    let (local_file, local_inline) = match &mesh.local {
        LocalMesh::None => (None, None),
        LocalMesh::File(path) => (Some(path.clone()), None),
        LocalMesh::Inline(text) => (None, Some(text.clone())),
    };
    control::Config {
        node: mesh.node.clone(),
        network: mesh.network.clone(),
        cluster: mesh.cluster.clone(),
        trust_domain: mesh.trust_domain.clone(),
        local_file,
        local_inline,
        ca: control::CaSource::Embedded { root_file: certificates.root_file.clone(), leaf_ttl: certificates.lifetime },
        zds_socket: Some(mesh.zds_socket.clone()),
    }
}

/// Raises a soft limit to its hard one: soft limits are made for shells.
fn raise(what: &str, resource: Resource) {
    let limit = getrlimit(resource);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(resource, raised) {
        tracing::warn!(what, %error, current = ?limit.current, "cannot raise a soft limit to its maximum");
    }
}
