//! Certificates of the pods that are up: issued when a pod comes or a core asks, renewed, and taken back with the last
//! pod of an identity. No other identity ever gets one.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use inpod::pod::PodInfo;
use mesh_state::{identity::Identity, snapshot::Snapshot};
use time::OffsetDateTime;

use crate::{
    Publish,
    ca::{
        embedded::EmbeddedCa,
        rotation::{AfterFailure, Rotation},
    },
};

/// The CA, and for whom it works.
pub(crate) struct Credentials {
    ca: EmbeddedCa,
    node: Option<String>,
    trust_domain: String,
    rotation: Rotation,
}

impl Credentials {
    /// `node` is this node's name, `trust_domain` that of pods whose workload is not known.
    pub(crate) fn new(ca: EmbeddedCa, node: Option<String>, trust_domain: String) -> Self {
        Self { ca, node, trust_domain, rotation: Rotation::default() }
    }

    /// A pod is captured: it has a certificate before its first connection asks.
    pub(crate) fn on_captured(&mut self, pod: &PodInfo, snapshot: &Snapshot, publish: &mut impl Publish) {
        match self.identity_of(snapshot, pod) {
            Some(identity) => self.want(&identity, publish),
            None => tracing::warn!(
                %pod, service_account = pod.service_account, trust_domain = self.trust_domain,
                "no certificate: these make no SPIFFE identity"
            ),
        }
    }

    /// A core has a connection that waits for `identity`.
    pub(crate) fn on_wish<'a>(
        &mut self,
        identity: &Identity,
        pods: impl Iterator<Item = &'a PodInfo>,
        snapshot: &Snapshot,
        publish: &mut impl Publish,
    ) {
        if self.identities_of(snapshot, pods).contains(identity) {
            self.want(identity, publish);
        } else {
            tracing::warn!(%identity, "a certificate was asked for an identity that no pod here has; none is issued");
        }
    }

    /// The pods or the mesh have changed: certificates for all who are here, and none for those who are not.
    pub(crate) fn keep_to<'a>(
        &mut self,
        pods: impl Iterator<Item = &'a PodInfo>,
        snapshot: &Snapshot,
        publish: &mut impl Publish,
    ) {
        let here = self.identities_of(snapshot, pods);
        for gone in self.rotation.identities().into_iter().filter(|identity| !here.contains(identity)) {
            self.rotation.forget(&gone);
            tracing::info!(identity = %gone, "certificate forgotten: no pod here has this identity any more");
            publish.credential_gone(&gone);
        }
        for identity in &here {
            self.want(identity, publish);
        }
    }

    /// When the next certificate is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.rotation.next_due()
    }

    /// Renews what is due.
    pub(crate) fn renew(&mut self, publish: &mut impl Publish) {
        for identity in self.rotation.due(now()) {
            self.issue(&identity, publish);
        }
    }

    /// Who a pod is: what the mesh says of its workload, else its service account in the configured trust domain.
    fn identity_of(&self, snapshot: &Snapshot, pod: &PodInfo) -> Option<Identity> {
        let PodInfo { name, namespace, service_account } = pod;
        match snapshot.local_workload(self.node.as_deref(), namespace, name, service_account) {
            Some(workload) => Some(workload.identity.clone()),
            None => Identity::new(&self.trust_domain, namespace, service_account).ok(),
        }
    }

    fn identities_of<'a>(&self, snapshot: &Snapshot, pods: impl Iterator<Item = &'a PodInfo>) -> BTreeSet<Identity> {
        pods.filter_map(|pod| self.identity_of(snapshot, pod)).collect()
    }

    /// Issues a certificate unless there is one, or one was tried a moment ago.
    fn want(&mut self, identity: &Identity, publish: &mut impl Publish) {
        if self.rotation.want(identity, now()) {
            self.issue(identity, publish);
        }
    }

    fn issue(&mut self, identity: &Identity, publish: &mut impl Publish) {
        match self.ca.issue(identity, OffsetDateTime::now_utc()) {
            Ok(credential) => {
                // Shorter than asked where the root ends first.
                let end = UNIX_EPOCH + Duration::from_secs(credential.not_after_unix_s());
                let lifetime = end.duration_since(SystemTime::now()).unwrap_or_default();
                self.rotation.issued(identity, now(), lifetime, fastrand::u64(..));
                tracing::info!(%identity, ?lifetime, "certificate issued");
                publish.credential(identity, Ok(Arc::new(credential)));
            }
            Err(error) => {
                tracing::error!(%identity, %error, "no certificate; trying again");
                match self.rotation.failed(identity, now(), fastrand::u64(..)) {
                    AfterFailure::Keep => {}
                    AfterFailure::Unavailable => publish.credential(identity, Err(error.to_string().into())),
                }
            }
        }
    }
}

/// The runtime's clock, which tests may stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
