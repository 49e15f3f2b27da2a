//! Whole conversations with an agent that says anything; what must hold is in `conversation`.
#![no_main]

use std::{fs::File, os::fd::AsRawFd};

use libfuzzer_sys::fuzz_target;

#[path = "../conversation.rs"]
mod conversation;

fuzz_target!(|script: &[u8]| {
    // The lowest free number: the same again if nothing was left open.
    let lowest = || File::open("/dev/null").expect("exists").as_raw_fd();
    let before = lowest();
    conversation::hold(script);
    assert_eq!(lowest(), before, "a descriptor was left open");
});
