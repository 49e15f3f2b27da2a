//! What a core lacks and asks the control thread for. It is a wish that sets priorities: a core never waits for the answer.

use alloc::sync::Arc;
use core::net::IpAddr;

use crate::identity::Identity;
use crate::name::{NamespacedHostname, NetworkId};
use crate::workload::GatewayDestination;

/// One thing that a core lacks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The credential of an identity.
    Identity(Identity),
    /// A part of the mesh, where the control plane sends only what it is asked for.
    Part {
        /// Which.
        sought: Sought,
        /// The tenant for whom: when more is asked for than is kept, it is whoever has asked for most that loses some.
        tenant: Arc<str>,
    },
}

/// A part of the mesh that the control plane can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sought {
    /// Whoever has an address.
    Address {
        /// The network of the address.
        network: NetworkId,
        /// The address.
        address: IpAddr,
    },
    /// A service, or a workload by its hostname.
    Hostname(NamespacedHostname),
}

impl Sought {
    /// Whatever a reference to a waypoint or gateway names.
    pub fn referred(destination: &GatewayDestination) -> Self {
        match destination {
            GatewayDestination::Address { network, address } => {
                Self::Address { network: network.clone(), address: address.to_canonical() }
            }
            GatewayDestination::Hostname(name) => Self::Hostname(name.clone()),
        }
    }

    /// The same by its canonical address.
    pub(crate) fn canonical(&self) -> Self {
        match self {
            Sought::Address { network, address } => {
                Sought::Address { network: network.clone(), address: address.to_canonical() }
            }
            Sought::Hostname(name) => Sought::Hostname(name.clone()),
        }
    }
}

/// What is known of a part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Knowledge {
    /// It is there.
    Present,
    /// It is not there: the control plane said so, or sends everything and has not sent it.
    Absent,
    /// The control plane sends only what it is asked for, and was not asked or has not answered.
    NotAsked,
}
