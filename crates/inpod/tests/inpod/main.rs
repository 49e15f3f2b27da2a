//! The crate against the real kernel: namespaces, sockets in them, and whole conversations over Unix sockets. One
//! binary, so that it links once. Needs root, and fails without.

mod descriptors;
mod namespace;
mod netns;
mod packets;
mod pod_sockets;
mod zds_session;
mod zds_socket;
