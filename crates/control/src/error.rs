//! Why the control thread ends other than by being told to.

use inpod::zds::session::SessionError;

use crate::{ca::embedded::RootError, file_source::MeshFileError};

/// Why [`crate::run`] gave up. Each ends the process.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The mesh cannot be read at the start. Later a bad file only means that the mesh stays as it is.
    #[error(transparent)]
    Mesh(#[from] MeshFileError),
    /// The embedded CA has no usable root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The CNI agent and we disagree on the protocol; exit with status 1, as only another image cures that.
    #[error("protocol error in the talk with the CNI node agent, are both of compatible versions? {0}")]
    Protocol(SessionError),
}
