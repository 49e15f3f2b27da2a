//! One thing that became different in the mesh. The last change to a key wins; changes to different keys commute.

use crate::name::{NamespacedHostname, PolicyKey, Uid};
use crate::policy::Policy;
use crate::service::Service;
use crate::wanted::Sought;
use crate::workload::Workload;

/// One change. The first of each pair inserts or replaces; removing what is not there is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A workload is as given.
    Workload(Workload),
    /// A workload is gone.
    WorkloadGone(Uid),
    /// A service is as given.
    Service(Service),
    /// A service is gone. Workloads that name it stay, and are its endpoints again should it come back.
    ServiceGone(NamespacedHostname),
    /// A policy is as given.
    Policy(Policy),
    /// A policy is gone.
    PolicyGone(PolicyKey),
    /// The control plane was asked for this and has it not. Holds until it comes, or is forgotten: see
    /// [`crate::absence::ABSENT_MAX`].
    Absent(Sought),
    /// Whether this is there is not known any more: nobody listens for it, or the answer is too old.
    Unknown(Sought),
}
