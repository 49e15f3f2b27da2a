//! The names and versions of what is held, as bytes: what a daemon that starts again tells the control plane it has. Pure.
//!
//! A count, and for each its kind, the lengths of its name and version, and both; numbers are 32 bits, little endian. That
//! the bytes are whole and of whom they are is checked around them.

use std::sync::Arc;

use mesh_state::{
    change::Change,
    name::{NamespacedHostname, PolicyKey, Uid},
};

/// What a resource is in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// A workload, under its uid.
    Workload,
    /// A service, under `namespace/hostname`.
    Service,
    /// A policy, under its key.
    Policy,
}

impl What {
    const ALL: [Self; 3] = [Self::Workload, Self::Service, Self::Policy];

    /// What the resource is of which this is the change.
    pub(crate) fn of(change: &Change) -> Self {
        match change {
            Change::Workload(_) => Self::Workload,
            Change::Service(_) => Self::Service,
            _ => Self::Policy,
        }
    }

    /// The change that takes a resource of this kind back; `None` for a name that none of it can have.
    pub fn gone(self, name: &Arc<str>) -> Option<Change> {
        Some(match self {
            Self::Workload => Change::WorkloadGone(Uid(name.clone())),
            Self::Service => Change::ServiceGone(NamespacedHostname::parse(name).ok()?),
            Self::Policy => Change::PolicyGone(PolicyKey(name.clone())),
        })
    }
}

/// A resource that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub what: What,
    /// Its name.
    pub name: Arc<str>,
    /// Its version; empty where the server gives none.
    pub version: Box<str>,
}

/// Why bytes are no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list of versions is malformed at byte {at}: {what}")]
pub struct KeptError {
    /// Where.
    pub at: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// The bytes of a list. Names and versions beyond 4 GiB cannot be: a response is at most 200 MiB.
pub fn encode(list: &[Kept]) -> Vec<u8> {
    let length = |length: usize| u32::try_from(length).expect("a response has at most 200 MiB").to_le_bytes();
    let bytes = list.iter().map(|kept| 9 + kept.name.len() + kept.version.len()).sum::<usize>();
    let mut out = Vec::with_capacity(4 + bytes);
    out.extend(length(list.len()));
    for Kept { what, name, version } in list {
        out.push(*what as u8);
        out.extend(length(name.len()));
        out.extend(length(version.len()));
        out.extend(name.as_bytes());
        out.extend(version.as_bytes());
    }
    out
}

/// The list that the bytes are.
///
/// # Errors
/// [`KeptError`]. Nothing is made that is larger than what was read.
pub fn decode(bytes: &[u8]) -> Result<Vec<Kept>, KeptError> {
    let mut reader = Reader { bytes, at: 0 };
    let count = reader.number()?;
    // Each takes at least 9 bytes, so a count that is too large is no reason to make room.
    let mut list = Vec::with_capacity(count.min(bytes.len() / 9));
    for _ in 0..count {
        let [what] = *reader.take(1)? else { unreachable!("one was taken") };
        let Some(&what) = What::ALL.get(usize::from(what)) else { return reader.malformed("there is no such kind") };
        let (name, version) = (reader.number()?, reader.number()?);
        let (name, version) = (reader.text(name)?, reader.text(version)?);
        list.push(Kept { what, name: name.into(), version: version.into() });
    }
    if reader.at != bytes.len() {
        return reader.malformed("more follows than it says");
    }
    Ok(list)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn malformed<T>(&self, what: &'static str) -> Result<T, KeptError> {
        Err(KeptError { at: self.at, what })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], KeptError> {
        match self.bytes[self.at..].get(..count) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => self.malformed("it ends in the middle"),
        }
    }

    fn number(&mut self) -> Result<usize, KeptError> {
        let bytes = self.take(4)?.try_into().expect("four were taken");
        Ok(usize::try_from(u32::from_le_bytes(bytes)).expect("addresses have at least 32 bits"))
    }

    fn text(&mut self, count: usize) -> Result<&'a str, KeptError> {
        let bytes = self.take(count)?;
        std::str::from_utf8(bytes).or_else(|_| self.malformed("a text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_was_cut_or_changed_is_refused_where_it_is() {
        let kept = |what, name: &str, version: &str| Kept { what, name: name.into(), version: version.into() };
        let list = [
            kept(What::Workload, "Kubernetes//Pod/shop/web-0", "7"),
            kept(What::Service, "shop/web.shop.svc", ""),
            kept(What::Policy, "shop/only-wéb", "v1"),
        ];
        let bytes = encode(&list);
        assert_eq!(decode(&bytes).as_deref(), Ok(&list[..]));
        assert_eq!(decode(&encode(&[])), Ok(vec![]));
        for cut in 0..bytes.len() {
            decode(&bytes[..cut]).expect_err("cut");
        }
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            decode(&bytes).expect_err("changed").what
        };
        assert_eq!(changed(0, 2), "more follows than it says");
        assert_eq!(changed(3, 255), "it ends in the middle");
        assert_eq!(changed(4, 3), "there is no such kind");
        assert_eq!(changed(13, 0xff), "a text is not UTF-8");
    }
}
