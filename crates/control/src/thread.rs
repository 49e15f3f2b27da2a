//! hedge
use std::{collections::HashMap, future::Future, sync::Arc, time::{Duration, Instant}};
use mesh_state::{builder::SnapshotBuilder, identity::Identity, snapshot::Snapshot, wanted::Wanted};
use inpod::{pod::{PodInfo, PodUid}, zds::{backoff::{Backoff, Failure}, session::{Action, Session, SessionError, Ticket}, socket::{Received, ZdsSocket}}};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use crate::{CaSource, Config, PodUp, Publish, Status, ca::{embedded::{CaError, EmbeddedCa}, rotation::{AfterFailure, Rotation}}, file_source::{Defaults, FileError, FileSource, Origin, Watch}, status::{STATE_MANAGER, WORKLOAD_PROXY_MANAGER}};
/// Errors
#[derive(Debug, thiserror::Error)]
pub enum ControlError { 
 /// ca
 #[error(transparent)] Ca(#[from] CaError), 
 /// file
 #[error(transparent)] File(#[from] FileError), 
 /// zds
 #[error("{0}")] Zds(String) }
enum Done { Started(PodUid, Ticket, PodInfo, Result<(), String>), Stopped(PodUid, Ticket, Result<(), String>) }
struct Ctl<P> { config: Config, publish: P, status: Status, builder: SnapshotBuilder, snapshot: Arc<Snapshot>, ca: EmbeddedCa, ttl: Duration, rotation: Rotation, pods: HashMap<PodUid, PodInfo>, done: mpsc::UnboundedSender<Done> }
/// run
pub async fn run<P: Publish>(config: Config, publish: P, wanted: async_channel::Receiver<Wanted>, status: Status, shutdown: impl Future<Output = ()>) -> Result<(), ControlError> {
    let CaSource::Embedded { root_file, leaf_ttl } = config.ca.clone();
    let ca = EmbeddedCa::open(&root_file, leaf_ttl, OffsetDateTime::now_utc())?;
    let (done, mut outcomes) = mpsc::unbounded_channel();
    let mut builder = SnapshotBuilder::new();
    let snapshot = Arc::new(builder.freeze());
    let mut c = Ctl { config: config.clone(), publish, status, builder, snapshot, ca, ttl: leaf_ttl, rotation: Rotation::default(), pods: HashMap::new(), done };
    let origin = config.local_file.clone().map(Origin::File).or(config.local_inline.clone().map(Origin::Inline));
    let mut watch = match &config.local_file { Some(f) => Watch::new(f).ok(), None => None };
    let mut source = origin.map(|o| FileSource::new(o, Defaults { trust_domain: config.trust_domain.clone(), cluster: config.cluster.clone() }));
    if let Some(s) = &mut source { match s.load() { Ok(ch) => c.apply(ch), Err(e) => { tracing::error!(error=%e, "mesh file not in force") } } }
    c.status.set_pending(STATE_MANAGER, false);
    let mut session = Session::new(); let mut backoff = Backoff::new(); let mut socket: Option<ZdsSocket> = None; let mut connect_at = Instant::now();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let due = c.rotation.next_due();
        let sleep_to = [due, session.deadline(), socket.is_none().then_some(connect_at)].into_iter().flatten().min().unwrap_or(Instant::now() + Duration::from_secs(3600));
        let actions = tokio::select! {
            () = &mut shutdown => return Ok(()),
            w = wanted.recv(), if !wanted.is_closed() => { if let Ok(Wanted::Identity(id)) = w { c.want(&id); } vec![] }
            () = async { match &mut watch { Some(w) => w.changed().await, None => std::future::pending().await } } => {
                match source.as_mut().expect("s").load() { Ok(ch) => c.apply(ch), Err(e) => tracing::error!(error=%e, "mesh file not in force") } vec![]
            }
            Some(d) = outcomes.recv() => match d {
                Done::Started(uid, t, info, r) => { if r.is_ok() { c.pods.insert(uid.clone(), info.clone()); c.status.count_started(); let id = c.identity(&info); if let Some(id) = id { c.want(&id) } } session.on_started(Instant::now(), &uid, t, r) }
                Done::Stopped(uid, t, r) => { if c.pods.remove(&uid).is_some() { c.status.count_stopped(); } session.on_stopped(t, r) }
            },
            r = async { match &socket { Some(s) => s.receive().await, None => std::future::pending().await } } => match r {
                Ok(Received::Packet { packet, descriptors }) => session.on_packet(Instant::now(), &packet, descriptors),
                Ok(Received::Closed) => { session.on_lost(); socket = None; connect_at = Instant::now() + backoff.wait(Failure::Lost, fastrand::u64(..)); vec![] }
                Err(e) if e.is_of_packet() => session.on_unreadable(e.to_string()),
                Err(e) => { tracing::warn!(error=%e, "zds"); session.on_lost(); socket = None; connect_at = Instant::now() + backoff.wait(Failure::Lost, fastrand::u64(..)); vec![] }
            },
            () = tokio::time::sleep_until(sleep_to.into()) => {
                let now = Instant::now();
                for id in c.rotation.due(now) { c.issue(&id); }
                let mut a = session.on_time(now);
                if socket.is_none() && connect_at <= now {
                    if let Some(path) = &config.zds_socket {
                        match ZdsSocket::connect(path.to_str().unwrap_or_default()) {
                            Ok(s) => { socket = Some(s); backoff.on_connected(); a.extend(session.on_connected()); }
                            Err(e) => { tracing::warn!("{e}"); connect_at = now + backoff.wait(Failure::Connect, fastrand::u64(..)); }
                        }
                    } else { connect_at = now + Duration::from_secs(3600); }
                }
                a
            }
        };
        for action in actions {
            match action {
                Action::Send(p) => if let Some(s) = &socket { if let Err(e) = s.send(&p).await { tracing::warn!(error=%e, "zds send"); } },
                Action::StartPod(s) => { let rec = c.publish.pod_up(PodUp { uid: s.uid.clone(), info: s.info.clone(), netns: s.netns }); let done = c.done.clone();
                    tokio::task::spawn_local(async move { let r = rec.await; let _ = done.send(Done::Started(s.uid, s.ticket, s.info, r)); }); }
                Action::StopPod(s) => { let rec = c.publish.pod_down(&s.uid); let done = c.done.clone(); tokio::task::spawn_local(async move { let r = rec.await; let _ = done.send(Done::Stopped(s.uid, s.ticket, r)); }); }
                Action::Disconnect(e) => { tracing::warn!(error=%e, "zds disconnect"); session.on_lost(); socket = None; connect_at = Instant::now() + backoff.wait(Failure::Lost, fastrand::u64(..)); }
                Action::Exit(e) => return Err(ControlError::Zds(e.to_string())),
            }
        }
        let st = session.standing();
        if st.snapshot { backoff.on_ready(); }
        c.status.set_pending(WORKLOAD_PROXY_MANAGER, !st.snapshot);
        c.status.set_pods(st.running, st.pending.len());
    }
}
impl<P: Publish> Ctl<P> {
    fn apply(&mut self, changes: Vec<mesh_state::change::Change>) { for ch in changes { self.builder.apply(ch); } self.snapshot = Arc::new(self.builder.freeze()); self.status.set_generation(self.snapshot.generation()); self.publish.snapshot(self.snapshot.clone()); tracing::info!(generation = self.snapshot.generation(), "published"); }
    fn identity(&self, info: &PodInfo) -> Option<Identity> {
        self.snapshot.local_workload(self.config.node.as_deref(), &info.namespace, &info.name, &info.service_account).map(|w| w.identity.clone()).or_else(|| Identity::new(&self.config.trust_domain, &info.namespace, &info.service_account).ok())
    }
    fn want(&mut self, id: &Identity) { if self.rotation.want(id, Instant::now()) { self.issue(id); } }
    fn issue(&mut self, id: &Identity) {
        match self.ca.issue(id, OffsetDateTime::now_utc()) {
            Ok(cr) => { self.rotation.issued(id, Instant::now(), self.ttl, fastrand::u64(..)); self.publish.credential(id, Ok(Arc::new(cr))); }
            Err(e) => if self.rotation.failed(id, Instant::now(), fastrand::u64(..)) == AfterFailure::Unavailable { self.publish.credential(id, Err(e.to_string().into())); }
        }
    }
}
#[allow(unused)] fn _x(_: SessionError) {}
