//! What the mesh of a test contains, and the YAML file (behaviour.md §14) that tells it to a daemon. Writes; never
//! reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use control::proto::discovery::Resource;
use control::proto::workload::{NetworkAddress, Port, PortList, Service, Workload};

use crate::xds_server;

/// The trust domain of every test mesh.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// Workloads, services and policies of a test mesh.
#[derive(Clone, Debug, Default)]
pub struct MeshModel {
    /// By name: a test's pods have unique ones.
    pub workloads: BTreeMap<String, WorkloadEntry>,
    /// By hostname.
    pub services: BTreeMap<String, ServiceEntry>,
    /// By `namespace/name`.
    pub policies: BTreeMap<String, PolicyEntry>,
}

/// One workload.
#[derive(Clone, Debug)]
pub struct WorkloadEntry {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Its only address.
    pub address: IpAddr,
    /// Whether peers reach it by HBONE.
    pub captured: bool,
    /// The node it runs on; none for one that no daemon looks after.
    pub node: Option<String>,
    /// Service hostname (`namespace/hostname`) to service port to this workload's port.
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
    /// Policies by `namespace/name` that select it.
    pub policies: Vec<String>,
}

/// One service.
#[derive(Clone, Debug)]
pub struct ServiceEntry {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Virtual address.
    pub vip: IpAddr,
    /// Service port to target port.
    pub ports: BTreeMap<u16, u16>,
}

/// One policy.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `Global`, `Namespace` or `WorkloadSelector`.
    pub scope: &'static str,
    /// `Allow` or `Deny`.
    pub action: &'static str,
    /// Rules of clauses of matches, as one line of YAML: `[[[{principals: [..]}]]]`.
    pub rules: String,
}

impl ServiceEntry {
    /// Its hostname.
    #[must_use]
    pub fn hostname(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    /// How a workload names it: `namespace/hostname`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname())
    }
}

impl PolicyEntry {
    /// How a workload and a log line name it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// A rule's text that matches any of `principals` (without `spiffe://`).
    #[must_use]
    pub fn from_principals(principals: &[&str]) -> String {
        let exact: Vec<String> =
            principals.iter().map(|principal| format!("{{Exact: {}}}", quoted(principal))).collect();
        format!("[[[{{principals: [{}]}}]]]", exact.join(", "))
    }
}

impl MeshModel {
    /// The file's text.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a String never fails");
        text
    }

    /// Writes the file so that a reader sees the old text or the new, never half of either.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        replace(path, &self.to_yaml())
    }

    /// The same as a control plane's workloads and services.
    ///
    /// # Errors
    /// When there is a policy: its rules are YAML here; give it to the control plane itself.
    pub fn to_resources(&self) -> Result<Vec<Resource>> {
        ensure!(self.policies.is_empty(), "policies of a mesh with a control plane are given to its discovery");
        let octets = |address: IpAddr| match address {
            IpAddr::V4(four) => four.octets().to_vec().into(),
            IpAddr::V6(sixteen) => sixteen.octets().to_vec().into(),
        };
        let ports = |map: &BTreeMap<u16, u16>| -> Vec<Port> {
            map.iter()
                .map(|(port, target)| Port { service_port: (*port).into(), target_port: (*target).into() })
                .collect()
        };
        let services = self.services.values().map(|service| {
            let address = NetworkAddress { address: octets(service.vip), ..NetworkAddress::default() };
            xds_server::hashed(xds_server::service(
                "",
                Service {
                    name: service.name.clone(),
                    namespace: service.namespace.clone(),
                    hostname: service.hostname(),
                    addresses: vec![address],
                    ports: ports(&service.ports),
                    ..Service::default()
                },
            ))
        });
        let workloads = self.workloads.iter().map(|(name, workload)| {
            let served = workload.services.iter().map(|(key, map)| (key.clone(), PortList { ports: ports(map) }));
            xds_server::hashed(xds_server::workload(
                "",
                Workload {
                    uid: format!("cluster1//v1/Pod/{}/{name}", workload.namespace),
                    name: name.clone(),
                    namespace: workload.namespace.clone(),
                    trust_domain: TRUST_DOMAIN.to_owned(),
                    service_account: workload.service_account.clone(),
                    addresses: vec![octets(workload.address)],
                    tunnel_protocol: i32::from(workload.captured),
                    node: workload.node.clone().unwrap_or_default(),
                    workload_name: name.clone(),
                    canonical_name: workload.service_account.clone(),
                    canonical_revision: "v1".to_owned(),
                    authorization_policies: workload.policies.clone(),
                    services: served.collect(),
                    ..Workload::default()
                },
            ))
        });
        Ok(services.chain(workloads).collect())
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        section(out, "services", self.services.is_empty());
        for service in self.services.values() {
            writeln!(out, "- name: {}", quoted(&service.name))?;
            writeln!(out, "  namespace: {}", quoted(&service.namespace))?;
            writeln!(out, "  hostname: {}", quoted(&service.hostname()))?;
            writeln!(out, "  vips: [{}]", quoted(&format!("/{}", service.vip)))?;
            writeln!(out, "  ports: {}", port_map(&service.ports))?;
        }
        section(out, "workloads", self.workloads.is_empty());
        for (name, workload) in &self.workloads {
            writeln!(out, "- uid: {}", quoted(&format!("cluster1//v1/Pod/{}/{name}", workload.namespace)))?;
            writeln!(out, "  name: {}", quoted(name))?;
            writeln!(out, "  namespace: {}", quoted(&workload.namespace))?;
            writeln!(out, "  trustDomain: {TRUST_DOMAIN}")?;
            writeln!(out, "  serviceAccount: {}", quoted(&workload.service_account))?;
            writeln!(out, "  workloadIps: [{}]", quoted(&workload.address.to_string()))?;
            writeln!(out, "  protocol: {}", if workload.captured { "HBONE" } else { "TCP" })?;
            if let Some(node) = &workload.node {
                writeln!(out, "  node: {}", quoted(node))?;
            }
            writeln!(out, "  clusterId: Kubernetes")?;
            writeln!(out, "  workloadName: {}", quoted(name))?;
            writeln!(out, "  canonicalName: {}", quoted(&workload.service_account))?;
            writeln!(out, "  canonicalRevision: v1")?;
            let endpoints: Vec<String> =
                workload.services.iter().map(|(key, ports)| format!("{}: {}", quoted(key), port_map(ports))).collect();
            writeln!(out, "  services: {{{}}}", endpoints.join(", "))?;
            if !workload.policies.is_empty() {
                let names: Vec<String> = workload.policies.iter().map(|name| quoted(name)).collect();
                writeln!(out, "  authorizationPolicies: [{}]", names.join(", "))?;
            }
        }
        section(out, "policies", self.policies.is_empty());
        for policy in self.policies.values() {
            writeln!(out, "- name: {}", quoted(&policy.name))?;
            writeln!(out, "  namespace: {}", quoted(&policy.namespace))?;
            writeln!(out, "  scope: {}", policy.scope)?;
            writeln!(out, "  action: {}", policy.action)?;
            writeln!(out, "  dryRun: false")?;
            writeln!(out, "  rules: {}", policy.rules)?;
        }
        Ok(())
    }
}

/// Puts `text` in the place of `path` in one step, as an editor or a ConfigMap update does.
///
/// # Errors
/// When the directory can't be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("rename to {}", path.display()))
}

fn section(out: &mut String, name: &str, empty: bool) {
    out.push_str(name);
    out.push_str(if empty { ": []\n" } else { ":\n" });
}

/// A YAML double-quoted scalar: JSON's escapes are a part of YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn port_map(ports: &BTreeMap<u16, u16>) -> String {
    let pairs: Vec<String> = ports.iter().map(|(port, target)| format!("{port}: {target}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_as_the_schema_says() {
        let mut model = MeshModel::default();
        let service = ServiceEntry {
            name: "shop".into(),
            namespace: "retail".into(),
            vip: [10, 96, 0, 7].into(),
            ports: [(80, 8080)].into(),
        };
        model.workloads.insert(
            "shop-0".into(),
            WorkloadEntry {
                namespace: "retail".into(),
                service_account: "shop".into(),
                address: [10, 244, 1, 2].into(),
                captured: true,
                node: Some("node-a".into()),
                services: [(service.key(), [(80, 8080)].into())].into(),
                policies: vec!["retail/only-web".into()],
            },
        );
        model.services.insert(service.hostname(), service);
        let yaml = model.to_yaml();
        for line in [
            "  vips: [\"/10.96.0.7\"]\n",
            "  ports: {80: 8080}\n",
            "  protocol: HBONE\n",
            "  services: {\"retail/shop.retail.svc.cluster.local\": {80: 8080}}\n",
            "  authorizationPolicies: [\"retail/only-web\"]\n",
            "policies: []\n",
        ] {
            assert!(yaml.contains(line), "{line:?} is not in:\n{yaml}");
        }
    }
}
