//! What became different between two generations: enough to tell which live connections have to be asked about again, and no
//! more. Not what it became, which the newer generation tells.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::iter;
use core::net::IpAddr;

use crate::identity::Identity;
use crate::name::{NamespacedHostname, PolicyKey, Uid};
use crate::policy::{Policy, PolicyScope};
use crate::workload::Workload;

/// Generations whose differences are kept. Each core installs every generation or the newest of those that it missed, so it
/// lags by a few. Worst case with [`TOUCHED_MAX`]: 64 x 1,024 x 120 bytes, 8 MiB.
pub const GENERATIONS_MAX: usize = 64;

/// Subjects that one generation names. One that touched more counts as touching everything: the first one of all does.
pub const TOUCHED_MAX: usize = 1_024;

/// What one generation changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    everything: bool,
    /// A policy for all workloads.
    global_policy: bool,
    subjects: Vec<Subject>,
}

/// Something that was, or became, other than it was. Sorted, so that asking is a search.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Workload(Uid),
    /// A workload has or had this namespace and name: of two with the same, the other may now be the one that is found.
    Named(Arc<str>, Arc<str>),
    /// A workload has or had it.
    Address(IpAddr),
    /// A workload has or had it.
    Identity(Identity),
    Service(NamespacedHostname),
    Policy(PolicyKey),
    /// A policy for all workloads of a namespace.
    PoliciesOf(Arc<str>),
}

impl Touched {
    pub(crate) fn workload(&mut self, workload: &Workload) {
        if self.everything {
            return;
        }
        self.add(Subject::Workload(workload.uid.clone()));
        self.add(Subject::Named(workload.namespace.clone(), workload.name().into()));
        self.add(Subject::Identity(workload.identity.clone()));
        for address in &workload.addresses {
            self.add(Subject::Address(address.to_canonical()));
        }
    }

    pub(crate) fn service(&mut self, name: NamespacedHostname) {
        self.add(Subject::Service(name));
    }

    pub(crate) fn policy(&mut self, policy: &Policy) {
        // By its key always: whatever its scope, workloads may name it.
        self.add(Subject::Policy(policy.key.clone()));
        match policy.scope {
            PolicyScope::Global => self.global_policy = true,
            PolicyScope::Namespace => self.add(Subject::PoliciesOf(policy.namespace.clone())),
            PolicyScope::WorkloadSelector => {}
        }
    }

    fn add(&mut self, subject: Subject) {
        // Sorted only when it is frozen, so some may be here several times; half of the room is left for that.
        if self.subjects.len() >= 2 * TOUCHED_MAX {
            self.everything = true;
            self.subjects = Vec::new();
        }
        if !self.everything {
            self.subjects.push(subject);
        }
    }

    /// Ready to be asked.
    pub(crate) fn frozen(mut self) -> Self {
        self.subjects.sort_unstable();
        self.subjects.dedup();
        self.subjects.shrink_to_fit();
        if self.subjects.len() > TOUCHED_MAX {
            self.everything = true;
            self.subjects = Vec::new();
        }
        self
    }

    fn has(&self, subject: &Subject) -> bool {
        self.everything || self.subjects.binary_search(subject).is_ok()
    }

    fn first_service(&self) -> usize {
        self.subjects.partition_point(|subject| match subject {
            Subject::Workload(_) | Subject::Named(..) | Subject::Address(_) | Subject::Identity(_) => true,
            Subject::Service(_) | Subject::Policy(_) | Subject::PoliciesOf(_) => false,
        })
    }
}

/// The differences of the last generations, newest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    generations: Arc<[Arc<Touched>]>,
}

impl Log {
    pub(crate) fn push(&mut self, touched: Touched) {
        let oldest = (self.generations.len() + 1).saturating_sub(GENERATIONS_MAX);
        let kept = self.generations[oldest..].iter().cloned();
        self.generations = kept.chain(iter::once(Arc::new(touched.frozen()))).collect();
    }

    /// What the last `count` generations changed; `None` when that many are not kept.
    pub(crate) fn last(&self, count: u64) -> Option<&[Arc<Touched>]> {
        let from = self.generations.len().checked_sub(usize::try_from(count).ok()?)?;
        Some(&self.generations[from..])
    }
}

/// What changed since a generation, to be asked whether it may matter to something. The answer may be yes for what it does
/// not matter to; it is never no for what it does.
#[derive(Clone, Copy, Debug)]
pub struct Changed<'s> {
    /// `None` when that was too long ago to tell.
    generations: Option<&'s [Arc<Touched>]>,
}

impl<'s> Changed<'s> {
    pub(crate) fn new(generations: Option<&'s [Arc<Touched>]>) -> Self {
        Self { generations }
    }

    /// Whether the generation asked about is too long ago, or yet to come: then everything may have changed. Generations are one
    /// builder's: those of another have the same numbers, and are not told apart.
    pub fn is_too_old(&self) -> bool {
        self.generations.is_none()
    }

    /// Whether no workload, service or policy changed. What is known to be absent is not asked about here.
    pub fn is_nothing(&self) -> bool {
        let empty =
            |touched: &Arc<Touched>| !touched.everything && !touched.global_policy && touched.subjects.is_empty();
        self.generations.is_some_and(|generations| generations.iter().all(empty))
    }

    /// Whether policy may say something else of connections to a workload, as the newer generation has it: a policy for it
    /// came, changed or went, or the workload itself did, or another in whose place it now is.
    pub fn may_touch_policy_for(&self, workload: &Workload) -> bool {
        self.any(|touched| {
            let attached =
                || workload.authorization_policies.iter().any(|key| touched.has(&Subject::Policy(key.clone())));
            touched.global_policy
                || touched.has(&Subject::Named(workload.namespace.clone(), workload.name().into()))
                || touched.has(&Subject::PoliciesOf(workload.namespace.clone()))
                || attached()
        })
    }

    /// Whether an address may be another's, or its owner be described otherwise: by a workload, or by any service, since
    /// blocks of addresses and references to waypoints let one service matter to the addresses of others.
    pub fn may_touch_address(&self, address: IpAddr) -> bool {
        self.may_touch_services() || self.any(|touched| touched.has(&Subject::Address(address.to_canonical())))
    }

    /// Whether any service came, changed or went.
    pub fn may_touch_services(&self) -> bool {
        self.any(|touched| {
            touched.everything || matches!(touched.subjects.get(touched.first_service()), Some(Subject::Service(_)))
        })
    }

    /// Whether a service came, changed or went.
    pub fn may_touch_service(&self, name: &NamespacedHostname) -> bool {
        self.any(|touched| touched.has(&Subject::Service(name.clone())))
    }

    /// Whether a policy came, changed or went.
    pub fn may_touch_policy(&self, key: &PolicyKey) -> bool {
        self.any(|touched| touched.has(&Subject::Policy(key.clone())))
    }

    /// Whether a workload came, changed or went.
    pub fn may_touch_workload(&self, uid: &Uid) -> bool {
        self.any(|touched| touched.has(&Subject::Workload(uid.clone())))
    }

    /// Whether a workload of an identity came, changed or went.
    pub fn may_touch_identity(&self, identity: &Identity) -> bool {
        self.any(|touched| touched.has(&Subject::Identity(identity.clone())))
    }

    fn any(&self, may_touch: impl Fn(&Touched) -> bool) -> bool {
        self.generations.is_none_or(|generations| generations.iter().any(|touched| may_touch(touched)))
    }
}
