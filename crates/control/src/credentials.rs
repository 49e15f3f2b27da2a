//! Certificates of the pods that are up: asked for when a pod comes or a core lacks one, renewed, and taken back with the
//! last pod of an identity. No other identity ever gets one.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hbone::{credential::Credential, revocation::Revocations};
use inpod::pod::PodInfo;
use mesh_state::{identity::Identity, snapshot::Snapshot};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::{
    Publish, Status,
    ca::{
        client::{CaClient, ClientError, Issued},
        embedded::EmbeddedCa,
        rotation::{AfterFailure, IN_FLIGHT_MAX, Priority, Rotation, Ticket},
        trust,
    },
    clocks::now,
};

/// Who issues certificates.
pub(crate) enum Issuer {
    /// A CA in this process.
    Embedded {
        /// As the file says.
        ca: Box<EmbeddedCa>,
        /// Its root.
        file: PathBuf,
        /// How long a leaf is valid.
        leaf_ttl: Duration,
    },
    /// One over gRPC.
    Server(CaClient),
}

/// The issuer, and for whom it works.
pub(crate) struct Credentials {
    issuer: Issuer,
    node: Option<String>,
    trust_domain: String,
    rotation: Rotation,
    /// What was issued, as long as it is in use.
    issued: HashMap<Identity, Issued>,
    /// What the cores have, to be given anew when others are revoked than before.
    given: HashMap<Identity, Credential>,
    /// Whom everybody here believes.
    roots: String,
    /// Whom nobody here believes.
    revocations: Arc<Revocations>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    status: Status,
}

/// What a CA answered.
pub(crate) struct Answer {
    identity: Identity,
    ticket: Ticket,
    result: Result<Issued, ClientError>,
}

impl Credentials {
    /// `node` is this node's name, `trust_domain` that of pods whose workload is not known.
    pub(crate) fn new(issuer: Issuer, node: Option<String>, trust_domain: String, status: Status) -> Self {
        Self {
            issuer,
            node,
            trust_domain,
            rotation: Rotation::default(),
            issued: HashMap::new(),
            given: HashMap::new(),
            roots: String::new(),
            revocations: Arc::default(),
            answers: mpsc::channel(IN_FLIGHT_MAX),
            status,
        }
    }

    /// Other certificates are revoked than before: everybody is given a credential that knows of it, and then the cores
    /// look at the tunnels that are up.
    pub(crate) fn on_revocations(&mut self, revocations: Arc<Revocations>, publish: &mut impl Publish) {
        self.revocations = revocations;
        for (identity, credential) in &mut self.given {
            *credential = credential.clone().with_revocations(self.revocations.clone());
            publish.credential(identity, Ok(Arc::new(credential.clone())));
        }
        publish.revocations(&self.revocations);
    }

    /// A pod is captured: it has a certificate before its first connection asks.
    pub(crate) fn on_captured(&mut self, pod: &PodInfo, snapshot: &Snapshot, publish: &mut impl Publish) {
        match self.identity_of(snapshot, pod) {
            Some(identity) => {
                self.rotation.want(&identity, Priority::Warmup, now());
                self.ask(publish);
            }
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
            self.rotation.want(identity, Priority::Connection, now());
            self.ask(publish);
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
            self.issued.remove(&gone);
            self.given.remove(&gone);
            tracing::info!(identity = %gone, "certificate forgotten: no pod here has this identity any more");
            publish.credential_gone(&gone);
        }
        for identity in &here {
            self.rotation.want(identity, Priority::Warmup, now());
        }
        self.ask(publish);
    }

    /// The wall clock, by which certificates end, has leapt so far ahead of the one that renewals are timed by.
    pub(crate) fn on_leap(&mut self, leap: Duration) {
        tracing::warn!(
            ?leap,
            "the clock leapt: the machine was suspended, or its time was set; renewals come earlier by it"
        );
        self.rotation.leap(leap, now());
    }

    /// When [`Credentials::ask`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.rotation.next_due()
    }

    /// The next answer of a CA over gRPC. Dropping the future before it is done loses nothing.
    pub(crate) async fn next(&mut self) -> Answer {
        self.answers.1.recv().await.expect("the sender is kept beside it")
    }

    /// Asks for what is due, as far as it may be asked for at once.
    pub(crate) fn ask(&mut self, publish: &mut impl Publish) {
        while let Some((identity, ticket)) = self.rotation.start(now()) {
            match &self.issuer {
                Issuer::Embedded { ca, .. } => match ca.sign(&identity, OffsetDateTime::now_utc()) {
                    Ok(issued) => self.take(identity, ticket, issued, publish),
                    Err(error) => self.on_failed(&identity, ticket, &error, publish),
                },
                Issuer::Server(client) => {
                    let (client, answered) = (client.clone(), self.answers.0.clone());
                    tokio::task::spawn_local(async move {
                        let result = client.issue(&identity).await;
                        // Nobody listens any more when the control thread has ended.
                        let _told = answered.send(Answer { identity, ticket, result }).await;
                    });
                }
            }
        }
    }

    /// A CA over gRPC has answered.
    pub(crate) fn on_answer(&mut self, answer: Answer, publish: &mut impl Publish) {
        let Answer { identity, ticket, result } = answer;
        match result {
            Err(error) => self.on_failed(&identity, ticket, &error, publish),
            Ok(issued) => self.take(identity, ticket, issued, publish),
        }
        self.ask(publish);
    }

    /// The file that tells of the CA's roots says something else: what it says is believed at once, as far as it can be
    /// known. Leaves follow when they are renewed.
    pub(crate) fn on_roots_changed(&mut self, publish: &mut impl Publish) {
        match &mut self.issuer {
            Issuer::Embedded { ca, file, leaf_ttl } => {
                match EmbeddedCa::open(file, *leaf_ttl, OffsetDateTime::now_utc()) {
                    Ok(opened) => {
                        **ca = opened;
                        self.believe(self.roots_of(None), None, publish);
                    }
                    Err(error) => tracing::error!(%error, "the CA's root is refused; the last good one stays in force"),
                }
            }
            // The file proves the CA to us, and whom its certificates come from is for the CA to say.
            Issuer::Server(_) => {
                tracing::info!(
                    "the CA proves itself by other roots; a certificate is asked for, to learn whom to believe"
                );
                self.rotation.hasten(now());
                self.ask(publish);
            }
        }
    }

    /// The roots that came with the certificates in use, and with one more.
    fn roots_of(&self, new: Option<(&Identity, &Issued)>) -> String {
        let replaced = new.map(|(identity, _)| identity);
        let all = self.issued.iter().filter(|(other, _)| Some(*other) != replaced).map(|(_, issued)| &*issued.roots);
        let own = match &self.issuer {
            Issuer::Embedded { ca, .. } => Some(ca.roots()),
            Issuer::Server(_) => None,
        };
        trust::union(all.chain(new.map(|(_, issued)| &*issued.roots)).chain(own))
    }

    /// Uses what a CA has issued.
    fn take(&mut self, identity: Identity, ticket: Ticket, issued: Issued, publish: &mut impl Publish) {
        let roots = self.roots_of(Some((&identity, &issued)));
        match issued.credential(&identity, &roots) {
            Err(error) => self.on_failed(&identity, ticket, &error, publish),
            Ok(credential) => {
                if self.on_issued(&identity, ticket, credential, publish) {
                    self.issued.insert(identity.clone(), issued);
                    self.believe(roots, Some(&identity), publish);
                }
            }
        }
    }

    /// Gives everybody but `done` the roots that everybody believes, where these are others than before.
    fn believe(&mut self, roots: String, done: Option<&Identity>, publish: &mut impl Publish) {
        if roots == self.roots {
            return;
        }
        if !self.roots.is_empty() {
            tracing::info!(identities = self.issued.len(), "the CA's roots are others than before");
        }
        self.roots = roots;
        for (identity, issued) in self.issued.iter().filter(|(identity, _)| Some(*identity) != done) {
            match issued.credential(identity, &self.roots) {
                Ok(credential) => {
                    let credential = credential.with_revocations(self.revocations.clone());
                    self.given.insert(identity.clone(), credential.clone());
                    publish.credential(identity, Ok(Arc::new(credential)));
                }
                // It has ended, and its renewal is late: what the cores know of it stands.
                Err(error) => tracing::debug!(%identity, %error, "not given the new roots"),
            }
        }
    }

    /// Publishes a certificate, if it is still wanted, and says so.
    fn on_issued(
        &mut self,
        identity: &Identity,
        ticket: Ticket,
        credential: Credential,
        publish: &mut impl Publish,
    ) -> bool {
        // Shorter than asked where the CA grants less.
        let end = UNIX_EPOCH + Duration::from_secs(credential.not_after_unix_s());
        let lifetime = end.duration_since(SystemTime::now()).unwrap_or_default();
        let wanted = self.rotation.issued(identity, ticket, now(), lifetime, fastrand::u64(..));
        if wanted {
            tracing::info!(%identity, ?lifetime, "certificate issued");
            self.status.count_certificate();
            let credential = credential.with_revocations(self.revocations.clone());
            self.given.insert(identity.clone(), credential.clone());
            publish.credential(identity, Ok(Arc::new(credential)));
        }
        wanted
    }

    fn on_failed(
        &mut self,
        identity: &Identity,
        ticket: Ticket,
        error: &dyn std::error::Error,
        publish: &mut impl Publish,
    ) {
        tracing::error!(%identity, %error, "no certificate; trying again");
        self.status.count_certificate_failed(format!("{identity}: {error}"));
        match self.rotation.failed(identity, ticket, now(), fastrand::u64(..)) {
            AfterFailure::Keep => {}
            AfterFailure::Unavailable => {
                self.issued.remove(identity);
                self.given.remove(identity);
                publish.credential(identity, Err(error.to_string().into()));
            }
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
}
