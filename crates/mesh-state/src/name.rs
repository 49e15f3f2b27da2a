//! The names by which parts of a mesh refer to each other: uids, networks, hostnames, policy keys, hops and authorities.
//! Not identities, which say who someone is (see [`crate::identity`]).

use alloc::string::String;
use alloc::sync::Arc;
use core::borrow::Borrow;
use core::fmt;
use core::net::SocketAddr;

use thiserror::Error;

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        // Hash and Eq of the derive are those of the text, as `Borrow` demands.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_name! {
    /// The key of a workload in the control plane: `CLUSTER/GROUP/KIND/NAMESPACE/NAME[/SECTION]`. Not the pod's Kubernetes uid.
    Uid
}

text_name! {
    /// A network: addresses are unique within one. Empty is the default network.
    NetworkId
}

text_name! {
    /// The key of an authorization policy, `NAMESPACE/NAME`.
    PolicyKey
}

impl PolicyKey {
    /// The key of the policy `name` of `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(alloc::format!("{namespace}/{name}").into())
    }
}

/// The key of a service: its fully qualified name, and the namespace that defines it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedHostname {
    /// The namespace of the definition, which need not occur in the hostname.
    pub namespace: Arc<str>,
    /// The fully qualified name.
    pub hostname: Arc<str>,
}

impl NamespacedHostname {
    /// The key of `hostname` as `namespace` defines it.
    pub fn new(namespace: &str, hostname: &str) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }

    pub(crate) fn texts(&mut self, visit: &mut dyn FnMut(&mut Arc<str>)) {
        visit(&mut self.namespace);
        visit(&mut self.hostname);
    }

    /// Reads `NAMESPACE/HOSTNAME`.
    pub fn parse(text: &str) -> Result<Self, NamespacedHostnameError> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/') => {
                Ok(Self::new(namespace, hostname))
            }
            _ => Err(NamespacedHostnameError { text: text.into() }),
        }
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A text is no namespaced hostname.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("service key {text:?} is not of the form NAMESPACE/HOSTNAME")]
pub struct NamespacedHostnameError {
    /// What was given.
    pub text: String,
}

/// The address a tunnel connects to: another node's or a waypoint's HBONE port. Never the address the application wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop(pub SocketAddr);

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a CONNECT asks for: the `:authority` of its request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authority {
    /// An address and a port; an IPv4-mapped address is held as the IPv4 it means.
    Address(SocketAddr),
    /// A service's hostname and one of its ports, for the other side to resolve.
    Host {
        /// The name, as it was written.
        host: Arc<str>,
        /// The service's port.
        port: u16,
    },
}

/// The longest hostname of an authority, in bytes: DNS has no longer ones.
pub const HOST_BYTES_MAX: usize = 253;

impl Authority {
    /// Reads `IPV4:PORT`, `[IPV6]:PORT` or `HOST:PORT`. The port is required and is not 0; an IPv6 zone is refused,
    /// since an interface of the sender means nothing here.
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        let fail = |reason| AuthorityError { text: text.chars().take(HOST_BYTES_MAX).collect(), reason };
        if let Ok(address) = text.parse::<SocketAddr>() {
            if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0 || text.contains('%')) {
                return Err(fail(AuthorityFault::Zone));
            }
            if address.port() == 0 {
                return Err(fail(AuthorityFault::Port));
            }
            return Ok(Authority::Address(SocketAddr::new(address.ip().to_canonical(), address.port())));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(fail(AuthorityFault::NoPort));
        };
        // u16's own parser takes a leading `+`.
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port.parse::<u16>() {
            Ok(port) if digits && port != 0 => port,
            _ => return Err(fail(AuthorityFault::Port)),
        };
        let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*');
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(name) {
            return Err(fail(AuthorityFault::Host));
        }
        Ok(Authority::Host { host: host.into(), port })
    }

    /// The port asked for.
    pub fn port(&self) -> u16 {
        match self {
            Authority::Address(address) => address.port(),
            Authority::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authority::Address(address) => address.fmt(f),
            Authority::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A text is no authority.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no valid authority {text:?}: {reason}")]
pub struct AuthorityError {
    /// What was given, cut to [`HOST_BYTES_MAX`] characters.
    pub text: String,
    /// What is wrong with it.
    pub reason: AuthorityFault,
}

/// What is wrong with an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorityFault {
    /// There is no port.
    #[error("it must be IP:PORT or HOST:PORT, and has no port")]
    NoPort,
    /// The port is not a number from 1 to 65535.
    #[error("its port must be a number from 1 to 65535")]
    Port,
    /// The host is neither an address nor a name.
    #[error("its host is neither an IP address (IPv6 in brackets) nor a DNS name")]
    Host,
    /// An IPv6 address with a zone.
    #[error("its IPv6 address has a zone, which means nothing on another host")]
    Zone,
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_authority_is_an_address_or_a_name_with_a_port() {
        let rows: &[(&str, &str)] = &[
            ("10.40.0.9:8080", "10.40.0.9:8080"),
            ("10.40.0.9:65535", "10.40.0.9:65535"),
            ("[fd00::9]:8080", "[fd00::9]:8080"),
            // An IPv4-mapped address is the IPv4 it means (§3.4).
            ("[::ffff:10.40.0.9]:8080", "10.40.0.9:8080"),
            ("shop.retail.svc.cluster.local:80", "shop.retail.svc.cluster.local:80"),
            ("*.example.com:443", "*.example.com:443"),
            ("shop:080", "shop:80"),
            // No address, hence a name; whether it exists is another question.
            ("256.1.1.1:80", "256.1.1.1:80"),
        ];
        for (text, display) in rows {
            let authority = Authority::parse(text).expect(text);
            assert_eq!(authority.to_string(), *display, "{text}");
            assert_eq!(matches!(authority, Authority::Host { .. }), text.parse::<SocketAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_authority_is_refused_with_the_reason() {
        use AuthorityFault::{Host, NoPort, Port, Zone};
        let long = std::format!("{}:80", "a".repeat(HOST_BYTES_MAX + 1));
        let rows: &[(&str, AuthorityFault)] = &[
            ("", NoPort),
            ("10.40.0.9", NoPort),
            ("shop.retail", NoPort),
            ("10.40.0.9:", Port),
            ("10.40.0.9:0", Port),
            ("10.40.0.9:65536", Port),
            ("10.40.0.9:+80", Port),
            ("shop:0", Port),
            ("shop:+80", Port),
            ("shop:http", Port),
            ("shop: 80", Port),
            (":80", Host),
            ("fd00::9:80", Host),
            ("[shop]:80", Host),
            ("[fd00::9%eth0]:80", Host),
            ("user@shop:80", Host),
            ("shop/x:80", Host),
            ("sh op:80", Host),
            (&long, Host),
            ("[fe80::1%3]:80", Zone),
            ("[fe80::1%0]:80", Zone),
        ];
        for (text, fault) in rows {
            assert_eq!(Authority::parse(text).expect_err(text).reason, *fault, "{text:?}");
        }
    }

    #[test]
    fn a_service_key_has_a_namespace_and_a_hostname() {
        let name = NamespacedHostname::parse("retail/shop.retail.svc.cluster.local").unwrap();
        assert_eq!(name, NamespacedHostname::new("retail", "shop.retail.svc.cluster.local"));
        assert_eq!(name.to_string(), "retail/shop.retail.svc.cluster.local");
        for text in ["", "/", "retail", "retail/", "/shop", "a/b/c"] {
            assert_eq!(NamespacedHostname::parse(text), Err(NamespacedHostnameError { text: text.into() }));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_authority_or_refused(text in ".*") {
            let _ = Authority::parse(&text);
        }

        #[test]
        fn an_authority_reads_as_what_it_prints(text in "(\\[?[0-9a-f:.]{1,20}\\]?|[a-zA-Z0-9.*-]{1,20}):[0-9]{1,6}") {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
            }
        }
    }
}
