//! The control thread: files, certificates and pods turned into what cores use.
//!
//! It owns the snapshot's builder, the CA's key, the conversation with the CNI agent and all waiting; it publishes
//! immutable things and never waits for a core.

mod backoff;
pub mod ca;
mod clocks;
mod config;
mod credentials;
pub mod file_source;
pub mod grpc;
mod mesh;
mod pacer;
mod pods;
pub mod proto;
mod publish;
mod revocations;
mod source;
mod status;
mod thread;
pub mod token;
mod warm_start;
mod whole_file;
pub mod xds;

pub use config::{CaSource, Config, ControlPlane, MeshSource};
pub use pods::PodsError;
pub use publish::{PodUp, Publish, Receipt};
pub use status::{PendingPod, Status, Termination, Trouble, XdsStatus};
pub use thread::{ControlError, run};
pub use warm_start::WarmStart;
