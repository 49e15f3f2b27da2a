//! A control thread in the runtime of the test, a control plane on a thread of its own, and a node agent.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use control::{
    CaSource, Config, ControlError, ControlPlane as XdsConfig, MeshSource, PodUp, Publish, Receipt, Status, WarmStart,
    grpc::{Roots, Server},
    proto::workload::Workload,
    token::Token,
    xds::proxy::Proxy,
};
use hbone::{credential::Credential, revocation::Revocations};
use inpod::pod::PodUid;
use mesh_state::{identity::Identity, snapshot::Snapshot, wanted::Wanted};
use tempfile::TempDir;
use testbed::{
    ca_server::{CaServer, Root},
    control_plane::{ControlPlane, ServerIdentity},
    namespace::Namespace,
    xds_server::XdsServer,
    zds_agent::{PodRecord, ZdsAgent},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, LocalSet},
    time::timeout,
};

/// No test takes longer, on a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(60);
const EVENTS_MAX: usize = 4096;
const LIFETIME: Duration = Duration::from_secs(86_400);

/// What the cores were told.
#[derive(Debug)]
pub(crate) enum Event {
    Snapshot(Arc<Snapshot>),
    Certificate(Identity),
    NoCertificate(Identity, String),
    Gone(Identity),
    Revocations,
    Up(String),
    Down,
}

struct Recorder(mpsc::Sender<Event>);

impl Recorder {
    fn record(&self, event: Event) {
        self.0.try_send(event).expect("a test has few events and reads them");
    }
}

impl Publish for Recorder {
    fn snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.record(Event::Snapshot(snapshot));
    }

    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, Arc<str>>) {
        self.record(match credential {
            Ok(credential) => {
                assert_eq!(credential.identity(), identity);
                Event::Certificate(identity.clone())
            }
            Err(why) => Event::NoCertificate(identity.clone(), why.to_string()),
        });
    }

    fn credential_gone(&mut self, identity: &Identity) {
        self.record(Event::Gone(identity.clone()));
    }

    fn revocations(&mut self, _: &Arc<Revocations>) {
        self.record(Event::Revocations);
    }

    fn pod_up(&mut self, pod: PodUp) -> Receipt {
        self.record(Event::Up(pod.uid.to_string()));
        Box::pin(std::future::ready(Ok(())))
    }

    fn pod_down(&mut self, _: &PodUid) -> Receipt {
        self.record(Event::Down);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A control plane to which a control thread may come, and what it is to be told.
pub(crate) struct Setting {
    pub(crate) identity: ServerIdentity,
    pub(crate) plane: Option<ControlPlane>,
    pub(crate) listener: TcpListener,
    pub(crate) server: Server,
    pub(crate) on_demand: bool,
    pub(crate) embedded_ca: bool,
    /// Keeps the mesh for the next start.
    pub(crate) warm_start: Option<WarmStart>,
    agent: Arc<Mutex<ZdsAgent>>,
    directory: TempDir,
}

/// A running control thread.
pub(crate) struct World {
    pub(crate) setting: Setting,
    pub(crate) status: Status,
    pub(crate) wanted: async_channel::Sender<Wanted>,
    events: mpsc::Receiver<Event>,
    /// The newest generation that was read.
    pub(crate) mesh: Arc<Snapshot>,
    stop: Option<oneshot::Sender<()>>,
    control: JoinHandle<Result<(), ControlError>>,
}

impl Setting {
    /// A control plane that is reached as `localhost` and proves itself as such.
    pub(crate) fn new() -> Self {
        Self::proved_by(&["localhost"])
    }

    /// One whose certificate is for these names.
    pub(crate) fn proved_by(names: &[&str]) -> Self {
        let identity = ServerIdentity::new(names).expect("good names");
        let ca = CaServer::new(Root::new("first").expect("a root"));
        let plane = ControlPlane::start(&identity, XdsServer::default(), ca).expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = plane.listen(listener.try_clone().expect("cloned")).expect("listening");
        let server_address = format!("https://localhost:{}", address.port()).parse().expect("an address");
        let directory = tempfile::tempdir().expect("a directory");
        let agent = ZdsAgent::start(&directory.path().join("zds.sock")).expect("an agent");
        let agent = Arc::new(Mutex::new(agent));
        let server = Server::new(server_address, Roots::Given(identity.root_pem().to_owned()));
        Self {
            identity,
            plane: Some(plane),
            listener,
            server,
            on_demand: false,
            embedded_ca: true,
            warm_start: None,
            agent,
            directory,
        }
    }

    pub(crate) fn xds(&self) -> &XdsServer {
        &self.plane().xds
    }

    pub(crate) fn ca(&self) -> &CaServer {
        &self.plane().ca
    }

    pub(crate) fn plane(&self) -> &ControlPlane {
        self.plane.as_ref().expect("the test has left it there")
    }

    /// Ends the control plane and all its connections. Who connects from now on waits in the listener's queue.
    pub(crate) fn stop_plane(&mut self) -> (XdsServer, CaServer) {
        let plane = self.plane.take().expect("it runs");
        (plane.xds.clone(), plane.ca.clone())
    }

    /// Starts one again in the place of the one that was stopped.
    pub(crate) fn start_plane(&mut self, xds: XdsServer, ca: CaServer) {
        let plane = ControlPlane::start(&self.identity, xds, ca).expect("a server");
        plane.listen(self.listener.try_clone().expect("cloned")).expect("listening");
        self.plane = Some(plane);
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn token_file(&mut self, token: &str) -> PathBuf {
        let file = self.file("token");
        std::fs::write(&file, token).expect("written");
        self.server.token = Token::File(file.clone());
        file
    }

    /// Makes the agent know a pod whose service account is `name`.
    pub(crate) fn pod(&self, name: &str) {
        self.agent.lock().expect("nobody panicked with it").register_pod(name, record(name));
    }

    /// Runs `test` beside a control thread.
    pub(crate) fn run(self, test: impl AsyncFnOnce(&mut World)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let mut world = World::start(self);
            timeout(PATIENCE, test(&mut world)).await.expect("the test waits for what does not come");
        });
    }

    fn config(&self) -> Config {
        let ca = if self.embedded_ca {
            CaSource::Embedded { root_file: self.file("root.pem"), leaf_ttl: LIFETIME }
        } else {
            CaSource::Server { server: Box::new(self.server.clone()), leaf_ttl: LIFETIME }
        };
        Config {
            node: Some("node-a".to_owned()),
            mesh: MeshSource::ControlPlane(Box::new(XdsConfig {
                server: self.server.clone(),
                proxy: Proxy {
                    address: "10.0.0.9".into(),
                    pod: "zt-1".into(),
                    namespace: "istio-system".into(),
                    node: "node-a".into(),
                    metadata: [].into(),
                },
                on_demand: self.on_demand,
            })),
            ca,
            zds_socket: Some(self.file("zds.sock")),
            warm_start: self.warm_start.clone(),
            ..Config::default()
        }
    }
}

impl World {
    fn start(setting: Setting) -> Self {
        let (status, wanted, events, stop, control) = begin(setting.config());
        Self { setting, status, wanted, events, mesh: Arc::new(Snapshot::empty()), stop: Some(stop), control }
    }

    /// Kills the control thread where it stands, and starts another.
    pub(crate) async fn killed_and_started(&mut self) {
        self.control.abort();
        // It was aborted, which is what it says.
        let _aborted = (&mut self.control).await;
        self.start_again();
    }

    /// Has the control thread end as a daemon does that was told to, and starts another.
    pub(crate) async fn ended_and_started(&mut self) {
        drop(self.stop.take());
        let ended = (&mut self.control).await.expect("no panic");
        ended.expect("it ends well");
        self.start_again();
    }

    fn start_again(&mut self) {
        let (status, wanted, events, stop, control) = begin(self.setting.config());
        (self.status, self.wanted, self.events, self.control) = (status, wanted, events, control);
        (self.stop, self.mesh) = (Some(stop), Arc::new(Snapshot::empty()));
    }

    pub(crate) fn xds(&self) -> &XdsServer {
        self.setting.xds()
    }

    pub(crate) fn ca(&self) -> &CaServer {
        self.setting.ca()
    }

    /// Has the agent do something on another thread: it waits for answers, and those come from this one.
    pub(crate) async fn agent<T: Send + 'static>(&self, work: impl FnOnce(&mut ZdsAgent) -> T + Send + 'static) -> T {
        let agent = self.setting.agent.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut agent.lock().expect("nobody panicked with it")));
        done.await.expect("the agent's work is done")
    }

    /// The next thing that the cores are told.
    pub(crate) async fn event(&mut self) -> Event {
        tokio::select! {
            event = self.events.recv() => {
                let event = event.expect("the control thread goes on");
                if let Event::Snapshot(snapshot) = &event {
                    self.mesh = snapshot.clone();
                }
                event
            }
            ended = &mut self.control => panic!("the control thread ended: {ended:?}"),
        }
    }

    /// What the cores were told and nobody has read.
    pub(crate) fn unread(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// Reads events until the mesh is as it should be; gives how many generations that took.
    pub(crate) async fn until_mesh(&mut self, holds: impl Fn(&Snapshot) -> bool) -> usize {
        let mut generations = 0;
        while !holds(&self.mesh) {
            if let Event::Snapshot(_) = self.event().await {
                generations += 1;
            }
        }
        generations
    }

    /// Reads events until one is a certificate; gives whose.
    pub(crate) async fn certificate(&mut self) -> String {
        loop {
            match self.event().await {
                Event::Certificate(identity) => return identity.service_account().to_owned(),
                Event::NoCertificate(identity, why) => panic!("no certificate for {identity}: {why}"),
                _ => {}
            }
        }
    }

    /// Reads events until one is a refusal of a certificate; gives why.
    pub(crate) async fn no_certificate(&mut self) -> String {
        loop {
            match self.event().await {
                Event::NoCertificate(_, why) => return why,
                Event::Certificate(identity) => panic!("a certificate for {identity}"),
                _ => {}
            }
        }
    }
}

type Begun = (
    Status,
    async_channel::Sender<Wanted>,
    mpsc::Receiver<Event>,
    oneshot::Sender<()>,
    JoinHandle<Result<(), ControlError>>,
);

fn begin(config: Config) -> Begun {
    let (event, events) = mpsc::channel(EVENTS_MAX);
    let (wanted, wishes) = async_channel::bounded(EVENTS_MAX);
    let (stop, stopped) = oneshot::channel::<()>();
    let status = Status::default();
    let control = control::run(config, Recorder(event), wishes, status.clone(), async move {
        // Dropped with the world.
        let _ = stopped.await;
    });
    (status, wanted, events, stop, tokio::task::spawn_local(control))
}

/// A pod whose service account is its name, in a network namespace that is the test's.
pub(crate) fn record(name: &str) -> PodRecord {
    let netns = Namespace::current(name).expect("the test has one");
    PodRecord { name: name.into(), namespace: "shop".into(), service_account: name.into(), netns: Some(netns) }
}

/// The uids of a mesh's workloads, sorted, without what is the same in all.
pub(crate) fn uids(mesh: &Snapshot) -> Vec<String> {
    let short = |uid: &str| uid.rsplit('/').next().unwrap_or_default().to_owned();
    let mut uids: Vec<String> = mesh.workloads().map(|workload| short(workload.uid.as_str())).collect();
    uids.sort();
    uids
}

/// A workload `name` of the namespace `shop` at 10.0.`third`.`fourth`.
pub(crate) fn workload(name: &str, third: u8, fourth: u8) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        addresses: vec![vec![10, 0, third, fourth].into()],
        tunnel_protocol: 1,
        node: "node-b".into(),
        ..Workload::default()
    }
}

pub(crate) fn write(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).expect("written");
    std::fs::rename(beside, file).expect("replaced");
}
