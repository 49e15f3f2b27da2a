//! gRPC towards the control plane: where a server is and how it proves itself ([`Server`]), a connection to it
//! (`Connection`), whose small reads are taken together (`moderated`), calls of many messages (`duplex`), and messages as
//! bytes (`Raw`). What is said over it is `xds`'s and `ca`'s.

mod connection;
pub(crate) mod duplex;
pub mod frames;
mod moderated;
mod raw;
mod roots;
mod server;
mod verifier;

pub use connection::ConnectError;
pub(crate) use connection::Connection;
pub(crate) use raw::Raw;
pub use roots::{Roots, RootsError};
pub use server::{Address, AddressError, Header, HeaderError, Server};
