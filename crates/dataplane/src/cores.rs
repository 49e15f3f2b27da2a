//! The control thread's handle on all cores: starts them, publishes to them, and never waits for one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hbone::revocation::Revocations;
use inpod::{
    Netns,
    pod::{PodInfo, PodUid},
    socket::SocketOptions,
};
use mesh_state::{identity::Identity, snapshot::Snapshot, wanted::Wanted};
use reactor::{
    CoreConfig, CoreThread, CoreView,
    mailbox::{self, LatestSender, Sender},
};
use telemetry::recorder::CoreRecorder;

use crate::{
    command::{COMMANDS_MAX, CapturedPod, Command, CoreStanding, Issued, PodError},
    config::Config,
    core::{Core, CoreParts},
    network::InPod,
    placement::{self, Load},
    tenants,
};

/// Generations that can be on their way home at once: per core one being replaced and one in its mailbox, since those before
/// have come home when the next is published.
const RETIRED_PER_CORE: usize = 2;

/// How the cores are started.
pub struct CoresConfig {
    /// One core each; what the reactor needs to know, among it the CPU to be pinned to.
    pub cores: Vec<CoreConfig>,
    /// What every core's engine needs to know.
    pub engine: Config,
    /// How sockets inside pods are made.
    pub sockets: SocketOptions,
    /// Where the cores ask for what they lack.
    pub wanted: async_channel::Sender<Wanted>,
    /// Metric cells, one per core.
    pub recorders: Vec<CoreRecorder>,
}

/// Why the cores could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No core was asked for.
    #[error("no core to run on: ask for at least one")]
    NoCore,
    /// There must be a recorder per core.
    #[error("{cores} cores but {recorders} metric recorders")]
    Recorders {
        /// Cores asked for.
        cores: usize,
        /// Recorders given.
        recorders: usize,
    },
    /// A reactor did not start.
    #[error("core {core}: {source}")]
    Reactor {
        /// Which.
        core: usize,
        /// What was missing.
        source: reactor::StartError,
    },
}

/// A snapshot that a core has replaced, on its way home to be freed. Give it to [`Cores::came_home`].
pub struct Retired {
    pub(crate) core: usize,
    pub(crate) snapshot: Arc<Snapshot>,
}

/// All cores, as the control thread sees them.
pub struct Cores {
    lines: Vec<Line>,
    /// Where replaced snapshots come out.
    home: async_channel::Receiver<Retired>,
    sockets: Arc<SocketOptions>,
    tenant_by: crate::TenantBy,
    homes: HashMap<PodUid, Home>,
    /// Of the mesh, published last.
    generation: u64,
}

/// The way to one core.
struct Line {
    commands: Sender<Command<InPod>>,
    snapshots: LatestSender<Arc<Snapshot>>,
    /// The newest snapshot, while the core has not yet taken the one before.
    newest: Option<Arc<Snapshot>>,
    /// What was said about credentials and found the mailbox full, the newest per identity; `None` is gone.
    owed: HashMap<Identity, Option<Issued>>,
    /// The newest revocations, as long as the mailbox was full.
    owed_revocations: Option<Arc<Revocations>>,
    thread: CoreThread,
}

/// Where a pod lives, and whose it is.
struct Home {
    core: usize,
    tenant: String,
}

impl Cores {
    /// Starts one thread per core. Replaced snapshots come out of the receiver, or come home with the next one published.
    ///
    /// # Errors
    /// [`StartError`]; the cores that had started by then end again.
    pub fn start(config: CoresConfig) -> Result<(Self, async_channel::Receiver<Retired>), StartError> {
        let CoresConfig { cores, engine, sockets, wanted, recorders } = config;
        if cores.is_empty() {
            return Err(StartError::NoCore);
        }
        if cores.len() != recorders.len() {
            return Err(StartError::Recorders { cores: cores.len(), recorders: recorders.len() });
        }
        let (retired, home) = async_channel::bounded(cores.len() * RETIRED_PER_CORE);
        let mut lines = Vec::with_capacity(cores.len());
        for (index, (core, recorder)) in cores.into_iter().zip(recorders).enumerate() {
            let (command_sender, commands) = mailbox::ordered(COMMANDS_MAX);
            let (snapshot_sender, snapshots) = mailbox::latest();
            let (config, retired, wanted) = (engine.clone(), retired.clone(), wanted.clone());
            let thread = reactor::start(core, move |runtime| {
                Core::<_, InPod>::run(CoreParts {
                    index,
                    runtime,
                    config,
                    commands,
                    snapshots,
                    retired,
                    wanted,
                    recorder,
                })
            })
            .map_err(|source| StartError::Reactor { core: index, source })?;
            lines.push(Line {
                commands: command_sender,
                snapshots: snapshot_sender,
                newest: None,
                owed: HashMap::new(),
                owed_revocations: None,
                thread,
            });
        }
        let cores = Self {
            lines,
            home: home.clone(),
            sockets: Arc::new(sockets),
            tenant_by: engine.tenant_by,
            homes: HashMap::new(),
            generation: 0,
        };
        Ok((cores, home))
    }

    /// How many cores there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one core")]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Publishes a snapshot to every core. A core that has not taken the last one yet gets the newest when it has.
    pub fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        // However busy whoever waits for them is: a core that finds no room for another has to free it itself.
        while let Ok(retired) = self.home.try_recv() {
            self.came_home(retired);
        }
        self.generation = snapshot.generation();
        for line in &mut self.lines {
            line.newest = line.snapshots.offer(snapshot.clone());
        }
    }

    /// Sends what cores whose mailboxes were full have missed. False if some still are.
    pub fn settle(&mut self) -> bool {
        self.lines.iter_mut().for_each(Line::pay);
        self.lines.iter().all(|line| line.owed.is_empty() && line.owed_revocations.is_none())
    }

    /// Frees what a core has replaced, and sends it what it has missed meanwhile.
    pub fn came_home(&mut self, retired: Retired) {
        let line = &mut self.lines[retired.core];
        if let Some(newest) = line.newest.take() {
            line.newest = line.snapshots.offer(newest);
        }
        line.pay();
        drop(retired.snapshot);
    }

    /// Hands a credential, or the reason why there is none, to every core.
    pub fn credential(&mut self, identity: &Identity, credential: &Issued) {
        self.owe(identity, Some(credential));
    }

    /// Takes the credential of an identity back: its last pod is gone.
    pub fn credential_gone(&mut self, identity: &Identity) {
        self.owe(identity, None);
    }

    /// Tells every core which certificates are revoked. After the credentials that know of it: a handshake that is under
    /// way is looked at again at its end.
    pub fn revocations(&mut self, revocations: &Arc<Revocations>) {
        for line in &mut self.lines {
            line.owed_revocations = Some(revocations.clone());
            line.pay();
        }
    }

    fn owe(&mut self, identity: &Identity, credential: Option<&Issued>) {
        for line in &mut self.lines {
            line.owed.insert(identity.clone(), credential.cloned());
            line.pay();
        }
    }

    /// Gives a pod a home and starts to capture it. The receiver yields the outcome once.
    pub fn pod_up(
        &mut self,
        uid: PodUid,
        info: PodInfo,
        netns: Netns,
    ) -> async_channel::Receiver<Result<(), PodError>> {
        let tenant = tenants::name(self.tenant_by, &info);
        let core = match self.homes.get(&uid) {
            Some(home) => home.core,
            None => placement::home(&self.loads(&tenant)),
        };
        self.homes.insert(uid.clone(), Home { core, tenant });
        let (generation, network) = (self.generation, InPod::new(netns, self.sockets.clone()));
        self.order(core, |receipt| Command::PodUp { pod: CapturedPod { uid, info, generation, network }, receipt })
    }

    /// Stops a pod. The receiver yields once it is gone.
    pub fn pod_down(&mut self, uid: &PodUid) -> async_channel::Receiver<Result<(), PodError>> {
        match self.homes.remove(uid) {
            Some(home) => {
                let uid = uid.clone();
                self.order(home.core, |receipt| Command::PodDown { uid, receipt })
            }
            None => {
                let (receipt, receiver) = async_channel::bounded(1);
                receipt.try_send(Ok(())).expect("the channel was made with room for one");
                receiver
            }
        }
    }

    /// Asks every core how it stands. A core that does not schedule does not answer.
    pub fn ping(&self) -> async_channel::Receiver<CoreStanding> {
        let (answer, answers) = async_channel::bounded(self.lines.len());
        for line in &self.lines {
            // A full mailbox is one that its core does not empty: no answer is the truth.
            drop(line.commands.try_send(Command::Ping { answer: answer.clone() }));
        }
        answers
    }

    /// Tells every core to drain. [`Cores::join`] waits for the end.
    pub fn drain(&self, limit: Duration) {
        for (core, line) in self.lines.iter().enumerate() {
            if line.commands.try_send(Command::Drain { limit }).is_err() {
                tracing::warn!(core, "takes no drain command: its mailbox is full or it has ended");
            }
        }
    }

    /// What can be seen of each core from outside, in their order.
    pub fn views(&self) -> Vec<CoreView> {
        self.lines.iter().map(|line| line.thread.view()).collect()
    }

    /// Whether every core has ended.
    pub fn ended(&self) -> bool {
        self.lines.iter().all(|line| line.thread.is_finished())
    }

    /// Waits for every core to end; call [`Cores::drain`] first.
    pub fn join(self) {
        for line in self.lines {
            drop((line.commands, line.snapshots));
            line.thread.join();
        }
    }

    fn loads(&self, tenant: &str) -> Vec<Load> {
        let mut loads = vec![Load::default(); self.lines.len()];
        for home in self.homes.values() {
            loads[home.core].pods += 1;
            loads[home.core].pods_of_tenant += usize::from(home.tenant == tenant);
        }
        loads
    }

    fn order(
        &self,
        core: usize,
        command: impl FnOnce(async_channel::Sender<Result<(), PodError>>) -> Command<InPod>,
    ) -> async_channel::Receiver<Result<(), PodError>> {
        let (receipt, receiver) = async_channel::bounded(1);
        if let Err(refused) = self.lines[core].commands.try_send(command(receipt.clone())) {
            let cause = if refused.is_full() { "its mailbox is full" } else { "its thread has ended" };
            receipt.try_send(Err(PodError::Core { core, cause })).expect("the channel was made with room for one");
        }
        receiver
    }
}

impl Line {
    /// Sends what is owed, as far as there is room.
    fn pay(&mut self) {
        let commands = &self.commands;
        self.owed.retain(|identity, credential| {
            let identity = identity.clone();
            let command = match credential {
                Some(credential) => Command::Credential { identity, credential: credential.clone() },
                None => Command::CredentialGone { identity },
            };
            commands.try_send(command).is_err()
        });
        // Behind all credentials that know of them.
        if self.owed.is_empty()
            && let Some(revocations) = self.owed_revocations.take()
            && commands.try_send(Command::Revocations { revocations: revocations.clone() }).is_err()
        {
            self.owed_revocations = Some(revocations);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use mesh_state::builder::SnapshotBuilder;

    use super::*;

    #[test]
    fn a_core_never_frees_a_generation_itself_however_long_nobody_waits_for_those_that_come_home() {
        let (wanted, _wanted) = async_channel::bounded(1);
        let (recorders, _page) = telemetry::recorder::recorders(2);
        let (mut cores, _home) = Cores::start(CoresConfig {
            cores: vec![CoreConfig::default(); 2],
            engine: Config::default(),
            sockets: SocketOptions { mark: None, reuse_port: false, keepalive: None, user_timeout: None },
            wanted,
            recorders,
        })
        .expect("two cores");
        let mut builder = SnapshotBuilder::new();
        let mut last: Weak<Snapshot> = Weak::new();
        for number in 0..20 {
            let snapshot = Arc::new(builder.freeze());
            cores.snapshot(&snapshot);
            let (generation, newest) = (snapshot.generation(), Arc::downgrade(&snapshot));
            drop(snapshot);
            // A core answers when it has installed what came before the question, or does so before the next.
            let behind = |cores: &Cores| {
                let answers = cores.ping();
                (0..cores.len()).any(|_| answers.recv_blocking().expect("it runs").generation != generation)
            };
            while behind(&cores) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let held = if number == 0 { 0 } else { cores.len() };
            assert_eq!(last.strong_count(), held, "both cores' are on their way home");
            last = newest;
        }
        cores.drain(Duration::ZERO);
        cores.join();
    }
}
