//! What the control thread tells the cores, and how they answer about pods. The daemon implements it for its cores,
//! tests with a recorder: `control` never sees the data plane.

use std::{future::Future, pin::Pin, sync::Arc};

use hbone::{credential::Credential, revocation::Revocations};
use inpod::{
    Netns,
    pod::{PodInfo, PodUid},
};
use mesh_state::{identity::Identity, snapshot::Snapshot};

/// Resolves once a pod is captured or gone, or with the reason why not.
pub type Receipt = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A pod to capture.
#[derive(Debug)]
pub struct PodUp {
    /// The CNI agent's name for it.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// Where it is.
    pub netns: Netns,
}

/// Where the control thread publishes. No call waits.
pub trait Publish: 'static {
    /// A new generation of the mesh.
    fn snapshot(&mut self, snapshot: Arc<Snapshot>);
    /// What connections of `identity` use from now on, or why there is nothing.
    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, Arc<str>>);
    /// No pod of `identity` is up any more.
    fn credential_gone(&mut self, identity: &Identity);
    /// Other certificates are revoked than before. Credentials that know of it were given already.
    fn revocations(&mut self, revocations: &Arc<Revocations>);
    /// Capture a pod.
    fn pod_up(&mut self, pod: PodUp) -> Receipt;
    /// Stop a pod.
    fn pod_down(&mut self, uid: &PodUid) -> Receipt;
}
