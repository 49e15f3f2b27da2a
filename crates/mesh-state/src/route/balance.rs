//! Chooses one endpoint of a service (behaviour §4.4). Two passes over the groups of endpoints that are alike, a descent in the
//! chosen one, no allocation; the draw decides among the best by their weight. A service has a group for each locality,
//! health and set of own ports that occurs among its endpoints, so the cost does not grow with their number. No feedback: it
//! knows nothing of load, latency or failures.

use alloc::sync::Arc;
use core::cmp::Ordering;

use thiserror::Error;

use crate::members::Member;
use crate::roster::{self, Group, Kind, NodePlace};
use crate::route::Upstream;
use crate::service::{self, HealthPolicy, LoadBalancing, Mode, Scope, Service};
use crate::snapshot::Snapshot;
use crate::workload::{Status, Workload};

/// What an endpoint is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To receive the application's traffic.
    Destination,
    /// To be the waypoint on the way. Its port need not be one of its service's: a captured waypoint takes all of them.
    Waypoint,
}

/// Why a service has no endpoint to offer: what stopped the endpoint that came furthest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub enum Unavailable {
    /// It has no such port.
    #[error("has no port {0}: is it missing from the service's ports?")]
    NoSuchPort(u16),
    /// No workload is its endpoint.
    #[error("has no endpoints: does its selector match running pods?")]
    NoEndpoints,
    /// All of its endpoints are unhealthy.
    #[error("has only unhealthy endpoints: are their pods ready?")]
    NoneHealthy,
    /// None of its healthy endpoints has an address.
    #[error("has no endpoint with an address: do their pods have an IP yet?")]
    NoneAddressable,
    /// None of its endpoints has a port behind this one.
    #[error("has no endpoint with a target port for port {0}: does its targetPort name a port that the pods declare?")]
    NoTargetPort(u16),
    /// None of its endpoints shares all that its strict policy asks for.
    #[error("has no endpoint within its strict scope: see internalTrafficPolicy, or the traffic distribution it sets")]
    OutOfScope,
    /// All of its endpoints have weight 0.
    #[error("has only endpoints of weight 0: see the weights of its workload entries")]
    NoWeight,
}

/// The endpoint that a connection of `source` to `port` of a service gets, and the port it is reached at. Allocates nothing.
pub fn endpoint<'s>(
    snapshot: &'s Snapshot,
    service: &'s Arc<Service>,
    source: &Workload,
    port: u16,
    draw: u64,
) -> Result<(&'s Arc<Workload>, u16), Unavailable> {
    let upstream = choose(snapshot, service, source, port, Purpose::Destination, draw)?;
    Ok((upstream.workload, upstream.port))
}

/// Chooses an endpoint, and tells the port it is reached at.
pub(super) fn choose<'s>(
    snapshot: &'s Snapshot,
    service: &'s Arc<Service>,
    source: &Workload,
    port: u16,
    purpose: Purpose,
    draw: u64,
) -> Result<Upstream<'s>, Unavailable> {
    if purpose == Purpose::Destination && service.ports.iter().all(|mapping| mapping.service_port != port) {
        return Err(Unavailable::NoSuchPort(port));
    }
    let question = Question { snapshot, service, source, port, purpose };
    let groups = snapshot.roster(service).map_or(&[][..], |roster| roster.groups());
    let mut why = Unavailable::NoEndpoints;
    let mut best_rank = 0;
    let mut best_weight: u64 = 0;
    for share in groups.iter().flat_map(|group| question.shares(group)).flatten() {
        match share.judged {
            Err(fault) => why = why.max(fault),
            Ok(candidate) if candidate.rank < best_rank => {}
            Ok(candidate) => {
                if candidate.rank > best_rank {
                    best_rank = candidate.rank;
                    best_weight = 0;
                }
                why = Unavailable::NoWeight;
                best_weight += share.weight();
            }
        }
    }
    if best_weight == 0 {
        return Err(why);
    }
    let mut left = scale(draw, best_weight);
    for share in groups.iter().flat_map(|group| question.shares(group)).flatten() {
        let Ok(candidate) = share.judged else {
            continue;
        };
        if candidate.rank != best_rank {
            continue;
        }
        if left < share.weight() {
            let chosen = share.at_weight(left).expect("the draw is below what the share weighs");
            let workload = roster::at_number(snapshot.numbered(), chosen.number);
            return Ok(Upstream { workload, service: Some(service), port: candidate.port });
        }
        left -= share.weight();
    }
    unreachable!("the draw is below the sum of the weights that the same pass just made")
}

/// Maps a draw over all of u64 to one below `bound`, evenly (0 when that is 0). A remainder would do it too, but uses the
/// low bits, which cheap generators do worst.
pub(crate) fn scale(draw: u64, bound: u64) -> u64 {
    let scaled = (u128::from(draw) * u128::from(bound)) >> u64::BITS;
    u64::try_from(scaled).expect("below bound, which is a u64")
}

/// Another draw from the same one, for a second choice that must not follow the first: the finaliser of splitmix64.
pub(crate) fn redraw(draw: u64) -> u64 {
    let mut mixed = draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What every endpoint is judged by.
#[derive(Clone, Copy)]
struct Question<'s, 'q> {
    snapshot: &'s Snapshot,
    service: &'q Service,
    source: &'q Workload,
    port: u16,
    purpose: Purpose,
}

/// Endpoints of one group that are one to this question: those whose weights stand between two sums over the group, or those
/// around them.
struct Share<'s> {
    group: &'s Group,
    /// Between the sums, or around them.
    inside: bool,
    between: [u64; 2],
    judged: Result<Candidate, Unavailable>,
}

#[derive(Clone, Copy)]
struct Candidate {
    rank: usize,
    port: u16,
}

impl<'s> Question<'s, '_> {
    /// The shares of a group: all of it, or, when nodes matter, those on the source's node and those elsewhere.
    fn shares(&self, group: &'s Group) -> [Option<Share<'s>>; 2] {
        let Group { kind, weight, members } = group;
        let LoadBalancing { scopes, mode, .. } = &self.service.load_balancing;
        let by_node = matches!(mode, Mode::Strict | Mode::Failover) && scopes.contains(&Scope::Node);
        if !by_node {
            return [Some(Share { group, inside: true, between: [0, *weight], judged: self.judge(kind, false) }), None];
        }
        // Where the source's node begins among them, and where it ends.
        let node = NodePlace::of(&self.source.place.node);
        let edge = |end: Ordering| members.before(&|held| node.order(self.snapshot.numbered(), held).then(end));
        let (first, last) = (edge(Ordering::Greater), edge(Ordering::Less));
        let between = [first.0, last.0];
        let here = last.1 > first.1;
        let elsewhere = last.1 - first.1 < members.len();
        [
            here.then(|| Share { group, inside: true, between, judged: self.judge(kind, true) }),
            elsewhere.then(|| Share { group, inside: false, between, judged: self.judge(kind, false) }),
        ]
    }

    /// Judges a whole share.
    fn judge(&self, kind: &Kind, same_node: bool) -> Result<Candidate, Unavailable> {
        let Self { service, source, port, purpose, .. } = *self;
        // Asked of the present workload and service, so a changed health policy holds at once and in both directions.
        if kind.status == Status::Unhealthy && service.load_balancing.health == HealthPolicy::OnlyHealthy {
            return Err(Unavailable::NoneHealthy);
        }
        let behind_gateway = kind.network != source.network && kind.has_gateway;
        if !kind.reachable && !behind_gateway {
            return Err(Unavailable::NoneAddressable);
        }
        let target = service::target_port(&kind.ports, port)
            .or_else(|| service::target_port(&service.ports, port))
            .or((purpose == Purpose::Waypoint && kind.takes_any_port).then_some(port))
            .ok_or(Unavailable::NoTargetPort(port))?;
        let scopes = &service.load_balancing.scopes;
        let shared = |scope| shared(scope, source, kind, same_node);
        let rank = match service.load_balancing.mode {
            Mode::Unspecified | Mode::Passthrough => 0,
            Mode::Failover => rank(scopes, &shared),
            Mode::Strict if scopes.iter().copied().all(shared) => 0,
            Mode::Strict => return Err(Unavailable::OutOfScope),
        };
        Ok(Candidate { rank, port: target })
    }
}

impl Share<'_> {
    fn weight(&self) -> u64 {
        let [from, to] = self.between;
        match self.inside {
            true => to - from,
            false => self.group.weight - (to - from),
        }
    }

    fn at_weight(&self, left: u64) -> Option<Member> {
        let [from, to] = self.between;
        match self.inside {
            true => self.group.members.at_weight(from + left),
            false if left < from => self.group.members.at_weight(left),
            false => self.group.members.at_weight(left + (to - from)),
        }
    }
}

/// How many of the leading scopes are shared. With the network first, sharing it outweighs all others together, and not
/// sharing it does not end the count: an endpoint in the same zone of another network is still the nearer one.
fn rank(scopes: &[Scope], shared: &dyn Fn(Scope) -> bool) -> usize {
    let (first, rest) = match scopes {
        [Scope::Network, rest @ ..] if shared(Scope::Network) => (1 + rest.len(), rest),
        [Scope::Network, rest @ ..] => (0, rest),
        _ => (0, scopes),
    };
    first + rest.iter().take_while(|scope| shared(**scope)).count()
}

fn shared(scope: Scope, source: &Workload, endpoint: &Kind, same_node: bool) -> bool {
    match scope {
        Scope::Region => source.place.locality.region == endpoint.locality.region,
        Scope::Zone => source.place.locality.zone == endpoint.locality.zone,
        Scope::Subzone => source.place.locality.subzone == endpoint.locality.subzone,
        Scope::Node => same_node,
        Scope::Cluster => source.cluster_id == endpoint.cluster_id,
        Scope::Network => source.network == endpoint.network,
    }
}
