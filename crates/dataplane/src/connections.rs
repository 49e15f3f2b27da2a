//! The connections alive on this core: who they are, how to stop them, and which of them a new policy still allows.
//!
//! An entry is made before the verdict on its connection is asked for, so that a policy that changes in between finds
//! it here. The table knows facts and stops; it does no I/O.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
};

use futures_util::future::{Either, select};
use inpod::pod::PodUid;
use mesh_state::{
    admit::{self, Admission, Refusal},
    identity::Identity,
    name::Authority,
    snapshot::Snapshot,
    touched::Changed,
    wanted::Sought,
    workload::Workload,
};
use slab::Slab;

use crate::{bell::Bell, config::Config, peers::Watch};

/// Why a live connection was stopped from outside.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Stop {
    /// A policy change no longer allows it.
    #[error("connection closed due to policy change: {0}")]
    Policy(Rc<Refusal>),
    /// The time to drain was over.
    #[error("connection closed due to connection drain")]
    Drained,
    /// The peer at the other end of its tunnel was revoked.
    #[error("connection closed: peer certificate revoked by CRL")]
    Revoked,
    /// Its pod was taken off the node.
    #[error("connection closed because its pod was removed from the mesh")]
    PodGone,
}

/// What the verdict on an inbound connection rests on, kept to ask again.
#[derive(Debug, Clone)]
pub(crate) struct InboundFacts {
    /// The TCP peer.
    pub(crate) peer: SocketAddr,
    /// The pod's address that the connection came to.
    pub(crate) local: IpAddr,
    /// The TLS peer, when there was TLS.
    pub(crate) identity: Option<Identity>,
    /// What was asked for.
    pub(crate) request: InboundRequest,
}

/// What an inbound connection asked for.
#[derive(Debug, Clone)]
pub(crate) enum InboundRequest {
    /// A CONNECT to this authority.
    Tunnel(Authority),
    /// A plain connection to this original destination.
    Plaintext(SocketAddr),
}

impl fmt::Display for InboundRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel(authority) => authority.fmt(formatter),
            Self::Plaintext(target) => target.fmt(formatter),
        }
    }
}

impl InboundFacts {
    /// Whether the verdict rests on more of the mesh than policy and the pod's own workload: a tunnel asked for something
    /// that is not the pod's address, as those to waypoints do.
    fn is_of_others(&self) -> bool {
        match &self.request {
            InboundRequest::Tunnel(Authority::Address(target)) => {
                target.ip().to_canonical() != self.local.to_canonical()
            }
            InboundRequest::Tunnel(Authority::Host { .. }) => true,
            InboundRequest::Plaintext(_) => false,
        }
    }

    /// Whether what changed may matter to what the tunnel asked for.
    fn may_be_touched(&self, changed: &Changed<'_>) -> bool {
        match &self.request {
            InboundRequest::Tunnel(Authority::Address(target)) => changed.may_touch_address(target.ip()),
            InboundRequest::Tunnel(Authority::Host { .. }) => changed.may_touch_services(),
            InboundRequest::Plaintext(_) => false,
        }
    }

    /// Asks a snapshot, for the local `workload`; or says what has to be asked for before its verdict may be relied on.
    pub(crate) fn admit_or_lack(
        &self,
        snapshot: &Snapshot,
        workload: &Workload,
        config: &Config,
    ) -> Result<Result<Admission, Refusal>, Sought> {
        let query = admit::Query {
            workload,
            peer: self.peer,
            identity: self.identity.as_ref(),
            local: self.local,
            request: self.request(),
            proxy_ports: &config.ports.forbidden(),
            localhost_tunnel: config.localhost_tunnel,
        };
        let verdict = admit::inbound(snapshot, &query);
        match snapshot.is_on_demand().then(|| admit::lacking(snapshot, &query, &verdict)).flatten() {
            Some(sought) => Err(sought),
            None => Ok(verdict),
        }
    }

    /// What is asked for.
    pub(crate) fn request(&self) -> admit::Request<'_> {
        match &self.request {
            InboundRequest::Tunnel(authority) => admit::Request::Tunnel(authority),
            InboundRequest::Plaintext(target) => admit::Request::Plaintext(*target),
        }
    }
}

/// The table of one core.
#[derive(Clone, Default)]
pub(crate) struct Connections(Rc<Table>);

#[derive(Default)]
struct Table {
    entries: RefCell<Entries>,
    /// Rings whenever an entry goes: a drain waits for the table to be empty.
    gone: Bell,
}

/// The connections, and by pod those that have a verdict: a change is about few pods, and only their connections are looked at.
#[derive(Default)]
struct Entries {
    slots: Slab<Entry>,
    by_pod: HashMap<PodUid, OfPod>,
}

/// The slots of a pod's inbound connections, in no order.
#[derive(Default)]
struct OfPod {
    own: Vec<usize>,
    of_others: Vec<usize>,
}

/// Which of a pod's two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Those that asked for the pod's own address.
    Own,
    /// Those whose verdict rests on others' addresses and names, too.
    OfOthers,
}

impl List {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Own, Self::OfOthers];
}

impl OfPod {
    fn list(&self, list: List) -> &Vec<usize> {
        match list {
            List::Own => &self.own,
            List::OfOthers => &self.of_others,
        }
    }

    fn list_of(&mut self, facts: &InboundFacts) -> &mut Vec<usize> {
        if facts.is_of_others() { &mut self.of_others } else { &mut self.own }
    }
}

impl Entries {
    fn insert(&mut self, entry: Entry) -> usize {
        let slot = self.slots.vacant_key();
        let mut entry = entry;
        if let Some(facts) = &entry.inbound {
            let list = self.by_pod.entry(entry.pod.clone()).or_default().list_of(facts);
            entry.listed_at = list.len();
            list.push(slot);
        }
        self.slots.insert(entry)
    }

    fn remove(&mut self, slot: usize) {
        let entry = self.slots.remove(slot);
        let Some(facts) = &entry.inbound else { return };
        let of_pod = self.by_pod.get_mut(&entry.pod).expect("entered with its first connection");
        let list = of_pod.list_of(facts);
        list.swap_remove(entry.listed_at);
        if let Some(moved) = list.get(entry.listed_at) {
            self.slots[*moved].listed_at = entry.listed_at;
        }
        if of_pod.own.is_empty() && of_pod.of_others.is_empty() {
            self.by_pod.remove(&entry.pod);
        }
    }
}

struct Entry {
    pod: PodUid,
    /// Its place in the list of its pod.
    listed_at: usize,
    /// Outbound connections have no verdict to ask for again.
    inbound: Option<InboundFacts>,
    stop: Rc<StopCell>,
}

#[derive(Default)]
struct StopCell {
    why: Cell<Option<Stop>>,
    bell: Bell,
}

/// A connection's place in the table; dropping it gives the place up.
pub(crate) struct Tracked {
    table: Connections,
    slot: usize,
    stop: Rc<StopCell>,
    /// The peer of the tunnel it goes through.
    tunnel: OnceCell<Watch>,
}

impl Connections {
    /// Enters a connection of `pod`.
    pub(crate) fn track(&self, pod: PodUid, inbound: Option<InboundFacts>) -> Tracked {
        let stop = Rc::new(StopCell::default());
        let slot = self.0.entries.borrow_mut().insert(Entry { pod, listed_at: 0, inbound, stop: stop.clone() });
        Tracked { table: self.clone(), slot, stop, tunnel: OnceCell::new() }
    }

    /// How many are alive.
    pub(crate) fn len(&self) -> usize {
        self.0.entries.borrow().slots.len()
    }

    /// Rings whenever one is gone.
    pub(crate) fn gone(&self) -> &Bell {
        &self.0.gone
    }

    /// Stops every connection of `pod`, or of all pods.
    pub(crate) fn stop_all(&self, pod: Option<&PodUid>, why: &Stop) {
        for (_, entry) in &self.0.entries.borrow().slots {
            if pod.is_none_or(|pod| *pod == entry.pod) {
                entry.stop(why.clone());
            }
        }
    }

    /// The pods that have inbound connections now, for a recheck in slices: a connection that comes later is admitted by the
    /// new snapshot.
    pub(crate) fn pods(&self) -> Vec<PodUid> {
        self.0.entries.borrow().by_pod.keys().cloned().collect()
    }

    /// Looks at no more than `count` connections in a pod's list, from the place `below` downwards, and stops those whose
    /// verdict may be another after what changed and is: `ask` says. All of them may when policy for the pod's workload
    /// changed; else only those that asked for something of others that did. Returns where to go on, if there are more.
    ///
    /// Downwards, because a connection that ends meanwhile leaves its place to the last one: that may be looked at twice, but
    /// none is passed by. One that comes meanwhile is admitted by the new snapshot.
    #[expect(
        clippy::too_many_arguments,
        reason = "where in the table, and by what to judge; a struct would have one user"
    )]
    pub(crate) fn recheck(
        &self,
        pod: &PodUid,
        list: List,
        below: usize,
        count: usize,
        workload: &Workload,
        changed: &Changed<'_>,
        ask: impl Fn(&InboundFacts) -> Result<(), Refusal>,
    ) -> Option<usize> {
        let entries = self.0.entries.borrow();
        let slots = entries.by_pod.get(pod)?.list(list);
        let all = changed.may_touch_policy_for(workload);
        if list == List::Own && !all {
            return None;
        }
        let below = below.min(slots.len());
        let above = below.saturating_sub(count);
        for slot in &slots[above..below] {
            let entry = &entries.slots[*slot];
            if let Some(facts) = &entry.inbound
                && (all || facts.may_be_touched(changed))
                && let Err(refusal) = ask(facts)
            {
                entry.stop(Stop::Policy(Rc::new(refusal)));
            }
        }
        (above > 0).then_some(above)
    }
}

impl Entry {
    fn stop(&self, why: Stop) {
        self.stop.why.set(Some(why));
        self.stop.bell.ring();
    }
}

impl Tracked {
    /// It goes through this peer's tunnel, and ends when that is revoked.
    pub(crate) fn through(&self, peer: Watch) {
        // Set once: a connection has one tunnel.
        let _set = self.tunnel.set(peer);
    }

    /// Resolves when somebody stops this connection, or the tunnel it goes through by then.
    pub(crate) async fn stopped(&self) -> Stop {
        let revoked = async {
            match self.tunnel.get() {
                Some(peer) => peer.revoked().await,
                None => std::future::pending().await,
            }
        };
        match select(pin!(self.stop.stopped()), pin!(revoked)).await {
            Either::Left((why, _)) => why,
            Either::Right(((), _)) => Stop::Revoked,
        }
    }
}

impl StopCell {
    async fn stopped(&self) -> Stop {
        loop {
            let seen = self.bell.count();
            if let Some(why) = self.why.take() {
                self.why.set(Some(why.clone()));
                return why;
            }
            self.bell.after(seen).await;
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.table.0.entries.borrow_mut().remove(self.slot);
        self.table.0.gone.ring();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use mesh_state::{
        builder::SnapshotBuilder,
        change::Change,
        policy::{Action, Policy, PolicyScope},
        service::Service,
        snapshot::Snapshot,
    };

    use super::*;

    fn workload(namespace: &str, name: &str) -> Workload {
        let identity = Identity::new("td", namespace, "s").expect("valid parts");
        Workload::new(format!("c//Pod/{namespace}/{name}").as_str().into(), namespace, name, identity)
    }

    fn tunnel(target: &str) -> Option<InboundFacts> {
        Some(InboundFacts {
            peer: SocketAddr::from(([10, 0, 0, 1], 1)),
            local: IpAddr::from([10, 0, 0, 2]),
            identity: None,
            request: InboundRequest::Tunnel(Authority::parse(target).expect(target)),
        })
    }

    #[test]
    fn a_change_rechecks_only_the_connections_it_may_affect() {
        let shop = workload("shop", "shop-0");
        let mut way = workload("web", "way-0");
        way.authorization_policies = vec!["web/named".into()];
        let table = Connections::default();
        let _kept = [
            table.track(uid("shop"), tunnel("10.0.0.2:80")),
            table.track(uid("way"), tunnel("10.0.0.2:80")),
            table.track(uid("way"), tunnel("10.9.9.9:80")),
            table.track(uid("way"), tunnel("cart.example:80")),
            table.track(uid("way"), None),
        ];
        let policy = |key: &str, scope| Policy {
            key: key.into(),
            namespace: key.split_once('/').expect("all have one").0.into(),
            scope,
            action: Action::Deny,
            rules: Vec::new(),
            dry_run: false,
        };
        let mut elsewhere = workload("far", "cart-0");
        elsewhere.addresses = [IpAddr::from([10, 9, 9, 9])].into();
        // What changes, and how many of the shop's and the waypoint's connections are asked about.
        let rows = [
            ("a policy of the mesh", Change::Policy(policy("root/p", PolicyScope::Global)), 1, 3),
            ("a policy of a namespace", Change::Policy(policy("shop/p", PolicyScope::Namespace)), 1, 0),
            ("an attached policy", Change::Policy(policy("web/named", PolicyScope::WorkloadSelector)), 0, 3),
            ("a policy attached to neither", Change::Policy(policy("web/x", PolicyScope::WorkloadSelector)), 0, 0),
            ("a policy that goes", Change::PolicyGone("shop/p".into()), 1, 0),
            ("the workload itself", Change::Workload(shop.clone()), 1, 0),
            ("the workload at what was asked for", Change::Workload(elsewhere), 0, 1),
            ("a service", Change::Service(Service::new("far", "cart", "cart.example")), 0, 2),
            ("another workload", Change::Workload(workload("far", "other-0")), 0, 0),
        ];
        let mut builder = SnapshotBuilder::new();
        let mut since = builder.freeze().generation();
        for (what, change, of_shop, of_way) in rows {
            builder.apply(change);
            let snapshot = builder.freeze();
            let changed = snapshot.changed_since(since);
            let asked =
                [("shop", &shop), ("way", &way)].map(|(pod, workload)| asked(&table, pod, workload, &changed).len());
            assert_eq!(asked, [of_shop, of_way], "{what}");
            since = snapshot.generation();
        }
        assert_eq!(table.pods().len(), 2);
    }

    /// Whom a recheck of a pod asks about, by their peers' ports, in steps of two.
    fn asked(table: &Connections, pod: &str, workload: &Workload, changed: &Changed<'_>) -> Vec<u16> {
        let mut ports = Vec::new();
        for list in List::ALL {
            let mut below = Some(usize::MAX);
            while let Some(from) = below {
                let step = RefCell::new(Vec::new());
                below = table.recheck(&uid(pod), list, from, 2, workload, changed, |facts| {
                    step.borrow_mut().push(facts.peer.port());
                    Ok(())
                });
                assert!(step.borrow().len() <= 2, "a step is bounded");
                ports.extend(step.take());
            }
        }
        ports
    }

    #[test]
    fn a_recheck_in_steps_passes_nobody_by_whoever_ends_between_them() {
        let changed = Snapshot::empty();
        let changed = changed.changed_since(7);
        let workload = workload("a", "a-0");
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let table = Connections::default();
            let mut alive: Vec<(u16, Tracked)> = (0..random.u16(..20))
                .map(|port| {
                    let mut facts = tunnel("10.0.0.2:80").expect("one with facts");
                    facts.peer.set_port(port);
                    (port, table.track(uid("a"), Some(facts)))
                })
                .collect();
            let (mut below, seen) = (Some(usize::MAX), RefCell::new(Vec::new()));
            while let Some(from) = below {
                below = table.recheck(&uid("a"), List::Own, from, 3, &workload, &changed, |facts| {
                    seen.borrow_mut().push(facts.peer.port());
                    Ok(())
                });
                for _ in 0..random.usize(..4).min(alive.len()) {
                    drop(alive.swap_remove(random.usize(..alive.len())));
                }
            }
            let seen = seen.into_inner();
            let missed: Vec<_> = alive.iter().map(|(port, _)| port).filter(|port| !seen.contains(port)).collect();
            assert!(missed.is_empty(), "seed {seed}: {missed:?}");
        }
    }

    fn uid(name: &str) -> PodUid {
        PodUid::from(name)
    }

    #[test]
    fn stopping_a_pod_stops_its_connections_and_no_others() {
        let table = Connections::default();
        let (mine, other) = (table.track(uid("a"), None), table.track(uid("b"), None));
        table.stop_all(Some(&uid("a")), &Stop::PodGone);
        assert!(matches!(mine.stopped().now_or_never(), Some(Stop::PodGone)));
        assert!(other.stopped().now_or_never().is_none());
    }

    #[test]
    fn a_connection_leaves_the_table_when_it_ends_and_rings() {
        let table = Connections::default();
        let one = table.track(uid("a"), None);
        let seen = table.gone().count();
        assert_eq!(table.len(), 1);
        drop(one);
        assert_eq!(table.len(), 0);
        assert!(table.gone().after(seen).now_or_never().is_some());
    }

    #[test]
    fn a_recheck_stops_only_what_is_refused_now() {
        let table = Connections::default();
        let facts = |port| InboundFacts {
            peer: SocketAddr::from(([10, 0, 0, 1], 1)),
            local: IpAddr::from([10, 0, 0, 2]),
            identity: None,
            request: InboundRequest::Plaintext(SocketAddr::from(([10, 0, 0, 2], port))),
        };
        let (kept, refused) = (table.track(uid("a"), Some(facts(80))), table.track(uid("a"), Some(facts(81))));
        let changed = Snapshot::empty();
        let changed = changed.changed_since(7);
        // Too long ago to tell what changed, so all are asked about.
        let on =
            table.recheck(&uid("a"), List::Own, usize::MAX, 8, &workload("a", "a-0"), &changed, |facts| {
                match facts.request {
                    InboundRequest::Plaintext(target) if target.port() == 81 => Err(Refusal::RecursiveCall { target }),
                    _ => Ok(()),
                }
            });
        assert_eq!(on, None);
        assert!(kept.stopped().now_or_never().is_none());
        assert!(matches!(refused.stopped().now_or_never(), Some(Stop::Policy(_))));
    }
}
