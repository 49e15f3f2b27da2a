//! The CONNECT request of a tunnel stream, as the caller means it. Putting it on the wire is `h2::client`'s.

use mesh_state::name::Authority;

/// What one stream of a tunnel asks the other end for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where the other end shall connect to.
    pub authority: Authority,
    /// Who asks, as [`crate::baggage::Baggage`] writes it.
    pub baggage: Option<String>,
    /// The client's address and the service it wanted, as [`crate::forwarded::Forwarded`] writes it.
    pub forwarded: Option<String>,
    /// The connection's trace, as [`crate::traceparent::Traceparent`] writes it.
    pub traceparent: Option<String>,
}

/// Header names of a CONNECT request and its answer, lower case as HTTP/2 wants them.
pub(crate) mod header {
    pub(crate) const BAGGAGE: &str = "baggage";
    pub(crate) const FORWARDED: &str = "forwarded";
    pub(crate) const TRACEPARENT: &str = "traceparent";
    /// On the inner CONNECT of a double tunnel: the network of the client.
    pub(crate) const FORWARDED_NETWORK: &str = "x-forwarded-network";
}
