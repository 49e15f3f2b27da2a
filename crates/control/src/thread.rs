//! The control thread's one loop: whatever happens, it is told to the part it concerns, and what comes of it is
//! published. It waits for nothing but the next thing that happens.

use std::{future::Future, pin::pin, time::SystemTime};

use mesh_state::wanted::Wanted;
use time::OffsetDateTime;

use crate::{
    CaSource, Config, Publish, Status,
    ca::{
        client::CaClient,
        embedded::{CaError, EmbeddedCa},
        roots_file::RootsFile,
    },
    clocks::{Clocks, now, until},
    credentials::{Credentials, Issuer},
    file_source::FileError,
    grpc::Roots,
    mesh::Mesh,
    pods::{PodEvent, Pods, PodsError},
    revocations::RevocationFile,
    source::Source,
    status::STATE_MANAGER,
    warm_start::{Keeper, Written},
};

/// Wishes that are taken in one turn, and asked for in one request.
const WISHES_PER_TURN: usize = 64;

/// Why the control thread ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The CA's root.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The mesh file, at the start. Later the last good one stays in force.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is there but cannot be watched.
    #[error("cannot watch {file}: {cause}; inotify watches may be exhausted (fs.inotify.max_user_watches)")]
    Watch {
        /// Which.
        file: String,
        /// What notify said.
        cause: notify::Error,
    },
    /// The CNI agent.
    #[error(transparent)]
    Pods(#[from] PodsError),
}

/// Runs until `shutdown` resolves. Must run inside a `LocalSet`, on a runtime with time and I/O.
///
/// # Errors
/// [`ControlError`]. Nothing that a peer or a file does later ends it, except a CNI agent of another protocol.
pub async fn run(
    config: Config,
    publish: impl Publish,
    wanted: async_channel::Receiver<Wanted>,
    status: Status,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ControlError> {
    let issuer = match &config.ca {
        CaSource::Embedded { root_file, leaf_ttl } => {
            let ca = Box::new(EmbeddedCa::open(root_file, *leaf_ttl, OffsetDateTime::now_utc())?);
            Issuer::Embedded { ca, file: root_file.clone(), leaf_ttl: *leaf_ttl }
        }
        CaSource::Server { server, leaf_ttl } => Issuer::Server(CaClient::new((**server).clone(), *leaf_ttl)),
    };
    let mut credentials = Credentials::new(issuer, config.node.clone(), config.trust_domain.clone(), status.clone());
    let mut roots = match &config.ca {
        CaSource::Embedded { root_file, .. } => Some(RootsFile::new(root_file)),
        CaSource::Server { server, .. } => match &server.roots {
            Roots::File(file) => Some(RootsFile::new(file)),
            Roots::System | Roots::Given(_) => None,
        },
    };
    let mut mesh = Mesh::new(publish, status.clone(), config.mesh.is_on_demand());
    let mut revocations = config.revocation_file.as_deref().map(RevocationFile::new);
    // Before the first handshake.
    if let Some(lists) = revocations.as_mut().and_then(RevocationFile::read) {
        credentials.on_revocations(lists, &mut mesh.publish);
    }
    let mut source = Source::open(&config, &status)?;
    source.load(&mut mesh, now())?;
    let mut keeper = Source::keeper(&config, now());
    if let Some(restored) = keeper.as_ref().and_then(Keeper::read) {
        source.restore(restored, &mut mesh, now());
    }
    let mut pods = Pods::new(config.zds_socket.as_deref(), status.clone());

    let mut clocks = Clocks::new(now(), SystemTime::now());
    let mut warm = false;
    let mut shutdown = pin!(shutdown);
    loop {
        if let Some(leap) = clocks.leap(now(), SystemTime::now()) {
            credentials.on_leap(leap);
        }
        let published = source.is_whole() && mesh.publish_due(now());
        if published {
            // It is the mesh that says whose workload a pod is.
            credentials.keep_to(pods.here(), &mesh.snapshot, &mut mesh.publish);
            // What was restored is not new: it is as old as its file says until a stream confirms it.
            if let Some(keeper) = keeper.as_mut().filter(|_| source.is_connected()) {
                keeper.changed();
            }
        }
        let connected = source.is_connected();
        // While a response is taken, versions are ahead of the snapshot; until it is warm, there may be no policy in it.
        let is_kept = source.is_whole() && source.is_warm() && mesh.next_due().is_none();
        if let Some(keeper) = keeper.as_mut().filter(|_| is_kept) {
            keeper.write(now(), connected, &mesh.snapshot, || source.kept());
        }
        // Until it is warm, policy that refuses may be missing: no pod is captured before.
        // Nor before the cores have been given what it is warm with.
        warm |= source.is_warm() && (published || mesh.next_due().is_none());
        if warm {
            status.set_pending(STATE_MANAGER, false);
        }
        let publish_due = if source.is_whole() { mesh.next_due() } else { None };
        let pods_due = if warm { pods.next_due() } else { None };
        let keep_due = keeper.as_ref().filter(|_| is_kept).and_then(|keeper| keeper.next_due(connected));
        let due = [credentials.next_due(), publish_due, pods_due, keep_due, Some(clocks.next_due())]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            () = &mut shutdown => {
                if let Some(keeper) = keeper.filter(|_| is_kept) {
                    keeper.finish(&mesh.snapshot, || source.kept());
                }
                return Ok(());
            }
            written = written(keeper.as_mut()) => {
                if let Some(keeper) = &mut keeper {
                    keeper.on_written(written, now());
                }
            }
            happened = source.next() => source.on(happened, &mut mesh, now()),
            // Closed once the cores have ended, which is before this loop does.
            Ok(wish) = wanted.recv(), if !wanted.is_closed() => {
                let wishes = taken(wish, &wanted);
                source.on_wanted(&wishes, &mut mesh, now());
                for wish in wishes {
                    if let Wanted::Identity(identity) = wish {
                        credentials.on_wish(&identity, pods.here(), &mesh.snapshot, &mut mesh.publish);
                    }
                }
            }
            happened = pods.next() => match pods.on(happened, &mut mesh.publish).await? {
                PodEvent::Captured(pod) => credentials.on_captured(&pod, &mesh.snapshot, &mut mesh.publish),
                PodEvent::Released => credentials.keep_to(pods.here(), &mesh.snapshot, &mut mesh.publish),
                PodEvent::Nothing => {}
            },
            () = changed(revocations.as_mut()) => {
                if let Some(lists) = revocations.as_mut().and_then(RevocationFile::read) {
                    credentials.on_revocations(lists, &mut mesh.publish);
                }
            }
            () = roots_changed(roots.as_mut()) => credentials.on_roots_changed(&mut mesh.publish),
            answer = credentials.next() => credentials.on_answer(answer, &mut mesh.publish),
            () = until(due) => {
                credentials.ask(&mut mesh.publish);
                if warm {
                    pods.on_time(&mut mesh.publish).await?;
                }
            }
        }
    }
}

/// Resolves when the file may have changed, or never where there is none.
async fn changed(file: Option<&mut RevocationFile>) {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the CA's roots are told otherwise, or never where no file tells of them.
async fn roots_changed(file: Option<&mut RootsFile>) {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the mesh was kept, or never where it is not.
async fn written(keeper: Option<&mut Keeper>) -> Written {
    match keeper {
        Some(keeper) => keeper.next().await,
        None => std::future::pending().await,
    }
}

/// A wish and those that wait behind it.
fn taken(wish: Wanted, wanted: &async_channel::Receiver<Wanted>) -> Vec<Wanted> {
    let mut wishes = vec![wish];
    while wishes.len() < WISHES_PER_TURN
        && let Ok(wish) = wanted.try_recv()
    {
        wishes.push(wish);
    }
    wishes
}
