//! Tells when a file may have changed. It reads nothing.
