//! A real mesh on one machine: nodes and pods as network namespaces, the real daemon as child processes, the peers it talks to,
//! and what tests read back from it. A library for tests and for the demonstration, never part of the daemon.

pub mod http;
pub mod namespace;
pub mod redirect;
pub mod serve;
pub mod tool;
pub mod transfer;
pub mod wait;
