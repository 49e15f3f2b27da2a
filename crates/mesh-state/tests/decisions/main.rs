//! The decisions, row by row of the behaviour they must have (§4 outbound, §6 admission, §7 authorization, §8.4 lookups,
//! §10 names).

mod admission;
mod authorization;
mod balancing;
mod changes;
mod fixture;
mod gateways;
mod hostnames;
mod lookups;
mod names;
mod on_demand;
mod outbound;
mod waypoints;
