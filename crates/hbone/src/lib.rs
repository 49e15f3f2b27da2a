//! What travels between two nodes: mutually authenticated TLS, CONNECT streams over HTTP/2 in it, and the pool that
//! lets many connections of a pod share few tunnels.
//!
//! It is runtime-free: no sockets, no timers, no tasks. Everything runs over whatever implements tokio's `AsyncRead`
//! and `AsyncWrite`, is `!Send` where that is cheaper, and takes the time as an argument. Who may talk to whom is
//! `mesh-state`'s business, moving bytes between a tunnel and a pod is `dataplane`'s.

pub mod baggage;
pub mod credential;
pub mod error;
pub mod forwarded;
pub mod h2;
pub mod pool;
pub mod request;
pub mod revocation;
pub mod tls;
pub mod traceparent;

pub use error::{CertificateProblem, OpenError, ResetCode, StreamError, TlsError, TunnelError};
pub use h2::H2Config;
pub use h2::ping::Pinger;
pub use h2::stream::{ReceiveHalf, SendHalf, TunnelStream};
