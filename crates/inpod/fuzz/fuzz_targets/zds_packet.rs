//! `Request::decode` on whatever an agent may send: no panic, and a limit that holds.
#![no_main]

use inpod::zds::wire::{PACKET_MAX, RESPONSE_MAX, Request, nack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    match Request::decode(packet) {
        Ok(_) => assert!(packet.len() <= PACKET_MAX),
        Err(error) => assert!(nack(&error.to_string()).len() <= RESPONSE_MAX),
    }
});
