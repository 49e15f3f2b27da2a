//! The per-core engine: captures a pod's connections, decides, tunnels, relays and records them.
//!
//! One [`Core`] per pinned thread owns its pods' listeners, tunnel pools and connection table; nothing here is shared.
//! [`Cores`] is the handle the control thread holds: it publishes snapshots, credentials and pods to the cores and
//! never waits for one. What this crate is not: it decides nothing about the mesh (`mesh-state` does), speaks no TLS
//! or HTTP/2 itself (`hbone`), and opens no socket itself (`inpod`, through [`PodNetwork`]).

mod asking;
mod bare;
mod bell;
mod command;
mod config;
mod connections;
mod core;
mod cores;
mod crowd;
mod deadline;
mod dial;
mod error;
mod inbound;
mod network;
mod newcomer;
mod outbound;
mod park;
mod peers;
mod placement;
mod plaintext;
mod pod;
mod recheck;
mod record;
mod relay;
mod tenants;

pub use bare::relay_plain;
pub use command::{CapturedPod, Command, CoreStanding, Issued, PodError};
pub use config::{Config, NewPods, Ports, TenantBy, Weights};
pub use core::{Core, CoreParts};
pub use cores::{Cores, CoresConfig, Retired, StartError};
pub use network::{InPod, PodListener, PodNetwork, PodSocket};
