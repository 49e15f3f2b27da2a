//! Bytes of a gRPC stream with anything in them; what must hold is in `promises`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../promises.rs"]
#[expect(dead_code, reason = "the other targets' are here too")]
mod promises;

fuzz_target!(|bytes: &[u8]| {
    promises::of_frames(bytes);
});
