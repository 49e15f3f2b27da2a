//! A mesh as bytes, for a start that does not wait for the control plane. Reading and writing the file is control's; here are
//! the bytes, and when they are not to be believed.
//!
//! Laid out as: [`MAGIC`], version, time of writing, origin, length of the body, body, CRC-64 of all that precedes it. The
//! body begins with every text once; all else refers to texts by their position. Whole numbers of the header are little
//! endian, those of the body are of variable length (LEB128).

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use thiserror::Error;

use crate::builder::SnapshotBuilder;
use crate::snapshot::Snapshot;
use reader::Reader;
use writer::Writer;

mod checksum;
mod policy;
mod reader;
mod service;
mod workload;
mod writer;

/// What the bytes begin with.
pub const MAGIC: [u8; 8] = *b"CTNLMESH";

/// The layout. One that is not this is not read: the control plane sends everything anew, so there is nothing to migrate.
pub const VERSION: u32 = 1;

/// The longest input, in bytes. A mesh of a million workloads takes about 110 MiB. As written by [`encode`]
/// a mesh takes 4 times its bytes. What a mesh may take at most is bounded by its memberships (workloads times services of
/// their profile), of which there may be as many as bytes: about 100 times them.
pub const BYTES_MAX: usize = 1 << 30;

/// How far the clock may have gone back since the bytes were written, in seconds.
pub const CLOCK_SKEW_S: u64 = 60;

/// What bytes must be to be believed.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Where they must come from: what names the control plane and this node's view of it.
    pub origin: &'a str,
    /// The time, in seconds since 1970.
    pub now_unix_s: u64,
    /// How old they may be, in seconds.
    pub age_max_s: u64,
}

/// Why bytes are not believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// They begin otherwise.
    #[error("not a warm start file: it does not begin with {}", MAGIC.escape_ascii())]
    Foreign,
    /// They are of another version of this program.
    #[error("a warm start file of layout {found}, and this program reads {VERSION}: it was written by another version")]
    Version {
        /// The version they name.
        found: u32,
    },
    /// They are of another control plane, or another node's.
    #[error("the warm start file is of {found:?} and not of {expected:?}: was the file or the node moved?")]
    Origin {
        /// Where they come from.
        found: String,
        /// Where they should come from.
        expected: String,
    },
    /// They are too old.
    #[error("the warm start file is {age_s} s old, more than the {age_max_s} s allowed")]
    Stale {
        /// How old they are.
        age_s: u64,
        /// How old they may be.
        age_max_s: u64,
    },
    /// They are of the future.
    #[error("the warm start file was written {ahead_s} s from now: is this node's clock right?")]
    Future {
        /// How far ahead.
        ahead_s: u64,
    },
    /// The checksum is another's.
    #[error("the warm start file is damaged: its checksum does not match; was it cut short or written to?")]
    Checksum,
    /// More than [`BYTES_MAX`].
    #[error("a warm start file of {bytes} bytes is longer than the {BYTES_MAX} allowed")]
    Length {
        /// How many.
        bytes: usize,
    },
    /// The checksum holds and they still say nothing that can be.
    #[error("the warm start file is malformed at byte {at}: {what}")]
    Malformed {
        /// Where, counted from the beginning of the body.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// A mesh as bytes. Which generation it was is not part of it.
pub fn encode(snapshot: &Snapshot, origin: &str, now_unix_s: u64) -> Vec<u8> {
    let mut writer = Writer::default();
    let tables = snapshot.tables();
    writer.flag(tables.on_demand);
    workload::write_all(&mut writer, snapshot);
    writer.list(snapshot.services().count(), snapshot.services(), |writer, service| service::write(writer, service));
    writer.list(snapshot.policies().count(), snapshot.policies(), |writer, policy| policy::write(writer, policy));
    let absences = || tables.absences.iter();
    writer.list(absences().count(), absences(), service::write_sought);
    framed(&writer.finish(), origin, now_unix_s)
}

/// A body with all that makes it believed, whatever is in it: the part of [`encode`] that a fuzzer cannot guess.
pub fn framed(body: &[u8], origin: &str, now_unix_s: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAGIC.len() + 36 + origin.len() + body.len());
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(now_unix_s.to_le_bytes());
    for part in [origin.as_bytes(), body] {
        out.extend(u64::try_from(part.len()).expect("memory is smaller").to_le_bytes());
        out.extend(part);
    }
    let checksum = checksum::crc64(&out);
    out.extend(checksum.to_le_bytes());
    out
}

/// A builder of the mesh that the bytes are, if they are to be believed. What the control plane no longer has is in it until
/// somebody compares.
pub fn decode(bytes: &[u8], terms: &Terms<'_>) -> Result<SnapshotBuilder, Refused> {
    let body = believe(bytes, terms)?;
    let mut reader = Reader::new(body)?;
    let mut builder = match reader.flag()? {
        true => SnapshotBuilder::on_demand(),
        false => SnapshotBuilder::new(),
    };
    workload::read_all(&mut reader, &mut |change| builder.apply(change))?;
    for _ in 0..reader.count()? {
        builder.apply(service::read(&mut reader)?);
    }
    for _ in 0..reader.count()? {
        builder.apply(policy::read(&mut reader)?);
    }
    for _ in 0..reader.count()? {
        builder.apply(service::read_sought(&mut reader)?);
    }
    reader.end()?;
    Ok(builder)
}

/// The body that [`framed`] was given, once everything around it is right. What the bytes say they are comes before their checksum, since that is
/// laid out by version.
pub fn believe<'b>(bytes: &'b [u8], terms: &Terms<'_>) -> Result<&'b [u8], Refused> {
    if bytes.len() > BYTES_MAX {
        return Err(Refused::Length { bytes: bytes.len() });
    }
    let rest = bytes.strip_prefix(&MAGIC).ok_or(Refused::Foreign)?;
    let (version, rest) = rest.split_first_chunk().ok_or(Refused::Checksum)?;
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(Refused::Version { found });
    }
    let (_, checksum) = bytes.split_last_chunk().ok_or(Refused::Checksum)?;
    let summed = &bytes[..bytes.len() - checksum.len()];
    let rest = rest.get(..rest.len().saturating_sub(checksum.len())).ok_or(Refused::Checksum)?;
    if checksum::crc64(summed) != u64::from_le_bytes(*checksum) {
        return Err(Refused::Checksum);
    }
    let (written, rest) = rest.split_first_chunk().ok_or(Refused::Checksum)?;
    let (origin, rest) = sized(rest).ok_or(Refused::Checksum)?;
    let (body, rest) = sized(rest).ok_or(Refused::Checksum)?;
    if !rest.is_empty() {
        return Err(Refused::Checksum);
    }
    if origin != terms.origin.as_bytes() {
        let found = String::from_utf8_lossy(origin).into_owned();
        return Err(Refused::Origin { found, expected: terms.origin.into() });
    }
    let written = u64::from_le_bytes(*written);
    if written > terms.now_unix_s.saturating_add(CLOCK_SKEW_S) {
        return Err(Refused::Future { ahead_s: written - terms.now_unix_s });
    }
    let age_s = terms.now_unix_s.saturating_sub(written);
    if age_s > terms.age_max_s {
        return Err(Refused::Stale { age_s, age_max_s: terms.age_max_s });
    }
    Ok(body)
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

/// A text by its position, held once by all who name it.
type Text = Arc<str>;
