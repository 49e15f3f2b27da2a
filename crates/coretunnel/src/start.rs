//! Starts everything, in the order in which each part needs the one before, and ends it the other way round.

use std::{
    cell::RefCell,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use tokio::{
    sync::watch,
    task::{JoinSet, LocalSet},
};

use control::{CaSource, MeshSource, Status};
use dataplane::{CoreStanding, Cores, CoresConfig, NewPods};
use mesh_state::name::NetworkId;
use reactor::{CoreConfig, CoreView, EngineChoice, EngineKind, watchdog::Watchdog};
use telemetry::{exposition::Exposition, log::LogGuard};

use crate::{
    admin::{Asked, Server, Stop},
    aside,
    config::{LocalMesh, Settings, Sockets},
    limits,
    metrics_page::{self, Standing},
    preflight,
    publisher::{Publisher, retire},
    readiness,
    signal::Signals,
    status::{self, Places},
    version,
};

/// What cores may ask of the control thread and have not been heard. One request is about 100 bytes; a core that finds
/// the channel full asks again with its next connection.
const WANTED_MAX: usize = 1_024;

/// After the drain's deadline: how long the cores may take to end. They need milliseconds.
const CORES_END: Duration = Duration::from_secs(2);

/// How often the page takes in new series where nobody scrapes.
const PAGE_CATCH_UP: Duration = Duration::from_secs(1);

/// A core that does one thing for longer is told of in the log. The longest that is meant to occur, a flight of a TLS
/// handshake, takes a quarter of a millisecond; the kernel of a busy node may take a core off its CPU for longer.
const STALL: Duration = Duration::from_millis(200);

/// How often the end of the cores is looked for.
const END_POLL: Duration = Duration::from_millis(10);

/// Runs the daemon until it was told to stop and has drained.
///
/// # Errors
/// What kept it from starting, or ended it.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    let log = telemetry::log::init(&settings.log)?;
    tracing::info!("version: {}", version::line(&settings.istio_version));
    let ended = run_logged(settings, &log);
    if let Err(error) = &ended {
        tracing::error!(error = format!("{error:#}"), "ended");
    }
    // What was logged last is what everybody looks for.
    drop(log);
    ended
}

fn run_logged(settings: &Settings, log: &LogGuard) -> anyhow::Result<()> {
    for warning in limits::raise() {
        tracing::warn!("{warning}");
    }
    tell(settings);
    let findings = preflight::examine(settings);
    preflight::log(&findings);
    anyhow::ensure!(
        !preflight::blocks_start(&findings),
        "this host cannot run coretunnel:\n{}",
        preflight::table(&preflight::fatal(&findings))
    );

    // Once for all cores, so that they run alike.
    let chosen = settings.engine.resolve("core-0").context("cannot start the cores")?;
    let (way, reason) = (chosen.kind, chosen.reason.word());
    tracing::info!(engine = %way, reason, "cores reach the kernel by {way}: {}", chosen.reason);
    let (wanted_sender, wanted) = async_channel::bounded(WANTED_MAX);
    let (recorders, page) = telemetry::recorder::recorders(settings.cores.len());
    let (cores, home) = Cores::start(CoresConfig {
        cores: settings.cores.iter().enumerate().map(|(index, cpu)| core(index, *cpu, way)).collect(),
        engine: engine(settings),
        sockets: socket_options(&settings.sockets),
        wanted: wanted_sender,
        recorders,
    })
    .context("cannot start the cores; `coretunnel preflight` tells more")?;
    let views = cores.views();
    let _watchdog = Watchdog::start(views.clone(), STALL).context("cannot start the watchdog's thread")?;
    aside::step(&settings.cores);
    let cores = Rc::new(RefCell::new(cores));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control thread's runtime")?;
    let ended = LocalSet::new().block_on(&runtime, async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let status = Status::default();
        // They end after the signal only; one that ends before has panicked.
        let mut beside = JoinSet::new();
        beside.spawn_local(retire(cores.clone(), home));
        let (stop_servers, stop) = watch::channel(false);
        let standing = Standing {
            istio_version: settings.istio_version.clone(),
            engine: (way.to_string(), reason),
            ..Standing::default()
        };
        let servers = &settings.servers;
        let metrics = metrics(servers.metrics, page, standing, views, status.clone(), log.dropped(), stop.clone())?;
        beside.spawn_local(metrics);
        beside.spawn_local(readiness(servers.readiness, cores.clone(), status.clone(), stop.clone())?);
        let control_config = control_config(settings);
        let places = Places::new(version::brief(), &control_config);
        beside.spawn_local(admin(servers.admin, cores.clone(), status.clone(), places, stop)?);

        let (stop_control, control_stopped) = async_channel::bounded::<()>(1);
        let mut control = tokio::task::spawn_local(control::run(
            control_config,
            Publisher::new(cores.clone()),
            wanted,
            status,
            async move {
                // Dropping the sender says the same.
                let _told = control_stopped.recv().await;
            },
        ));
        let signal = tokio::select! {
            signal = signals.first() => signal,
            ended = &mut control => {
                return ended.context("the control task panicked")?.context("the control plane ended");
            }
            Some(ended) = beside.join_next() => {
                return ended.context("a task of the control thread panicked");
            }
        };
        let deadline = settings.connections.termination_deadline;
        tracing::info!(signal, ?deadline, "draining");
        // As the reference: nobody sends new connections here, and a daemon that takes over has the ports for itself.
        stop_servers.send_replace(true);
        // Control goes on meanwhile: a policy that changes during the drain still closes what it refuses.
        drain(&cores, deadline, &mut signals).await;
        drop(stop_control);
        // It may have something to keep for the next start.
        control.await.context("the control task panicked")?.context("the control plane ended")
    });
    // Whatever ended it: the cores are told, and end.
    if !cores.borrow().ended() {
        cores.borrow().drain(Duration::ZERO);
    }
    if cores.borrow().ended()
        && let Ok(cores) = Rc::try_unwrap(cores)
    {
        cores.into_inner().join();
    }
    ended
}

/// Says what the daemon was told, and what of it has no effect.
fn tell(settings: &Settings) {
    tracing::info!(?settings, "settings");
    for ignored in &settings.ignored {
        tracing::warn!(variable = ignored.variable, "has no effect: {}", ignored.why);
    }
    if settings.mesh.local == LocalMesh::None && settings.mesh.control_plane.is_none() {
        tracing::warn!(
            "no mesh is described, so captured connections have nowhere to go: give a control plane with --xds-address, \
             or a file with --local-xds-path"
        );
    }
}

/// Lets the cores drain until the deadline, or until a second SIGINT.
async fn drain(cores: &RefCell<Cores>, deadline: Duration, signals: &mut Signals) {
    cores.borrow().drain(deadline);
    let ending = async {
        while !cores.borrow().ended() {
            tokio::time::sleep(END_POLL).await;
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

/// Serves the metrics page until told to stop.
fn metrics(
    address: SocketAddr,
    page: Exposition,
    of_process: Standing,
    cores: Vec<CoreView>,
    status: Status,
    log_lines_dropped: Arc<AtomicU64>,
    stop: Stop,
) -> anyhow::Result<impl Future<Output = ()>> {
    let server = Server::listen("metrics", address)?;
    let page = Rc::new(RefCell::new(page));
    let catching_up = page.clone();
    let catching_up = async move {
        loop {
            tokio::time::sleep(PAGE_CATCH_UP).await;
            catching_up.borrow_mut().catch_up();
        }
    };
    let answer = move |asked: Asked| {
        let standing = Standing {
            pods_active: status.pods_active() as u64,
            pods_pending: status.pods_pending() as u64,
            pods_started: status.proxies_started(),
            pods_stopped: status.proxies_stopped(),
            generation: status.generation(),
            log_lines_dropped: log_lines_dropped.load(Ordering::Relaxed),
            xds: status.xds(),
            certificates_issued: status.certificates_issued(),
            certificates_failed: status.certificates_failed(),
            ..of_process.clone()
        };
        std::future::ready(metrics_page::answer(&asked, &mut page.borrow_mut(), &standing, &cores))
    };
    Ok(async move {
        tokio::select! {
            () = server.serve(answer, stop) => {}
            () = catching_up => {}
        }
    })
}

/// Serves readiness until told to stop.
fn readiness(
    address: SocketAddr,
    cores: Rc<RefCell<Cores>>,
    status: Status,
    stop: Stop,
) -> anyhow::Result<impl Future<Output = ()>> {
    let server = Server::listen("readiness", address)?;
    let answer = move |asked| {
        let (cores, status) = (cores.clone(), status.clone());
        readiness::answer(asked, async move || {
            let mut pending = readiness::silent(&standings(&cores).await);
            pending.extend(status.pending().into_iter().map(Into::into));
            pending
        })
    };
    Ok(server.serve(answer, stop))
}

/// Serves the admin page until told to stop.
fn admin(
    address: SocketAddr,
    cores: Rc<RefCell<Cores>>,
    status: Status,
    places: Places,
    stop: Stop,
) -> anyhow::Result<impl Future<Output = ()>> {
    let server = Server::listen("admin", address)?;
    let places = Rc::new(places);
    let answer = move |asked| {
        let (cores, status, places) = (cores.clone(), status.clone(), places.clone());
        status::answer(asked, async move || {
            let cores = standings(&cores).await;
            places.page(&status, &cores)
        })
    };
    Ok(server.serve(answer, stop))
}

/// How each core stands.
async fn standings(cores: &RefCell<Cores>) -> Vec<Option<CoreStanding>> {
    let (answers, count) = {
        let cores = cores.borrow();
        (cores.ping(), cores.len())
    };
    readiness::standings(answers, count).await
}

fn core(index: usize, cpu: usize, way: EngineKind) -> CoreConfig {
    let engine = match way {
        EngineKind::Uring => EngineChoice::Uring,
        EngineKind::Epoll => EngineChoice::Epoll,
    };
    CoreConfig { name: format!("core-{index}"), engine, cpu: Some(cpu), ..CoreConfig::default() }
}

fn engine(settings: &Settings) -> dataplane::Config {
    let Settings { mesh, certificates, connections, tenant_by, weights, .. } = settings;
    let default = dataplane::Config::default();
    dataplane::Config {
        node: mesh.node.as_deref().map(Into::into),
        network: NetworkId::from(mesh.network.as_str()),
        tenant_by: *tenant_by,
        weights: weights.clone(),
        keep_source: connections.original_source,
        response_baggage: connections.response_baggage,
        localhost_tunnel: connections.localhost_tunnel,
        new_pods: match connections.serves_new_pods {
            true => NewPods::Serve { trust_domain: mesh.trust_domain.as_str().into() },
            false => NewPods::Wait,
        },
        revocation: certificates.revocation_file.is_some(),
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

fn control_config(Settings { mesh, certificates, warm_start, .. }: &Settings) -> control::Config {
    let source = match (&mesh.local, &mesh.control_plane) {
        (LocalMesh::None, Some(plane)) => MeshSource::ControlPlane(Box::new(plane.clone())),
        (LocalMesh::None, None) => MeshSource::Nowhere,
        (LocalMesh::File(path), _) => MeshSource::File(path.clone()),
        (LocalMesh::Inline(text), _) => MeshSource::Inline(text.clone()),
    };
    let leaf_ttl = certificates.lifetime;
    let ca = match &certificates.server {
        Some(server) => CaSource::Server { server: Box::new(server.clone()), leaf_ttl },
        None => CaSource::Embedded { root_file: certificates.root_file.clone(), leaf_ttl },
    };
    control::Config {
        node: mesh.node.clone(),
        network: mesh.network.clone(),
        cluster: mesh.cluster.clone(),
        trust_domain: mesh.trust_domain.clone(),
        mesh: source,
        ca,
        revocation_file: certificates.revocation_file.clone(),
        warm_start: warm_start.clone(),
        zds_socket: Some(mesh.zds_socket.clone()),
    }
}
