//! `Identity::parse` on the bytes of a peer's certificate: no panic, and what parses prints as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_state::identity::Identity;

fuzz_target!(|text: &str| {
    if let Ok(identity) = Identity::parse(text) {
        assert_eq!(identity.to_string(), text);
        let parts = Identity::new(identity.trust_domain(), identity.namespace(), identity.service_account());
        assert_eq!(parts.as_ref(), Ok(&identity));
    }
});
