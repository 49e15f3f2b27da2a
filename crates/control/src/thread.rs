//! The control thread's loop.

use tokio::sync::watch;

use mesh_state::wanted::Wanted;

use crate::{Config, Publish, RunError, Status};

/// How far the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Pods come and go.
    Serving,
    /// The cores finish what they have: the CNI agent is let go, but the mesh and credentials are kept up to date.
    Draining,
    /// The cores have ended.
    Ended,
}

/// Runs the control thread until `stage` is [`Stage::Ended`] or its sender is gone.
///
/// # Errors
/// What makes it pointless to go on.
pub async fn run(
    _config: Config,
    _publish: impl Publish,
    _wanted: async_channel::Receiver<Wanted>,
    _status: Status,
    mut stage: watch::Receiver<Stage>,
) -> Result<(), RunError> {
    let _ended = stage.wait_for(|stage| *stage == Stage::Ended).await;
    Ok(())
}
