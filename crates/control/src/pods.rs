//! The conversation with the CNI agent, carried out: what the session decides is sent, started and stopped here, and a
//! lost connection is made again. What the packets mean is `inpod::zds`'s.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use inpod::{
    pod::{PodInfo, PodUid},
    zds::{
        backoff::{Backoff, Failure},
        session::{Action, PODS_MAX, Session, SessionError, Ticket},
        socket::{ReceiveError, Received, ZdsSocket},
    },
};
use tokio::sync::mpsc;

use crate::{PodUp, Publish, Receipt, Status, status::WORKLOAD_PROXY_MANAGER};

/// Receipts on their way. A session has at most one start and one stop of a pod in flight.
const RECEIPTS_MAX: usize = 2 * PODS_MAX;

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The agent speaks another protocol.
    #[error(
        "the CNI agent and this proxy disagree on their protocol, and only another version of either cures that: {0}"
    )]
    Protocol(SessionError),
}

/// What a step of the conversation came to.
pub(crate) enum PodEvent {
    /// A pod is captured now.
    Captured(PodInfo),
    /// A pod is captured no more.
    Released,
    /// Nothing that concerns anybody else.
    Nothing,
}

/// The pods of this node, and the way to the agent that names them.
pub(crate) struct Pods {
    /// `None` when no agent is configured.
    address: Option<PathBuf>,
    socket: Option<ZdsSocket>,
    connect_at: Instant,
    session: Session,
    backoff: Backoff,
    captured: BTreeMap<PodUid, PodInfo>,
    receipts: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    status: Status,
}

/// What can happen to the conversation.
pub(crate) enum Happened {
    /// Something came from the agent, or its connection ended.
    Received(Result<Received, ReceiveError>),
    /// A core has answered.
    Outcome(Outcome),
}

/// What a core said of a pod.
pub(crate) enum Outcome {
    Started { uid: PodUid, ticket: Ticket, info: PodInfo, result: Result<(), String> },
    Stopped { uid: PodUid, ticket: Ticket, result: Result<(), String> },
}

impl Pods {
    pub(crate) fn new(address: Option<&Path>, status: Status) -> Self {
        if address.is_none() {
            status.set_pending(WORKLOAD_PROXY_MANAGER, false);
        }
        Self {
            address: address.map(Path::to_owned),
            socket: None,
            connect_at: Instant::now(),
            session: Session::new(),
            backoff: Backoff::new(),
            captured: BTreeMap::new(),
            receipts: mpsc::channel(RECEIPTS_MAX),
            status,
        }
    }

    /// Pods that are captured.
    pub(crate) fn captured(&self) -> impl Iterator<Item = &PodInfo> {
        self.captured.values()
    }

    /// When [`Pods::on_time`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let connect = (self.address.is_some() && self.socket.is_none()).then_some(self.connect_at);
        [connect, self.session.deadline()].into_iter().flatten().min()
    }

    /// The next packet or receipt. Dropping the future before it is done loses neither.
    pub(crate) async fn next(&mut self) -> Happened {
        tokio::select! {
            Some(outcome) = self.receipts.1.recv() => Happened::Outcome(outcome),
            received = receive(self.socket.as_ref()) => Happened::Received(received),
        }
    }

    /// Does what follows from it. To be awaited to its end: what is left undone is lost.
    pub(crate) async fn on(&mut self, happened: Happened, publish: &mut impl Publish) -> Result<PodEvent, PodsError> {
        let (actions, event) = match happened {
            Happened::Outcome(outcome) => self.on_outcome(outcome),
            Happened::Received(received) => (self.on_received(received), PodEvent::Nothing),
        };
        self.act(actions, publish).await?;
        Ok(event)
    }

    /// Connects and retries what is due.
    pub(crate) async fn on_time(&mut self, publish: &mut impl Publish) -> Result<(), PodsError> {
        let now = Instant::now();
        let mut actions = self.session.on_time(now);
        if let Some(address) = &self.address
            && self.socket.is_none()
            && self.connect_at <= now
        {
            match ZdsSocket::connect(&address.to_string_lossy()) {
                Ok(socket) => {
                    tracing::info!(address = %address.display(), "connected to the CNI agent");
                    self.socket = Some(socket);
                    self.backoff.on_connected();
                    actions.extend(self.session.on_connected());
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    self.connect_at = now + self.backoff.wait(Failure::Connect, fastrand::u64(..));
                }
            }
        }
        self.act(actions, publish).await
    }

    fn on_received(&mut self, received: Result<Received, ReceiveError>) -> Vec<Action> {
        match received {
            Ok(Received::Packet { packet, descriptors }) => {
                self.session.on_packet(Instant::now(), &packet, descriptors)
            }
            Ok(Received::Closed) => {
                self.lost(Failure::Lost, &"it closed the connection");
                Vec::new()
            }
            Err(error) if error.is_of_packet() => self.session.on_unreadable(error.to_string()),
            Err(error) => {
                self.lost(Failure::Lost, &error);
                Vec::new()
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) -> (Vec<Action>, PodEvent) {
        match outcome {
            Outcome::Started { uid, ticket, info, result } => {
                let event = match &result {
                    Ok(()) => {
                        tracing::info!(%uid, pod = %format!("{}/{}", info.namespace, info.name), "pod captured");
                        self.captured.insert(uid.clone(), info.clone());
                        self.status.count_started();
                        PodEvent::Captured(info)
                    }
                    Err(error) => {
                        tracing::error!(%uid, pod = %format!("{}/{}", info.namespace, info.name), error, "pod not captured; trying again");
                        PodEvent::Nothing
                    }
                };
                (self.session.on_started(Instant::now(), &uid, ticket, result), event)
            }
            Outcome::Stopped { uid, ticket, result } => {
                let event = match self.captured.remove(&uid) {
                    Some(info) => {
                        tracing::info!(%uid, pod = %format!("{}/{}", info.namespace, info.name), "pod released");
                        self.status.count_stopped();
                        PodEvent::Released
                    }
                    None => PodEvent::Nothing,
                };
                (self.session.on_stopped(ticket, result), event)
            }
        }
    }

    async fn act(&mut self, actions: Vec<Action>, publish: &mut impl Publish) -> Result<(), PodsError> {
        for action in actions {
            match action {
                Action::Send(packet) => self.send(&packet).await,
                Action::StartPod(start) => {
                    let pod = PodUp { uid: start.uid.clone(), info: start.info.clone(), netns: start.netns };
                    let (uid, ticket, info) = (start.uid, start.ticket, start.info);
                    self.await_receipt(publish.pod_up(pod), move |result| Outcome::Started {
                        uid,
                        ticket,
                        info,
                        result,
                    });
                }
                Action::StopPod(stop) => {
                    let (uid, ticket) = (stop.uid, stop.ticket);
                    let receipt = publish.pod_down(&uid);
                    self.await_receipt(receipt, move |result| Outcome::Stopped { uid, ticket, result });
                }
                Action::Disconnect(error) => self.lost(Failure::Lost, &error),
                Action::Exit(error) => return Err(PodsError::Protocol(error)),
            }
        }
        let standing = self.session.standing();
        if standing.snapshot {
            self.backoff.on_ready();
        }
        let ready = self.address.is_none() || (standing.snapshot && standing.pending.is_empty());
        self.status.set_pending(WORKLOAD_PROXY_MANAGER, !ready);
        self.status.set_pods(self.captured.len(), standing.pending.len());
        Ok(())
    }

    async fn send(&mut self, packet: &[u8]) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(packet).await
        {
            self.lost(Failure::Hello, &error);
        }
    }

    /// The connection is over; pods go on, and the next connection will name them again.
    fn lost(&mut self, how: Failure, why: &dyn std::fmt::Display) {
        let wait = self.backoff.wait(how, fastrand::u64(..));
        tracing::warn!(%why, ?wait, "the connection to the CNI agent ended; connecting again");
        self.session.on_lost();
        self.socket = None;
        self.connect_at = Instant::now() + wait;
    }

    /// Waits for a core's word beside all else.
    fn await_receipt(&self, receipt: Receipt, outcome: impl FnOnce(Result<(), String>) -> Outcome + 'static) {
        let done = self.receipts.0.clone();
        tokio::task::spawn_local(async move {
            // Nobody listens any more when the control thread has ended.
            let _told = done.send(outcome(receipt.await)).await;
        });
    }
}

async fn receive(socket: Option<&ZdsSocket>) -> Result<Received, ReceiveError> {
    match socket {
        Some(socket) => socket.receive().await,
        None => std::future::pending().await,
    }
}
