//! From the file's entries to the mesh's: defaults, names put together, and what no single value can say wrong.

use std::collections::{BTreeMap, btree_map::Entry};

use mesh_state::{
    identity::Identity,
    name::{NamespacedHostname, NetworkId, PolicyKey, Uid},
    policy::{self, Clause, Policy, Rule, ServiceAccountMatch},
    service::{self, LoadBalancing, PortMapping, Service, Vip, WeightedWaypoint},
    workload::{self, GatewayAddress, GatewayDestination, TunnelProtocol, Workload},
};
use serde_saphyr::{Location, Spanned};

use crate::file_source::{Content, Defaults, schema::*};

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) at: Location,
    pub(super) field: String,
    pub(super) cause: String,
}

impl Problem {
    fn at<T>(value: &Spanned<T>, field: String, cause: impl Into<String>) -> Self {
        Self { at: value.referenced, field, cause: cause.into() }
    }
}

/// Everything the file says, or the first thing that is wrong with it.
pub(super) fn content(file: File, defaults: &Defaults) -> Result<Content, Problem> {
    let mut content = Content::default();
    let mut owners = BTreeMap::new();
    for (index, entry) in file.workloads.into_iter().enumerate() {
        let path = format!("workloads[{index}]");
        let place = entry.uid.as_ref().or(entry.name.as_ref()).unwrap_or(&entry.namespace).clone();
        let workload = workload(entry, &path, defaults)?;
        // Routing could only guess which of the two is meant.
        if workload.network_mode == workload::NetworkMode::Standard {
            for address in &workload.addresses {
                if let Some(owner) = owners.insert((workload.network.clone(), *address), workload.uid.clone())
                    && owner != workload.uid
                {
                    let cause = format!("{address} is the address of {owner} already, in the same network");
                    return Err(Problem::at(&place, format!("{path}.workloadIps"), cause));
                }
            }
        }
        let cause = || format!("{} is the uid of another workload above", workload.uid);
        match content.workloads.entry(workload.uid.clone()) {
            Entry::Occupied(_) => return Err(Problem::at(&place, format!("{path}.uid"), cause())),
            Entry::Vacant(entry) => drop(entry.insert(workload)),
        }
    }
    for (index, entry) in file.services.into_iter().enumerate() {
        let place = entry.hostname.clone();
        let path = format!("services[{index}]");
        let service = service(entry, &path, defaults)?;
        let cause = format!("{} is another service's above", service.key());
        match content.services.entry(service.key()) {
            Entry::Occupied(_) => return Err(Problem::at(&place, format!("{path}.hostname"), cause)),
            Entry::Vacant(entry) => drop(entry.insert(service)),
        }
    }
    for (index, entry) in file.policies.into_iter().enumerate() {
        let place = entry.name.clone();
        let path = format!("policies[{index}]");
        let policy = policy(entry, &path)?;
        let cause = format!("{} is another policy's above", policy.key);
        match content.policies.entry(policy.key.clone()) {
            Entry::Occupied(_) => return Err(Problem::at(&place, format!("{path}.name"), cause)),
            Entry::Vacant(entry) => drop(entry.insert(policy)),
        }
    }
    Ok(content)
}

fn workload(entry: WorkloadEntry, path: &str, defaults: &Defaults) -> Result<Workload, Problem> {
    let identity = identity(&entry, path, defaults)?;
    let name = entry.name.as_ref().map_or("", |name| &name.value);
    let uid = match &entry.uid {
        Some(uid) if uid.value.is_empty() => {
            return Err(Problem::at(uid, format!("{path}.uid"), "is empty: workloads are told apart by it"));
        }
        Some(uid) => Uid::from(uid.value.as_str()),
        None if name.is_empty() => {
            let cause = "is missing, and so is the name that it could be made of";
            return Err(Problem::at(&entry.namespace, format!("{path}.uid"), cause));
        }
        None => Uid::from(format!("{}//Pod/{}/{name}", defaults.cluster, entry.namespace.value).as_str()),
    };
    let made = Workload::new(uid, &entry.namespace.value, name, identity);
    Ok(Workload {
        addresses: entry.workload_ips,
        network: network(&entry.network, defaults),
        protocol: match entry.protocol {
            Protocol::Tcp => TunnelProtocol::None,
            Protocol::Hbone => TunnelProtocol::Hbone,
        },
        network_mode: match entry.network_mode {
            NetworkMode::Standard => workload::NetworkMode::Standard,
            NetworkMode::HostNetwork => workload::NetworkMode::HostNetwork,
        },
        status: match entry.status {
            Status::Healthy => workload::Status::Healthy,
            Status::Unhealthy => workload::Status::Unhealthy,
        },
        waypoint: entry.waypoint.map(|gateway| gateway_address(gateway, defaults)),
        network_gateway: entry.network_gateway.map(|gateway| gateway_address(gateway, defaults)),
        node: entry.node.into(),
        canonical_name: entry.canonical_name.into(),
        canonical_revision: entry.canonical_revision.into(),
        workload_type: match entry.workload_type {
            WorkloadType::Deployment => workload::WorkloadType::Deployment,
            WorkloadType::CronJob => workload::WorkloadType::CronJob,
            WorkloadType::Pod => workload::WorkloadType::Pod,
            WorkloadType::Job => workload::WorkloadType::Job,
        },
        workload_name: entry.workload_name.into(),
        native_tunnel: entry.native_tunnel,
        cluster_id: entry.cluster_id.as_deref().unwrap_or(&defaults.cluster).into(),
        locality: workload::Locality {
            region: entry.locality.region.into(),
            zone: entry.locality.zone.into(),
            subzone: entry.locality.subzone.into(),
        },
        hostname: entry.hostname.into(),
        application_tunnel: entry.application_tunnel.map(|tunnel| workload::ApplicationTunnel {
            protocol: match tunnel.protocol {
                ApplicationProtocol::None => workload::ApplicationProtocol::None,
                ApplicationProtocol::Proxy => workload::ApplicationProtocol::Proxy,
            },
            port: tunnel.port.map(|port| port.0),
        }),
        authorization_policies: entry.authorization_policies.into_iter().map(|name| name.0).collect(),
        services: entry.services.into_iter().map(|(name, ports)| (name.0, mappings(ports))).collect(),
        capacity: entry.capacity.unwrap_or(made.capacity),
        ..made
    })
}

/// What a pod's spec that names no service account gets from Kubernetes.
const SERVICE_ACCOUNT_DEFAULT: &str = "default";

fn identity(entry: &WorkloadEntry, path: &str, defaults: &Defaults) -> Result<Identity, Problem> {
    let trust_domain = entry.trust_domain.as_ref().map_or(&*defaults.trust_domain, |domain| &domain.value);
    let service_account = entry.service_account.as_ref().map_or(SERVICE_ACCOUNT_DEFAULT, |account| &account.value);
    // Each part beside ones that are right, so that the line is that of the part that is wrong.
    let parts = [
        ("trustDomain", entry.trust_domain.as_ref(), Identity::new(trust_domain, "n", "s")),
        ("namespace", Some(&entry.namespace), Identity::new("t", &entry.namespace.value, "s")),
        ("serviceAccount", entry.service_account.as_ref(), Identity::new("t", "n", service_account)),
    ];
    for (key, given, outcome) in parts {
        if let Err(error) = outcome {
            return Err(Problem::at(given.unwrap_or(&entry.namespace), format!("{path}.{key}"), error.to_string()));
        }
    }
    Identity::new(trust_domain, &entry.namespace.value, service_account)
        .map_err(|error| Problem::at(&entry.namespace, path.to_owned(), error.to_string()))
}

fn service(entry: ServiceEntry, path: &str, defaults: &Defaults) -> Result<Service, Problem> {
    // The form in which workloads must be able to name it.
    if let Err(error) = NamespacedHostname::parse(&format!("{}/{}", entry.namespace, entry.hostname.value)) {
        return Err(Problem::at(&entry.hostname, format!("{path}.hostname"), error.to_string()));
    }
    let made = Service::new(&entry.namespace, &entry.name, &entry.hostname.value);
    Ok(Service {
        vips: entry
            .vips
            .into_iter()
            .map(|vip| Vip { network: network(&vip.network, defaults), address: vip.block })
            .collect(),
        ports: mappings(entry.ports),
        subject_alt_names: entry.subject_alt_names.into_iter().map(|name| name.0).collect(),
        waypoint: entry.waypoint.map(|gateway| gateway_address(gateway, defaults)),
        weighted_waypoints: entry
            .weighted_waypoints
            .into_iter()
            .map(|WeightedGateway { destination, hbone_mtls_port, weight }| WeightedWaypoint {
                destination: gateway_address(Gateway { destination, hbone_mtls_port }, defaults),
                weight,
            })
            .collect(),
        load_balancing: entry.load_balancer.map(load_balancing).unwrap_or_default(),
        ip_families: match entry.ip_families {
            IpFamilies::Automatic => service::IpFamilies::Automatic,
            IpFamilies::Ipv4 => service::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6 => service::IpFamilies::Ipv6Only,
            IpFamilies::Dual => service::IpFamilies::Dual,
        },
        canonical: entry.canonical,
        visibility: match entry.visibility {
            Visibility::Public => service::Visibility::Public,
            Visibility::Namespace => service::Visibility::Namespace,
        },
        ..made
    })
}

fn load_balancing(entry: LoadBalancer) -> LoadBalancing {
    let scope = |scope| match scope {
        Scope::Region => service::Scope::Region,
        Scope::Zone => service::Scope::Zone,
        Scope::Subzone => service::Scope::Subzone,
        Scope::Node => service::Scope::Node,
        Scope::Cluster => service::Scope::Cluster,
        Scope::Network => service::Scope::Network,
    };
    LoadBalancing {
        scopes: entry.routing_preferences.into_iter().map(scope).collect(),
        mode: match entry.mode {
            Mode::Standard => service::Mode::Unspecified,
            Mode::Strict => service::Mode::Strict,
            Mode::Failover => service::Mode::Failover,
            Mode::Passthrough => service::Mode::Passthrough,
        },
        health: match entry.health_policy {
            HealthPolicy::OnlyHealthy => service::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => service::HealthPolicy::AllowAll,
        },
    }
}

fn policy(entry: PolicyEntry, path: &str) -> Result<Policy, Problem> {
    if entry.name.value.is_empty() {
        return Err(Problem::at(&entry.name, format!("{path}.name"), "is empty: workloads refer to it by name"));
    }
    let rule = |clauses: Vec<Vec<Match>>| Rule {
        clauses: clauses
            .into_iter()
            .map(|matches| Clause { matches: matches.into_iter().map(policy_match).collect() })
            .collect(),
    };
    Ok(Policy {
        key: PolicyKey::new(&entry.namespace, &entry.name.value),
        namespace: entry.namespace.into(),
        scope: match entry.scope {
            PolicyScope::Global => policy::PolicyScope::Global,
            PolicyScope::Namespace => policy::PolicyScope::Namespace,
            PolicyScope::WorkloadSelector => policy::PolicyScope::WorkloadSelector,
        },
        action: match entry.action {
            Action::Allow => policy::Action::Allow,
            Action::Deny => policy::Action::Deny,
        },
        rules: entry.rules.into_iter().map(rule).collect(),
        dry_run: entry.dry_run,
    })
}

fn policy_match(entry: Match) -> policy::Match {
    let texts = |values: Vec<StringMatch>| {
        let text = |value| match value {
            StringMatch::Exact(text) => policy::StringMatch::Exact(text.into()),
            StringMatch::Prefix(text) => policy::StringMatch::Prefix(text.into()),
            StringMatch::Suffix(text) => policy::StringMatch::Suffix(text.into()),
            StringMatch::Presence => policy::StringMatch::Presence,
        };
        values.into_iter().map(text).collect()
    };
    let blocks = |values: Vec<Block>| values.into_iter().map(|block| block.0).collect();
    let ports = |values: Vec<Port>| values.into_iter().map(|port| port.0).collect();
    let accounts = |values: Vec<ServiceAccount>| {
        let account = |value: ServiceAccount| ServiceAccountMatch {
            namespace: value.namespace.into(),
            service_account: value.service_account.into(),
        };
        values.into_iter().map(account).collect()
    };
    policy::Match {
        namespaces: texts(entry.namespaces),
        not_namespaces: texts(entry.not_namespaces),
        principals: texts(entry.principals),
        not_principals: texts(entry.not_principals),
        source_ips: blocks(entry.source_ips),
        not_source_ips: blocks(entry.not_source_ips),
        destination_ips: blocks(entry.destination_ips),
        not_destination_ips: blocks(entry.not_destination_ips),
        destination_ports: ports(entry.destination_ports),
        not_destination_ports: ports(entry.not_destination_ports),
        service_accounts: accounts(entry.service_accounts),
        not_service_accounts: accounts(entry.not_service_accounts),
        // What can't be read makes the whole file unreadable.
        unreadable: Vec::new(),
    }
}

fn gateway_address(gateway: Gateway, defaults: &Defaults) -> GatewayAddress {
    GatewayAddress {
        destination: match gateway.destination {
            GatewayName::Address { network: name, address } => {
                GatewayDestination::Address { network: network(&name, defaults), address }
            }
            GatewayName::Hostname(name) => GatewayDestination::Hostname(name),
        },
        hbone_port: gateway.hbone_mtls_port.0,
    }
}

fn mappings(ports: BTreeMap<Port, Port>) -> Vec<PortMapping> {
    ports.into_iter().map(|(service, target)| PortMapping { service_port: service.0, target_port: target.0 }).collect()
}

/// An empty network is this node's.
fn network(name: &str, defaults: &Defaults) -> NetworkId {
    NetworkId::from(if name.is_empty() { &*defaults.network } else { name })
}
