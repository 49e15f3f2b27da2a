//! Who asks: this proxy as the control plane knows it.

use std::collections::BTreeMap;

use crate::proto::{
    discovery::Node,
    well_known::{Struct, Value},
};

/// This proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Its pod's address; istiod wants one that it can read and looks no further.
    pub address: String,
    /// Its pod.
    pub pod: String,
    /// Its pod's namespace, which must be the token's.
    pub namespace: String,
    /// Its node. The control plane sends what runs there without being asked.
    pub node: String,
    /// What else there is to say.
    pub metadata: BTreeMap<String, Value>,
}

impl Proxy {
    /// As the first request of a stream says it.
    pub(crate) fn node(&self) -> Node {
        let Self { address, pod, namespace, node, metadata } = self;
        let own = [("NAME", pod), ("NAMESPACE", namespace), ("INSTANCE_IPS", address), ("NODE_NAME", node)];
        let own = own.map(|(name, value)| (name.to_owned(), Value::text(value)));
        let fields =
            own.into_iter().chain(metadata.iter().map(|(name, value)| (name.clone(), value.clone()))).collect();
        let id = format!("ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local");
        Node { id, metadata: Some(Struct { fields }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_by_four_parts_and_what_it_says_of_itself() {
        let proxy = Proxy {
            address: "10.0.0.9".into(),
            pod: "zt-1".into(),
            namespace: "istio-system".into(),
            node: "node-a".into(),
            metadata: [("CLUSTER_ID".to_owned(), Value::text("west"))].into(),
        };
        let node = proxy.node();
        assert_eq!(node.id, "ztunnel~10.0.0.9~zt-1.istio-system~istio-system.svc.cluster.local");
        let expected = [
            ("NAME", "zt-1"),
            ("NAMESPACE", "istio-system"),
            ("INSTANCE_IPS", "10.0.0.9"),
            ("NODE_NAME", "node-a"),
            ("CLUSTER_ID", "west"),
        ];
        assert_eq!(node.metadata, Some(Struct::of_texts(expected)));
    }
}
