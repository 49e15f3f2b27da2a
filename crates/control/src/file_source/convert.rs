//! From the fields of a mesh file to the mesh: defaults, identities, and what one field alone cannot tell.

use std::sync::Arc;

use mesh_state::{
    identity::Identity,
    name::{NetworkId, PolicyKey, Uid},
    policy::{self, Policy, Rule},
    service::{self, PortMapping, Service},
    workload::{self, Profile, Workload},
};
use serde::Deserialize as _;
use serde_path_to_error::Segment;
use serde_saphyr::{Budget, Location, Spanned};

use super::{Contents, FileError, schema};

/// What a workload is that does not say.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Its trust domain.
    pub trust_domain: String,
    /// Its cluster.
    pub cluster: String,
}

/// Reads a whole file.
pub(super) fn parse(origin: &str, text: &str, defaults: &Defaults) -> Result<Contents, FileError> {
    let refused = |place: Location, cause: String| FileError::Text {
        origin: origin.to_owned(),
        line: place.line(),
        column: place.column(),
        cause: on_one_line(&cause),
    };
    let mut contents = Contents::default();
    // A file of comments alone is an empty mesh, which the reader would call a null.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(contents);
    }
    let mesh = read(text).map_err(|(place, cause)| refused(place, cause))?;
    for (index, Spanned { value, referenced: place, .. }) in mesh.services.into_iter().enumerate() {
        let service = to_service(value);
        if let Some(twice) = contents.services.insert(service.key(), service) {
            let cause = format!("services[{index}]: {} is there twice", twice.key());
            return Err(refused(place, cause));
        }
    }
    for (index, Spanned { value, referenced: place, .. }) in mesh.policies.into_iter().enumerate() {
        let policy = to_policy(value);
        if let Some(twice) = contents.policies.insert(policy.key.clone(), policy) {
            return Err(refused(place, format!("policies[{index}]: {} is there twice", twice.key)));
        }
    }
    for (index, Spanned { value, referenced: place, .. }) in mesh.workloads.into_iter().enumerate() {
        let workload =
            to_workload(value, defaults).map_err(|cause| refused(place, format!("workloads[{index}]: {cause}")))?;
        if let Some(twice) = contents.workloads.insert(workload.uid.clone(), workload) {
            let cause =
                format!("workloads[{index}].uid: {} is there twice; each workload has a uid of its own", twice.uid);
            return Err(refused(place, cause));
        }
    }
    Ok(contents)
}

/// Names in the file may hold anything, and be of any length; an error is one line that people read.
fn on_one_line(cause: &str) -> String {
    const SHOWN_MAX: usize = 1_000;
    let mut line = String::new();
    for character in cause.chars() {
        if line.len() >= SHOWN_MAX {
            line.push_str("...");
            break;
        }
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}

/// The fields, or where which one is wrong.
fn read(text: &str) -> Result<schema::Mesh, (Location, String)> {
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |yaml| {
        let mut track = serde_path_to_error::Track::new();
        let mesh = schema::Mesh::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track));
        if mesh.is_err() {
            field = named(&track.path());
        }
        mesh
    })
    .map_err(|error| {
        let cause = cause(&error);
        let cause = if field.is_empty() { cause } else { format!("{field}: {cause}") };
        (error.location().unwrap_or(Location::UNKNOWN), cause)
    })
}

/// `workloads[1].workloadIps`, as the file has it.
fn named(path: &serde_path_to_error::Path) -> String {
    let mut name = String::new();
    for (depth, segment) in path.iter().enumerate() {
        match segment {
            // `Spanned`'s own field, around each element of the three lists.
            Segment::Map { .. } if depth == 2 => {}
            Segment::Seq { index } => name.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(key);
            }
            Segment::Unknown => {}
        }
    }
    name
}

fn options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    // The file's size is bounded before it is read, so what grows with it needs no second bound. What makes much of
    // little (nesting, aliases) keeps the reader's.
    let mut budget = Budget::default();
    budget.max_events = usize::MAX;
    budget.max_nodes = usize::MAX;
    budget.max_total_scalar_bytes = usize::MAX;
    options.budget = Some(budget);
    options.with_snippet = false;
    // A number or a boolean (of YAML 1.2: true and false) where a name belongs is a mistake, not a name.
    options.no_schema = true;
    options.strict_booleans = true;
    options
}

/// Without the place, which stands before it, in one line, and for those who write YAML rather than Rust.
fn cause(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |place| &text[..place]);
    let text = text.split(", set DuplicateKeyPolicy").next().unwrap_or(text);
    match text {
        "expected sequence start" => "a list is expected here".to_owned(),
        "expected mapping start" => "a mapping (key: value) is expected here".to_owned(),
        "invalid u16" => "a whole number from 0 to 65535 is expected here (u16)".to_owned(),
        "invalid u32" => "a whole number from 0 to 4294967295 is expected here (u32)".to_owned(),
        _ if text.starts_with("multiple YAML documents") => "a second document begins; one file is one mesh".to_owned(),
        _ => match text.strip_prefix("duplicate mapping key: ") {
            Some(key) => format!("the key {key} is there twice"),
            None => text.to_owned(),
        },
    }
}

fn to_workload(from: schema::Workload, defaults: &Defaults) -> Result<Workload, String> {
    let name = from.name.or_else(|| from.uid.clone()).ok_or("it has neither a name nor a uid")?;
    let uid = from.uid.unwrap_or_else(|| format!("{}//Pod/{}/{name}", defaults.cluster, from.namespace));
    let trust_domain = from.trust_domain.as_deref().unwrap_or(&defaults.trust_domain);
    let account = from.service_account.as_deref().unwrap_or("default");
    let identity = Identity::new(trust_domain, &from.namespace, account).map_err(|error| format!("{uid}: {error}"))?;
    let text = |text: String| -> Arc<str> { text.into() };
    let services = from.services.into_iter().map(|(key, ports)| (key.0, mappings(ports))).collect();
    let mut workload = Workload::new(Uid::from(uid.as_str()), &from.namespace, &name, identity);
    workload.addresses = from.workload_ips.into_iter().map(|address| address.0).collect();
    workload.place = Arc::new(workload::Place {
        node: text(from.node),
        locality: Arc::new(workload::Locality {
            region: text(from.locality.region),
            zone: text(from.locality.zone),
            subzone: text(from.locality.subzone),
        }),
    });
    workload.profile = Arc::new(Profile {
        network: NetworkId::from(from.network.as_str()),
        protocol: match from.protocol {
            schema::Protocol::Tcp => workload::TunnelProtocol::None,
            schema::Protocol::Hbone => workload::TunnelProtocol::Hbone,
        },
        network_mode: match from.network_mode {
            schema::NetworkMode::Standard => workload::NetworkMode::Standard,
            schema::NetworkMode::HostNetwork => workload::NetworkMode::HostNetwork,
        },
        waypoint: from.waypoint.map(schema::Gateway::address),
        network_gateway: from.network_gateway.map(schema::Gateway::address),
        canonical_name: text(from.canonical_name),
        canonical_revision: text(from.canonical_revision),
        workload_type: match from.workload_type {
            schema::WorkloadType::Deployment => workload::WorkloadType::Deployment,
            schema::WorkloadType::CronJob => workload::WorkloadType::CronJob,
            schema::WorkloadType::Pod => workload::WorkloadType::Pod,
            schema::WorkloadType::Job => workload::WorkloadType::Job,
        },
        workload_name: text(from.workload_name),
        native_tunnel: from.native_tunnel,
        cluster_id: text(from.cluster_id.unwrap_or_else(|| defaults.cluster.clone())),
        hostname: text(from.hostname),
        application_tunnel: from.application_tunnel.map(|tunnel| workload::ApplicationTunnel {
            protocol: match tunnel.protocol {
                schema::TunnelProtocol::None => workload::ApplicationProtocol::None,
                schema::TunnelProtocol::Proxy => workload::ApplicationProtocol::Proxy,
            },
            port: tunnel.port.filter(|port| *port != 0),
        }),
        authorization_policies: from.authorization_policies.iter().map(|key| PolicyKey::from(key.as_str())).collect(),
        services,
        status: match from.status {
            schema::Status::Healthy => workload::Status::Healthy,
            schema::Status::Unhealthy => workload::Status::Unhealthy,
        },
        capacity: from.capacity,
        ..Profile::clone(&workload.profile)
    });
    Ok(workload)
}

fn to_service(from: schema::Service) -> Service {
    let vips = from.vips.into_iter().map(|vip| service::Vip { network: vip.0.0, address: vip.0.1 });
    let blocks = from
        .cidr_vips
        .into_iter()
        .map(|vip| service::Vip { network: NetworkId::from(vip.network.as_str()), address: vip.cidr.0 });
    Service {
        vips: vips.chain(blocks).collect(),
        ports: mappings(from.ports),
        subject_alt_names: from.subject_alt_names.into_iter().map(|name| name.0).collect(),
        waypoint: from.waypoint.map(schema::Gateway::address),
        weighted_waypoints: from
            .weighted_waypoints
            .into_iter()
            .map(|one| service::WeightedWaypoint { destination: one.destination.address(), weight: one.weight })
            .collect(),
        load_balancing: from.load_balancer.map_or_else(service::LoadBalancing::default, to_load_balancing),
        ip_families: match from.ip_families {
            None => service::IpFamilies::Automatic,
            Some(schema::IpFamilies::Dual) => service::IpFamilies::Dual,
            Some(schema::IpFamilies::IPv4) => service::IpFamilies::Ipv4Only,
            Some(schema::IpFamilies::IPv6) => service::IpFamilies::Ipv6Only,
        },
        canonical: from.canonical,
        visibility: match from.visibility {
            schema::Visibility::Public => service::Visibility::Public,
            schema::Visibility::Namespace => service::Visibility::Namespace,
        },
        ..Service::new(&from.namespace, &from.name, &from.hostname)
    }
}

fn to_load_balancing(from: schema::LoadBalancer) -> service::LoadBalancing {
    let scope = |scope| match scope {
        schema::Scope::Region => service::Scope::Region,
        schema::Scope::Zone => service::Scope::Zone,
        schema::Scope::Subzone => service::Scope::Subzone,
        schema::Scope::Node => service::Scope::Node,
        schema::Scope::Cluster => service::Scope::Cluster,
        schema::Scope::Network => service::Scope::Network,
    };
    service::LoadBalancing {
        scopes: from.routing_preferences.into_iter().map(scope).collect(),
        mode: match from.mode {
            schema::Mode::Standard => service::Mode::Unspecified,
            schema::Mode::Strict => service::Mode::Strict,
            schema::Mode::Failover => service::Mode::Failover,
            schema::Mode::Passthrough => service::Mode::Passthrough,
        },
        health: match from.health_policy {
            schema::HealthPolicy::OnlyHealthy => service::HealthPolicy::OnlyHealthy,
            schema::HealthPolicy::AllowAll => service::HealthPolicy::AllowAll,
        },
    }
}

fn mappings(ports: impl IntoIterator<Item = (u16, u16)>) -> Vec<PortMapping> {
    ports.into_iter().map(|(service_port, target_port)| PortMapping { service_port, target_port }).collect()
}

fn to_policy(from: schema::Policy) -> Policy {
    let clause = |matches: Vec<schema::Match>| policy::Clause { matches: matches.into_iter().map(to_match).collect() };
    Policy {
        key: PolicyKey::new(&from.namespace, &from.name),
        namespace: from.namespace.into(),
        scope: match from.scope {
            schema::PolicyScope::Global => policy::PolicyScope::Global,
            schema::PolicyScope::Namespace => policy::PolicyScope::Namespace,
            schema::PolicyScope::WorkloadSelector => policy::PolicyScope::WorkloadSelector,
        },
        action: match from.action {
            schema::Action::Allow => policy::Action::Allow,
            schema::Action::Deny => policy::Action::Deny,
        },
        rules: from
            .rules
            .into_iter()
            .map(|clauses| Rule { clauses: clauses.into_iter().map(clause).collect() })
            .collect(),
        dry_run: from.dry_run,
    }
}

fn to_match(from: schema::Match) -> policy::Match {
    fn strings(from: Vec<schema::StringMatch>) -> Vec<policy::StringMatch> {
        from.into_iter()
            .map(|one| match one {
                schema::StringMatch::Exact(text) => policy::StringMatch::Exact(text.into()),
                schema::StringMatch::Prefix(text) => policy::StringMatch::Prefix(text.into()),
                schema::StringMatch::Suffix(text) => policy::StringMatch::Suffix(text.into()),
                schema::StringMatch::Presence(_) => policy::StringMatch::Presence,
            })
            .collect()
    }
    fn accounts(from: Vec<schema::ServiceAccount>) -> Vec<policy::ServiceAccountMatch> {
        from.into_iter()
            .map(|one| policy::ServiceAccountMatch {
                namespace: one.namespace.into(),
                service_account: one.service_account.into(),
            })
            .collect()
    }
    let blocks = |from: Vec<schema::Cidr>| from.into_iter().map(|block| block.0).collect();
    policy::Match {
        namespaces: strings(from.namespaces),
        not_namespaces: strings(from.not_namespaces),
        principals: strings(from.principals),
        not_principals: strings(from.not_principals),
        source_ips: blocks(from.source_ips),
        not_source_ips: blocks(from.not_source_ips),
        destination_ips: blocks(from.destination_ips),
        not_destination_ips: blocks(from.not_destination_ips),
        destination_ports: from.destination_ports,
        not_destination_ports: from.not_destination_ports,
        service_accounts: accounts(from.service_accounts),
        not_service_accounts: accounts(from.not_service_accounts),
        unreadable: Vec::new(),
    }
}
