//! Conversations with the CNI agent, packet by packet, with the clock in the test's hand.

use std::{
    fs,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use inpod::{
    netns::Netns,
    pod::{PodInfo, PodUid},
    zds::session::{ANSWER_WITHIN, Action, OUTSTANDING_MAX, PODS_MAX, RETRY_EVERY, Session, StartPod, StopPod},
};

use crate::{
    descriptors::none_left_open,
    packets::{ACK, HELLO, SNAPSHOT, add, add_without_info, del, keep, nack_text},
};

/// A session, and the clock that it is told.
struct Talk {
    session: Session,
    now: Instant,
}

/// Actions, readable: `ack`, `nack TEXT`, `start UID`, `stop UID`, `disconnect`, `exit`.
type Said = Vec<String>;

impl Talk {
    fn connected() -> Self {
        let mut talk = Self { session: Session::new(), now: Instant::now() };
        talk.connect();
        talk
    }

    /// Connected, and the agent has no pods.
    fn live() -> Self {
        let mut talk = Self::connected();
        assert_eq!(talk.packet(SNAPSHOT), ["ack"]);
        talk
    }

    fn connect(&mut self) {
        let actions = self.session.on_connected();
        assert!(matches!(&actions[..], [Action::Send(packet)] if packet == HELLO), "{actions:?}");
    }

    fn raw(&mut self, packet: &[u8], descriptors: Vec<OwnedFd>) -> Vec<Action> {
        self.session.on_packet(self.now, packet, descriptors)
    }

    fn packet(&mut self, packet: &[u8]) -> Said {
        said(&self.raw(packet, Vec::new()))
    }

    /// An add with a descriptor of `place`, and the starts that came of it.
    fn add(&mut self, uid: &str, place: Place) -> (Said, Vec<StartPod>) {
        let actions = self.raw(&add(uid), vec![place.open()]);
        (said(&actions), starts(actions))
    }

    /// Adds a pod, which starts without trouble.
    fn add_running(&mut self, uid: &str, place: Place) {
        let (said, mut starts) = self.add(uid, place);
        assert_eq!(said, [format!("start {uid}")]);
        assert_eq!(self.started(&starts.remove(0), Ok(())), ["ack"]);
    }

    /// Adds a pod, which cannot be started.
    fn add_pending(&mut self, uid: &str, place: Place) {
        let (_, mut starts) = self.add(uid, place);
        let said = self.started(&starts.remove(0), Err("port 15008 is taken"));
        assert_eq!(said, ["nack failure to start proxy : port 15008 is taken"]);
    }

    fn started(&mut self, start: &StartPod, result: Result<(), &str>) -> Said {
        said(&self.session.on_started(self.now, &start.uid, start.ticket, result.map_err(str::to_owned)))
    }

    fn stopped(&mut self, stop: &StopPod, result: Result<(), &str>) -> Said {
        said(&self.session.on_stopped(stop.ticket, result.map_err(str::to_owned)))
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.session.on_time(self.now)
    }

    fn pending(&self) -> Vec<String> {
        self.session.standing().pending.iter().map(|(uid, _)| uid.to_string()).collect()
    }
}

/// Something with an identity of its own, in place of a namespace.
#[derive(Clone, Copy)]
enum Place {
    A,
    B,
}

impl Place {
    fn open(self) -> OwnedFd {
        let path = match self {
            Self::A => "/proc/self/ns/net",
            Self::B => "/proc/self/ns/uts",
        };
        fs::File::open(path).expect("exists").into()
    }
}

fn said(actions: &[Action]) -> Said {
    actions
        .iter()
        .map(|action| match action {
            Action::Send(packet) => nack_text(packet).map_or_else(|| "ack".to_owned(), |why| format!("nack {why}")),
            Action::StartPod(start) => format!("start {}", start.uid),
            Action::StopPod(stop) => format!("stop {}", stop.uid),
            Action::Disconnect(_) => "disconnect".to_owned(),
            Action::Exit(_) => "exit".to_owned(),
        })
        .collect()
}

fn starts(actions: Vec<Action>) -> Vec<StartPod> {
    actions
        .into_iter()
        .filter_map(|action| if let Action::StartPod(start) = action { Some(start) } else { None })
        .collect()
}

fn stops(actions: Vec<Action>) -> Vec<StopPod> {
    actions
        .into_iter()
        .filter_map(|action| if let Action::StopPod(stop) = action { Some(stop) } else { None })
        .collect()
}

#[test]
fn an_add_starts_the_pod_in_its_namespace_and_is_answered_when_it_runs() {
    none_left_open(|| {
        let mut talk = Talk::connected();
        let (said, mut starts) = talk.add("u", Place::A);
        assert_eq!(said, ["start u"], "no answer yet");
        let start = starts.remove(0);
        let info = PodInfo { name: "web".into(), namespace: "shop".into(), service_account: "sa".into() };
        assert_eq!((start.info.clone(), start.uid.clone()), (info, PodUid::from("u")));
        assert_eq!(start.netns.id(), Netns::from_fd(Place::A.open()).unwrap().id());
        assert_eq!(talk.session.standing().starting, 1);
        assert_eq!(talk.started(&start, Ok(())), ["ack"]);
        assert_eq!(talk.session.standing().running, 1);
        assert_eq!(talk.session.deadline(), None);
    });
}

#[test]
fn the_node_stands_once_the_snapshot_came() {
    let mut talk = Talk { session: Session::new(), now: Instant::now() };
    let standing = |talk: &Talk| (talk.session.standing().connected, talk.session.standing().snapshot);
    assert_eq!(standing(&talk), (false, false));
    talk.connect();
    assert_eq!(standing(&talk), (true, false));
    assert_eq!(talk.packet(SNAPSHOT), ["ack"]);
    assert_eq!(standing(&talk), (true, true));
    talk.session.on_lost();
    assert_eq!(standing(&talk), (false, false));
}

#[test]
fn the_same_pod_in_the_same_namespace_is_acked_without_doing_anything() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_running("u", Place::A);
        assert_eq!(talk.add("u", Place::A).0, ["ack"]);
    });
}

#[test]
fn the_same_pod_still_starting_is_answered_by_that_start() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let (_, mut starts) = talk.add("u", Place::A);
        assert_eq!(talk.add("u", Place::A).0, Said::new());
        assert_eq!(talk.started(&starts.remove(0), Ok(())), ["ack", "ack"]);
    });
}

#[test]
fn the_same_pod_in_another_namespace_is_stopped_and_started_anew() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_running("u", Place::A);
        let (said, mut starts) = talk.add("u", Place::B);
        assert_eq!(said, ["stop u", "start u"]);
        let start = starts.remove(0);
        assert_eq!(start.netns.id(), Netns::from_fd(Place::B.open()).unwrap().id());
        assert_eq!(talk.started(&start, Ok(())), ["ack"]);
    });
}

#[test]
fn the_result_of_a_start_that_was_overtaken_counts_for_nothing() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let first = talk.add("u", Place::A).1.remove(0);
        let (said, mut starts) = talk.add("u", Place::B);
        let overtaken = "nack failure to start proxy : the pod came again in another network namespace";
        assert_eq!(said, ["stop u", "start u", overtaken]);
        assert_eq!(talk.started(&first, Err("too late")), Said::new());
        assert_eq!(talk.session.standing().starting, 1, "the second start still runs");
        assert_eq!(talk.started(&starts.remove(0), Ok(())), ["ack"]);
    });
}

#[test]
fn a_failed_start_is_nacked_and_tried_again_every_five_seconds_until_it_works() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_pending("u", Place::A);
        assert_eq!(talk.pending(), ["u"]);
        for _ in 0..3 {
            assert_eq!(talk.session.deadline(), Some(talk.now + RETRY_EVERY));
            assert!(talk.pass(RETRY_EVERY - Duration::from_millis(1)).is_empty(), "not yet");
            let retry = starts(talk.pass(Duration::from_millis(1))).remove(0);
            assert_eq!(talk.started(&retry, Err("still taken")), Said::new(), "nobody asked, so nobody is answered");
        }
        let retry = starts(talk.pass(RETRY_EVERY)).remove(0);
        assert_eq!(talk.started(&retry, Ok(())), Said::new());
        assert_eq!((talk.pending(), talk.session.deadline()), (vec![], None));
    });
}

#[test]
fn one_pod_that_cannot_start_holds_up_no_other_and_not_the_node() {
    none_left_open(|| {
        let mut talk = Talk::connected();
        for pod in 0..100 {
            if pod == 42 {
                talk.add_pending("42", Place::A);
            } else {
                talk.add_running(&pod.to_string(), Place::A);
            }
        }
        assert_eq!(talk.packet(SNAPSHOT), ["ack"]);
        let standing = talk.session.standing();
        assert_eq!((standing.snapshot, standing.running, standing.pending.len()), (true, 99, 1));
    });
}

#[test]
fn a_pending_pod_that_is_added_again_is_tried_at_once() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_pending("u", Place::A);
        let (said, mut starts) = talk.add("u", Place::A);
        assert_eq!(said, ["start u"]);
        assert_eq!(talk.started(&starts.remove(0), Ok(())), ["ack"]);
        assert_eq!(talk.session.deadline(), None);
    });
}

#[test]
fn a_deleted_pod_is_not_tried_again() {
    none_left_open(|| {
        for snapshot_first in [true, false] {
            let mut talk = if snapshot_first { Talk::live() } else { Talk::connected() };
            talk.add_pending("u", Place::A);
            assert_eq!(talk.packet(&del("u")), ["ack"], "nothing runs, so nothing is stopped");
            assert_eq!((talk.pending(), talk.session.deadline()), (vec![], None));
            assert!(talk.pass(RETRY_EVERY).is_empty());
        }
    });
}

#[test]
fn a_del_is_answered_when_the_pod_has_stopped_and_one_of_an_unknown_pod_at_once() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_running("u", Place::A);
        let actions = talk.raw(&del("u"), Vec::new());
        assert_eq!(said(&actions), ["stop u"]);
        assert_eq!(talk.stopped(&stops(actions)[0], Ok(())), ["ack"]);
        assert_eq!(talk.packet(&del("u")), ["ack"], "idempotent");
        assert_eq!(talk.packet(&del("never seen")), ["ack"]);
    });
}

#[test]
fn a_stop_that_fails_is_nacked() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_running("u", Place::A);
        let stop = stops(talk.raw(&del("u"), Vec::new())).remove(0);
        assert_eq!(talk.stopped(&stop, Err("the core is gone")), ["nack failure to stop proxy : the core is gone"]);
    });
}

#[test]
fn a_pod_deleted_while_it_starts_is_stopped_and_both_requests_are_answered_in_order() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let start = talk.add("u", Place::A).1.remove(0);
        let actions = talk.raw(&del("u"), Vec::new());
        assert_eq!(said(&actions), ["stop u", "nack failure to start proxy : the pod was deleted"]);
        assert_eq!(talk.started(&start, Ok(())), Said::new());
        assert_eq!(talk.stopped(&stops(actions)[0], Ok(())), ["ack"]);
        assert_eq!(talk.session.standing().running, 0);
    });
}

#[test]
fn answers_leave_in_the_order_of_requests_whatever_ends_first() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let first = talk.add("first", Place::A).1.remove(0);
        let second = talk.add("second", Place::A).1.remove(0);
        assert_eq!(talk.packet(&del("nobody")), Said::new(), "done, but not its turn");
        assert_eq!(talk.started(&second, Err("broken")), Said::new(), "not its turn either");
        assert_eq!(talk.started(&first, Ok(())), ["ack", "nack failure to start proxy : broken", "ack"]);
    });
}

#[test]
fn an_answer_that_would_come_too_late_is_a_nack_and_the_start_goes_on() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let start = talk.add("u", Place::A).1.remove(0);
        assert_eq!(talk.session.deadline(), Some(talk.now + ANSWER_WITHIN));
        assert!(talk.pass(ANSWER_WITHIN - Duration::from_millis(1)).is_empty());
        let actions = talk.pass(Duration::from_millis(1));
        assert_eq!(said(&actions), ["nack failure to start proxy : not finished after 4 s"]);
        assert_eq!(talk.session.deadline(), None);
        assert_eq!(talk.started(&start, Ok(())), Said::new(), "answered already");
        assert_eq!(talk.session.standing().running, 1);
        assert_eq!(talk.add("u", Place::A).0, ["ack"], "so the agent's next try finds it");
    });
}

#[test]
fn the_snapshot_stops_whom_it_does_not_name() {
    none_left_open(|| {
        let mut talk = Talk::live();
        for uid in ["added", "kept", "gone", "deleted"] {
            talk.add_running(uid, Place::A);
        }
        talk.session.on_lost();
        talk.connect();
        assert_eq!(talk.session.standing().running, 4, "pods go on while the agent is away");
        assert_eq!(talk.add("added", Place::A).0, ["ack"], "known by uid and namespace");
        assert_eq!(talk.packet(&keep("kept")), ["ack"]);
        assert_eq!(talk.packet(&keep("unknown")), ["ack"]);
        assert_eq!(talk.packet(&keep("deleted")), ["ack"]);
        assert_eq!(talk.packet(&del("deleted")), ["ack"], "only forgotten for now");
        assert_eq!(talk.session.standing().running, 4);
        let actions = talk.raw(SNAPSHOT, Vec::new());
        assert_eq!(said(&actions), ["stop deleted", "stop gone", "ack"], "which waits for no stop");
        assert_eq!(talk.stopped(&stops(actions)[0], Ok(())), Said::new());
        assert_eq!(talk.session.standing().running, 2);
    });
}

#[test]
fn a_pod_that_failed_to_start_is_still_named_by_the_snapshot() {
    none_left_open(|| {
        let mut talk = Talk::connected();
        talk.add_pending("u", Place::A);
        assert_eq!(talk.packet(SNAPSHOT), ["ack"]);
        assert_eq!(talk.pending(), ["u"]);
    });
}

#[test]
fn a_new_connection_forgets_pending_pods_and_open_answers() {
    none_left_open(|| {
        let mut talk = Talk::live();
        talk.add_pending("pending", Place::A);
        let start = talk.add("starting", Place::A).1.remove(0);
        talk.session.on_lost();
        assert_eq!(talk.session.deadline(), None, "nothing to answer, nothing to retry while the agent is away");
        talk.connect();
        assert_eq!(talk.pending(), Vec::<String>::new());
        assert_eq!(talk.started(&start, Ok(())), Said::new(), "the request died with its connection");
        assert_eq!(talk.packet(&keep("starting")), ["ack"], "and its answer is not taken for this one's");
        assert_eq!(talk.packet(SNAPSHOT), ["ack"]);
        assert_eq!(talk.session.standing().running, 1);
    });
}

#[test]
fn a_start_that_fails_on_the_next_connection_waits_only_if_the_agent_named_it() {
    none_left_open(|| {
        for (named, pending) in [(false, vec![]), (true, vec!["u".to_owned()])] {
            let mut talk = Talk::live();
            let start = talk.add("u", Place::A).1.remove(0);
            talk.session.on_lost();
            talk.connect();
            if named {
                assert_eq!(talk.packet(&keep("u")), ["ack"]);
            }
            assert_eq!(talk.started(&start, Err("broken")), Said::new());
            assert_eq!(talk.pending(), pending, "named: {named}");
            assert_eq!(talk.session.deadline().is_some(), named);
        }
    });
}

/// What it is, its bytes, how many descriptors come with it, whether after the snapshot, what is said, how it ends.
type BadPacket<'a> = (&'a str, &'a [u8], usize, bool, &'a str, &'a str);

#[test]
fn bad_packets_are_nacked_and_end_the_connection_or_the_process_and_leave_nothing_open() {
    let long = vec![0x2A; 1025];
    let rows: &[BadPacket<'_>] = &[
        ("empty", b"", 0, true, "failure to read message : the packet asks for nothing known", "disconnect"),
        ("empty with descriptor", b"", 1, true, "failure to read message : the packet asks", "disconnect"),
        ("unknown payload", b"\x22\x00", 0, true, "failure to read message : the packet asks", "disconnect"),
        ("truncated add", &add("u")[..9], 1, true, "failure to read message : the packet is no ZDS", "disconnect"),
        ("truncated del", b"\x12\x05\x12\x03u", 0, true, "failure to read message : the packet is no", "disconnect"),
        ("too long", &long, 1, true, "failure to read message : a packet of 1025 bytes", "disconnect"),
        ("add without descriptor", &add("u"), 0, true, "failure to read message : AddWorkload for pod u", "disconnect"),
        (
            "add with two",
            &add("u"),
            2,
            true,
            "failure to read message : AddWorkload for pod u came with 2",
            "disconnect",
        ),
        ("del with one", &del("u"), 1, true, "failure to read message : DelWorkload came with 1", "disconnect"),
        ("keep with one", &keep("u"), 1, false, "failure to read message : KeepWorkload came", "disconnect"),
        ("snapshot with one", SNAPSHOT, 1, false, "failure to read message : SnapshotSent came", "disconnect"),
        ("add without info", &add_without_info("u"), 1, true, "protocol error : AddWorkload for pod u has no", "exit"),
        ("keep after the snapshot", &keep("u"), 0, true, "protocol error : KeepWorkload for pod u came after", "exit"),
        ("second snapshot", SNAPSHOT, 0, true, "protocol error : SnapshotSent came a second time", "exit"),
    ];
    for (row, packet, descriptors, after_snapshot, why, end) in rows {
        none_left_open(|| {
            let mut talk = if *after_snapshot { Talk::live() } else { Talk::connected() };
            talk.raw(&add("bystander"), vec![Place::A.open()]);
            let actions = talk.raw(packet, (0..*descriptors).map(|_| Place::A.open()).collect());
            let said = said(&actions);
            assert_eq!(said.len(), 3, "{row}: {said:?}");
            assert_eq!(said[0], "nack failure to start proxy : not finished before the connection ended", "{row}");
            assert!(said[1].starts_with(&format!("nack {why}")), "{row}: {said:?}");
            assert_eq!(said[2], *end, "{row}");
            assert_eq!(talk.session.standing().starting, 1, "{row}: other pods are undisturbed");
            assert_eq!(talk.raw(&add("late"), vec![Place::A.open()]).len(), 0, "{row}: what comes after is not heard");
            talk.connect();
            assert_eq!(talk.packet(SNAPSHOT), ["stop bystander", "ack"], "{row}: and the next connection is a new one");
        });
    }
}

#[test]
fn a_packet_that_arrived_cut_ends_the_connection() {
    let mut talk = Talk::live();
    let actions = talk.session.on_unreadable("a packet of more than 1024 bytes was cut".to_owned());
    let why = "nack failure to read message : a packet of more than 1024 bytes was cut";
    assert_eq!(said(&actions), [why, "disconnect"]);
    assert!(talk.session.on_unreadable("again".to_owned()).is_empty(), "one nack for one request");
}

#[test]
fn a_reason_of_any_length_fits_the_agents_buffer() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let start = talk.add("u", Place::A).1.remove(0);
        let said = talk.started(&start, Err(&"ß".repeat(2000)));
        assert!(said[0].starts_with("nack failure to start proxy : ßßß") && said[0].ends_with("ß [cut]"), "{said:?}");
    });
}

#[test]
fn an_agent_that_waits_for_no_answer_is_left() {
    none_left_open(|| {
        let mut talk = Talk::live();
        let _start = talk.add("slow", Place::A);
        for _ in 1..OUTSTANDING_MAX {
            assert_eq!(talk.packet(&del("nobody")), Said::new());
        }
        let said = talk.packet(&del("nobody"));
        assert_eq!(said.len(), OUTSTANDING_MAX + 2, "each request has its answer");
        assert!(said[OUTSTANDING_MAX].starts_with("nack failure to read message : 64 requests are unanswered"));
        assert_eq!(said[OUTSTANDING_MAX + 1], "disconnect");
    });
}

#[test]
fn pods_and_named_uids_are_bounded() {
    none_left_open(|| {
        let mut talk = Talk::connected();
        for pod in 0..PODS_MAX {
            assert_eq!(talk.packet(&keep(&pod.to_string())), ["ack"]);
        }
        assert_eq!(talk.packet(&keep("7")), ["ack"], "named already");
        let crowded = "nack failure to start proxy : this node has 4096 pods already, the most it may";
        assert_eq!(talk.packet(&keep("one more")), [crowded]);
        assert_eq!(talk.add("one more", Place::A).0, [crowded]);
    });
}

#[test]
fn ack_and_hello_are_the_literal_bytes() {
    let mut talk = Talk::connected();
    let actions = talk.raw(SNAPSHOT, Vec::new());
    assert!(matches!(&actions[..], [Action::Send(packet)] if packet == ACK), "{actions:?}");
}
