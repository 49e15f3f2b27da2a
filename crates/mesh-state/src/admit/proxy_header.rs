//! The PROXY protocol header, version 2, that an application may want before tunnelled bytes (behaviour §6.4): whom they are
//! from, where they were going, and who that proved to be. Written here, read by the application.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::identity::Identity;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The other end of the tunnel.
    pub source: SocketAddr,
    /// What the tunnel was asked for, which need not be an address of this pod.
    pub destination: SocketAddr,
    /// Who the other end proved to be.
    pub identity: Option<Identity>,
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: for somebody else, not a health check of the proxy's own.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// The type of the field with the peer's SPIFFE identity, of those the specification leaves to applications.
const IDENTITY_TYPE: u8 = 0xd0;

impl ProxyHeader {
    /// The bytes that go before all others: at most 16 + 36 + 3 and the identity's [`crate::identity::TEXT_BYTES_MAX`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let (source, destination) = (self.source.ip().to_canonical(), self.destination.ip().to_canonical());
        let family = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                body.extend(source.octets());
                body.extend(destination.octets());
                TCP_OVER_IPV4
            }
            // The header has one family for both; an IPv4 address is told as the IPv6 one that means it.
            (source, destination) => {
                let mapped = |address: IpAddr| match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                body.extend(Ipv6Addr::octets(&mapped(source)));
                body.extend(Ipv6Addr::octets(&mapped(destination)));
                TCP_OVER_IPV6
            }
        };
        body.extend(self.source.port().to_be_bytes());
        body.extend(self.destination.port().to_be_bytes());
        if let Some(identity) = &self.identity {
            body.push(IDENTITY_TYPE);
            extend_with_length(&mut body, identity.as_str().as_bytes());
        }
        let mut bytes = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
        bytes.extend(SIGNATURE);
        bytes.extend([VERSION_AND_COMMAND, family]);
        extend_with_length(&mut bytes, &body);
        bytes
    }
}

fn extend_with_length(bytes: &mut Vec<u8>, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("an identity is at most 2048 bytes, and nothing else varies");
    bytes.extend(length.to_be_bytes());
    bytes.extend(value);
}
