//! The control thread: where the mesh, its certificates and this node's pods come from, turned into immutable things and
//! published to the cores. It decides nothing about a connection and knows no core: it only [`Publish`]es.
//!
//! [`thread::run`] is all of it at work. [`file_source`] reads the mesh from a file, [`ca`] makes credentials and says
//! when they are renewed, `pods` talks with the CNI node agent.

pub mod ca;
pub mod config;
pub mod file_source;
mod error;
pub mod file_source;
pub mod publish;
pub mod status;
pub mod thread;

pub use config::{CaSource, Config, LocalMesh};
pub use error::RunError;
pub use publish::{PodUp, Publish, Receipt};
pub use status::{Report, Status};
pub use thread::{Stage, run};
