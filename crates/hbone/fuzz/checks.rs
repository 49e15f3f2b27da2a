//! What must hold for any bytes from outside. Used by the fuzz targets and by the replay of their corpora, which
//! includes this file.

use hbone::baggage::Baggage;
use hbone::credential::Credential;
use hbone::forwarded;
use hbone::revocation::Revocations;
use hbone::traceparent::Traceparent;
use mesh_state::identity::Identity;

type Check = fn(&[u8]);

/// The name of a corpus, and what is done with each of its files.
pub(crate) const CHECKS: [(&str, Check); 5] = [
    ("baggage", baggage),
    ("forwarded", forwarded),
    ("traceparent", traceparent),
    ("credential_pem", credential_pem),
    ("revocation_list", revocation_list),
];

/// What is read can be written, is a header then, and reads the same.
pub(crate) fn baggage(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let written = Baggage::parse(text).to_string();
    assert!(written.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{written:?}");
    let again = Baggage::parse(&written);
    assert_eq!(again.to_string(), written);
}

/// A host is part of what came, and is plain ASCII.
pub(crate) fn forwarded(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(host) = forwarded::host(text) {
        assert!(!host.is_empty() && host.is_ascii() && text.contains(host), "{host:?}");
    }
}

/// What is read is valid, and is read again as it is written.
pub(crate) fn traceparent(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(read) = Traceparent::parse(text) {
        assert!(read.trace != 0 && read.parent != 0);
        assert_eq!(Traceparent::parse(&read.to_string()), Some(read));
        assert!(text[2..52].eq_ignore_ascii_case(&read.to_string()[2..52]), "{text}");
    }
}

/// Chain, key and roots, separated by NUL, are taken or refused with a message. What is taken is the identity's.
pub(crate) fn credential_pem(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let mut part = || parts.next().unwrap_or_default();
    let identity = Identity::new("cluster.local", "shop", "alice").expect("an identity");
    match Credential::from_pem(&identity, part(), part(), part(), 1_800_000_000) {
        Ok(credential) => {
            assert_eq!(credential.identity(), &identity);
            assert!((credential.not_before_unix_s()..=credential.not_after_unix_s()).contains(&1_800_000_000));
            let _ = (credential.acceptor(), credential.connector(&[]));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Lists are taken all or none, or refused with a message; what is taken is read again as the same.
pub(crate) fn revocation_list(bytes: &[u8]) {
    match Revocations::read(bytes) {
        Ok(read) => assert_eq!(Revocations::read(bytes).map(|again| again.len()), Ok(read.len())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
