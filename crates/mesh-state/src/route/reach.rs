//! Who receives a connection, and by what way, when all is known but the address: the address itself (behaviour §4.6), and
//! what to do when only DNS knows it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use crate::identity::Identity;
use crate::name::{Authority, Hop};
use crate::service::{IpFamilies, Service};
use crate::workload::{TunnelProtocol, Workload};

use super::error::{RouteError, Unreachable};
use super::{Destination, HBONE_PORT, Route, Upstream, balance};

/// A route without the address of who is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// Who is connected to.
    workload: Arc<Workload>,
    /// The service it was chosen from, which may say what else it may be.
    service: Option<Arc<Service>>,
    port: u16,
    way: Way,
}

/// What it is on the way to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing: it receives the connection.
    Receiver,
    /// It is a waypoint, and gets the address as the application gave it, VIP or not, always through a tunnel (§4.2).
    Waypoint { target: SocketAddr, service: Option<Arc<Service>> },
    /// It is a gateway to another network.
    Gateway { authority: Authority, inner_expected: Vec<Identity>, destination: Destination },
}

impl Reach {
    pub(super) fn new(upstream: &Upstream<'_>, way: Way) -> Self {
        let Upstream { workload, service, port } = *upstream;
        Self { workload: workload.clone(), service: service.cloned(), port, way }
    }

    /// The route, or what has to be asked first. `wanted` is the address that was asked for, by whose family one is chosen;
    /// `target` is where the application wanted to go.
    pub(super) fn route(self, wanted: IpAddr, target: SocketAddr) -> Result<Route, RouteError> {
        match choose_address(&self.workload, self.service.as_deref(), wanted) {
            Ok(ip) => Ok(self.at(ip)),
            Err(Unreachable::NoAddress) if !self.workload.hostname.is_empty() => {
                Ok(Route::Resolve(Lookup { reach: self, is_ipv4: wanted.to_canonical().is_ipv4() }))
            }
            Err(why) => Err(RouteError::NoValidDestination { workload: self.workload.uid.clone(), target, why }),
        }
    }

    fn at(self, ip: IpAddr) -> Route {
        let expected = self.expected();
        let Self { workload, service, port, way } = self;
        let address = SocketAddr::new(ip, port);
        match way {
            Way::Receiver => {
                let captured = workload.protocol == TunnelProtocol::Hbone;
                let destination = Destination { workload: Some(workload), service };
                match captured {
                    false => Route::Direct { target: address, destination },
                    true => Route::Hbone {
                        hop: Hop(SocketAddr::new(ip, HBONE_PORT)),
                        authority: Authority::Address(address),
                        expected,
                        destination,
                    },
                }
            }
            Way::Waypoint { target, service } => Route::Hbone {
                hop: Hop(address),
                authority: Authority::Address(target),
                expected,
                destination: Destination { workload: Some(workload), service },
            },
            Way::Gateway { authority, inner_expected, destination } => {
                Route::DoubleHbone { hop: Hop(address), authority, expected, inner_expected, destination }
            }
        }
    }

    /// Whoever is chosen may be itself, or what its service says it may be (§4.2).
    fn expected(&self) -> Vec<Identity> {
        let own = &self.workload.identity;
        let mut expected: Vec<Identity> =
            self.service.as_ref().map_or_else(Vec::new, |service| service.subject_alt_names.clone());
        // Once: the list is part of what tunnels are pooled by.
        if !expected.contains(own) {
            expected.push(own.clone());
        }
        expected
    }
}

/// A route to a workload of which only a hostname is known. Holds facts only, so a caller may wait with it for DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    reach: Reach,
    /// The family of the address that the application asked for.
    is_ipv4: bool,
}

impl Lookup {
    /// The name to ask for A and AAAA records of.
    pub fn hostname(&self) -> &Arc<str> {
        &self.reach.workload.hostname
    }

    /// What DNS said: one of the addresses of the family asked for, else one of the others, as the draw decides.
    pub fn found(self, addresses: &[IpAddr], draw: u64) -> Result<Route, RouteError> {
        let of_family = |is_ipv4: bool| {
            addresses.iter().map(IpAddr::to_canonical).filter(move |address| address.is_ipv4() == is_ipv4)
        };
        let is_ipv4 = if of_family(self.is_ipv4).next().is_some() { self.is_ipv4 } else { !self.is_ipv4 };
        let among = u64::try_from(of_family(is_ipv4).count()).expect("a count of addresses in memory");
        let chosen = usize::try_from(balance::scale(draw, among)).expect("below that count");
        match of_family(is_ipv4).nth(chosen) {
            Some(ip) => Ok(self.reach.at(ip)),
            None => Err(RouteError::ResolvedToNothing {
                hostname: self.hostname().as_ref().into(),
                workload: self.reach.workload.uid.clone(),
            }),
        }
    }

    /// DNS said nothing.
    pub fn failed(&self, why: impl Into<String>) -> RouteError {
        RouteError::NotResolved {
            hostname: self.hostname().as_ref().into(),
            workload: self.reach.workload.uid.clone(),
            why: why.into(),
        }
    }
}

/// Which address of a workload is used (§4.6): the one asked for if it has it; else, of those its service allows, the first
/// of the same family, else the first.
fn choose_address(workload: &Workload, service: Option<&Service>, wanted: IpAddr) -> Result<IpAddr, Unreachable> {
    let wanted = wanted.to_canonical();
    if has_address(workload, wanted) {
        return Ok(wanted);
    }
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    let allowed = || {
        workload.addresses.iter().map(IpAddr::to_canonical).filter(move |address| match families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::Ipv4Only => address.is_ipv4(),
            IpFamilies::Ipv6Only => address.is_ipv6(),
        })
    };
    let chosen = allowed().find(|address| address.is_ipv4() == wanted.is_ipv4()).or_else(|| allowed().next());
    chosen.ok_or(if workload.addresses.is_empty() { Unreachable::NoAddress } else { Unreachable::Family })
}

pub(super) fn has_address(workload: &Workload, address: IpAddr) -> bool {
    workload.addresses.iter().any(|own| own.to_canonical() == address.to_canonical())
}
