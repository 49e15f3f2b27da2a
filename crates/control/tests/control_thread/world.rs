//! A control thread in the runtime of the test, with a recorder in the place of the cores.

use std::{cell::RefCell, collections::VecDeque, fs, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use control::{CaSource, Config, ControlError, MeshSource, PodUp, Publish, Receipt, Status};
use hbone::{credential::Credential, revocation::Revocations};
use inpod::pod::PodUid;
use mesh_state::{identity::Identity, snapshot::Snapshot, wanted::Wanted};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, LocalSet},
    time::{sleep, timeout},
};

use crate::agent::Agent;

pub(crate) const TTL: Duration = Duration::from_secs(86_400);

/// No test takes longer, be its clock the wall's or one that jumps to whatever is due next.
const PATIENCE: Duration = Duration::from_secs(2 * 86_400);
const EVENTS_MAX: usize = 1024;

/// What the cores were told.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Snapshot(u64),
    Certificate(String),
    NoCertificate(String),
    Gone(String),
    Revocations,
    Up(String),
    Down(String),
}

/// How the cores answer about the next pod: after so long, or never.
pub(crate) type Answer = Option<(Duration, Result<(), String>)>;

/// The cores.
struct Recorder {
    events: mpsc::Sender<Event>,
    answers: Rc<RefCell<VecDeque<Answer>>>,
}

impl Recorder {
    fn record(&self, event: Event) {
        self.events.try_send(event).expect("a test has few events and reads them");
    }
}

impl Publish for Recorder {
    fn snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.record(Event::Snapshot(snapshot.generation()));
    }

    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, Arc<str>>) {
        self.record(match credential {
            Ok(credential) => {
                assert_eq!(credential.identity(), identity);
                Event::Certificate(identity.to_string())
            }
            Err(_) => Event::NoCertificate(identity.to_string()),
        });
    }

    fn credential_gone(&mut self, identity: &Identity) {
        self.record(Event::Gone(identity.to_string()));
    }

    fn revocations(&mut self, _: &Arc<Revocations>) {
        self.record(Event::Revocations);
    }

    fn pod_up(&mut self, pod: PodUp) -> Receipt {
        self.record(Event::Up(pod.uid.to_string()));
        let answer = self.answers.borrow_mut().pop_front().unwrap_or(Some((Duration::ZERO, Ok(()))));
        Box::pin(async move {
            match answer {
                Some((after, result)) => {
                    sleep(after).await;
                    result
                }
                None => std::future::pending().await,
            }
        })
    }

    fn pod_down(&mut self, uid: &PodUid) -> Receipt {
        self.record(Event::Down(uid.to_string()));
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A control thread, its agent, and what it tells the cores.
pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) status: Status,
    pub(crate) wanted: async_channel::Sender<Wanted>,
    directory: TempDir,
    events: mpsc::Receiver<Event>,
    answers: Rc<RefCell<VecDeque<Answer>>>,
    stop: Option<oneshot::Sender<()>>,
    control: JoinHandle<Result<(), ControlError>>,
}

/// How time passes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Clock {
    /// It jumps to whatever is due next as soon as everybody waits.
    Jumping,
    /// As the kernel says, which tells of a file's change.
    Wall,
}

/// Runs `test` beside a control thread that has `mesh` as its file, if any.
pub(crate) fn with(clock: Clock, mesh: Option<&str>, test: impl AsyncFnOnce(&mut World)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(clock == Clock::Jumping)
        .build()
        .expect("a runtime");
    let patience = if clock == Clock::Jumping { PATIENCE } else { Duration::from_secs(20) };
    LocalSet::new().block_on(&runtime, async {
        let mut world = World::start(mesh);
        timeout(patience, test(&mut world)).await.expect("the test waits for what does not come");
    });
}

impl World {
    fn start(mesh: Option<&str>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let zds_socket = directory.path().join("zds.sock");
        let agent = Agent::listen(&zds_socket);
        let config = Config {
            mesh: mesh.map_or(MeshSource::Nowhere, |text| {
                let file = directory.path().join("mesh.yaml");
                fs::write(&file, text).expect("written");
                MeshSource::File(file)
            }),
            ca: CaSource::Embedded { root_file: directory.path().join("ca/root.pem"), leaf_ttl: TTL },
            zds_socket: Some(zds_socket),
            ..Config::default()
        };
        let (event, events) = mpsc::channel(EVENTS_MAX);
        let (wanted, wishes) = async_channel::bounded(EVENTS_MAX);
        let (stop, stopped) = oneshot::channel();
        let (answers, status) = (Rc::default(), Status::default());
        let recorder = Recorder { events: event, answers: Rc::clone(&answers) };
        let control = control::run(config, recorder, wishes, status.clone(), async move {
            stopped.await.expect("told before the world ends");
        });
        let control = tokio::task::spawn_local(control);
        Self { agent, status, wanted, directory, events, answers, stop: Some(stop), control }
    }

    /// The next thing that the cores are told.
    pub(crate) async fn event(&mut self) -> Event {
        self.events.recv().await.expect("the control thread goes on")
    }

    /// Nothing more has been told so far.
    pub(crate) fn nothing_more(&mut self) {
        assert_eq!(self.events.try_recv().ok(), None);
    }

    /// How the cores answer about the next pods.
    pub(crate) fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.answers.borrow_mut().extend(answers);
    }

    /// Whether the agent's part of readiness is there.
    pub(crate) fn is_ready(&self) -> bool {
        !self.status.pending().contains(&"workload proxy manager")
    }

    pub(crate) fn mesh_file(&self) -> PathBuf {
        self.directory.path().join("mesh.yaml")
    }

    /// Replaces the mesh file as an operator's tool does, in one step.
    pub(crate) fn replace_mesh(&self, text: &str) {
        let beside = self.directory.path().join("mesh.yaml.new");
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.mesh_file()).expect("replaced");
    }

    pub(crate) async fn shut_down(&mut self) -> Result<(), ControlError> {
        self.stop.take().expect("once").send(()).expect("the control thread runs");
        self.ended().await
    }

    /// What the control thread ended with.
    pub(crate) async fn ended(&mut self) -> Result<(), ControlError> {
        (&mut self.control).await.expect("no panic")
    }
}

/// The identity of a service account of the pods that [`crate::agent::add`] adds.
pub(crate) fn identity(service_account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}")
}
