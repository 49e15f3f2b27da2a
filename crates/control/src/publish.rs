//! The arrow from control to the cores, as control sees it. Who is at the other end is `coretunnel`'s choice.

use std::{future::Future, pin::Pin, sync::Arc};

use hbone::credential::Credential;
use inpod::{
    Netns,
    pod::{PodInfo, PodUid},
};
use mesh_state::{identity::Identity, snapshot::Snapshot};

/// Takes what control has found out. The calls never wait; what takes time is in the [`Receipt`].
pub trait Publish: 'static {
    /// The mesh is now this.
    fn snapshot(&mut self, snapshot: Arc<Snapshot>);

    /// The credential of `identity` is now this, or there is none for the reason given. A reason is published only
    /// while no usable credential is: one that was published before it holds no longer.
    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, Arc<str>>);

    /// A pod is to be captured. The receipt comes when all its listeners are bound, or with the reason why not.
    fn pod_up(&mut self, pod: PodUp) -> Receipt;

    /// A pod is to be left alone. The receipt comes when nothing of it listens any more.
    fn pod_down(&mut self, uid: &PodUid) -> Receipt;
}

/// The answer to a pod going up or down, when it has.
pub type Receipt = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A pod to capture.
#[derive(Clone, Debug)]
pub struct PodUp {
    /// Which pod.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// Where its listeners belong.
    pub netns: Netns,
}
