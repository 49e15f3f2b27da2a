//! The parts of the mesh that connections of this core wait for, where the control plane sends only what it is asked for.
//! Each is asked for once, however many wait for it, and of one tenant only so many at a time: who asks for a whole network
//! waits behind itself. Knows who waits; what is sent, and when it has come, is the core's.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use mesh_state::wanted::Sought;
use reactor::TenantKey;

use crate::bell::Bell;

/// Parts that one tenant may have asked for on one core and have no answer to. One beyond waits for its turn, and its
/// connection's deadline stands. Worst case about 200 bytes each: 13 KiB per tenant.
pub(crate) const ASKED_PER_TENANT_MAX: usize = 64;

/// What is asked for. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Asking(Rc<Inner>);

#[derive(Default)]
struct Inner {
    parts: RefCell<HashMap<Sought, Part>>,
    /// How many of them each tenant was the first to ask for.
    by_tenant: RefCell<HashMap<TenantKey, usize>>,
    /// Rings whenever one is not waited for any more.
    left: Bell,
}

struct Part {
    first: TenantKey,
    waiting: usize,
    sent: Rc<Cell<bool>>,
}

impl Asking {
    /// A place among those who wait for a part; waits for the tenant's turn first.
    pub(crate) async fn join(&self, tenant: TenantKey, sought: &Sought) -> Waiting {
        loop {
            let seen = self.0.left.count();
            if let Some(waiting) = self.try_join(tenant, sought) {
                return waiting;
            }
            self.0.left.after(seen).await;
        }
    }

    fn try_join(&self, tenant: TenantKey, sought: &Sought) -> Option<Waiting> {
        let mut parts = self.0.parts.borrow_mut();
        let waiting =
            |sent: &Rc<Cell<bool>>| Waiting { asking: self.clone(), sought: sought.clone(), sent: sent.clone() };
        if let Some(part) = parts.get_mut(sought) {
            part.waiting += 1;
            return Some(waiting(&part.sent));
        }
        let mut by_tenant = self.0.by_tenant.borrow_mut();
        let asked = by_tenant.entry(tenant).or_default();
        if *asked >= ASKED_PER_TENANT_MAX {
            return None;
        }
        *asked += 1;
        let sent = Rc::default();
        let place = waiting(&sent);
        parts.insert(sought.clone(), Part { first: tenant, waiting: 1, sent });
        Some(place)
    }
}

/// A place among those who wait for a part; dropping it gives it up.
pub(crate) struct Waiting {
    asking: Asking,
    sought: Sought,
    sent: Rc<Cell<bool>>,
}

impl Waiting {
    /// What is waited for.
    pub(crate) fn sought(&self) -> &Sought {
        &self.sought
    }

    /// Whether it has been asked for, by whoever waits for it.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent.get()
    }

    /// It has been.
    pub(crate) fn sent(&self) {
        self.sent.set(true);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let inner = &self.asking.0;
        let mut parts = inner.parts.borrow_mut();
        let part = parts.get_mut(&self.sought).expect("there as long as somebody waits for it");
        part.waiting -= 1;
        if part.waiting > 0 {
            return;
        }
        let first = part.first;
        parts.remove(&self.sought);
        let mut by_tenant = inner.by_tenant.borrow_mut();
        let asked = by_tenant.get_mut(&first).expect("counted with the first to ask");
        *asked -= 1;
        if *asked == 0 {
            by_tenant.remove(&first);
        }
        drop((parts, by_tenant));
        inner.left.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use futures_util::FutureExt;
    use mesh_state::name::NetworkId;

    use super::*;

    const ONE: TenantKey = TenantKey(1);
    const OTHER: TenantKey = TenantKey(2);

    fn at(number: usize) -> Sought {
        let address = IpAddr::V4(Ipv4Addr::from(u32::try_from(number).expect("few")));
        Sought::Address { network: NetworkId::from(""), address }
    }

    #[test]
    fn a_part_is_asked_for_once_and_again_when_nobody_waits_for_it_any_more() {
        let asking = Asking::default();
        let first = asking.join(ONE, &at(1)).now_or_never().expect("there is room");
        assert!(!first.is_sent());
        first.sent();
        let second = asking.join(OTHER, &at(1)).now_or_never().expect("there is room");
        assert!(second.is_sent(), "by the first");
        drop(first);
        assert!(second.is_sent());
        drop(second);
        assert!(!asking.join(OTHER, &at(1)).now_or_never().expect("there is room").is_sent());
        assert!(asking.0.parts.borrow().is_empty() && asking.0.by_tenant.borrow().is_empty(), "nothing is left");
    }

    #[test]
    fn a_tenant_that_asks_for_everything_waits_behind_itself_and_keeps_nobody_waiting() {
        let asking = Asking::default();
        let join = |tenant, number| asking.join(tenant, &at(number)).now_or_never();
        let mut asked: Vec<Waiting> = (0..ASKED_PER_TENANT_MAX).map_while(|number| join(ONE, number)).collect();
        assert_eq!(asked.len(), ASKED_PER_TENANT_MAX);
        assert!(join(ONE, 1000).is_none());
        assert!(join(ONE, 0).is_some(), "what is asked for already");
        assert!(join(OTHER, 1000).is_some());
        let last = at(1000);
        let mut next = Box::pin(asking.join(ONE, &last));
        assert!((&mut next).now_or_never().is_none());
        asked.pop();
        assert!(next.now_or_never().is_some());
    }
}
