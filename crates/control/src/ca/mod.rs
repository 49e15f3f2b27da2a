//! Certificates for the workloads of this node: who issues them, when they are renewed, and whom their holders believe.

pub mod client;
mod csr;
pub mod embedded;
pub(crate) mod roots_file;
pub mod rotation;
pub(crate) mod trust;
