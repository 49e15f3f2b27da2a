//! A pod that the mesh does not know yet, as the CNI agent describes it: who it is, and how far that will do to serve it.
//! Decision 0017.

use std::sync::Arc;

use inpod::pod::PodInfo;
use mesh_state::{
    identity::Identity,
    name::Uid,
    snapshot::Snapshot,
    workload::{Place, TunnelProtocol, Workload},
};

use crate::{
    config::{Config, NewPods},
    record::Direction,
};

/// A pod as the CNI agent describes it.
pub(crate) struct Newcomer {
    workload: Arc<Workload>,
    /// The generation of the mesh that its capture rests on; one before may lack policies.
    since: u64,
}

impl Newcomer {
    /// `None` where such pods wait for their workload, and of one whose names make no identity.
    pub(crate) fn of(info: &PodInfo, config: &Config, since: u64) -> Option<Self> {
        let NewPods::Serve { trust_domain } = &config.new_pods else { return None };
        let PodInfo { name, namespace, service_account } = info;
        let identity = Identity::new(trust_domain, namespace, service_account).ok()?;
        let uid = Uid::from(format!("zds//Pod/{namespace}/{name}").as_str());
        let mut workload = Workload::new(uid, namespace, name, identity);
        workload.protocol = TunnelProtocol::Hbone;
        workload.network = config.network.clone();
        let node = config.node.as_deref().unwrap_or_default().into();
        workload.place = Arc::new(Place { node, locality: workload.place.locality.clone() });
        Some(Self { workload: Arc::new(workload), since })
    }

    /// The workload that stands in for it, as far as policy permits. Out of the pod, policy is the other end's matter. Into the
    /// pod, all policies are known but which of the selective ones are for it: so only while there is none.
    pub(crate) fn workload(&self, snapshot: &Snapshot, direction: Direction) -> Option<&Arc<Workload>> {
        let is_known = snapshot.generation() >= self.since;
        let is_permitted = match direction {
            Direction::Outbound => true,
            Direction::Inbound => !snapshot.has_selective_policies(),
        };
        (is_known && is_permitted).then_some(&self.workload)
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::{
        builder::SnapshotBuilder,
        change::Change,
        policy::{Action, Policy, PolicyScope},
    };

    use super::*;

    fn policy(key: &str, scope: PolicyScope) -> Change {
        let namespace = "shop".into();
        Change::Policy(Policy {
            key: key.into(),
            namespace,
            scope,
            action: Action::Deny,
            rules: vec![],
            dry_run: false,
        })
    }

    #[test]
    fn a_new_pod_stands_for_itself_outbound_and_inbound_while_no_policy_selects() {
        let info = PodInfo { name: "web-0".into(), namespace: "shop".into(), service_account: "web".into() };
        assert!(Newcomer::of(&info, &Config::default(), 0).is_none(), "by default it waits");
        let new_pods = NewPods::Serve { trust_domain: "cluster.local".into() };
        let config = Config { new_pods, node: Some("node-a".into()), ..Config::default() };
        let newcomer = Newcomer::of(&info, &config, 2).expect("its names make an identity");
        let mut builder = SnapshotBuilder::new();
        let served = |snapshot: &Snapshot| {
            [Direction::Outbound, Direction::Inbound].map(|direction| newcomer.workload(snapshot, direction).is_some())
        };
        assert_eq!(served(&builder.freeze()), [false, false], "older than its capture");
        builder.apply(policy("shop/all", PolicyScope::Namespace));
        let snapshot = builder.freeze();
        assert_eq!(served(&snapshot), [true, true]);
        let workload = newcomer.workload(&snapshot, Direction::Outbound).expect("served");
        assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!((workload.name(), &*workload.place.node), ("web-0", "node-a"));
        builder.apply(policy("shop/some", PolicyScope::WorkloadSelector));
        assert_eq!(served(&builder.freeze()), [true, false]);
        builder.apply(policy("shop/some", PolicyScope::Namespace));
        assert_eq!(served(&builder.freeze()), [true, true]);
        builder.apply(policy("shop/some", PolicyScope::WorkloadSelector));
        builder.apply(Change::PolicyGone("shop/some".into()));
        assert_eq!(served(&builder.freeze()), [true, true]);
    }
}
