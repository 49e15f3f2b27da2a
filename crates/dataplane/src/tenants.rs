//! Names the tenants of this core: the reactor schedules opaque keys, the data plane knows who they are.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use inpod::pod::PodInfo;
use reactor::TenantKey;

use crate::config::TenantBy;

/// Tenant names and their keys. Keys are never reused while the process lives: an account outlives its pods, so that
/// a tenant that returns is charged where it was. Worst case: one name (~100 bytes) per tenant the node ever saw.
#[derive(Clone, Default)]
pub(crate) struct Tenants(Rc<RefCell<HashMap<Box<str>, TenantKey>>>);

impl Tenants {
    /// The key of the tenant that a pod belongs to.
    pub(crate) fn key(&self, by: TenantBy, pod: &PodInfo) -> TenantKey {
        let mut keys = self.0.borrow_mut();
        let next = u32::try_from(keys.len() + 1).expect("fewer than four billion tenants on a node");
        *keys.entry(name(by, pod).into_boxed_str()).or_insert(TenantKey(next))
    }
}

/// What the tenant of a pod is called.
pub(crate) fn name(by: TenantBy, pod: &PodInfo) -> String {
    match by {
        TenantBy::Namespace => pod.namespace.to_string(),
        TenantBy::ServiceAccount => format!("{}/{}", pod.namespace, pod.service_account),
        TenantBy::Pod => format!("{}/{}/{}", pod.namespace, pod.service_account, pod.name),
    }
}
