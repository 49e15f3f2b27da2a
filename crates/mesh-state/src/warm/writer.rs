//! Writes the body: whole numbers, texts by their position, lists.

use alloc::vec::Vec;
use core::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;

/// A body in the making. Texts get their positions as they are first named, and are put before all else in the end.
#[derive(Default)]
pub(super) struct Writer<'s> {
    out: Vec<u8>,
    positions: HashMap<&'s str, u64>,
    texts: Vec<&'s str>,
}

impl<'s> Writer<'s> {
    pub(super) fn finish(self) -> Vec<u8> {
        let mut all = Writer::default();
        all.number(self.texts.len());
        for text in self.texts {
            all.bytes(text.as_bytes());
        }
        all.out.extend(self.out);
        all.out
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.out.push(byte);
    }

    pub(super) fn flag(&mut self, flag: bool) {
        self.byte(u8::from(flag));
    }

    pub(super) fn number(&mut self, number: impl TryInto<u64>) {
        let Ok(mut left) = number.try_into() else { unreachable!("nothing here is negative or beyond 64 bits") };
        while left >= 0x80 {
            self.out.push(0x80 | (left & 0x7f) as u8);
            left >>= 7;
        }
        self.out.push(left as u8);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.out.extend(bytes);
    }

    pub(super) fn text(&mut self, text: &'s str) {
        let next = self.texts.len() as u64;
        let position = *self.positions.entry(text).or_insert_with(|| {
            self.texts.push(text);
            next
        });
        self.number(position);
    }

    pub(super) fn list<T>(
        &mut self,
        count: usize,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.number(count);
        items.into_iter().for_each(|item| write(self, item));
    }

    pub(super) fn option<T>(&mut self, item: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(item.is_some());
        if let Some(item) = item {
            write(self, item);
        }
    }

    pub(super) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => {
                self.byte(4);
                self.out.extend(v4.octets());
            }
            IpAddr::V6(v6) => {
                self.byte(6);
                self.out.extend(v6.octets());
            }
        }
    }

    pub(super) fn block(&mut self, block: IpNet) {
        self.address(block.addr());
        self.byte(block.prefix_len());
    }
}
