//! Services, and what is known to be absent, as bytes.

use crate::change::Change;
use crate::name::NetworkId;
use crate::service::{
    HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, Vip, Visibility, WeightedWaypoint,
};
use crate::wanted::Sought;
use crate::warm::Refused;
use crate::warm::reader::Reader;
use crate::warm::workload::{read_gateway, read_name, read_ports, write_gateway, write_name, write_ports};
use crate::warm::writer::Writer;

const SCOPES: [Scope; 6] = [Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster, Scope::Network];
const MODES: [Mode; 4] = [Mode::Unspecified, Mode::Strict, Mode::Failover, Mode::Passthrough];
const HEALTH_POLICIES: [HealthPolicy; 2] = [HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll];
const FAMILIES: [IpFamilies; 4] = [IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual];
const VISIBILITIES: [Visibility; 2] = [Visibility::Public, Visibility::Namespace];

pub(super) fn write<'s>(writer: &mut Writer<'s>, service: &'s Service) {
    // Taken apart in full, so that a field added to the type cannot be forgotten here.
    let Service {
        name,
        namespace,
        hostname,
        vips,
        ports,
        subject_alt_names,
        waypoint,
        weighted_waypoints,
        load_balancing: LoadBalancing { scopes, mode, health },
        ip_families,
        canonical,
        visibility,
    } = service;
    [name, namespace, hostname].into_iter().for_each(|text| writer.text(text));
    writer.list(vips.len(), vips, |writer, Vip { network, address }| {
        writer.text(network.as_str());
        writer.block(*address);
    });
    write_ports(writer, ports);
    writer.list(subject_alt_names.len(), subject_alt_names, |writer, identity| writer.text(identity.as_str()));
    writer.option(waypoint.as_ref(), write_gateway);
    writer.list(weighted_waypoints.len(), weighted_waypoints, |writer, weighted| {
        write_gateway(writer, &weighted.destination);
        writer.number(weighted.weight);
    });
    writer.list(scopes.len(), scopes, |writer, scope| writer.byte(*scope as u8));
    writer.byte(*mode as u8);
    writer.byte(*health as u8);
    writer.byte(*ip_families as u8);
    writer.flag(*canonical);
    writer.byte(*visibility as u8);
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Change, Refused> {
    Ok(Change::Service(Service {
        name: reader.text()?,
        namespace: reader.text()?,
        hostname: reader.text()?,
        vips: reader.list(|reader| Ok(Vip { network: NetworkId(reader.text()?), address: reader.block()? }))?,
        ports: read_ports(reader)?,
        subject_alt_names: reader.list(Reader::identity)?,
        waypoint: reader.option(read_gateway)?,
        weighted_waypoints: reader
            .list(|reader| Ok(WeightedWaypoint { destination: read_gateway(reader)?, weight: reader.number()? }))?,
        load_balancing: LoadBalancing {
            scopes: reader.list(|reader| reader.choice(&SCOPES))?,
            mode: reader.choice(&MODES)?,
            health: reader.choice(&HEALTH_POLICIES)?,
        },
        ip_families: reader.choice(&FAMILIES)?,
        canonical: reader.flag()?,
        visibility: reader.choice(&VISIBILITIES)?,
    }))
}

pub(super) fn write_sought<'s>(writer: &mut Writer<'s>, sought: &'s Sought) {
    match sought {
        Sought::Address { network, address } => {
            writer.byte(0);
            writer.text(network.as_str());
            writer.address(*address);
        }
        Sought::Hostname(name) => {
            writer.byte(1);
            write_name(writer, name);
        }
    }
}

pub(super) fn read_sought(reader: &mut Reader<'_>) -> Result<Change, Refused> {
    Ok(Change::Absent(match reader.byte()? {
        0 => Sought::Address { network: NetworkId(reader.text()?), address: reader.address()? },
        1 => Sought::Hostname(read_name(reader)?),
        _ => return reader.malformed("what is absent is neither an address nor a hostname"),
    }))
}
