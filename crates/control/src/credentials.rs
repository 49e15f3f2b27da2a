//! Certificates of the pods that are up: issued when a pod comes or a core asks, renewed, and taken back with the last
//! pod of an identity. No other identity ever gets one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use inpod::pod::PodInfo;
use mesh_state::{identity::Identity, snapshot::Snapshot};
use time::OffsetDateTime;

use crate::{
    Config, Publish,
    ca::{
        embedded::EmbeddedCa,
        rotation::{AfterFailure, Rotation},
    },
};

/// The CA, and for whom it works.
pub(crate) struct Credentials {
    ca: EmbeddedCa,
    leaf_ttl: Duration,
    rotation: Rotation,
}

impl Credentials {
    pub(crate) fn new(ca: EmbeddedCa, leaf_ttl: Duration) -> Self {
        Self { ca, leaf_ttl, rotation: Rotation::default() }
    }

    /// Who a pod is: what the mesh says of its workload, else its service account in the configured trust domain.
    #[expect(clippy::unused_self, reason = "an identity is this module's business; it has no other state yet")]
    pub(crate) fn identity_of(&self, config: &Config, snapshot: &Snapshot, pod: &PodInfo) -> Option<Identity> {
        let PodInfo { name, namespace, service_account } = pod;
        match snapshot.local_workload(config.node.as_deref(), namespace, name, service_account) {
            Some(workload) => Some(workload.identity.clone()),
            None => Identity::new(&config.trust_domain, namespace, service_account)
                .inspect_err(
                    |error| tracing::warn!(pod = %format!("{namespace}/{name}"), %error, "no identity for a pod"),
                )
                .ok(),
        }
    }

    /// Sees to it that a pod that is up has a certificate.
    pub(crate) fn want_for(&mut self, config: &Config, snapshot: &Snapshot, pod: &PodInfo, publish: &mut impl Publish) {
        if let Some(identity) = self.identity_of(config, snapshot, pod) {
            self.want(&identity, publish);
        }
    }

    /// Issues a certificate unless there is one, or one was tried a moment ago.
    pub(crate) fn want(&mut self, identity: &Identity, publish: &mut impl Publish) {
        if self.rotation.want(identity, Instant::now()) {
            self.issue(identity, publish);
        }
    }

    /// Identities that none of the pods needs any more; they are forgotten.
    pub(crate) fn unneeded(&mut self, needed: impl Fn(&Self, &Identity) -> bool) -> Vec<Identity> {
        let unneeded: Vec<Identity> =
            self.rotation.identities().into_iter().filter(|identity| !needed(self, identity)).collect();
        for identity in &unneeded {
            self.rotation.forget(identity);
        }
        unneeded
    }

    /// When the next certificate is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.rotation.next_due()
    }

    /// Renews what is due.
    pub(crate) fn renew(&mut self, publish: &mut impl Publish) {
        for identity in self.rotation.due(Instant::now()) {
            self.issue(&identity, publish);
        }
    }

    fn issue(&mut self, identity: &Identity, publish: &mut impl Publish) {
        match self.ca.issue(identity, OffsetDateTime::now_utc()) {
            Ok(credential) => {
                self.rotation.issued(identity, Instant::now(), self.leaf_ttl, fastrand::u64(..));
                tracing::info!(%identity, "certificate issued");
                publish.credential(identity, Ok(Arc::new(credential)));
            }
            Err(error) => {
                tracing::error!(%identity, %error, "no certificate; trying again");
                match self.rotation.failed(identity, Instant::now(), fastrand::u64(..)) {
                    AfterFailure::Keep => {}
                    AfterFailure::Unavailable => publish.credential(identity, Err(error.to_string().into())),
                }
            }
        }
    }
}
