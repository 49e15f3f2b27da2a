//! Workloads that came before a policy they name. Pure: knows which wait, for how long, and which may go on.
//!
//! A control plane names a new policy at the workload in one response and sends the policy in the next. A name that is not
//! known refuses everybody (decision 0004), so between the two every live tunnel to the workload would be reset, though
//! the policy permits it. Hence what was in force stays in force until the policy is there, or has not come in time.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_state::{name::PolicyKey, workload::Workload};

/// How long a workload waits for a policy that it names; then it takes effect, and the unknown name refuses. istiod sends
/// the policy with the next message of the same push, which is milliseconds. For so long a policy is in force later
/// than it could be, as if the message with the workload had been under way for longer.
pub const POLICY_PATIENCE: Duration = Duration::from_secs(2);

/// The most workloads that wait; one beyond takes effect at once. Only workloads of this node wait, of which a node has some
/// hundreds. Worst case about 2 KiB each, 2 MiB, beside the names of their services.
pub const WITHHELD_MAX: usize = 1_024;

/// The workloads that wait, by the names of their resources.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    waiting: BTreeMap<Arc<str>, Waiting>,
}

/// A workload that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) workload: Workload,
    /// Of its resource. It counts as held once it takes effect: until then it is sent again to a new stream.
    pub(super) version: Box<str>,
    /// Since when, with whatever content.
    since: Instant,
}

impl Withheld {
    /// A workload of this node of which there is a version in force has a new one. Gives it back if it need not wait.
    pub(super) fn withhold(
        &mut self,
        name: &Arc<str>,
        workload: Workload,
        version: &str,
        now: Instant,
        knows: impl Fn(&PolicyKey) -> bool,
    ) -> Option<Workload> {
        // The one that waits, if any, is superseded; its time counts on, or a change a second would hold it for ever.
        let since = self.waiting.remove(name).map_or(now, |waiting| waiting.since);
        let is_complete = workload.authorization_policies.iter().all(knows);
        if is_complete || now >= since + POLICY_PATIENCE || self.waiting.len() >= WITHHELD_MAX {
            return Some(workload);
        }
        tracing::debug!(workload = %workload.uid, "names a policy that is not there yet: what was in force stays for now");
        self.waiting.insert(name.clone(), Waiting { workload, version: version.into(), since });
        None
    }

    /// What is no more need not wait.
    pub(super) fn forget(&mut self, name: &str) {
        self.waiting.remove(name);
    }

    /// Those whose policies are all there, or that have waited for long enough.
    pub(super) fn released(&mut self, now: Instant, knows: impl Fn(&PolicyKey) -> bool) -> Vec<(Arc<str>, Waiting)> {
        let go_on = |_: &Arc<str>, Waiting { workload, since, .. }: &mut Waiting| {
            let Some(missing) = workload.authorization_policies.iter().find(|key| !knows(key)) else { return true };
            let is_late = now >= *since + POLICY_PATIENCE;
            if is_late {
                let uid = &workload.uid;
                tracing::warn!(workload = %uid, policy = %missing, "the policy has not come: refused until it does");
            }
            is_late
        };
        self.waiting.extract_if(.., go_on).collect()
    }

    /// When one has waited for long enough.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.since + POLICY_PATIENCE).min()
    }
}
