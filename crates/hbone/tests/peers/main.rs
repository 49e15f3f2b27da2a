//! Two peers, an in-memory pipe between them, and certificates of a real CA: what goes well, what is refused, and what
//! happens when one of them dies.

mod credential;
mod endings;
mod fixture;
mod revocation;
mod streams;
mod tls;
mod wire;
