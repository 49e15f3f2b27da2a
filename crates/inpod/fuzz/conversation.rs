//! A conversation written as bytes, and what must hold in every one: each request has one answer, in a packet that the
//! agent can read; no pod is started that runs, or stopped that does not; nothing is said after hanging up.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use inpod::{
    pod::PodUid,
    zds::{
        session::{ANSWER_WITHIN, Action, Session, Ticket},
        wire::RESPONSE_MAX,
    },
};

/// Plays `script` to a session. Returns how many requests it answered.
pub(crate) fn hold(script: &[u8]) -> usize {
    let mut talk = Talk {
        session: Session::new(),
        now: Instant::now(),
        connected: false,
        owed: 0,
        answered: 0,
        pods: BTreeMap::new(),
        starts: Vec::new(),
        stops: Vec::new(),
    };
    let mut script = script.iter().copied();
    while let Some(step) = script.next() {
        talk.play(step, &mut script);
    }
    talk.finish();
    talk.answered
}

/// The session, and the world around it as the session must see it.
struct Talk {
    session: Session,
    now: Instant,
    connected: bool,
    /// Requests heard on this connection and not answered.
    owed: usize,
    answered: usize,
    /// The last start of each pod that has not failed and was not stopped.
    pods: BTreeMap<PodUid, Ticket>,
    starts: Vec<(PodUid, Ticket)>,
    stops: Vec<Ticket>,
}

impl Talk {
    fn play(&mut self, step: u8, script: &mut impl Iterator<Item = u8>) {
        let mut next = || script.next().unwrap_or(0);
        match step {
            b'c' => {
                (self.connected, self.owed) = (true, 1);
                let actions = self.session.on_connected();
                self.perform(actions);
            }
            b'l' => {
                (self.connected, self.owed) = (false, 0);
                self.session.on_lost();
            }
            // Well-formed, of a pod named by one byte: a = add, d = del, k = keep, s = snapshot.
            b'a' => {
                let (uid, place) = (next(), next());
                let add = [b"\x0A\x05\x0A\x01".as_slice(), &[uid & 0x7F], b"\x12\x00"].concat();
                self.hear(&add, vec![descriptor(place)]);
            }
            b'd' => self.hear(&[0x12, 0x03, 0x12, 0x01, next() & 0x7F], Vec::new()),
            b'k' => self.hear(&[0x2A, 0x03, 0x0A, 0x01, next() & 0x7F], Vec::new()),
            b's' => self.hear(&[0x1A, 0x00], Vec::new()),
            // Anything: the number of descriptors, the length, the bytes.
            b'p' => {
                let (descriptors, length) = (next() % 4, next());
                let packet: Vec<u8> = (0..length).map(|_| next()).collect();
                self.hear(&packet, (0..descriptors).map(descriptor).collect());
            }
            b'u' => {
                self.owed += usize::from(self.connected);
                let actions = self.session.on_unreadable("cut".to_owned());
                self.perform(actions);
            }
            // A start ends: the byte says which and how.
            b'S' if !self.starts.is_empty() => {
                let choice = usize::from(next());
                let start = self.starts.remove(choice / 2 % self.starts.len());
                self.started(&start, choice.is_multiple_of(2));
            }
            b'T' if !self.stops.is_empty() => {
                let choice = usize::from(next());
                let stop = self.stops.remove(choice / 2 % self.stops.len());
                let result = if choice.is_multiple_of(2) { Ok(()) } else { Err("stuck".to_owned()) };
                let actions = self.session.on_stopped(stop, result);
                self.perform(actions);
            }
            b't' => self.pass(Duration::from_millis(100) * u32::from(next())),
            _ => {}
        }
    }

    /// However it went: once the time for answers is over, none is owed; once all starts ended, none is going on.
    fn finish(&mut self) {
        self.pass(ANSWER_WITHIN);
        assert_eq!(self.owed, 0, "requests without an answer");
        for start in std::mem::take(&mut self.starts) {
            self.started(&start, true);
        }
        let standing = self.session.standing();
        assert_eq!(standing.starting, 0);
        assert_eq!(standing.running, self.pods.len(), "the session and the world know the same pods");
    }

    fn hear(&mut self, packet: &[u8], descriptors: Vec<OwnedFd>) {
        self.owed += usize::from(self.connected);
        let actions = self.session.on_packet(self.now, packet, descriptors);
        self.perform(actions);
    }

    fn started(&mut self, (uid, ticket): &(PodUid, Ticket), well: bool) {
        if !well && self.pods.get(uid) == Some(ticket) {
            self.pods.remove(uid);
        }
        let result = if well { Ok(()) } else { Err("broken".to_owned()) };
        let actions = self.session.on_started(self.now, uid, *ticket, result);
        self.perform(actions);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let actions = self.session.on_time(self.now);
        self.perform(actions);
        assert!(
            self.session.deadline().is_none_or(|deadline| deadline > self.now),
            "a deadline that stays is a busy loop"
        );
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(packet) => {
                    assert!(self.connected, "said after hanging up: {packet:x?}");
                    assert!(packet.len() <= RESPONSE_MAX, "{} bytes", packet.len());
                    self.owed = self.owed.checked_sub(1).expect("an answer to no request");
                    self.answered += 1;
                }
                Action::StartPod(start) => {
                    let running = self.pods.insert(start.uid.clone(), start.ticket);
                    assert!(running.is_none(), "{} was started while it runs", start.uid);
                    self.starts.push((start.uid, start.ticket));
                }
                Action::StopPod(stop) => {
                    assert!(self.pods.remove(&stop.uid).is_some(), "{} was stopped, and does not run", stop.uid);
                    self.stops.push(stop.ticket);
                }
                Action::Disconnect(error) | Action::Exit(error) => {
                    assert_eq!(self.owed, 0, "hung up without an answer: {error}");
                    self.connected = false;
                }
            }
        }
    }
}

/// One of two things with an identity of its own, in place of a namespace.
fn descriptor(place: u8) -> OwnedFd {
    let path = if place.is_multiple_of(2) { "/dev/null" } else { "/dev/zero" };
    File::open(path).expect("exists").into()
}
