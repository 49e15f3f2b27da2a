//! What the daemon tells about itself: metric cells per core, the page they are read from, the access log, the log.
//!
//! A core only ever writes: relaxed cells of its own, announcements and lines into bounded queues. It never waits for
//! a reader, takes no lock, and what a full queue cannot take is dropped and counted. No part of this crate decides.

pub mod access_log;
pub mod connection;
pub mod exposition;
pub mod log;
pub mod recorder;
