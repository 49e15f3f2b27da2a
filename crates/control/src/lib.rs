//! What the data plane is told: the mesh, the credentials, the pods. One task on one thread gathers it and publishes it
//! through [`Publish`]. It moves no byte of a connection and decides nothing about one.

pub mod config;
pub mod file_source;
pub mod publish;
pub mod status;

pub use config::{CaSource, Config};
pub use publish::{PodUp, Publish, Receipt};
pub use status::Status;
