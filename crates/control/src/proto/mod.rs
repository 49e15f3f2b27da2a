//! The messages of the control plane, as Rust structs: what goes on the wire and nothing of what it means.
//!
//! Written by hand from the published field tables, with prost's derive, so that a build needs no protoc. Fields that
//! nobody here reads are left out: prost skips them. Enumerations stay numbers in the structs, because an unknown one
//! must refuse its resource rather than become a default; `xds::convert` reads them.

pub mod certificate;
pub mod discovery;
pub mod security;
pub mod well_known;
pub mod workload;

#[cfg(test)]
mod tests;
