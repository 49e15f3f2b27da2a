//! What the packets of the CNI agent mean for the pods of this node. Pure: packets, results and the time come in,
//! actions go out; it opens nothing, starts nothing and never waits.
//!
//! The protocol has no ids: the agent takes the next response for that of its oldest open request. Hence one queue of
//! answers, sent from its front only, and never an answer later than the agent waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use crate::{
    netns::Netns,
    pod::{PodInfo, PodUid},
    zds::wire::{self, Request},
};

pub use crate::zds::error::SessionError;

/// A request is answered within this time, with a nack if need be. The agent waits 5 s; after the snapshot it then
/// only logs, and would take a late answer for that of its next request.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// How often pods that could not be started are tried again.
pub const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Pods of one node, and uids of one snapshot. A pod takes a descriptor and at most 1.2 KiB here (its packet), so 5 MiB
/// at worst; a kubelet is configured for a few hundred.
pub const PODS_MAX: usize = 4096;

/// Requests without an answer yet. The agent sends one at a time, and a further one each time it gives up on an answer.
/// Worst case 64 x 1 KiB.
pub const OUTSTANDING_MAX: usize = 64;

/// The pods of this node and the conversation about them. It outlives connections, as the pods do.
#[derive(Debug, Default)]
pub struct Session {
    pods: BTreeMap<PodUid, Pod>,
    link: Link,
    answers: VecDeque<Answer>,
    /// Set while a pod is pending and the agent connected.
    retry_at: Option<Instant>,
    tickets: u64,
}

/// What the caller is to do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send this packet.
    Send(Vec<u8>),
    /// Start a pod, then call [`Session::on_started`].
    StartPod(StartPod),
    /// Stop a pod, then call [`Session::on_stopped`]. It comes after the start that it ends.
    StopPod(StopPod),
    /// Close the connection and make a new one.
    Disconnect(SessionError),
    /// End the process with status 1: the agent and we disagree on the protocol, and only another image cures that.
    Exit(SessionError),
}

/// A pod to start.
#[derive(Debug)]
pub struct StartPod {
    /// Belongs in the call of [`Session::on_started`].
    pub ticket: Ticket,
    /// Which pod.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// Where its listeners belong.
    pub netns: Netns,
}

/// A pod to stop.
#[derive(Debug)]
pub struct StopPod {
    /// Belongs in the call of [`Session::on_stopped`].
    pub ticket: Ticket,
    /// Which pod.
    pub uid: PodUid,
}

/// One start or stop. A result with an outdated ticket says nothing about what the pod does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// How the node stands, for readiness and for whoever asks why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The agent is connected.
    pub connected: bool,
    /// The agent has named every pod on this connection.
    pub snapshot: bool,
    /// Pods that run.
    pub running: usize,
    /// Pods whose start has not ended yet.
    pub starting: usize,
    /// Pods that could not be started and are tried again, each with the reason.
    pub pending: Vec<(PodUid, String)>,
}

impl Session {
    /// Without pods, not connected.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection was made. Running pods go on; the agent will name each again, and whom it does not is stopped.
    pub fn on_connected(&mut self) -> Vec<Action> {
        self.on_lost();
        self.pods.retain(|_, pod| !matches!(pod.state, State::Pending { .. }));
        self.link = Link::Snapshot { named: BTreeSet::new() };
        vec![Action::Send(wire::hello())]
    }

    /// The connection has ended. Answers still open die with it: the next connection starts counting anew.
    pub fn on_lost(&mut self) {
        self.link = Link::Down;
        self.answers.clear();
        self.retry_at = None;
    }

    /// A packet arrived whole, with the descriptors that came with it.
    pub fn on_packet(&mut self, now: Instant, packet: &[u8], descriptors: Vec<OwnedFd>) -> Vec<Action> {
        if matches!(self.link, Link::Down) {
            // Sent before the agent saw us hang up; the descriptors close here.
            return Vec::new();
        }
        if self.answers.len() >= OUTSTANDING_MAX {
            return self.end(SessionError::Outstanding);
        }
        let mut actions = Vec::new();
        let outcome = Order::read(packet, descriptors).and_then(|order| self.obey(now, order, &mut actions));
        match outcome {
            Ok(answer) => {
                self.answers.push_back(answer);
                self.send_answers(&mut actions);
            }
            Err(error) => actions.extend(self.end(error)),
        }
        actions
    }

    /// A packet arrived cut, or with more descriptors than there is room for; what came of it is closed already.
    pub fn on_unreadable(&mut self, why: String) -> Vec<Action> {
        if matches!(self.link, Link::Down) {
            return Vec::new();
        }
        self.end(SessionError::Unreadable(why))
    }

    /// A [`StartPod`] has ended: all listeners of the pod are bound, or why they are not.
    pub fn on_started(
        &mut self,
        now: Instant,
        uid: &PodUid,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Action> {
        let vouched_for = match &self.link {
            Link::Snapshot { named } => named.contains(uid),
            Link::Down | Link::Live => true,
        };
        if let Some(pod) = self.pods.get_mut(uid).filter(|pod| pod.state == State::Starting(ticket)) {
            match &result {
                Ok(()) => pod.state = State::Running,
                Err(why) if vouched_for => {
                    pod.state = State::Pending { why: why.clone() };
                    if !matches!(self.link, Link::Down) {
                        self.retry_at.get_or_insert(now + RETRY_EVERY);
                    }
                }
                // Deleted before the snapshot: there is nobody to try again for.
                Err(_) => drop(self.pods.remove(uid)),
            }
        }
        self.settle(ticket, result.map_err(|why| format!("failure to start proxy : {why}")))
    }

    /// A [`StopPod`] has ended: nothing of the pod listens any more, or why that is not sure.
    pub fn on_stopped(&mut self, ticket: Ticket, result: Result<(), String>) -> Vec<Action> {
        self.settle(ticket, result.map_err(|why| format!("failure to stop proxy : {why}")))
    }

    /// When [`Session::on_time`] is to be called next, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.answers.iter().find_map(|answer| match answer {
            Answer::Awaited { by, .. } => Some(*by),
            Answer::Ready(_) => None,
        });
        [oldest, self.retry_at].into_iter().flatten().min()
    }

    /// Time has passed: gives up on answers that would come too late, and tries pending pods again.
    pub fn on_time(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for answer in &mut self.answers {
            if let Answer::Awaited { by, doing, .. } = answer
                && *by <= now
            {
                let why = format!("failure to {doing} proxy : not finished after {} s", ANSWER_WITHIN.as_secs());
                *answer = Answer::Ready(wire::nack(&why));
            }
        }
        self.send_answers(&mut actions);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            for (uid, pod) in &mut self.pods {
                if matches!(pod.state, State::Pending { .. }) {
                    pod.start(uid, next_ticket(&mut self.tickets), &mut actions);
                }
            }
        }
        actions
    }

    /// How the node stands now.
    pub fn standing(&self) -> Standing {
        let count = |wanted: fn(&State) -> bool| self.pods.values().filter(|pod| wanted(&pod.state)).count();
        Standing {
            connected: !matches!(self.link, Link::Down),
            snapshot: matches!(self.link, Link::Live),
            running: count(|state| matches!(state, State::Running)),
            starting: count(|state| matches!(state, State::Starting(_))),
            pending: self
                .pods
                .iter()
                .filter_map(|(uid, pod)| match &pod.state {
                    State::Pending { why } => Some((uid.clone(), why.clone())),
                    State::Starting(_) | State::Running => None,
                })
                .collect(),
        }
    }

    fn obey(&mut self, now: Instant, order: Order, actions: &mut Vec<Action>) -> Result<Answer, SessionError> {
        match order {
            Order::Add { uid, info: None, netns: _ } => Err(SessionError::NoInfo { uid }),
            Order::Add { uid, info: Some(info), netns } => Ok(self.add(now, uid, info, netns, actions)),
            Order::Keep { uid } => match &mut self.link {
                Link::Snapshot { named } => Ok(if remember(named, uid) { Answer::ack() } else { Answer::crowded() }),
                Link::Live | Link::Down => Err(SessionError::KeepAfterSnapshot { uid }),
            },
            Order::Del { uid } => Ok(self.del(now, &uid, actions)),
            Order::SnapshotSent => match mem::replace(&mut self.link, Link::Live) {
                Link::Snapshot { named } => {
                    self.stop_all_but(&named, actions);
                    Ok(Answer::ack())
                }
                Link::Live | Link::Down => Err(SessionError::SecondSnapshot),
            },
        }
    }

    fn add(&mut self, now: Instant, uid: PodUid, info: PodInfo, netns: Netns, actions: &mut Vec<Action>) -> Answer {
        // Named even if the start fails: the pod exists, so what runs for it must not be stopped.
        if let Link::Snapshot { named } = &mut self.link
            && !remember(named, uid.clone())
        {
            return Answer::crowded();
        }
        if let Some(pod) = self.pods.get(&uid) {
            // Our copy keeps the old namespace alive, so equal ids are the same namespace.
            let same = pod.netns.id() == netns.id();
            match &pod.state {
                State::Running if same => return Answer::ack(),
                State::Starting(ticket) if same => return Answer::awaiting("start", *ticket, now),
                State::Pending { .. } if same => {}
                State::Running | State::Starting(_) | State::Pending { .. } => {
                    self.stop(&uid, "the pod came again in another network namespace", actions);
                }
            }
        } else if self.pods.len() >= PODS_MAX {
            return Answer::crowded();
        }
        let ticket = next_ticket(&mut self.tickets);
        let mut pod = Pod { info, netns, state: State::Starting(ticket) };
        pod.start(&uid, ticket, actions);
        self.pods.insert(uid, pod);
        self.forget_retry_of_none();
        Answer::awaiting("start", ticket, now)
    }

    fn del(&mut self, now: Instant, uid: &PodUid, actions: &mut Vec<Action>) -> Answer {
        if let Link::Snapshot { named } = &mut self.link {
            // What runs goes with all others that the snapshot does not name.
            named.remove(uid);
            if self.pods.get(uid).is_some_and(|pod| matches!(pod.state, State::Pending { .. })) {
                self.pods.remove(uid);
                self.forget_retry_of_none();
            }
            return Answer::ack();
        }
        let stopping = self.stop(uid, "the pod was deleted", actions);
        self.forget_retry_of_none();
        stopping.map_or_else(Answer::ack, |ticket| Answer::awaiting("stop", ticket, now))
    }

    fn stop_all_but(&mut self, named: &BTreeSet<PodUid>, actions: &mut Vec<Action>) {
        let gone: Vec<PodUid> = self.pods.keys().filter(|uid| !named.contains(uid)).cloned().collect();
        for uid in gone {
            self.stop(&uid, "the snapshot does not name the pod", actions);
        }
        self.forget_retry_of_none();
    }

    /// Forgets a pod; if anything of it may exist, that is stopped, and the ticket says when.
    fn stop(&mut self, uid: &PodUid, why: &str, actions: &mut Vec<Action>) -> Option<Ticket> {
        match self.pods.remove(uid)?.state {
            State::Pending { .. } => return None,
            State::Starting(ticket) => self.decide(ticket, &Err(format!("failure to start proxy : {why}"))),
            State::Running => {}
        }
        let ticket = next_ticket(&mut self.tickets);
        actions.push(Action::StopPod(StopPod { ticket, uid: uid.clone() }));
        Some(ticket)
    }

    fn forget_retry_of_none(&mut self) {
        if !self.pods.values().any(|pod| matches!(pod.state, State::Pending { .. })) {
            self.retry_at = None;
        }
    }

    /// What began with `ticket` has ended; whatever may be answered now, is.
    fn settle(&mut self, ticket: Ticket, result: Result<(), String>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.decide(ticket, &result);
        self.send_answers(&mut actions);
        actions
    }

    fn decide(&mut self, ticket: Ticket, result: &Result<(), String>) {
        for answer in &mut self.answers {
            if matches!(answer, Answer::Awaited { ticket: awaited, .. } if *awaited == ticket) {
                *answer = Answer::Ready(match result {
                    Ok(()) => wire::ack(),
                    Err(why) => wire::nack(why),
                });
            }
        }
    }

    /// From the front, up to the first that is still awaited.
    fn send_answers(&mut self, actions: &mut Vec<Action>) {
        while let Some(Answer::Ready(_)) = self.answers.front() {
            let Some(Answer::Ready(packet)) = self.answers.pop_front() else { unreachable!("just looked at") };
            actions.push(Action::Send(packet));
        }
    }

    /// Answers all that is open, then the offending packet, and hangs up.
    fn end(&mut self, error: SessionError) -> Vec<Action> {
        let mut actions: Vec<Action> = mem::take(&mut self.answers)
            .into_iter()
            .map(|answer| match answer {
                Answer::Ready(packet) => packet,
                Answer::Awaited { doing, .. } => {
                    wire::nack(&format!("failure to {doing} proxy : not finished before the connection ended"))
                }
            })
            .map(Action::Send)
            .collect();
        let kind = if error.is_fatal() { "protocol error" } else { "failure to read message" };
        actions.push(Action::Send(wire::nack(&format!("{kind} : {error}"))));
        actions.push(if error.is_fatal() { Action::Exit(error) } else { Action::Disconnect(error) });
        self.on_lost();
        actions
    }
}

#[derive(Debug, Default)]
enum Link {
    /// Not connected, or hung up.
    #[default]
    Down,
    /// The agent is naming the pods that exist.
    Snapshot { named: BTreeSet<PodUid> },
    /// It has named all.
    Live,
}

#[derive(Debug)]
struct Pod {
    info: PodInfo,
    netns: Netns,
    state: State,
}

impl Pod {
    fn start(&mut self, uid: &PodUid, ticket: Ticket, actions: &mut Vec<Action>) {
        self.state = State::Starting(ticket);
        actions.push(Action::StartPod(StartPod {
            ticket,
            uid: uid.clone(),
            info: self.info.clone(),
            netns: self.netns.clone(),
        }));
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Starting(Ticket),
    Running,
    Pending { why: String },
}

/// The answer to one request, in the place that its request has.
#[derive(Debug)]
enum Answer {
    Ready(Vec<u8>),
    Awaited { doing: &'static str, ticket: Ticket, by: Instant },
}

impl Answer {
    fn ack() -> Self {
        Self::Ready(wire::ack())
    }

    fn crowded() -> Self {
        Self::Ready(wire::nack(&format!(
            "failure to start proxy : this node has {PODS_MAX} pods already, the most it may"
        )))
    }

    fn awaiting(doing: &'static str, ticket: Ticket, now: Instant) -> Self {
        Self::Awaited { doing, ticket, by: now + ANSWER_WITHIN }
    }
}

/// A request together with the one descriptor that it must, or must not, bring.
enum Order {
    Add { uid: PodUid, info: Option<PodInfo>, netns: Netns },
    Keep { uid: PodUid },
    Del { uid: PodUid },
    SnapshotSent,
}

impl Order {
    /// Whatever the outcome, a descriptor that is not in it is closed.
    fn read(packet: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<Self, SessionError> {
        let (request, order) = match Request::decode(packet)? {
            Request::Add { uid, info } => {
                return match (descriptors.pop(), descriptors.len()) {
                    (None, _) => Err(SessionError::NoDescriptor { uid }),
                    (Some(fd), 0) => match Netns::from_fd(fd) {
                        Ok(netns) => Ok(Self::Add { uid, info, netns }),
                        Err(source) => Err(SessionError::Netns { uid, source }),
                    },
                    (Some(_), others) => Err(SessionError::Descriptors { uid, count: others + 1 }),
                };
            }
            Request::Keep { uid } => ("KeepWorkload", Self::Keep { uid }),
            Request::Del { uid } => ("DelWorkload", Self::Del { uid }),
            Request::SnapshotSent => ("SnapshotSent", Self::SnapshotSent),
        };
        match descriptors.len() {
            0 => Ok(order),
            count => Err(SessionError::DescriptorUnexpected { request, count }),
        }
    }
}

/// False if there is no room for another uid.
fn remember(named: &mut BTreeSet<PodUid>, uid: PodUid) -> bool {
    named.contains(&uid) || (named.len() < PODS_MAX && named.insert(uid))
}

fn next_ticket(tickets: &mut u64) -> Ticket {
    *tickets += 1;
    Ticket(*tickets)
}
