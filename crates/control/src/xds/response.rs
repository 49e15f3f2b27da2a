//! A delta response, read piece by piece. One of 200 MiB is never unpacked as a whole: its head is found by jumping from
//! field to field, and then each resource is decoded when its turn comes. It shares the memory of the message it came in.

use bytes::{Buf, Bytes};
use prost::Message;

use crate::proto::discovery::Resource;

/// Numbers of the fields of a response.
const RESOURCES: u64 = 2;
const TYPE_URL: u64 = 4;
const NONCE: u64 = 5;
const REMOVED: u64 = 6;

/// Why a message is no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no delta response, at byte {at} of {bytes}: {cause}")]
pub struct ResponseError {
    at: usize,
    bytes: usize,
    cause: &'static str,
}

/// A response whose head is known and whose parts are still to come.
#[derive(Debug, Clone)]
pub struct Response {
    type_url: String,
    nonce: String,
    body: Bytes,
    /// What of the body is still to be read in this pass.
    rest: Bytes,
    pass: u64,
}

/// One of the parts, in the order in which they count: what is new or different, then what is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// New or different.
    Resource(Resource),
    /// No resource, so nothing is known but that there was one.
    Unreadable {
        /// What prost says.
        cause: String,
    },
    /// Gone.
    Removed(String),
}

impl Response {
    /// Finds the head. Costs a few nanoseconds per resource.
    ///
    /// # Errors
    /// [`ResponseError`] when the fields do not fit the message's length, or a text is no UTF-8.
    pub fn read(body: Bytes) -> Result<Self, ResponseError> {
        let (mut type_url, mut nonce) = (String::new(), String::new());
        let mut rest = body.clone();
        loop {
            let at = body.len() - rest.len();
            let fail = |cause| ResponseError { at, bytes: body.len(), cause };
            let Some((number, content)) = field(&mut rest).map_err(fail)? else { break };
            match (number, content) {
                (TYPE_URL, content) => type_url = text(content).map_err(fail)?,
                (NONCE, content) => nonce = text(content).map_err(fail)?,
                (REMOVED, content) => {
                    text(content).map_err(fail)?;
                }
                (RESOURCES, None) => return Err(fail("a resource that is no message")),
                _ => {}
            }
        }
        Ok(Self { type_url, nonce, rest: body.clone(), body, pass: RESOURCES })
    }

    /// Of which type it is.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// What is to be echoed.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Whether the last part has not been given yet. It may be that what is left is no part of it.
    pub fn has_more(&self) -> bool {
        self.pass == RESOURCES || !self.rest.is_empty()
    }

    /// How long the message is, in bytes.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

impl Iterator for Response {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        loop {
            match field(&mut self.rest).expect("`read` went through all of it") {
                Some((number, Some(content))) if number == self.pass => {
                    return Some(match self.pass {
                        RESOURCES => match Resource::decode(content) {
                            Ok(resource) => Part::Resource(resource),
                            Err(error) => Part::Unreadable { cause: error.to_string() },
                        },
                        _ => Part::Removed(text(Some(content)).expect("`read` has seen that it is a text")),
                    });
                }
                Some(_) => {}
                None if self.pass == RESOURCES => {
                    self.pass = REMOVED;
                    self.rest = self.body.clone();
                }
                None => return None,
            }
        }
    }
}

/// The next field: its number, and its content where that has a length. Numbers are skipped.
fn field(rest: &mut Bytes) -> Result<Option<(u64, Option<Bytes>)>, &'static str> {
    if rest.is_empty() {
        return Ok(None);
    }
    let key = varint(rest)?;
    let fixed = |rest: &mut Bytes, length: usize| {
        if rest.len() < length {
            return Err("a number is cut short");
        }
        rest.advance(length);
        Ok(None)
    };
    let content = match key & 7 {
        0 => varint(rest).map(|_| None)?,
        1 => fixed(rest, 8)?,
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| "a field is longer than any memory")?;
            if rest.len() < length {
                return Err("a field is longer than the message");
            }
            Some(rest.split_to(length))
        }
        5 => fixed(rest, 4)?,
        _ => return Err("a field of no known wire type"),
    };
    Ok(Some((key >> 3, content)))
}

fn varint(rest: &mut Bytes) -> Result<u64, &'static str> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let Some(&byte) = rest.first() else { return Err("a number is cut short") };
        rest.advance(1);
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a number of more than 64 bits")
}

fn text(content: Option<Bytes>) -> Result<String, &'static str> {
    let content = content.ok_or("a number where a text is expected")?;
    String::from_utf8(content.into()).map_err(|_| "a text that is no UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        discovery::{ADDRESS_TYPE, DeltaDiscoveryResponse},
        well_known::Any,
    };

    fn resource(name: &str) -> Resource {
        let value = Bytes::from_static(b"content");
        let resource = Some(Any { type_url: ADDRESS_TYPE.into(), value });
        Resource { version: "1".into(), resource, name: name.into(), aliases: vec!["a".into()] }
    }

    #[test]
    fn resources_come_before_what_is_gone_wherever_they_stand() {
        let message = DeltaDiscoveryResponse {
            system_version_info: "x".into(),
            resources: vec![resource("a"), resource("b")],
            type_url: ADDRESS_TYPE.into(),
            nonce: "7".into(),
            removed_resources: vec!["c".into(), "d".into()],
        };
        let mut turned = DeltaDiscoveryResponse { resources: vec![], ..message.clone() }.encode_to_vec();
        turned.extend(
            DeltaDiscoveryResponse { resources: message.resources.clone(), ..Default::default() }.encode_to_vec(),
        );
        for bytes in [message.encode_to_vec(), turned] {
            let response = Response::read(bytes.into()).expect("good");
            assert_eq!((response.type_url(), response.nonce()), (ADDRESS_TYPE, "7"));
            let parts: Vec<Part> = response.collect();
            let gone = |name: &str| Part::Removed(name.into());
            assert_eq!(parts, [Part::Resource(resource("a")), Part::Resource(resource("b")), gone("c"), gone("d")]);
        }
    }

    #[test]
    fn a_resource_that_cannot_be_read_harms_no_other() {
        let good = resource("b").encode_to_vec();
        let good_length = u8::try_from(good.len()).expect("short");
        let bytes = [&[0x12, 3, 0x0a, 9, b'x'][..], &[0x12, good_length], &good].concat();
        let parts: Vec<Part> = Response::read(bytes.into()).expect("its fields are whole").collect();
        assert!(matches!(parts[0], Part::Unreadable { .. }), "{parts:?}");
        assert_eq!(parts[1], Part::Resource(resource("b")));
    }

    #[test]
    fn what_is_no_response_is_refused_with_the_place() {
        for (bytes, complaint) in [
            (&b"\x12\x05abc"[..], "at byte 0 of 5: a field is longer"),
            (b"\x2a\x01n\x12", "at byte 3 of 4: a number is cut short"),
            (b"\x2a\x01\xff", "at byte 0 of 3: a text that is no UTF-8"),
            (b"\x32\x01\xff", "a text that is no UTF-8"),
            (b"\x28\x01", "a number where a text is expected"),
            (b"\x10\x01", "a resource that is no message"),
            (b"\x13", "no known wire type"),
            (b"\x09\x01", "a number is cut short"),
            (b"\x3d\x01", "a number is cut short"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than 64 bits"),
            (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a field is longer"),
        ] {
            let error = Response::read(Bytes::from_static(bytes)).expect_err(complaint).to_string();
            assert!(error.contains(complaint), "{error} is not {complaint}");
        }
        assert_eq!(Response::read(Bytes::new()).expect("an empty message is one").count(), 0);
    }
}
