//! The one way out of the control thread: what it makes known, and to whom it does not care. The daemon implements it
//! for its cores, tests with a recorder.

use std::{future::Future, pin::Pin, sync::Arc};

use hbone::credential::Credential;
use inpod::{
    Netns,
    pod::{PodInfo, PodUid},
};
use mesh_state::{identity::Identity, snapshot::Snapshot};

/// Who takes what the control thread makes. No method may block: what cannot be handed on at once is kept, and of
/// snapshots only the newest.
pub trait Publish: 'static {
    /// The mesh is as given from now on. Whoever replaces a generation brings its `Arc` back to the control thread, so
    /// that no core pays for freeing it.
    fn snapshot(&mut self, snapshot: Arc<Snapshot>);

    /// Pods of `identity` use this credential from now on; or why there is none, until one comes.
    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, String>);

    /// No pod of this node has `identity` any more: what was published for it may be forgotten, and will be published
    /// again should a pod of it come.
    fn credential_gone(&mut self, identity: &Identity);

    /// Capture a pod.
    fn pod_up(&mut self, pod: PodUp) -> Receipt;

    /// Let a pod go, and reset what it has open. Comes after the [`Publish::pod_up`] it ends, even when that has failed
    /// or its receipt is still out.
    fn pod_down(&mut self, uid: &PodUid) -> Receipt;
}

/// Resolves when it is done: all listeners of a pod are bound, or nothing of it listens any more. Or why not. The CNI
/// agent gets the text as its answer.
pub type Receipt = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A pod to capture.
#[derive(Debug)]
pub struct PodUp {
    /// The CNI agent's name for it.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// Where its listeners belong.
    pub netns: Netns,
}
