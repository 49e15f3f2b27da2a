//! A namespace that forwards: a node, or the wire between nodes. Attaches endpoints the way CNI plugins do: one routed
//! address each, a link-local gateway, no bridge. Knows nothing of daemons.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::namespace::Namespace;

/// The next hop of every endpoint. Each of the router's interfaces answers for it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A forwarding namespace.
pub struct Router {
    namespace: Namespace,
    interfaces: usize,
}

/// The router's end of the pair that an endpoint hangs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

impl Router {
    /// Makes a router without interfaces.
    ///
    /// # Errors
    /// Without privileges.
    pub fn create(name: &str) -> Result<Self> {
        let namespace = Namespace::create(name)?;
        namespace.set("net/ipv4/ip_forward", "1")?;
        // A test that connects again and again to an address that is nobody's yet is told so each time: with the usual one answer
        // a second, an attempt without an answer would last until its timeout.
        namespace.set("net/ipv4/icmp_ratelimit", "0")?;
        // Sources are spoofed on purpose in this mesh, and each endpoint has one path only.
        namespace.set("net/ipv4/conf/all/rp_filter", "0")?;
        Ok(Self { namespace, interfaces: 0 })
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes an endpoint that reaches everything through this router, and is reached by it, as `address`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn attach(&mut self, name: &str, address: Ipv4Addr) -> Result<(Namespace, Interface)> {
        let endpoint = Namespace::create(name)?;
        prefer_loss_based_congestion_control(&endpoint);
        let interface = self.next_interface();
        self.namespace.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {path}\n\
             addr add {GATEWAY}/32 dev {interface}\n\
             link set {interface} up\n\
             route add {address}/32 dev {interface}\n",
            interface = interface.0,
            path = endpoint.path().display(),
        ))?;
        endpoint.ip(&format!(
            "addr add {address}/32 dev eth0\n\
             link set eth0 up\n\
             route add {GATEWAY} dev eth0 scope link\n\
             route add default via {GATEWAY} dev eth0\n"
        ))?;
        Ok((endpoint, interface))
    }

    /// Takes an endpoint off, whoever still holds its namespace.
    ///
    /// # Errors
    /// When it is off already.
    pub fn detach(&self, interface: &Interface) -> Result<()> {
        self.namespace.ip(&format!("link del {}", interface.0))
    }

    /// Links two routers by a pair with an address each, in one /24. Routes are the caller's.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link(&mut self, own: Ipv4Addr, other: &mut Self, theirs: Ipv4Addr) -> Result<()> {
        let (near, far) = (self.next_interface(), other.next_interface());
        self.namespace.ip(&format!(
            "link add {near} type veth peer name {far} netns {path}\n\
             addr add {own}/24 dev {near}\n\
             link set {near} up\n",
            near = near.0,
            far = far.0,
            path = other.namespace.path().display(),
        ))?;
        other.namespace.ip(&format!("addr add {theirs}/24 dev {far}\nlink set {far} up\n", far = far.0))
    }

    fn next_interface(&mut self) -> Interface {
        self.interfaces += 1;
        Interface(format!("ct{}", self.interfaces))
    }
}

/// The host's default may be one that paces (bbr), whose timers would be a good part of what a busy test machine does.
fn prefer_loss_based_congestion_control(endpoint: &Namespace) {
    // Built as a module and not loaded on some hosts; then the host's own choice serves too.
    let _ = endpoint.set("net/ipv4/tcp_congestion_control", "cubic");
}
