//! `Authority::parse` on a peer's `:authority`: no panic, and what parses reads again as what it prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_state::name::Authority;

fuzz_target!(|text: &str| {
    if let Ok(authority) = Authority::parse(text) {
        assert_eq!(Authority::parse(&authority.to_string()).as_ref(), Ok(&authority));
    }
});
