//! Being inside pods: network namespaces, the sockets made in them, and the protocol (ZDS) by which the CNI node agent
//! hands pods over.
//!
//! It decides nothing about connections and keeps no pod running: [`zds::session`] says what is to be started and
//! stopped, [`socket`] makes what a pod needs, and both are told everything they know.

pub mod netns;
pub mod pod;
pub mod socket;
pub mod zds;

pub use netns::{Netns, NetnsId};
