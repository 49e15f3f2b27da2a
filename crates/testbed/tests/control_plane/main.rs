//! The whole control thread against a control plane over real gRPC and TLS: discovery and certificates, and what happens
//! when the other side is slow, wrong, or gone. With a recorder in the place of the cores; needs no privileges.

mod certificates;
mod discovery;
mod warm_start;
mod world;
