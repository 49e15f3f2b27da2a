//! What the data plane can be told. Every limit has a name, a default and its worst case.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hbone::H2Config;
use hbone::pool::PoolConfig;
use mesh_state::name::NetworkId;
use reactor::Weight;

/// What one core needs to know; cloned to each core at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ports of the in-pod listeners.
    pub ports: Ports,
    /// The node whose workloads are local; `None` takes any workload of the pod's name for its own.
    pub node: Option<Box<str>>,
    /// The network this node is on.
    pub network: NetworkId,
    /// What a tenant is.
    pub tenant_by: TenantBy,
    /// What share of a core's time a tenant has beside others.
    pub weights: Weights,
    /// Keep the client's address towards the application: `Some(true)` fails a pod that cannot, `Some(false)` never
    /// does, `None` does where the pod's listeners could be made transparent (ztunnel's `ENABLE_ORIG_SRC`).
    pub keep_source: Option<bool>,
    /// Send a `baggage` header with the 200 of an inbound tunnel (ztunnel's `ENABLE_RESPONSE_BAGGAGE`).
    pub response_baggage: bool,
    /// Reach an application that wants a PROXY header on loopback, where it sees no client's address but the header's
    /// (ztunnel's `LOCALHOST_APP_TUNNEL`).
    pub localhost_tunnel: bool,
    /// Every TCP connect, to an application or to a hop.
    pub connect_timeout: Duration,
    /// TLS and HTTP/2 handshake together, either role. The reference has no bound here.
    pub handshake_timeout: Duration,
    /// From sending a CONNECT until its response. Covers the peer's own connect to its application (10 s).
    pub response_timeout: Duration,
    /// How long a connection waits for its pod's workload and certificate to arrive.
    pub park_timeout: Duration,
    /// What connections of a pod do whose workload the mesh does not have yet.
    pub new_pods: NewPods,
    /// Whether there are revocation lists, now or later: the proofs of live tunnels are kept then, about 1 KiB each.
    pub revocation: bool,
    /// Connections of one pod that may wait at once. Worst case about 2 KiB each: 512 KiB per pod.
    pub parked_max: usize,
    /// Connections of one pod alive at once, either direction, streams counted singly. Worst case per connection is two
    /// leases of the largest class (256 KiB), reached only by flows that move bulk both ways.
    pub connections_max: usize,
    /// Tunnels accepted by one pod at once. Worst case about 90 KiB of TLS and HTTP/2 state each, plus windows in use.
    pub inbound_tunnels_max: usize,
    /// HTTP/2 settings of both roles.
    pub h2: H2Config,
    /// The pool of outbound tunnels, one per pod.
    pub pool: PoolConfig,
    /// Time between two HTTP/2 PINGs on a tunnel.
    pub ping_interval: Duration,
    /// Time after which an unanswered PING means that the peer is dead.
    pub ping_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ports: Ports::default(),
            node: None,
            network: NetworkId::from(""),
            tenant_by: TenantBy::ServiceAccount,
            weights: Weights::default(),
            keep_source: None,
            response_baggage: true,
            localhost_tunnel: true,
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(20),
            park_timeout: Duration::from_secs(5),
            new_pods: NewPods::Wait,
            revocation: false,
            parked_max: 256,
            connections_max: 8_192,
            inbound_tunnels_max: 1_024,
            h2: H2Config::default(),
            pool: PoolConfig::default(),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// What connections of a pod do whose workload the mesh does not have yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NewPods {
    /// They wait for it, and are refused when it does not come.
    #[default]
    Wait,
    /// They are served as those of the pod that the CNI agent described, as far as policy permits: out of the pod always;
    /// into it only while no policy in the mesh is for selected workloads. Decision 0017.
    Serve {
        /// The trust domain of such a pod's identity.
        trust_domain: Arc<str>,
    },
}

/// Ports of a pod's listeners; fixed by the CNI's redirect rules, settable for tests of the process alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Outbound capture.
    pub outbound: u16,
    /// Inbound plaintext capture.
    pub plaintext: u16,
    /// Inbound HBONE.
    pub hbone: u16,
}

impl Ports {
    /// The ports no connection may be sent to by this proxy, since it would come back to it.
    pub fn forbidden(&self) -> [u16; 3] {
        [self.outbound, self.plaintext, self.hbone]
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self { outbound: 15001, plaintext: 15006, hbone: 15008 }
    }
}

/// The weights of tenants, by their namespace. With tenants smaller than a namespace, each of its tenants has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(HashMap<Box<str>, Weight>);

impl Weights {
    /// The weight of the tenants of a namespace.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Weight {
        self.0.get(namespace).copied().unwrap_or_default()
    }
}

impl FromIterator<(Box<str>, Weight)> for Weights {
    fn from_iter<T: IntoIterator<Item = (Box<str>, Weight)>>(weights: T) -> Self {
        Self(weights.into_iter().collect())
    }
}

/// What is a tenant: the unit that takes turns and is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TenantBy {
    /// All pods of a namespace together.
    Namespace,
    /// All pods of a service account together.
    #[default]
    ServiceAccount,
    /// Each pod for itself.
    Pod,
}
