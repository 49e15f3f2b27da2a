//! ZDS, the protocol by which the CNI node agent hands over pods: one protobuf message per packet of a
//! `SOCK_SEQPACKET` Unix socket, answered one by one in order.
//!
//! [`wire`] knows bytes, [`session`] decides, [`socket`] moves packets and descriptors, [`backoff`] says how long to
//! wait before the next connection. Only [`socket`] does I/O; whoever joins them lives in `control`.

pub mod backoff;
mod error;
pub mod session;
pub mod socket;
pub mod wire;
