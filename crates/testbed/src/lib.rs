//! A real mesh on one machine: nodes and pods as network namespaces, the real daemon as child processes, the peers it
//! talks to, and what tests read back from it. A library for tests and for the demonstration, never part of the daemon.
//!
//! | to | look at |
//! |---|---|
//! | write a fact about the daemon | [`fixture::run`], then [`mesh::Mesh`] for what can be done to the mesh |
//! | have something to talk to | [`serve`], [`client`], [`transfer`], [`http`] |
//! | be a peer by hand, right or wrong | [`peer`], [`impostor`], [`certificate`], [`zds_agent`] |
//! | have a control plane, and make it misbehave | [`control_plane`], [`xds_server`], [`ca_server`] |
//! | have an Envoy for a peer | [`envoy`] |
//! | have istio's own control plane or node agent | [`istiod`], [`cni_agent`] |
//! | ask what happened | [`log`], [`metrics_page`], [`wire`], [`daemon::Daemon`] |
//!
//! The tests need root. What they make is held by descriptors of the test's process, so nothing outlives it.

pub mod ca_server;
pub mod certificate;
pub mod client;
pub mod cni_agent;
mod codec;
pub mod control_plane;
pub mod daemon;
pub mod envoy;
pub mod fixture;
pub mod http;
pub mod impostor;
mod istio_peer;
pub mod istiod;
pub mod launcher;
pub mod log;
pub mod mesh;
pub mod mesh_control_plane;
pub mod metrics_page;
pub mod namespace;
pub mod peer;
pub mod redirect;
pub mod router;
pub mod seccomp;
pub mod serve;
pub mod sim;
pub mod tool;
pub mod transfer;
pub mod wait;
pub mod wire;
pub mod workload_file;
pub mod xds_server;
pub mod zds_agent;
