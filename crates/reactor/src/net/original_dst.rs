//! Where a redirected connection wanted to go, as connection tracking remembers it.

use std::{io, net::SocketAddr};

use super::socket::{Socket, canonical};

/// The destination before netfilter redirected the connection; the local address if there was none (nothing redirected
/// it, no connection tracking, or TPROXY, where the two are the same).
///
/// The IPv4 question goes first, also to an IPv6 socket: the listeners are dual-stack, and for an IPv4 client on one only
/// the IPv4 table knows the answer.
pub(crate) fn original_dst(socket: &Socket) -> io::Result<SocketAddr> {
    let options = socket.options();
    let redirected = options.original_dst_v4().or_else(|_not_ipv4| options.original_dst_v6());
    match redirected {
        Ok(address) => canonical(&address),
        Err(_not_redirected) => socket.local_addr(),
    }
}
