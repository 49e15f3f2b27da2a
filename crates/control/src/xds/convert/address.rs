//! Workloads and services.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use mesh_state::{
    change::Change,
    identity::Identity,
    name::{NamespacedHostname, NetworkId, PolicyKey, Uid},
    service::{self, PortMapping, Service, Vip, WeightedWaypoint},
    workload::{self, GatewayAddress, GatewayDestination, Profile, Workload},
};

use super::Refusal;
use crate::proto::workload as proto;

/// What a workload is that does not say: whatever this node's own are, since the control plane leaves out these values
/// (§8.4).
const TRUST_DOMAIN: &str = "cluster.local";
const CLUSTER: &str = "Kubernetes";

/// The change that an address is.
pub(super) fn change(name: &Arc<str>, from: proto::Address) -> Result<Change, Refusal> {
    match from.kind {
        Some(proto::Kind::Workload(workload)) => to_workload(name, *workload).map(Change::Workload),
        Some(proto::Kind::Service(service)) => to_service(name, *service).map(Change::Service),
        None => Err(Refusal::Kind),
    }
}

fn to_workload(name: &Arc<str>, from: proto::Workload) -> Result<Workload, Refusal> {
    if *from.uid != **name {
        return Err(Refusal::Name { inside: from.uid });
    }
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let trust_domain = or(from.trust_domain, TRUST_DOMAIN);
    let account = or(from.service_account, "default");
    let identity = Identity::new(&trust_domain, &from.namespace, &account)
        .map_err(|error| Refusal::Text { field: "identity", cause: error.to_string() })?;
    let mut services = Vec::with_capacity(from.services.len());
    for (key, ports) in from.services {
        let key = NamespacedHostname::parse(&key)
            .map_err(|error| Refusal::Text { field: "services", cause: error.to_string() })?;
        services.push((key, to_mappings("services", ports.ports)?));
    }
    // A map has no order, and the same workload sent again has to be equal.
    services.sort_by(|(one, _), (other, _)| one.cmp(other));
    let locality = from.locality.unwrap_or_default();
    let addresses = from.addresses.iter().map(|bytes| to_address("addresses", bytes));
    let mut workload = Workload::new(Uid(name.clone()), &from.namespace, &from.name, identity);
    workload.addresses = addresses.collect::<Result<_, _>>()?;
    workload.place = Arc::new(workload::Place {
        node: from.node.into(),
        locality: Arc::new(workload::Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        }),
    });
    workload.profile = Arc::new(Profile {
        network: NetworkId(from.network.into()),
        protocol: match from.tunnel_protocol {
            0 => workload::TunnelProtocol::None,
            1 => workload::TunnelProtocol::Hbone,
            value => return Err(Refusal::Value { field: "tunnel_protocol", value }),
        },
        network_mode: match from.network_mode {
            0 => workload::NetworkMode::Standard,
            1 => workload::NetworkMode::HostNetwork,
            value => return Err(Refusal::Value { field: "network_mode", value }),
        },
        status: match from.status {
            0 => workload::Status::Healthy,
            1 => workload::Status::Unhealthy,
            value => return Err(Refusal::Value { field: "status", value }),
        },
        waypoint: from.waypoint.map(|gateway| to_gateway("waypoint", gateway)).transpose()?,
        network_gateway: from.network_gateway.map(|gateway| to_gateway("network_gateway", gateway)).transpose()?,
        canonical_name: from.canonical_name.into(),
        canonical_revision: from.canonical_revision.into(),
        workload_type: match from.workload_type {
            1 => workload::WorkloadType::CronJob,
            2 => workload::WorkloadType::Pod,
            3 => workload::WorkloadType::Job,
            // It is for telemetry only, so an unknown kind of owner is no reason to lose the workload.
            _ => workload::WorkloadType::Deployment,
        },
        workload_name: from.workload_name.into(),
        native_tunnel: from.native_tunnel,
        cluster_id: or(from.cluster_id, CLUSTER).into(),
        hostname: from.hostname.into(),
        application_tunnel: from.application_tunnel.map(to_application_tunnel).transpose()?,
        authorization_policies: from.authorization_policies.iter().map(|key| PolicyKey::from(key.as_str())).collect(),
        services,
        capacity: from.capacity.unwrap_or(1),
        ..Profile::clone(&workload.profile)
    });
    Ok(workload)
}

fn to_service(name: &str, from: proto::Service) -> Result<Service, Refusal> {
    let inside = format!("{}/{}", from.namespace, from.hostname);
    if inside != name {
        return Err(Refusal::Name { inside });
    }
    NamespacedHostname::parse(name).map_err(|error| Refusal::Text { field: "hostname", cause: error.to_string() })?;
    let vips = from.addresses.into_iter().map(to_vip);
    let weighted = from.weighted_waypoints.into_iter().map(|one| {
        let gateway = one.destination.ok_or(Refusal::Destination { field: "weighted_waypoints" })?;
        Ok(WeightedWaypoint { destination: to_gateway("weighted_waypoints", gateway)?, weight: one.weight })
    });
    // One that is no SPIFFE identity can be nobody's here, so nobody is believed for it.
    let names = from.subject_alt_names.iter().filter_map(|name| Identity::parse(name).ok());
    Ok(Service {
        name: from.name.into(),
        namespace: from.namespace.into(),
        hostname: from.hostname.into(),
        vips: vips.collect::<Result<_, _>>()?,
        ports: to_mappings("ports", from.ports)?,
        subject_alt_names: names.collect(),
        waypoint: from.waypoint.map(|gateway| to_gateway("waypoint", gateway)).transpose()?,
        weighted_waypoints: weighted.collect::<Result<_, _>>()?,
        load_balancing: from.load_balancing.map_or_else(|| Ok(service::LoadBalancing::default()), to_load_balancing)?,
        ip_families: match from.ip_families {
            0 => service::IpFamilies::Automatic,
            1 => service::IpFamilies::Ipv4Only,
            2 => service::IpFamilies::Ipv6Only,
            3 => service::IpFamilies::Dual,
            value => return Err(Refusal::Value { field: "ip_families", value }),
        },
        canonical: from.canonical,
        visibility: match from.visibility {
            1 => service::Visibility::Namespace,
            _ => service::Visibility::Public,
        },
    })
}

fn to_load_balancing(from: proto::LoadBalancing) -> Result<service::LoadBalancing, Refusal> {
    let scope = |value| match value {
        1 => Ok(service::Scope::Region),
        2 => Ok(service::Scope::Zone),
        3 => Ok(service::Scope::Subzone),
        4 => Ok(service::Scope::Node),
        5 => Ok(service::Scope::Cluster),
        6 => Ok(service::Scope::Network),
        value => Err(Refusal::Value { field: "load_balancing.routing_preference", value }),
    };
    Ok(service::LoadBalancing {
        scopes: from.routing_preference.into_iter().map(scope).collect::<Result<_, _>>()?,
        mode: match from.mode {
            0 => service::Mode::Unspecified,
            1 => service::Mode::Strict,
            2 => service::Mode::Failover,
            3 => service::Mode::Passthrough,
            value => return Err(Refusal::Value { field: "load_balancing.mode", value }),
        },
        health: match from.health_policy {
            0 => service::HealthPolicy::OnlyHealthy,
            1 => service::HealthPolicy::AllowAll,
            value => return Err(Refusal::Value { field: "load_balancing.health_policy", value }),
        },
    })
}

fn to_application_tunnel(from: proto::ApplicationTunnel) -> Result<workload::ApplicationTunnel, Refusal> {
    const FIELD: &str = "application_tunnel";
    Ok(workload::ApplicationTunnel {
        protocol: match from.protocol {
            0 => workload::ApplicationProtocol::None,
            1 => workload::ApplicationProtocol::Proxy,
            value => return Err(Refusal::Value { field: FIELD, value }),
        },
        port: Some(to_port(FIELD, from.port)?).filter(|port| *port != 0),
    })
}

fn to_gateway(field: &'static str, from: proto::GatewayAddress) -> Result<GatewayAddress, Refusal> {
    let destination = match from.destination.ok_or(Refusal::Destination { field })? {
        proto::Destination::Hostname(name) => {
            GatewayDestination::Hostname(NamespacedHostname::new(&name.namespace, &name.hostname))
        }
        proto::Destination::Address(address) => GatewayDestination::Address {
            network: NetworkId(address.network.into()),
            address: to_address(field, &address.address)?,
        },
    };
    Ok(GatewayAddress { destination, hbone_port: to_port(field, from.hbone_mtls_port)? })
}

fn to_vip(from: proto::NetworkAddress) -> Result<Vip, Refusal> {
    const FIELD: &str = "addresses";
    let address = to_address(FIELD, &from.address)?;
    let address = match from.length {
        None => IpNet::from(address),
        Some(length) => to_block(address, length).ok_or(Refusal::Prefix { field: FIELD, length })?,
    };
    Ok(Vip { network: NetworkId(from.network.into()), address })
}

fn to_mappings(field: &'static str, from: Vec<proto::Port>) -> Result<Vec<PortMapping>, Refusal> {
    let mapping = |port: proto::Port| {
        let (service_port, target_port) = (to_port(field, port.service_port)?, to_port(field, port.target_port)?);
        Ok(PortMapping { service_port, target_port })
    };
    from.into_iter().map(mapping).collect()
}

fn to_port(field: &'static str, port: u32) -> Result<u16, Refusal> {
    u16::try_from(port).map_err(|_| Refusal::Port { field, port })
}

fn to_address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Refusal> {
    address(bytes).ok_or(Refusal::Address { field, bytes: bytes.len() })
}

/// An address in network order.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Ipv6Addr::from(sixteen).into())
}

/// A block; none where the prefix is longer than the address.
pub(super) fn to_block(address: IpAddr, length: u32) -> Option<IpNet> {
    IpNet::new(address, u8::try_from(length).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use mesh_state::workload::{ApplicationProtocol, ApplicationTunnel};

    use super::*;

    const UID: &str = "Kubernetes//Pod/shop/web-0";
    const KEY: &str = "shop/web.shop.svc";

    fn workload() -> proto::Workload {
        proto::Workload { uid: UID.into(), name: "web-0".into(), namespace: "shop".into(), ..Default::default() }
    }

    fn service() -> proto::Service {
        proto::Service {
            name: "web".into(),
            namespace: "shop".into(),
            hostname: "web.shop.svc".into(),
            ..Default::default()
        }
    }

    fn of_workload(edit: impl FnOnce(&mut proto::Workload)) -> Result<Workload, Refusal> {
        let mut from = workload();
        edit(&mut from);
        to_workload(&UID.into(), from)
    }

    fn of_service(edit: impl FnOnce(&mut proto::Service)) -> Result<Service, Refusal> {
        let mut from = service();
        edit(&mut from);
        to_service(KEY, from)
    }

    fn gateway(destination: Option<proto::Destination>, port: u32) -> proto::GatewayAddress {
        proto::GatewayAddress { destination, hbone_mtls_port: port }
    }

    fn by_address(bytes: &'static [u8]) -> Option<proto::Destination> {
        let address = Bytes::from_static(bytes);
        Some(proto::Destination::Address(proto::NetworkAddress { network: "n".into(), address, length: None }))
    }

    #[test]
    fn what_a_workload_does_not_say_has_its_default() {
        let plain = of_workload(|_| ()).expect("good");
        assert_eq!(plain.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/default");
        assert_eq!((&*plain.cluster_id, plain.capacity), ("Kubernetes", 1));
        assert_eq!(plain.workload_type, workload::WorkloadType::Deployment);
    }

    #[test]
    fn all_that_a_workload_says_is_there() {
        let workload = of_workload(|from| {
            from.addresses = vec![Bytes::from_static(&[10, 0, 0, 1]), Bytes::from_static(&[0xfd; 16])];
            from.network = "n".into();
            from.tunnel_protocol = 1;
            from.network_mode = 1;
            from.status = 1;
            from.trust_domain = "td".into();
            from.service_account = "sa".into();
            from.cluster_id = "west".into();
            from.workload_type = 3;
            from.native_tunnel = true;
            from.capacity = Some(7);
            from.waypoint = Some(gateway(by_address(&[10, 0, 0, 2]), 15008));
            let host = proto::NamespacedHostname { namespace: "shop".into(), hostname: "gate".into() };
            from.network_gateway = Some(gateway(Some(proto::Destination::Hostname(host)), 15009));
            let ports = |target_port| proto::PortList { ports: vec![proto::Port { service_port: 80, target_port }] };
            from.services = HashMap::from([("shop/web".into(), ports(8080)), ("infra/all".into(), ports(0))]);
            from.authorization_policies = vec!["shop/p".into()];
            from.application_tunnel = Some(proto::ApplicationTunnel { protocol: 1, port: 15088 });
            from.locality = Some(proto::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() });
        })
        .expect("good");
        assert_eq!(
            *workload.addresses,
            ["10.0.0.1", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"]
                .map(|text| text.parse::<IpAddr>().expect("an address"))
        );
        assert_eq!(workload.identity.as_str(), "spiffe://td/ns/shop/sa/sa");
        assert_eq!(workload.waypoint.as_ref().expect("there").to_string(), "n/10.0.0.2:15008");
        assert_eq!(workload.network_gateway.as_ref().expect("there").to_string(), "shop/gate:15009");
        let names: Vec<String> = workload.services.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["infra/all", "shop/web"], "in one order, whatever the map's");
        assert_eq!(workload.services[1].1, [PortMapping { service_port: 80, target_port: 8080 }]);
        let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: Some(15088) };
        assert_eq!(workload.application_tunnel, Some(tunnel));
        assert_eq!((workload.capacity, workload.native_tunnel), (7, true));
        assert_eq!(
            (workload.protocol, workload.status),
            (workload::TunnelProtocol::Hbone, workload::Status::Unhealthy)
        );
    }

    #[test]
    fn a_workload_that_cannot_be_read_is_refused_with_the_field() {
        type Edit = fn(&mut proto::Workload);
        let rows: &[(Edit, &str)] = &[
            (|w| w.uid = "other".into(), "describes \"other\""),
            (|w| w.addresses = vec![Bytes::from_static(&[1, 2, 3])], "addresses: an address of 3 bytes"),
            (|w| w.addresses = vec![Bytes::new()], "addresses: an address of 0 bytes"),
            (|w| w.tunnel_protocol = 2, "tunnel_protocol: 2"),
            (|w| w.tunnel_protocol = 9, "tunnel_protocol: 9"),
            (|w| w.network_mode = 2, "network_mode: 2"),
            (|w| w.status = -1, "status: -1"),
            (|w| w.waypoint = Some(gateway(None, 1)), "waypoint: it has no destination"),
            (|w| w.network_gateway = Some(gateway(by_address(&[1]), 1)), "network_gateway: an address of 1 bytes"),
            (|w| w.waypoint = Some(gateway(by_address(&[1, 2, 3, 4]), 65_536)), "waypoint: 65536 is no port"),
            (|w| w.services = HashMap::from([("web".into(), Default::default())]), "services: service key \"web\""),
            (|w| w.service_account = "a b".into(), "identity: service account \"a b\""),
            (|w| w.namespace = String::new(), "identity: namespace \"\""),
            (
                |w| w.application_tunnel = Some(proto::ApplicationTunnel { protocol: 2, port: 0 }),
                "application_tunnel: 2",
            ),
        ];
        for (edit, complaint) in rows {
            let error = of_workload(edit).expect_err(complaint).to_string();
            assert!(error.contains(complaint), "{error} is not {complaint}");
        }
    }

    #[test]
    fn all_that_a_service_says_is_there() {
        let service = of_service(|from| {
            let vip = |address: &'static [u8], length| proto::NetworkAddress {
                network: "n".into(),
                address: Bytes::from_static(address),
                length,
            };
            from.addresses =
                vec![vip(&[10, 96, 0, 1], None), vip(&[10, 97, 0, 0], Some(16)), vip(&[10, 98, 0, 1], Some(32))];
            from.ports = vec![proto::Port { service_port: 80, target_port: 8080 }];
            from.subject_alt_names = vec!["spiffe://td/ns/shop/sa/web".into(), "web.shop".into()];
            from.waypoint = Some(gateway(by_address(&[10, 0, 0, 2]), 15008));
            let destination = Some(gateway(by_address(&[10, 0, 0, 3]), 15008));
            from.weighted_waypoints = vec![proto::WeightedWaypoint { destination, weight: 30 }];
            from.load_balancing =
                Some(proto::LoadBalancing { routing_preference: vec![1, 6], mode: 2, health_policy: 1 });
            from.ip_families = 2;
            from.canonical = true;
            from.visibility = 1;
        })
        .expect("good");
        let vips: Vec<String> = service.vips.iter().map(|vip| vip.address.to_string()).collect();
        assert_eq!(vips, ["10.96.0.1/32", "10.97.0.0/16", "10.98.0.1/32"]);
        assert_eq!(service.subject_alt_names.len(), 1, "who is no SPIFFE identity cannot prove to be anybody");
        assert_eq!((service.weighted_waypoints[0].weight, service.canonical), (30, true));
        assert_eq!(service.load_balancing.scopes, [service::Scope::Region, service::Scope::Network]);
        assert_eq!(service.load_balancing.mode, service::Mode::Failover);
        assert_eq!(service.ip_families, service::IpFamilies::Ipv6Only);
        assert_eq!(service.visibility, service::Visibility::Namespace);
        assert_eq!(of_service(|from| from.visibility = 9).expect("good").visibility, service::Visibility::Public);
    }

    #[test]
    fn a_service_that_cannot_be_read_is_refused_with_the_field() {
        type Edit = fn(&mut proto::Service);
        fn balanced(scope: i32, mode: i32, health: i32) -> Option<proto::LoadBalancing> {
            Some(proto::LoadBalancing { routing_preference: vec![scope], mode, health_policy: health })
        }
        fn vip(bytes: &'static [u8], length: u32) -> Vec<proto::NetworkAddress> {
            let address = Bytes::from_static(bytes);
            vec![proto::NetworkAddress { network: String::new(), address, length: Some(length) }]
        }
        let rows: &[(Edit, &str)] = &[
            (|s| s.hostname = "other".into(), "describes \"shop/other\""),
            (|s| s.addresses = vip(&[1, 2, 3, 4, 5], 8), "addresses: an address of 5 bytes"),
            (|s| s.addresses = vip(&[1, 2, 3, 4], 33), "addresses: a prefix of 33 bits"),
            (|s| s.addresses = vip(&[1, 2, 3, 4], 300), "addresses: a prefix of 300 bits"),
            (|s| s.ports = vec![proto::Port { service_port: 70_000, target_port: 1 }], "ports: 70000 is no port"),
            (|s| s.weighted_waypoints = vec![Default::default()], "weighted_waypoints: it has no destination"),
            (|s| s.load_balancing = balanced(0, 0, 0), "routing_preference: 0"),
            (|s| s.load_balancing = balanced(7, 0, 0), "routing_preference: 7"),
            (|s| s.load_balancing = balanced(1, 4, 0), "mode: 4"),
            (|s| s.load_balancing = balanced(1, 0, 2), "health_policy: 2"),
            (|s| s.ip_families = 4, "ip_families: 4"),
        ];
        for (edit, complaint) in rows {
            let error = of_service(edit).expect_err(complaint).to_string();
            assert!(error.contains(complaint), "{error} is not {complaint}");
        }
        assert_eq!(change(&"x".into(), proto::Address { kind: None }), Err(Refusal::Kind));
    }
}
