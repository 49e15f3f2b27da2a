//! What the mesh is, and what to do about one connection.
//!
//! Changes go in at [`builder::SnapshotBuilder`], an immutable [`snapshot::Snapshot`] comes out, and four decisions are made
//! over it: [`route::outbound`], [`admit::inbound`], [`rbac::evaluate`] and [`dns::answer`]. Everything is pure: no I/O, no
//! clock, no randomness of its own, no lock, which `no_std` lets the compiler check. Not here: how changes are received, how
//! a decision is carried out.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod absence;
mod addresses;
pub mod admit;
mod arcs;
pub mod builder;
pub mod change;
mod cidr;
mod claims;
pub mod dns;
mod hash_index;
pub mod identity;
mod intern;
mod members;
pub mod name;
mod pages;
pub mod policy;
pub mod rbac;
mod roster;
pub mod route;
pub mod service;
mod service_index;
pub mod snapshot;
pub mod touched;
mod trie;
pub mod wanted;
pub mod warm;
pub mod workload;
