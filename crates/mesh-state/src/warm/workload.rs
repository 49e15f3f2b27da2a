//! Workloads as bytes: places and profiles once, and of each workload what is its own.

use alloc::sync::Arc;
use alloc::vec::Vec;

use hashbrown::HashMap;

use crate::change::Change;
use crate::name::{NamespacedHostname, NetworkId, PolicyKey, Uid};
use crate::service::PortMapping;
use crate::snapshot::Snapshot;
use crate::warm::Refused;
use crate::warm::reader::Reader;
use crate::warm::writer::Writer;
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Locality, NetworkMode, Place, Profile,
    Status, TunnelProtocol, Workload, WorkloadType,
};

const PROTOCOLS: [TunnelProtocol; 2] = [TunnelProtocol::None, TunnelProtocol::Hbone];
const NETWORK_MODES: [NetworkMode; 2] = [NetworkMode::Standard, NetworkMode::HostNetwork];
const STATUSES: [Status; 2] = [Status::Healthy, Status::Unhealthy];
const TYPES: [WorkloadType; 4] =
    [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job];
const APPLICATION_PROTOCOLS: [ApplicationProtocol; 2] = [ApplicationProtocol::None, ApplicationProtocol::Proxy];

pub(super) fn write_all<'s>(writer: &mut Writer<'s>, snapshot: &'s Snapshot) {
    // The builder has one copy of each, so they are told apart by where they are.
    let mut places = Numbered::default();
    let mut profiles = Numbered::default();
    for workload in snapshot.workloads() {
        places.add(&workload.place);
        profiles.add(&workload.profile);
    }
    writer.list(places.items.len(), &places.items, |writer, place| write_place(writer, place));
    writer.list(profiles.items.len(), &profiles.items, |writer, profile| write_profile(writer, profile));
    writer.list(snapshot.workloads().count(), snapshot.workloads(), |writer, workload| {
        writer.bytes(workload.uid.as_str().as_bytes());
        writer.number(places.number(&workload.place));
        writer.number(profiles.number(&workload.profile));
        writer.list(workload.addresses.len(), &workload.addresses, |writer, address| writer.address(*address));
    });
}

/// Things told apart by where they are, in the order in which they were first met.
struct Numbered<'s, T> {
    numbers: HashMap<*const T, usize>,
    items: Vec<&'s Arc<T>>,
}

impl<T> Default for Numbered<'_, T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), items: Vec::new() }
    }
}

impl<'s, T> Numbered<'s, T> {
    fn add(&mut self, item: &'s Arc<T>) {
        let next = self.items.len();
        self.numbers.entry(Arc::as_ptr(item)).or_insert_with(|| {
            self.items.push(item);
            next
        });
    }

    fn number(&self, item: &Arc<T>) -> usize {
        self.numbers[&Arc::as_ptr(item)]
    }
}

pub(super) fn read_all(reader: &mut Reader<'_>, apply: &mut dyn FnMut(Change)) -> Result<(), Refused> {
    let places = reader.list(|reader| read_place(reader).map(Arc::new))?;
    let profiles = reader.list(|reader| read_profile(reader).map(Arc::new))?;
    let mut memberships = 0;
    for _ in 0..reader.count()? {
        let uid = Uid::from(reader.utf8()?);
        let (place, profile): (usize, usize) = (reader.number()?, reader.number()?);
        let addresses = reader.list(Reader::address)?.into();
        let (Some(place), Some(profile)) = (places.get(place), profiles.get(profile)) else {
            return reader.malformed("there is no such place or profile");
        };
        // A profile is written once for all who have it, so a few bytes could stand for a product.
        memberships += profile.services.len();
        if memberships > reader.len() {
            return reader.malformed("there are more memberships in services than bytes");
        }
        apply(Change::Workload(Workload { uid, addresses, place: place.clone(), profile: profile.clone() }));
    }
    Ok(())
}

fn write_place<'s>(writer: &mut Writer<'s>, place: &'s Place) {
    let Place { node, locality } = place;
    let Locality { region, zone, subzone } = &**locality;
    [node, region, zone, subzone].into_iter().for_each(|text| writer.text(text));
}

fn read_place(reader: &mut Reader<'_>) -> Result<Place, Refused> {
    let node = reader.text()?;
    let (region, zone, subzone) = (reader.text()?, reader.text()?, reader.text()?);
    Ok(Place { node, locality: Arc::new(Locality { region, zone, subzone }) })
}

fn write_profile<'s>(writer: &mut Writer<'s>, profile: &'s Profile) {
    // Taken apart in full, so that a field added to the type cannot be forgotten here.
    let Profile {
        given_name,
        namespace,
        identity,
        network,
        protocol,
        network_mode,
        waypoint,
        network_gateway,
        canonical_name,
        canonical_revision,
        workload_type,
        workload_name,
        native_tunnel,
        cluster_id,
        hostname,
        application_tunnel,
        authorization_policies,
        services,
        status,
        capacity,
    } = profile;
    writer.option(given_name.as_deref(), Writer::text);
    writer.text(namespace);
    writer.text(identity.as_str());
    writer.text(network.as_str());
    writer.byte(*protocol as u8);
    writer.byte(*network_mode as u8);
    writer.option(waypoint.as_ref(), write_gateway);
    writer.option(network_gateway.as_ref(), write_gateway);
    writer.text(canonical_name);
    writer.text(canonical_revision);
    writer.byte(*workload_type as u8);
    writer.text(workload_name);
    writer.flag(*native_tunnel);
    writer.text(cluster_id);
    writer.text(hostname);
    writer.option(*application_tunnel, |writer, ApplicationTunnel { protocol, port }| {
        writer.byte(protocol as u8);
        writer.option(port, Writer::number);
    });
    writer.list(authorization_policies.len(), authorization_policies, |writer, key| writer.text(key.as_str()));
    writer.list(services.len(), services, |writer, (name, ports)| {
        write_name(writer, name);
        write_ports(writer, ports);
    });
    writer.byte(*status as u8);
    writer.number(*capacity);
}

fn read_profile(reader: &mut Reader<'_>) -> Result<Profile, Refused> {
    Ok(Profile {
        given_name: reader.option(Reader::text)?,
        namespace: reader.text()?,
        identity: reader.identity()?,
        network: NetworkId(reader.text()?),
        protocol: reader.choice(&PROTOCOLS)?,
        network_mode: reader.choice(&NETWORK_MODES)?,
        waypoint: reader.option(read_gateway)?,
        network_gateway: reader.option(read_gateway)?,
        canonical_name: reader.text()?,
        canonical_revision: reader.text()?,
        workload_type: reader.choice(&TYPES)?,
        workload_name: reader.text()?,
        native_tunnel: reader.flag()?,
        cluster_id: reader.text()?,
        hostname: reader.text()?,
        application_tunnel: reader.option(|reader| {
            let protocol = reader.choice(&APPLICATION_PROTOCOLS)?;
            Ok(ApplicationTunnel { protocol, port: reader.option(Reader::number)? })
        })?,
        authorization_policies: reader.list(|reader| reader.text().map(PolicyKey))?,
        services: reader.list(|reader| Ok((read_name(reader)?, read_ports(reader)?)))?,
        status: reader.choice(&STATUSES)?,
        capacity: reader.number()?,
    })
}

pub(super) fn write_name<'s>(writer: &mut Writer<'s>, name: &'s NamespacedHostname) {
    writer.text(&name.namespace);
    writer.text(&name.hostname);
}

pub(super) fn read_name(reader: &mut Reader<'_>) -> Result<NamespacedHostname, Refused> {
    Ok(NamespacedHostname { namespace: reader.text()?, hostname: reader.text()? })
}

pub(super) fn write_ports(writer: &mut Writer<'_>, ports: &[PortMapping]) {
    writer.list(ports.len(), ports, |writer, PortMapping { service_port, target_port }| {
        writer.number(*service_port);
        writer.number(*target_port);
    });
}

pub(super) fn read_ports(reader: &mut Reader<'_>) -> Result<Vec<PortMapping>, Refused> {
    reader.list(|reader| Ok(PortMapping { service_port: reader.number()?, target_port: reader.number()? }))
}

pub(super) fn write_gateway<'s>(writer: &mut Writer<'s>, gateway: &'s GatewayAddress) {
    match &gateway.destination {
        GatewayDestination::Address { network, address } => {
            writer.byte(0);
            writer.text(network.as_str());
            writer.address(*address);
        }
        GatewayDestination::Hostname(name) => {
            writer.byte(1);
            write_name(writer, name);
        }
    }
    writer.number(gateway.hbone_port);
}

pub(super) fn read_gateway(reader: &mut Reader<'_>) -> Result<GatewayAddress, Refused> {
    let destination = match reader.byte()? {
        0 => GatewayDestination::Address { network: NetworkId(reader.text()?), address: reader.address()? },
        1 => GatewayDestination::Hostname(read_name(reader)?),
        _ => return reader.malformed("a gateway is neither an address nor a hostname"),
    };
    Ok(GatewayAddress { destination, hbone_port: reader.number()? })
}
