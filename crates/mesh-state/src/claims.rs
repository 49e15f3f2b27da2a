//! Those who claim one key of an index, best first. The order is total and does not depend on who came first, so that any
//! order of the same changes gives the same decisions.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::slice;

use crate::service::{Service, Visibility};
use crate::workload::{TunnelProtocol, Workload};

/// The claimants of one key: never none, nearly always one.
#[derive(Clone, Debug)]
pub(crate) enum Claims<T> {
    One(T),
    Many(Arc<[T]>),
}

impl<T: Claimant> Claims<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Claims::One(claimant) => slice::from_ref(claimant),
            Claims::Many(claimants) => claimants,
        }
    }

    /// With `claimant` in its place; one that claims already is replaced.
    pub(crate) fn with(&self, claimant: T) -> Self {
        let held = self.as_slice();
        let (before, after) = match held.binary_search_by(|other| other.precedence(&claimant)) {
            Ok(at) => (&held[..at], &held[at + 1..]),
            Err(at) => held.split_at(at),
        };
        let claimants: Vec<T> = before.iter().cloned().chain([claimant]).chain(after.iter().cloned()).collect();
        Self::of(claimants).expect("has at least the new claimant")
    }

    /// Without `claimant`; `None` when nobody is left.
    pub(crate) fn without(&self, claimant: &T) -> Option<Self> {
        let rest: Vec<T> =
            self.as_slice().iter().filter(|other| other.precedence(claimant) != Ordering::Equal).cloned().collect();
        Self::of(rest)
    }

    fn of(mut claimants: Vec<T>) -> Option<Self> {
        match claimants.len() {
            0 => None,
            1 => claimants.pop().map(Claims::One),
            _ => Some(Claims::Many(claimants.into())),
        }
    }
}

/// Something that can claim a key beside others.
pub(crate) trait Claimant: Clone {
    /// `Less` when `self` is the better one; `Equal` only when they are the same one.
    fn precedence(&self, other: &Self) -> Ordering;
}

/// By class, in each by namespace, so that whom a client means is found without looking at every namespace that has the key:
/// which of them there are is up to any tenant.
impl Claimant for Arc<Service> {
    fn precedence(&self, other: &Self) -> Ordering {
        (Class::of(self), &self.namespace, &self.hostname).cmp(&(Class::of(other), &other.namespace, &other.hostname))
    }
}

/// What puts one claimant before another, wherever the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Canonical, and seen by all.
    Canonical,
    /// Canonical, and seen by its own namespace only.
    CanonicalAtHome,
    /// Seen by all.
    Public,
    /// Seen by its own namespace only.
    AtHome,
}

impl Class {
    const AT_HOME: [[Self; 2]; 2] = [[Self::Canonical, Self::CanonicalAtHome], [Self::Public, Self::AtHome]];
    const SEEN_BY_ALL: [Self; 2] = [Self::Canonical, Self::Public];

    fn of(service: &Service) -> Self {
        match (service.canonical, service.visibility) {
            (true, Visibility::Public) => Self::Canonical,
            (true, Visibility::Namespace) => Self::CanonicalAtHome,
            (false, Visibility::Public) => Self::Public,
            (false, Visibility::Namespace) => Self::AtHome,
        }
    }

    /// The first of the class, in the namespace if one is given.
    fn first<'a>(self, services: &'a [Arc<Service>], namespace: Option<&str>) -> Option<&'a Arc<Service>> {
        let place = (self, namespace.unwrap_or_default());
        let at = services.partition_point(|service| (Self::of(service), &*service.namespace) < place);
        let is_it = |service: &&Arc<Service>| {
            Self::of(service) == self && namespace.is_none_or(|namespace| &*service.namespace == namespace)
        };
        services.get(at).filter(is_it)
    }
}

/// Of workloads that share a key, the better one is `Less` (behaviour §8.4): a captured pod before any pod before anything
/// captured. An address is often held for a moment by the old and the new workload of a rollout, and by a pod and the
/// workload entry that describes it.
pub(crate) fn precedence(one: &Workload, other: &Workload) -> Ordering {
    let rank = |workload: &Workload| match (workload.is_pod(), workload.protocol) {
        (true, TunnelProtocol::Hbone) => 0,
        (true, TunnelProtocol::None) => 1,
        (false, TunnelProtocol::Hbone) => 2,
        (false, TunnelProtocol::None) => 3,
    };
    rank(one).cmp(&rank(other)).then_with(|| one.uid.cmp(&other.uid))
}

/// Of services that share a key, the one a client in `namespace` means: among those it may see, its own namespace's before a
/// canonical one before the first (§8.4).
pub(crate) fn visible<'a>(services: &'a [Arc<Service>], namespace: &str) -> Option<&'a Arc<Service>> {
    // Nearly always there is one, and whose namespace it is of does not matter.
    if let [only] = services {
        return only.is_visible_to(namespace).then_some(only);
    }
    of_namespace(services, namespace)
        .or_else(|| Class::SEEN_BY_ALL.into_iter().find_map(|class| class.first(services, None)))
}

/// Of services that share a key, the first of a namespace.
pub(crate) fn of_namespace<'a>(services: &'a [Arc<Service>], namespace: &str) -> Option<&'a Arc<Service>> {
    if let [only] = services {
        return (&*only.namespace == namespace).then_some(only);
    }
    // At home it makes no difference who else sees it.
    let first = |class: Class| class.first(services, Some(namespace));
    Class::AT_HOME.into_iter().find_map(|classes| classes.into_iter().filter_map(first).min_by_key(|one| &one.hostname))
}
