//! One core's engine: takes commands and snapshots, holds what its connections share, and drains.
//!
//! Owned by one thread and borrowed by that thread's tasks; no borrow lives across an await.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use async_channel::TrySendError;
use futures_util::future::select;
use hbone::credential::Credential;
use inpod::pod::PodUid;
use mesh_state::{
    identity::Identity,
    snapshot::Snapshot,
    wanted::{Sought, Wanted},
    workload::Workload,
};
use reactor::{
    Runtime, TenantKey,
    mailbox::{LatestReceiver, Receiver},
};
use telemetry::{
    connection::ConnectionMetrics,
    recorder::{CoreRecorder, Longest},
};

use crate::{
    asking::{Asking, Waiting},
    bell::Bell,
    command::{CapturedPod, Command, CoreStanding, Issued, PodError},
    config::Config,
    connections::{Connections, List, Stop},
    cores::Retired,
    deadline::within,
    dial,
    error::Error,
    network::PodNetwork,
    newcomer::Newcomer,
    park::Unparked,
    peers::{Peers, Recheck},
    pod::{Pod, Pods, Stage},
    recheck::{self, Slice},
    record::Direction,
    tenants::Tenants,
};

/// After the deadline of a drain: how long stopped connections get to write their records.
const LAST_RECORDS: Duration = Duration::from_millis(500);

/// Until a wish is posted again for which the channel to the control thread had no room; it takes 64 a turn.
const WANTED_PAUSE: Duration = Duration::from_millis(5);

/// What a core is started with.
pub struct CoreParts<R, N> {
    /// Its index among the cores.
    pub index: usize,
    /// Its runtime.
    pub runtime: R,
    /// Its settings.
    pub config: Config,
    /// Ordered commands from the control thread.
    pub commands: Receiver<Command<N>>,
    /// Snapshots from the control thread, the newest only.
    pub snapshots: LatestReceiver<Arc<Snapshot>>,
    /// Where replaced snapshots go, to be freed elsewhere.
    pub retired: async_channel::Sender<Retired>,
    /// Where this core asks for what it lacks.
    pub wanted: async_channel::Sender<Wanted>,
    /// Its metric cells.
    pub recorder: CoreRecorder,
}

/// One core's engine.
pub struct Core<R: Runtime, N> {
    pub(crate) index: usize,
    pub(crate) runtime: R,
    pub(crate) config: Config,
    pub(crate) tenants: Tenants,
    pub(crate) connections: Connections,
    pub(crate) peers: Peers,
    pub(crate) metrics: Rc<ConnectionMetrics>,
    snapshot: RefCell<Arc<Snapshot>>,
    /// Since when it is the current one.
    installed_at: Cell<Instant>,
    credentials: RefCell<HashMap<Identity, Issued>>,
    pods: Pods<R, N>,
    /// Rings whenever a snapshot or credential was installed: parked connections look again.
    news: Bell,
    retired: async_channel::Sender<Retired>,
    wanted: async_channel::Sender<Wanted>,
    asking: Asking,
    draining: Cell<bool>,
    /// The longest time without a task's turn because of a new snapshot.
    apply_gap: Longest,
}

impl<R: Runtime, N: PodNetwork<R>> Core<R, N> {
    /// Runs a core until it was told to drain and has, or until the control thread is gone.
    pub async fn run(parts: CoreParts<R, N>) {
        let CoreParts { index, runtime, config, commands, snapshots, retired, wanted, recorder } = parts;
        let peers = Peers::new(config.revocation);
        let apply_gap = recorder.core_longest(
            "coretunnel_config_apply_gap_seconds",
            "The longest time that installing a generation, or one slice of asking again about live connections after it, \
             kept the core from its tasks",
        );
        let now = runtime.now();
        let core = Rc::new(Self {
            index,
            runtime,
            config,
            tenants: Tenants::default(),
            connections: Connections::default(),
            peers,
            metrics: Rc::new(ConnectionMetrics::new(recorder)),
            snapshot: RefCell::new(Arc::new(Snapshot::empty())),
            installed_at: Cell::new(now),
            credentials: RefCell::default(),
            pods: RefCell::default(),
            news: Bell::default(),
            retired,
            wanted,
            asking: Asking::default(),
            draining: Cell::new(false),
            apply_gap,
        });
        let installing = core.clone();
        let installer = core.runtime.spawn(TenantKey::CORE, async move {
            while let Some(snapshot) = snapshots.recv().await {
                installing.install_snapshot(snapshot);
            }
        });
        let limit = loop {
            match commands.recv().await {
                Some(Command::Drain { limit }) => break limit,
                Some(command) => core.obey(command),
                // Nobody is left to ask for anything: end as if told to, without waiting.
                None => break Duration::ZERO,
            }
        };
        // Pods removed while draining must still be answered, and readiness still be proved.
        let obeying = async {
            while let Some(command) = commands.recv().await {
                core.obey(command);
            }
            std::future::pending::<()>().await;
        };
        select(pin!(core.drain(limit)), pin!(obeying)).await;
        drop(installer);
    }

    fn obey(self: &Rc<Self>, command: Command<N>) {
        match command {
            Command::Credential { identity, credential } => {
                self.credentials.borrow_mut().insert(identity, credential);
                self.news.ring();
            }
            Command::CredentialGone { identity } => drop(self.credentials.borrow_mut().remove(&identity)),
            Command::Revocations { revocations } => {
                self.peers.install(revocations);
                let core = self.clone();
                self.runtime.spawn(TenantKey::CORE, async move { core.recheck_peers().await }).detach();
            }
            // A receipt that nobody waits for any more is no concern of ours.
            Command::PodUp { pod, receipt } => drop(receipt.try_send(self.pod_up(pod))),
            Command::PodDown { uid, receipt } => {
                let gone = self.pod_down(&uid);
                let core = self.clone();
                let farewell = async move {
                    if let Some(pod) = gone {
                        core.farewell(&pod).await;
                    }
                    drop(receipt.try_send(Ok(())));
                };
                // The CNI agent waits for it, so it is not to wait for its tenant's turn.
                self.runtime.spawn(TenantKey::CORE, farewell).detach();
            }
            Command::Ping { answer } => drop(answer.try_send(self.standing())),
            Command::Drain { .. } => {}
        }
    }

    fn standing(&self) -> CoreStanding {
        CoreStanding {
            core: self.index,
            generation: self.snapshot.borrow().generation(),
            generation_age: self.runtime.now().duration_since(self.installed_at.get()),
            pods: self.pods.borrow().len(),
            connections: self.connections.len(),
        }
    }

    fn pod_up(self: &Rc<Self>, captured: CapturedPod<N>) -> Result<(), PodError> {
        if self.draining.get() {
            return Err(PodError::Draining);
        }
        if let Some(replaced) = self.pod_down(&captured.uid) {
            let core = self.clone();
            self.runtime.spawn(TenantKey::CORE, async move { core.farewell(&replaced).await }).detach();
        }
        let uid = captured.uid.clone();
        let pod = Pod::open(self, captured)?;
        self.pods.borrow_mut().insert(uid, pod);
        Ok(())
    }

    /// Closes a pod's listeners and stops its connections: the CNI agent is about to take its network away.
    fn pod_down(&self, uid: &PodUid) -> Option<Rc<Pod<R, N>>> {
        let gone = self.pods.borrow_mut().remove(uid)?;
        gone.enter(Stage::Draining);
        self.connections.stop_all(Some(uid), &Stop::PodGone);
        Some(gone)
    }

    /// Resolves when a pod that was taken down has said all it had to say, or cannot: once its network is gone, a reset
    /// that has not left never will, and the other end would wait for its own timeout.
    async fn farewell(&self, pod: &Pod<R, N>) {
        let stopped = within(&self.runtime, LAST_RECORDS, pod.emptied()).await;
        pod.enter(Stage::Closed);
        let told = within(&self.runtime, dial::LAST_FRAMES * 2, pod.tunnels.empty()).await;
        if stopped.is_err() || told.is_err() {
            tracing::debug!(pod = %pod.name(), "removed before all its peers could be told");
        }
    }

    /// Swaps the snapshot, wakes who was parked, and asks again about live connections.
    fn install_snapshot(self: &Rc<Self>, snapshot: Arc<Snapshot>) {
        let begun = self.runtime.now();
        self.installed_at.set(begun);
        let old = self.snapshot.replace(snapshot);
        let since = old.generation();
        // Freed by the control thread: dropping a generation of a large mesh would stall this core.
        // The channel has room for every generation that can be on its way, so there is none only when control is gone.
        drop(self.retired.try_send(Retired { core: self.index, snapshot: old }));
        self.news.ring();
        let core = self.clone();
        self.runtime.spawn(TenantKey::CORE, async move { core.recheck(since).await }).detach();
        self.apply_gap.took(self.runtime.now().duration_since(begun));
    }

    /// Asks again about the live inbound connections that what changed since a generation may affect, in slices, against the
    /// snapshot that is current at each slice.
    async fn recheck(&self, since: u64) {
        let mut slice = Slice::begin(self.runtime.now());
        for uid in self.connections.pods() {
            for list in List::ALL {
                let mut below = Some(usize::MAX);
                while let Some(from) = below {
                    below = self.recheck_some(&uid, list, from, since);
                    if let Some(took) = slice.step(recheck::STEP, self.runtime.now()) {
                        self.apply_gap.took(took);
                        self.runtime.yield_now().await;
                        slice = Slice::begin(self.runtime.now());
                    }
                }
            }
        }
        self.apply_gap.took(slice.took(self.runtime.now()));
    }

    /// One step of it: some connections of a pod's list from a place in it downwards. Says where to go on.
    fn recheck_some(&self, uid: &PodUid, list: List, below: usize, since: u64) -> Option<usize> {
        // The workload is looked up anew each time: a policy may have been attached to it by the change.
        let workload = self.pod(uid).and_then(|pod| self.known(&pod, Direction::Inbound))?;
        self.with_snapshot(|snapshot| {
            let changed = snapshot.changed_since(since);
            self.connections.recheck(uid, list, below, recheck::STEP, &workload, &changed, |facts| {
                // What is lacked, because it was let go meanwhile, is no reason to close what was admitted.
                facts.admit_or_lack(snapshot, &workload, &self.config).map_or(Ok(()), |verdict| verdict.map(drop))
            })
        })
    }

    /// Looks at the peers of all live tunnels again, in slices.
    async fn recheck_peers(&self) {
        let mut slice = Slice::begin(self.runtime.now());
        for slot in self.peers.slots() {
            if let Recheck::Revoked(problem) = self.peers.recheck(slot) {
                tracing::warn!(core = self.index, %problem, "a tunnel's peer is revoked; the tunnel is closed");
            }
            if let Some(took) = slice.step(1, self.runtime.now()) {
                self.apply_gap.took(took);
                self.runtime.yield_now().await;
                slice = Slice::begin(self.runtime.now());
            }
        }
        self.apply_gap.took(slice.took(self.runtime.now()));
    }

    fn pod(&self, uid: &PodUid) -> Option<Rc<Pod<R, N>>> {
        self.pods.borrow().get(uid).cloned()
    }

    /// Decides on the current snapshot. The borrow ends with `decide`, so no task can keep a generation alive.
    pub(crate) fn with_snapshot<T>(&self, decide: impl FnOnce(&Snapshot) -> T) -> T {
        decide(&self.snapshot.borrow())
    }

    fn look_up(&self, pod: &Pod<R, N>) -> Option<Arc<Workload>> {
        let info = &pod.info;
        self.with_snapshot(|snapshot| {
            snapshot
                .local_workload(self.config.node.as_deref(), &info.namespace, &info.name, &info.service_account)
                .cloned()
        })
    }

    /// The workload that `pod` is, or what stands in for it as long as it is new.
    fn known(&self, pod: &Pod<R, N>, direction: Direction) -> Option<Arc<Workload>> {
        let stand_in =
            |newcomer: &Newcomer| self.with_snapshot(|snapshot| newcomer.workload(snapshot, direction).cloned());
        self.look_up(pod).or_else(|| pod.newcomer.as_ref().and_then(stand_in))
    }

    /// The workload that an address of this network belongs to, for telemetry.
    pub(crate) fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.with_snapshot(|snapshot| snapshot.workload_by_address(&self.config.network, address).cloned())
    }

    /// The workload that `pod` is for a connection out of it or into it, parked until it arrives.
    pub(crate) async fn workload(&self, pod: &Pod<R, N>, direction: Direction) -> Result<Arc<Workload>, Error> {
        let waited = self.config.park_timeout;
        let found = pod.lot.until(&self.runtime, &self.news, waited, || self.known(pod, direction)).await;
        found.map_err(|unparked| match unparked {
            Unparked::TimedOut => Error::UnknownWorkload { pod: pod.name(), waited },
            Unparked::Full => Error::TooManyParked { pod: pod.name(), parked: self.config.parked_max },
        })
    }

    /// The credential of `identity` for a connection of `pod`, asked for and parked until it arrives.
    pub(crate) async fn credential(&self, pod: &Pod<R, N>, identity: &Identity) -> Result<Arc<Credential>, Error> {
        let look = || self.credentials.borrow().get(identity).cloned();
        if look().is_none() {
            // A full channel already carries more than control can do; the connection waits, and its deadline stands.
            drop(self.wanted.try_send(Wanted::Identity(identity.clone())));
        }
        let waited = self.config.park_timeout;
        match pod.lot.until(&self.runtime, &self.news, waited, look).await {
            Ok(Ok(credential)) => Ok(credential),
            Ok(Err(why)) => Err(Error::CredentialRefused { identity: identity.clone(), why }),
            Err(Unparked::TimedOut) => Err(Error::CredentialLate { identity: identity.clone(), waited }),
            Err(Unparked::Full) => Err(Error::TooManyParked { pod: pod.name(), parked: self.config.parked_max }),
        }
    }

    /// What `decide` makes of the snapshot. As long as it lacks a part of the mesh that has to be asked for, that is asked for
    /// on behalf of `pod`, and the connection parked until it is known to be there, or not to be.
    pub(crate) async fn decided<T>(
        &self,
        pod: &Pod<R, N>,
        decide: impl Fn(&Snapshot) -> Result<T, Sought>,
    ) -> Result<T, Error> {
        if let Ok(decided) = self.with_snapshot(&decide) {
            return Ok(decided);
        }
        let parked = || Error::TooManyParked { pod: pod.name(), parked: self.config.parked_max };
        let _place = pod.lot.place().ok_or_else(parked)?;
        let deciding = async {
            let mut lacked: Option<Waiting> = None;
            loop {
                let seen = self.news.count();
                let sought = match self.with_snapshot(&decide) {
                    Ok(decided) => return decided,
                    Err(sought) => sought,
                };
                if lacked.as_ref().is_none_or(|waiting| *waiting.sought() != sought) {
                    // The place of what has come is given up before the next one's is waited for.
                    drop(lacked.take());
                    lacked = Some(self.ask(pod, &sought).await);
                    continue;
                }
                self.news.after(seen).await;
            }
        };
        let waited = self.config.park_timeout;
        within(&self.runtime, waited, deciding).await.map_err(|_| Error::Unanswered { pod: pod.name(), waited })
    }

    /// Asks the control thread for a part of the mesh, unless somebody here has and waits for it.
    async fn ask(&self, pod: &Pod<R, N>, sought: &Sought) -> Waiting {
        let waiting = self.asking.join(pod.tenant, sought).await;
        while !waiting.is_sent() {
            let wish = Wanted::Part { sought: sought.clone(), tenant: pod.tenant_name.clone() };
            match self.wanted.try_send(wish) {
                // Nobody listens any more: the process ends.
                Ok(()) | Err(TrySendError::Closed(_)) => waiting.sent(),
                Err(TrySendError::Full(_)) => self.runtime.sleep(WANTED_PAUSE).await,
            }
        }
        waiting
    }

    /// Closes listeners, tells peers, lets connections finish for at most `limit`, then stops the rest.
    async fn drain(&self, limit: Duration) {
        self.draining.set(true);
        let pods: Vec<_> = self.pods.borrow().values().cloned().collect();
        for pod in &pods {
            pod.enter(Stage::Draining);
        }
        if within(&self.runtime, limit, self.emptied()).await.is_err() {
            tracing::warn!(
                core = self.index,
                connections = self.connections.len(),
                "drain duration expired with pending connections, forcefully shutting down"
            );
            self.connections.stop_all(None, &Stop::Drained);
            // They have been told; what is left is to write their records. A task that cannot must not hold the exit.
            let _left = within(&self.runtime, LAST_RECORDS, self.emptied()).await;
        }
        // Their tunnels end by themselves now, both ends knowing that nothing is missing. A peer that does not close its
        // side must not hold the exit.
        for pod in &pods {
            pod.pool.close();
        }
        let silent = || async {
            for pod in &pods {
                pod.tunnels.empty().await;
            }
        };
        let _left = within(&self.runtime, LAST_RECORDS, silent()).await;
        for pod in &pods {
            pod.enter(Stage::Closed);
        }
        let _left = within(&self.runtime, dial::LAST_FRAMES * 2, silent()).await;
        tracing::info!(core = self.index, "shutdown complete");
    }

    async fn emptied(&self) {
        loop {
            let seen = self.connections.gone().count();
            if self.connections.len() == 0 {
                return;
            }
            self.connections.gone().after(seen).await;
        }
    }
}
