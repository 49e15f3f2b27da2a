//! What a core lacks and asks the control thread for. It is a wish that sets priorities: a core never waits for the answer.

use core::net::IpAddr;

use crate::identity::Identity;
use crate::name::{NamespacedHostname, NetworkId};

/// One thing that a core lacks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The credential of an identity.
    Identity(Identity),
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
