//! The mesh from a file.

/// Why the file is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MeshFileError(String);
