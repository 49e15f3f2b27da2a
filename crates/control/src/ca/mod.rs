//! Certificates for the workloads of this node: who issues them, and when they are renewed.

pub mod embedded;
pub mod rotation;
