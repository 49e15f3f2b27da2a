//! TCP sockets of a core, adopted from wherever they were made.

pub(crate) mod connect;
pub(crate) mod inflow;
pub(crate) mod io;
pub(crate) mod listen;
pub(crate) mod original_dst;
mod sending;
pub(crate) mod socket;
pub(crate) mod splice;
pub(crate) mod stream;
