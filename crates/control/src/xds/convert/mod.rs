//! From a resource to a change of the mesh, or why it is refused. Pure; a bad resource refuses only itself.
//!
//! What is refused is what behaviour §8.4 lists. Where a value of a policy cannot be read the policy is taken and fails
//! closed (decision 0004); where a value of a workload or service cannot be read it is refused, and the copy held stays.

mod address;
mod policy;

use std::sync::Arc;

use mesh_state::change::Change;
use prost::Message;

use super::Kind;
use crate::proto::{discovery::Resource, security::Authorization, workload::Address};

/// Why a resource is refused. The control plane is told these words, beside the resource's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no name.
    #[error("it has no name")]
    Nameless,
    /// It has no content.
    #[error("it has no content")]
    Empty,
    /// It is of another type than the response.
    #[error("it is a {got:?} in a response of {wanted}")]
    Type {
        /// What the response is of.
        wanted: &'static str,
        /// What the resource says.
        got: String,
    },
    /// It is no such message.
    #[error("it cannot be decoded: {cause}")]
    Decode {
        /// What prost says.
        cause: String,
    },
    /// It describes something else than what it is named for.
    #[error("it describes {inside:?}; another name would be needed to take it back")]
    Name {
        /// What it describes.
        inside: String,
    },
    /// An address of neither a workload nor a service.
    #[error("it is neither a workload nor a service")]
    Kind,
    /// An address that is not 4 or 16 bytes long.
    #[error("{field}: an address of {bytes} bytes; 4 or 16 are one")]
    Address {
        /// Where.
        field: &'static str,
        /// How long.
        bytes: usize,
    },
    /// A prefix longer than its address.
    #[error("{field}: a prefix of {length} bits, which is longer than the address")]
    Prefix {
        /// Where.
        field: &'static str,
        /// How long.
        length: u32,
    },
    /// A gateway that leads nowhere.
    #[error("{field}: it has no destination")]
    Destination {
        /// Where.
        field: &'static str,
    },
    /// A number that is no port.
    #[error("{field}: {port} is no port")]
    Port {
        /// Where.
        field: &'static str,
        /// Which.
        port: u32,
    },
    /// A value of an enumeration that is not known, or that cannot be followed.
    #[error("{field}: {value} is unknown or not supported")]
    Value {
        /// Where.
        field: &'static str,
        /// Which.
        value: i32,
    },
    /// A text that is not of its form.
    #[error("{field}: {cause}")]
    Text {
        /// Where.
        field: &'static str,
        /// What is wrong.
        cause: String,
    },
}

/// The change that a resource of a response of `kind` is.
///
/// # Errors
/// [`Refusal`].
pub fn change(kind: Kind, name: &Arc<str>, resource: &Resource) -> Result<Change, Refusal> {
    if name.is_empty() {
        return Err(Refusal::Nameless);
    }
    let any = resource.resource.as_ref().ok_or(Refusal::Empty)?;
    if any.type_url != kind.type_url() {
        return Err(Refusal::Type { wanted: kind.type_url(), got: any.type_url.clone() });
    }
    let decode = |error: prost::DecodeError| Refusal::Decode { cause: error.to_string() };
    match kind {
        Kind::Address => address::change(name, Address::decode(any.value.clone()).map_err(decode)?),
        Kind::Authorization => policy::change(name, Authorization::decode(any.value.clone()).map_err(decode)?),
    }
}
