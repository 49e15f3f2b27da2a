//! The conversation with the CNI agent, carried out: what the session decides is sent, started and stopped here, and a
//! lost connection is made again. What the packets mean is `inpod::zds`'s.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use inpod::{
    pod::{PodInfo, PodUid},
    zds::{
        backoff::{Backoff, Failure},
        session::{Action, PODS_MAX, Session, SessionError, StartPod, StopPod, Ticket},
        socket::{ReceiveError, Received, ZdsSocket},
    },
};
use tokio::{sync::mpsc, time};

use crate::{PodUp, Publish, Receipt, Status, clocks::now, status::WORKLOAD_PROXY_MANAGER};

/// Receipts on their way. A session has at most one start and one stop of a pod in flight.
const RECEIPTS_MAX: usize = 2 * PODS_MAX;

/// How long the control thread waits for room in the agent's socket. An answer takes a few bytes there, so an agent
/// without room has left hundreds unread, and nothing else may stand still for it.
const SEND_WITHIN: Duration = Duration::from_millis(100);

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
    /// The hello has gone out on this connection.
    greeted: bool,
    connect_at: Instant,
    session: Session,
    backoff: Backoff,
    pods: BTreeMap<PodUid, Pod>,
    receipts: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    status: Status,
}

/// A pod between its latest start and its stop.
pub(crate) struct Pod {
    ticket: Ticket,
    info: PodInfo,
    captured: bool,
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
    Started { uid: PodUid, ticket: Ticket, result: Result<(), String> },
    Stopped { uid: PodUid, ticket: Ticket, was: Option<Pod>, result: Result<(), String> },
}

impl Pods {
    pub(crate) fn new(address: Option<&Path>, status: Status) -> Self {
        if address.is_none() {
            status.set_pending(WORKLOAD_PROXY_MANAGER, false);
        }
        Self {
            address: address.map(Path::to_owned),
            socket: None,
            greeted: false,
            connect_at: now(),
            session: Session::new(),
            backoff: Backoff::new(),
            pods: BTreeMap::new(),
            receipts: mpsc::channel(RECEIPTS_MAX),
            status,
        }
    }

    /// Pods that are here: captured, or about to be. A core may have a connection of one before its word has come that the pod
    /// is captured.
    pub(crate) fn here(&self) -> impl Iterator<Item = &PodInfo> {
        self.pods.values().map(|pod| &pod.info)
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
        let now = now();
        let mut actions = self.session.on_time(now);
        if let Some(address) = &self.address
            && self.socket.is_none()
            && self.connect_at <= now
        {
            match ZdsSocket::connect(&address.to_string_lossy()) {
                Ok(socket) => {
                    tracing::info!(address = %address.display(), "connected to the CNI agent");
                    self.socket = Some(socket);
                    self.status.set_zds_connected(true);
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
            Ok(Received::Packet { packet, descriptors }) => self.session.on_packet(now(), &packet, descriptors),
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
            Outcome::Started { uid, ticket, result } => {
                let event = self.on_started(&uid, ticket, &result);
                (self.session.on_started(now(), &uid, ticket, result), event)
            }
            Outcome::Stopped { uid, ticket, was, result } => {
                if let Err(error) = &result {
                    tracing::error!(%uid, error, "pod not stopped cleanly");
                }
                let event = match was {
                    Some(Pod { info, captured: true, .. }) => {
                        tracing::info!(%uid, pod = %info, "pod released");
                        self.status.count_stopped();
                        PodEvent::Released
                    }
                    Some(_) | None => PodEvent::Nothing,
                };
                (self.session.on_stopped(ticket, result), event)
            }
        }
    }

    fn on_started(&mut self, uid: &PodUid, ticket: Ticket, result: &Result<(), String>) -> PodEvent {
        // Stopped or started anew since: the later word counts.
        let Some(pod) = self.pods.get_mut(uid).filter(|pod| pod.ticket == ticket) else { return PodEvent::Nothing };
        match result {
            Ok(()) => {
                tracing::info!(%uid, pod = %pod.info, "pod captured");
                self.status.count_started();
                pod.captured = true;
                PodEvent::Captured(pod.info.clone())
            }
            Err(error) => {
                tracing::error!(%uid, pod = %pod.info, error, "pod not captured; trying again");
                self.pods.remove(uid);
                PodEvent::Nothing
            }
        }
    }

    async fn act(&mut self, actions: Vec<Action>, publish: &mut impl Publish) -> Result<(), PodsError> {
        for action in actions {
            match action {
                Action::Send(packet) => self.send(&packet).await,
                Action::StartPod(StartPod { uid, ticket, info, netns }) => {
                    self.pods.insert(uid.clone(), Pod { ticket, info: info.clone(), captured: false });
                    let receipt = publish.pod_up(PodUp { uid: uid.clone(), info, netns });
                    self.await_receipt(receipt, move |result| Outcome::Started { uid, ticket, result });
                }
                Action::StopPod(StopPod { uid, ticket }) => {
                    let was = self.pods.remove(&uid);
                    let receipt = publish.pod_down(&uid);
                    self.await_receipt(receipt, move |result| Outcome::Stopped { uid, ticket, was, result });
                }
                Action::Disconnect(error) => self.lost(Failure::Lost, &error),
                Action::Exit(error) => return Err(PodsError::Protocol(error)),
            }
        }
        self.tell_standing();
        Ok(())
    }

    /// Ready once the agent has named its pods and each is captured. A pod that is being started takes readiness from
    /// nobody and gives it to nobody: a pending one is tried again every few seconds, and is no better for it.
    fn tell_standing(&mut self) {
        let standing = self.session.standing();
        if standing.snapshot {
            self.backoff.on_ready();
        }
        if self.address.is_some() {
            if !standing.snapshot || !standing.pending.is_empty() {
                self.status.set_pending(WORKLOAD_PROXY_MANAGER, true);
            } else if standing.starting == 0 {
                self.status.set_pending(WORKLOAD_PROXY_MANAGER, false);
            }
        }
        let captured = self.pods.values().filter(|pod| pod.captured).count();
        self.status.set_pods(captured, standing.pending);
    }

    async fn send(&mut self, packet: &[u8]) {
        let Some(socket) = &self.socket else { return };
        let sent = match time::timeout(SEND_WITHIN, socket.send(packet)).await {
            Ok(sent) => sent,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read its answers")),
        };
        match sent {
            Ok(()) => {
                self.greeted = true;
                self.backoff.on_connected();
            }
            Err(error) if self.greeted => self.lost(Failure::Lost, &error),
            Err(error) => self.lost(Failure::Hello, &error),
        }
    }

    /// The connection is over; pods go on, and the next connection will name them again.
    fn lost(&mut self, how: Failure, why: &dyn std::fmt::Display) {
        let wait = self.backoff.wait(how, fastrand::u64(..));
        tracing::warn!(%why, ?wait, "the connection to the CNI agent ended; connecting again");
        self.session.on_lost();
        self.socket = None;
        self.status.set_zds_connected(false);
        self.greeted = false;
        self.connect_at = now() + wait;
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
