//! A CA's answer with anything in it; what must hold is in `promises`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../promises.rs"]
#[expect(dead_code, reason = "the other targets' are here too")]
mod promises;

fuzz_target!(|answer: &[u8]| {
    promises::of_a_ca_answer(answer);
});
