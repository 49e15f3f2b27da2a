//! A captured pod on its home core: its listeners, its tunnel pool, and the stages it goes through.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, select};
use hbone::pool::Pool;
use inpod::pod::{PodInfo, PodUid};
use reactor::{Listener, Runtime, Stream, TenantKey};

use crate::{
    bell::Bell,
    command::{CapturedPod, PodError},
    config::Config,
    core::Core,
    crowd::{Crowd, Member},
    dial::Dialled,
    error::Error,
    inbound,
    network::PodNetwork,
    newcomer::Newcomer,
    outbound,
    park::Lot,
    plaintext, tenants,
};

/// Pause of an accept loop that the kernel gave an error: descriptors are short, and trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A captured pod.
pub(crate) struct Pod<R: Runtime, N> {
    pub(crate) uid: PodUid,
    pub(crate) info: PodInfo,
    /// What stands in for its workload until that is there.
    pub(crate) newcomer: Option<Newcomer>,
    pub(crate) tenant: TenantKey,
    /// What the tenant is called, for the control thread.
    pub(crate) tenant_name: Arc<str>,
    pub(crate) network: N,
    /// Whether connections to its applications can keep their client's address.
    pub(crate) keeps_source: bool,
    pub(crate) pool: Pool<Dialled>,
    pub(crate) lot: Lot,
    stage: Cell<Stage>,
    staged: Bell,
    alive: Crowd,
    inbound_tunnels: Crowd,
    /// The tasks that drive tunnels, either way: they say goodbye before the pod is gone.
    pub(crate) tunnels: Crowd,
    runtime: std::marker::PhantomData<R>,
}

/// The life of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// New connections are taken.
    Serving,
    /// Listeners are closed and peers were told; connections go on.
    Draining,
    /// Everything ends now.
    Closed,
}

/// A pod's name in messages: `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodName(Box<str>);

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<R: Runtime, N: PodNetwork<R>> Pod<R, N> {
    /// Binds the pod's listeners and starts to serve them.
    pub(crate) fn open(core: &Rc<Core<R, N>>, captured: CapturedPod<N>) -> Result<Rc<Self>, PodError> {
        let CapturedPod { uid, info, generation, network } = captured;
        let config = &core.config;
        let listen = |port| {
            let refused = |error: io::Error| PodError::Listen { uid: uid.clone(), port, cause: error.to_string() };
            let made = network.listener(port).map_err(refused)?;
            let listener = core.runtime.listen(made.socket).map_err(refused)?;
            Ok((listener, made.transparent))
        };
        // All three first: a pod is captured whole or not at all.
        let (hbone, hbone_transparent) = listen(config.ports.hbone)?;
        let (plaintext, plaintext_transparent) = listen(config.ports.plaintext)?;
        let (outbound, _) = listen(config.ports.outbound)?;

        let keeps_source = match config.keep_source {
            Some(asked) => asked,
            None => hbone_transparent && plaintext_transparent,
        };
        if config.keep_source == Some(true) && !(hbone_transparent && plaintext_transparent) {
            return Err(PodError::NotTransparent { uid });
        }
        let tenant = core.tenants.key(config.tenant_by, &info);
        let name = tenants::name(config.tenant_by, &info);
        core.runtime.introduce(tenant, &name, config.weights.of(&info.namespace));
        let newcomer = Newcomer::of(&info, config, generation);
        let pod = Self::new(config, (tenant, name.into()), uid, info, network, keeps_source);
        let pod = Rc::new(Self { newcomer, ..pod });
        serve(core, &pod, outbound, outbound::serve);
        serve(core, &pod, plaintext, plaintext::serve);
        serve(core, &pod, hbone, inbound::serve);
        core.runtime.spawn(pod.tenant, evict_idle_tunnels(core.clone(), pod.clone())).detach();
        Ok(pod)
    }

    fn new(
        config: &Config,
        (tenant, tenant_name): (TenantKey, Arc<str>),
        uid: PodUid,
        info: PodInfo,
        network: N,
        keeps_source: bool,
    ) -> Self {
        Self {
            uid,
            info,
            newcomer: None,
            tenant,
            tenant_name,
            network,
            keeps_source,
            pool: Pool::new(config.pool.clone()),
            lot: Lot::new(config.parked_max),
            stage: Cell::new(Stage::Serving),
            staged: Bell::default(),
            alive: Crowd::of(config.connections_max),
            inbound_tunnels: Crowd::of(config.inbound_tunnels_max),
            tunnels: Crowd::of(usize::MAX),
            runtime: std::marker::PhantomData,
        }
    }

    pub(crate) fn name(&self) -> PodName {
        PodName(format!("{}/{}", self.info.namespace, self.info.name).into_boxed_str())
    }

    /// Moves on to a later stage; never back.
    pub(crate) fn enter(&self, stage: Stage) {
        if stage > self.stage.get() {
            self.stage.set(stage);
            self.staged.ring();
        }
        if stage == Stage::Closed {
            self.pool.close();
        }
    }

    /// Resolves once the pod has come to `stage` or a later one.
    pub(crate) async fn reached(&self, stage: Stage) {
        loop {
            let seen = self.staged.count();
            if self.stage.get() >= stage {
                return;
            }
            self.staged.after(seen).await;
        }
    }

    /// A place among the pod's live connections.
    pub(crate) fn place(&self) -> Result<Member, Error> {
        self.alive
            .join()
            .ok_or_else(|| Error::TooManyConnections { pod: self.name(), connections: self.alive.members_max() })
    }

    /// Resolves when none of its connections is alive.
    pub(crate) async fn emptied(&self) {
        self.alive.empty().await;
    }

    /// A place among the tunnels the pod has accepted.
    pub(crate) fn tunnel_place(&self) -> Result<Member, Error> {
        self.inbound_tunnels
            .join()
            .ok_or_else(|| Error::TooManyTunnels { pod: self.name(), tunnels: self.inbound_tunnels.members_max() })
    }
}

/// Accepts until the pod drains, each connection a task of the pod's tenant. The listener closes with this task, first
/// thing in a drain, so that a daemon that replaces this one gets what comes next.
fn serve<R: Runtime, N: PodNetwork<R>, F: Future<Output = ()> + 'static>(
    core: &Rc<Core<R, N>>,
    pod: &Rc<Pod<R, N>>,
    listener: R::Listener,
    connection: impl Fn(Rc<Core<R, N>>, Rc<Pod<R, N>>, R::Stream) -> F + 'static,
) {
    let (core, pod) = (core.clone(), pod.clone());
    let tenant = pod.tenant;
    core.runtime
        .clone()
        .spawn(tenant, async move {
            loop {
                let accepted = match select(pin!(listener.accept()), pin!(pod.reached(Stage::Draining))).await {
                    Either::Left((accepted, _)) => accepted,
                    Either::Right(((), _)) => return,
                };
                match accepted {
                    Ok(stream) => {
                        let served = connection(core.clone(), pod.clone(), stream);
                        core.runtime.spawn(tenant, served).detach();
                    }
                    Err(error) => {
                        tracing::warn!(pod = %pod.name(), %error, "accept failed; is the process out of descriptors?");
                        core.runtime.sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
        .detach();
}

/// Closes tunnels nobody has used for the pool's idle time, until the pod is closed.
async fn evict_idle_tunnels<R: Runtime, N: PodNetwork<R>>(core: Rc<Core<R, N>>, pod: Rc<Pod<R, N>>) {
    // A quarter of the idle time: a tunnel lives at most a quarter longer than it should, for four wakes in it.
    let every = core.config.pool.idle_timeout / 4;
    loop {
        match select(pin!(core.runtime.sleep(every)), pin!(pod.reached(Stage::Closed))).await {
            Either::Left(_) => pod.pool.evict_idle(core.runtime.now()),
            Either::Right(_) => return,
        }
    }
}

/// Why the client of a refused connection learns of it at once: a reset instead of a clean end it could take for an
/// empty answer.
pub(crate) fn turn_away<S: Stream>(client: S) {
    client.reset_on_drop();
    drop(client);
}

/// The pods of a core by uid.
pub(crate) type Pods<R, N> = RefCell<std::collections::HashMap<PodUid, Rc<Pod<R, N>>>>;
