//! The bytes of ZDS: packets in both directions and their limits. What a packet means for the pods is the session's.

use prost::Message;

use crate::pod::{PodInfo, PodUid};

/// The most a packet may have. Both sides read into a buffer of this size; a longer packet arrives cut.
pub const PACKET_MAX: usize = 1024;

/// The longest response sent: the agent cannot tell a packet that fills its buffer from one that was cut.
pub const RESPONSE_MAX: usize = PACKET_MAX - 1;

/// What the agent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start a pod; its network namespace comes with the packet.
    Add {
        /// Which pod.
        uid: PodUid,
        /// Absent only when the agent breaks the protocol.
        info: Option<PodInfo>,
    },
    /// In the snapshot: the pod exists, but the agent has no namespace for it; leave it as it is.
    Keep {
        /// Which pod.
        uid: PodUid,
    },
    /// Stop a pod.
    Del {
        /// Which pod.
        uid: PodUid,
    },
    /// Every pod of the node has been named since the connection began.
    SnapshotSent,
}

impl Request {
    /// Reads one packet.
    ///
    /// # Errors
    /// Not a request, or one that asks for nothing we know, or names no pod.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        if packet.len() > PACKET_MAX {
            return Err(WireError::TooLong { length: packet.len() });
        }
        let request = WorkloadRequest::decode(packet)?;
        match request.payload.ok_or(WireError::NoPayload)? {
            RequestPayload::Add(add) => Ok(Self::Add {
                uid: named(add.uid)?,
                info: add.workload_info.map(|info| PodInfo {
                    name: info.name,
                    namespace: info.namespace,
                    service_account: info.service_account,
                }),
            }),
            RequestPayload::Del(del) => Ok(Self::Del { uid: named(del.uid)? }),
            RequestPayload::Keep(keep) => Ok(Self::Keep { uid: named(keep.uid)? }),
            RequestPayload::SnapshotSent(SnapshotSent {}) => Ok(Self::SnapshotSent),
        }
    }
}

/// The first packet on a connection, ours.
pub fn hello() -> Vec<u8> {
    ZdsHello { version: Version::V1.into() }.encode_to_vec()
}

/// The answer that a request was carried out.
pub fn ack() -> Vec<u8> {
    response(String::new())
}

/// The answer that a request was not carried out, and why. Text that would not fit [`RESPONSE_MAX`] is cut.
pub fn nack(why: &str) -> Vec<u8> {
    // An empty error means success.
    let why = if why.is_empty() { "failed without saying why" } else { why };
    if why.len() <= NACK_TEXT_MAX {
        return response(why.to_owned());
    }
    let room = why.floor_char_boundary(NACK_TEXT_MAX - CUT.len());
    response(format!("{}{CUT}", &why[..room]))
}

/// Why a packet cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or fields of the wrong type.
    #[error("the packet is no ZDS message (does the CNI agent speak another version?): {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// Nothing set that we know: an empty packet, or a request of a later version.
    #[error("the packet asks for nothing known (does the CNI agent speak a later version?)")]
    NoPayload,
    /// Without a uid there is no pod to act on.
    #[error("the request names no pod: its uid is empty")]
    NoUid,
    /// Over [`PACKET_MAX`].
    #[error("a packet of {length} bytes is over the protocol's limit of {PACKET_MAX}")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// Tags and lengths around the text take six bytes once it is longer than 127.
const NACK_TEXT_MAX: usize = RESPONSE_MAX - 6;
const CUT: &str = " [cut]";

fn named(uid: String) -> Result<PodUid, WireError> {
    if uid.is_empty() { Err(WireError::NoUid) } else { Ok(uid.into()) }
}

fn response(error: String) -> Vec<u8> {
    WorkloadResponse { payload: Some(ResponsePayload::Ack(Ack { error })) }.encode_to_vec()
}

// The messages, field by field as the protocol has them; private, since an empty string or an absent payload is theirs
// to know.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum Version {
    NotUsed = 0,
    V1 = 1,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ZdsHello {
    #[prost(enumeration = "Version", tag = "1")]
    version: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WorkloadInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeepWorkload {
    #[prost(string, tag = "1")]
    uid: String,
}

/// Its only field is number 2: 1 is not in use.
#[derive(Clone, PartialEq, prost::Message)]
struct DelWorkload {
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SnapshotSent {}

#[derive(Clone, PartialEq, prost::Message)]
struct WorkloadRequest {
    #[prost(oneof = "RequestPayload", tags = "1, 2, 3, 5")]
    payload: Option<RequestPayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RequestPayload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WorkloadResponse {
    #[prost(oneof = "ResponsePayload", tags = "1")]
    payload: Option<ResponsePayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ResponsePayload {
    #[prost(message, tag = "1")]
    Ack(Ack),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `add` for pod `u-1`, named `web` in `shop` as `sa`.
    const ADD: &[u8] = b"\x0A\x16\x0A\x03u-1\x12\x0F\x0A\x03web\x12\x04shop\x1A\x02sa";

    #[test]
    fn our_packets_are_the_bytes_of_the_contract() {
        assert_eq!(hello(), [0x08, 0x01]);
        assert_eq!(ack(), [0x0A, 0x00]);
        assert_eq!(nack("no"), [0x0A, 0x04, 0x0A, 0x02, b'n', b'o']);
    }

    #[test]
    fn requests_are_read_from_the_bytes_of_the_contract() {
        let web = PodInfo { name: "web".into(), namespace: "shop".into(), service_account: "sa".into() };
        let uid = || PodUid::from("u-1");
        let rows: &[(&str, &[u8], Request)] = &[
            ("add", ADD, Request::Add { uid: uid(), info: Some(web) }),
            ("add without info", b"\x0A\x05\x0A\x03u-1", Request::Add { uid: uid(), info: None }),
            (
                "add with empty info",
                b"\x0A\x07\x0A\x03u-1\x12\x00",
                Request::Add { uid: uid(), info: Some(PodInfo::default()) },
            ),
            ("del: its uid is field 2", b"\x12\x05\x12\x03u-1", Request::Del { uid: uid() }),
            ("snapshot", b"\x1A\x00", Request::SnapshotSent),
            ("keep", b"\x2A\x05\x0A\x03u-1", Request::Keep { uid: uid() }),
            ("a field of a later version is skipped", b"\x12\x07\x12\x03u-1\x18\x01", Request::Del { uid: uid() }),
        ];
        for (row, packet, request) in rows {
            assert_eq!(Request::decode(packet).as_ref(), Ok(request), "{row}");
        }
    }

    #[test]
    fn every_truncation_of_an_add_is_refused() {
        for length in 0..ADD.len() {
            let outcome = Request::decode(&ADD[..length]);
            assert!(outcome.is_err(), "the first {length} bytes gave {outcome:?}");
        }
    }

    #[test]
    fn what_asks_for_nothing_known_is_refused() {
        let long = [b"\x2A\xFE\x07\x0A\xFB\x07".as_slice(), &[b'u'; 1019]].concat();
        let rows: &[(&str, &[u8], &str)] = &[
            ("empty", b"", "asks for nothing known"),
            ("field 4, unused", b"\x22\x00", "asks for nothing known"),
            ("field 6, of a later version", b"\x32\x02\x0A\x00", "asks for nothing known"),
            ("a number where a message belongs", b"\x08\x01", "no ZDS message"),
            ("uid that is no UTF-8", b"\x2A\x03\x0A\x01\xFF", "no ZDS message"),
            ("text", b"GET / HTTP/1.1\r\n", "no ZDS message"),
            ("keep of nobody", b"\x2A\x00", "uid is empty"),
            ("del with its uid in field 1", b"\x12\x05\x0A\x03u-1", "uid is empty"),
            ("1025 bytes", &long, "over the protocol's limit of 1024"),
        ];
        for (row, packet, said) in rows {
            let error = Request::decode(packet).expect_err(row).to_string();
            assert!(error.contains(said), "{row}: {error}");
        }
        assert!(Request::decode(&long[..1]).is_err());
        let exact = [b"\x2A\xFD\x07\x0A\xFA\x07".as_slice(), &[b'u'; 1018]].concat();
        assert_eq!(exact.len(), PACKET_MAX);
        assert!(Request::decode(&exact).is_ok(), "exactly the limit is within it");
    }

    #[test]
    fn a_nack_without_text_is_no_ack() {
        assert_ne!(nack(""), ack());
    }

    #[test]
    fn a_long_nack_fills_its_packet_and_says_that_it_was_cut() {
        let packet = nack(&"x".repeat(5000));
        assert_eq!(packet.len(), RESPONSE_MAX);
        assert!(packet.ends_with(b"x [cut]"));
        let whole = nack(&"x".repeat(NACK_TEXT_MAX));
        assert_eq!(whole.len(), RESPONSE_MAX);
        assert!(whole.ends_with(b"xxxxxxx"), "what fits is not cut");
    }

    proptest! {
        #[test]
        fn no_nack_is_too_long_or_cut_within_a_character(text in proptest::collection::vec(any::<char>(), 0..1200)) {
            let text = String::from_iter(text);
            let packet = nack(&text);
            prop_assert!(packet.len() <= RESPONSE_MAX);
            let Some(ResponsePayload::Ack(ack)) = WorkloadResponse::decode(&packet[..]).unwrap().payload else {
                return Err(TestCaseError::fail("no payload"));
            };
            prop_assert!(!ack.error.is_empty());
            prop_assert!(text.is_empty() || text.starts_with(ack.error.trim_end_matches(CUT)));
        }

        #[test]
        fn no_bytes_panic(packet in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _ = Request::decode(&packet);
        }
    }
}
