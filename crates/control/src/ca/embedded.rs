//! A CA in this process.

/// Why there is no usable root.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RootError(String);
