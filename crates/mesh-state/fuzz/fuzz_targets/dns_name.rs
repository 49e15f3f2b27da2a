//! `dns::answer` to the name of a question: no panic, and what is answered does not depend on case or the final dot.
#![no_main]

#[path = "../names.rs"]
mod names;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    names::check(text);
});
