//! Reads what the writer wrote, from bytes that may be anything: every count is held against the bytes that are left, so that
//! nothing is made larger than what was read.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::warm::{Refused, Text};

pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    texts: Vec<Text>,
}

impl<'b> Reader<'b> {
    /// Takes in the texts, which come first.
    pub(super) fn new(bytes: &'b [u8]) -> Result<Self, Refused> {
        let mut reader = Self { bytes, at: 0, texts: Vec::new() };
        for _ in 0..reader.count()? {
            let text = reader.utf8()?;
            reader.texts.push(text.into());
        }
        Ok(reader)
    }

    pub(super) fn end(&self) -> Result<(), Refused> {
        match self.at == self.bytes.len() {
            true => Ok(()),
            false => self.malformed("more follows than it says"),
        }
    }

    /// How many bytes there are in all.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn malformed<T>(&self, what: &'static str) -> Result<T, Refused> {
        Err(Refused::Malformed { at: self.at, what })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        match self.bytes[self.at..].first_chunk() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => self.malformed("it ends in the middle"),
        }
    }

    pub(super) fn byte(&mut self) -> Result<u8, Refused> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Refused> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.malformed("a flag is neither 0 nor 1"),
        }
    }

    /// A whole number of the size that its place has.
    pub(super) fn number<N: TryFrom<u64>>(&mut self) -> Result<N, Refused> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return self.malformed("a number is beyond 64 bits");
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return number.try_into().or_else(|_| self.malformed("a number is too large for its place"));
            }
        }
        self.malformed("a number is beyond 64 bits")
    }

    /// How many follow; each takes at least one byte.
    pub(super) fn count(&mut self) -> Result<usize, Refused> {
        let count = self.number()?;
        match count > self.bytes.len() - self.at {
            true => self.malformed("it ends before as many as it announces"),
            false => Ok(count),
        }
    }

    pub(super) fn utf8(&mut self) -> Result<&'b str, Refused> {
        let len = self.count()?;
        let bytes = &self.bytes[self.at..][..len];
        match core::str::from_utf8(bytes) {
            Ok(text) => {
                self.at += len;
                Ok(text)
            }
            Err(_) => self.malformed("a text is not UTF-8"),
        }
    }

    pub(super) fn text(&mut self) -> Result<Text, Refused> {
        let position: usize = self.number()?;
        match self.texts.get(position) {
            Some(text) => Ok(Arc::clone(text)),
            None => self.malformed("there is no text at this position"),
        }
    }

    pub(super) fn identity(&mut self) -> Result<Identity, Refused> {
        let text = self.text()?;
        Identity::parse(&text).or_else(|_| self.malformed("an identity is none"))
    }

    pub(super) fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T, Refused>) -> Result<Vec<T>, Refused> {
        let count = self.count()?;
        (0..count).map(|_| read(self)).collect()
    }

    pub(super) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Refused>,
    ) -> Result<Option<T>, Refused> {
        self.flag()?.then(|| read(self)).transpose()
    }

    /// One of a few kinds, by its place among them.
    pub(super) fn choice<T: Copy>(&mut self, kinds: &[T]) -> Result<T, Refused> {
        let at = usize::from(self.byte()?);
        match kinds.get(at) {
            Some(kind) => Ok(*kind),
            None => self.malformed("there is no such kind"),
        }
    }

    pub(super) fn address(&mut self) -> Result<IpAddr, Refused> {
        match self.byte()? {
            4 => self.array::<4>().map(IpAddr::from),
            6 => self.array::<16>().map(IpAddr::from),
            _ => self.malformed("an address is of neither family"),
        }
    }

    pub(super) fn block(&mut self) -> Result<IpNet, Refused> {
        let address = self.address()?;
        let prefix_len = self.byte()?;
        IpNet::new(address, prefix_len).or_else(|_| self.malformed("a prefix is longer than its address"))
    }
}
