//! The connections alive on this core: who they are, how to stop them, and which of them a new policy still allows.
//!
//! An entry is made before the verdict on its connection is asked for, so that a policy that changes in between finds
//! it here. The table knows facts and stops; it does no I/O.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use inpod::pod::PodUid;
use mesh_state::{
    admit::{self, Refusal},
    identity::Identity,
    name::Authority,
    workload::Workload,
};
use slab::Slab;

use crate::bell::Bell;

/// Why a live connection was stopped from outside.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Stop {
    /// A policy change no longer allows it.
    #[error("connection closed due to policy change: {0}")]
    Policy(Rc<Refusal>),
    /// The time to drain was over.
    #[error("connection closed due to connection drain")]
    Drained,
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

impl InboundFacts {
    /// The question to ask of a snapshot for the local `workload`.
    pub(crate) fn query<'a>(&'a self, workload: &'a Workload, proxy_ports: &'a [u16]) -> admit::Query<'a> {
        admit::Query {
            workload,
            peer: self.peer,
            identity: self.identity.as_ref(),
            local: self.local,
            request: match &self.request {
                InboundRequest::Tunnel(authority) => admit::Request::Tunnel(authority),
                InboundRequest::Plaintext(target) => admit::Request::Plaintext(*target),
            },
            proxy_ports,
        }
    }
}

/// The table of one core.
#[derive(Clone, Default)]
pub(crate) struct Connections(Rc<Table>);

#[derive(Default)]
struct Table {
    entries: RefCell<Slab<Entry>>,
    /// Rings whenever an entry goes: a drain waits for the table to be empty.
    gone: Bell,
}

struct Entry {
    pod: PodUid,
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
}

impl Connections {
    /// Enters a connection of `pod`.
    pub(crate) fn track(&self, pod: PodUid, inbound: Option<InboundFacts>) -> Tracked {
        let stop = Rc::new(StopCell::default());
        let slot = self.0.entries.borrow_mut().insert(Entry { pod, inbound, stop: stop.clone() });
        Tracked { table: self.clone(), slot, stop }
    }

    /// How many are alive.
    pub(crate) fn len(&self) -> usize {
        self.0.entries.borrow().len()
    }

    /// Rings whenever one is gone.
    pub(crate) fn gone(&self) -> &Bell {
        &self.0.gone
    }

    /// Stops every connection of `pod`, or of all pods.
    pub(crate) fn stop_all(&self, pod: Option<&PodUid>, why: &Stop) {
        for (_, entry) in &*self.0.entries.borrow() {
            if pod.is_none_or(|pod| *pod == entry.pod) {
                entry.stop(why.clone());
            }
        }
    }

    /// The slots taken now, for a recheck in slices: a connection that comes later was admitted by the new snapshot.
    pub(crate) fn slots(&self) -> Vec<usize> {
        self.0.entries.borrow().iter().map(|(slot, _)| slot).collect()
    }

    /// Asks again about the connection in `slot`, if one is there and it has a verdict, and stops it when refused.
    pub(crate) fn recheck(&self, slot: usize, ask: impl FnOnce(&PodUid, &InboundFacts) -> Result<(), Refusal>) {
        if let Some(entry) = self.0.entries.borrow().get(slot)
            && let Some(facts) = &entry.inbound
            && let Err(refusal) = ask(&entry.pod, facts)
        {
            entry.stop(Stop::Policy(Rc::new(refusal)));
        }
    }
}

impl Entry {
    fn stop(&self, why: Stop) {
        self.stop.why.set(Some(why));
        self.stop.bell.ring();
    }
}

impl Tracked {
    /// Resolves when somebody stops this connection.
    pub(crate) async fn stopped(&self) -> Stop {
        loop {
            let seen = self.stop.bell.count();
            if let Some(why) = self.stop.why.take() {
                self.stop.why.set(Some(why.clone()));
                return why;
            }
            self.stop.bell.after(seen).await;
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

    use super::*;

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
        for slot in table.slots() {
            table.recheck(slot, |_, facts| match facts.request {
                InboundRequest::Plaintext(target) if target.port() == 81 => Err(Refusal::RecursiveCall { target }),
                _ => Ok(()),
            });
        }
        assert!(kept.stopped().now_or_never().is_none());
        assert!(matches!(refused.stopped().now_or_never(), Some(Stop::Policy(_))));
    }
}
