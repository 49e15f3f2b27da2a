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
