//! A mesh as a control plane sends it: encoded responses of many workloads and services with names as long as real ones, in
//! revisions that differ in every resource. Made once and sent many times.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bytes::Bytes;
use control::proto::discovery::{DeltaDiscoveryResponse, Resource};
use control::proto::workload::{Locality, NetworkAddress, Port, PortList, Service, Workload};
use control::xds::Kind;
use prost::Message;
use testbed::xds_server;

const TEAMS: [&str; 8] =
    ["payments", "checkout", "catalogue", "identity", "logistics", "reporting", "search", "notifications"];
const PODS_PER_NODE: u32 = 30;
const SERVICES_PER_NAMESPACE: u32 = 33;
/// 66 services for a thousand workloads.
const WORKLOADS_PER_SERVICE: u32 = 15;
/// Resources of one response: about 110 MB, so that a million come in four.
const RESOURCES_PER_RESPONSE: u32 = 250_000;

/// A mesh of so many workloads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) workloads: u32,
}

impl World {
    fn services(self) -> u32 {
        self.workloads.div_ceil(WORKLOADS_PER_SERVICE)
    }

    /// All of it, as responses.
    pub(crate) fn encoded(self, revision: u32) -> Vec<Bytes> {
        let resources = (0..self.services())
            .map(|number| self.service(number, revision))
            .chain((0..self.workloads).map(|number| self.workload(number, revision)));
        let (mut responses, mut buffer, mut count) = (Vec::new(), Vec::new(), 0);
        for resource in resources {
            // Messages behind each other are one message, whose lists are appended: nothing is held but the bytes.
            append(&mut buffer, DeltaDiscoveryResponse { resources: vec![resource], ..Default::default() });
            count += 1;
            if count % RESOURCES_PER_RESPONSE == 0 {
                responses.push(finished(std::mem::take(&mut buffer), responses.len()));
            }
        }
        if !buffer.is_empty() {
            responses.push(finished(buffer, responses.len()));
        }
        responses
    }

    /// A workload; another revision of it has another address and version.
    pub(crate) fn workload(self, number: u32, revision: u32) -> Resource {
        let service = number % self.services();
        let (namespace, app) = (namespace(service), app(service));
        let name = format!(
            "{app}-{}-{}",
            letters(u64::from(service) * 7919, 10),
            letters(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15), 5)
        );
        let node = number / PODS_PER_NODE;
        // 11.0.0.0 and up, and for the odd revisions 12.0.0.0 and up, both beyond the testbed's pods.
        let address = Ipv4Addr::from(0x0b00_0001 + number + (revision % 2) * 0x0100_0000);
        let locality = Locality {
            region: "eu-west-1".into(),
            zone: format!("eu-west-1{}", ["a", "b", "c"][node as usize % 3]),
            ..Locality::default()
        };
        let workload = Workload {
            uid: format!("Kubernetes//Pod/{namespace}/{name}"),
            name,
            addresses: vec![address.octets().to_vec().into()],
            tunnel_protocol: 1,
            trust_domain: "cluster.local".into(),
            service_account: app.clone(),
            node: self::node(node),
            canonical_name: app.clone(),
            canonical_revision: "latest".into(),
            workload_name: app,
            cluster_id: "Kubernetes".into(),
            services: HashMap::from([(service_key(service), ports())]),
            locality: Some(locality),
            namespace,
            ..Workload::default()
        };
        xds_server::workload(&version(number, revision), workload)
    }

    fn service(self, number: u32, revision: u32) -> Resource {
        let (namespace, name) = (namespace(number), app(number));
        let address = Ipv4Addr::from(0xac10_0001 + number);
        let service = Service {
            hostname: format!("{name}.{namespace}.svc.cluster.local"),
            addresses: vec![NetworkAddress { address: address.octets().to_vec().into(), ..Default::default() }],
            ports: ports().ports,
            name,
            namespace,
            ..Service::default()
        };
        xds_server::service(&version(number, revision), service)
    }
}

/// A response of these resources alone.
pub(crate) fn response(resources: Vec<Resource>, nonce: u64) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        type_url: Kind::Address.type_url().into(),
        nonce: format!("change-{nonce}"),
        ..Default::default()
    }
}

fn append(buffer: &mut Vec<u8>, part: DeltaDiscoveryResponse) {
    part.encode(buffer).expect("a vector takes everything");
}

fn finished(mut buffer: Vec<u8>, number: usize) -> Bytes {
    let (type_url, nonce) = (Kind::Address.type_url().into(), format!("recorded-{number}"));
    append(&mut buffer, DeltaDiscoveryResponse { type_url, nonce, ..Default::default() });
    buffer.into()
}

fn ports() -> PortList {
    let port = |service, target| Port { service_port: service, target_port: target };
    PortList { ports: vec![port(80, 8080), port(9090, 9090)] }
}

/// As long as istiod's, a hash of the content.
fn version(number: u32, revision: u32) -> String {
    (u64::from(number) << 32 | u64::from(revision)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string()
}

fn service_key(number: u32) -> String {
    let (namespace, name) = (namespace(number), app(number));
    format!("{namespace}/{name}.{namespace}.svc.cluster.local")
}

fn namespace(service: u32) -> String {
    let number = service / SERVICES_PER_NAMESPACE;
    format!("{}-prod-{number:04}", TEAMS[number as usize % TEAMS.len()])
}

fn app(service: u32) -> String {
    format!("{}-api-{service:05}", TEAMS[service as usize % TEAMS.len()])
}

fn node(number: u32) -> String {
    let [_, b, c, d] = (0x0a00_0000 + number * 7).to_be_bytes();
    format!("ip-10-{b}-{c}-{d}.eu-west-1.compute.internal")
}

/// Letters as Kubernetes puts behind names.
fn letters(mut from: u64, count: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(char::from(LETTERS[(from % LETTERS.len() as u64) as usize]));
        from = (from / LETTERS.len() as u64) ^ from.rotate_left(29);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_world_is_whole_however_it_is_divided_and_revisions_differ_in_every_resource() {
        let world = World { workloads: 3_000 };
        let [one, other] = [0, 1].map(|revision| {
            let responses = world.encoded(revision);
            let decoded = responses.into_iter().map(|bytes| DeltaDiscoveryResponse::decode(bytes).expect("ours"));
            decoded.flat_map(|response| response.resources).collect::<Vec<_>>()
        });
        let names: BTreeSet<&str> = one.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!((one.len(), names.len()), (3_200, 3_200));
        for (one, other) in one.iter().zip(&other) {
            assert_eq!(one.name, other.name);
            assert_ne!(one.version, other.version, "{}", one.name);
        }
    }
}
