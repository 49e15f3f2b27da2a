//! Delta discovery: the mesh as the control plane tells it.
//!
//! [`session`] decides what is asked, taken, refused and answered; [`response`] reads a response piece by piece;
//! [`convert`] turns a resource into a change; [`withheld`] keeps workloads back that came before their policies; [`kept`] is
//! what is held as bytes; [`on_demand`] knows what was asked for by name; `stream` carries it all out.

pub mod convert;
pub mod kept;
pub mod on_demand;
pub mod proxy;
pub mod response;
pub mod session;
pub(crate) mod stream;
pub mod withheld;

use crate::proto::discovery::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// The types of resources that are subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    /// All, in the order in which they are asked for.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// By which name the control plane knows it.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }

    /// The type of that name.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}
