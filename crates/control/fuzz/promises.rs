//! What must hold of a mesh file and of a root, whatever is in them. For the fuzz targets and the replay of their corpora.

use std::time::Duration;

use control::{
    ca::embedded::EmbeddedCa,
    file_source::{Defaults, FileSource, Origin},
};
use mesh_state::identity::Identity;
use time::OffsetDateTime;

/// A mesh that is in force before the text comes.
const BEFORE: &str = "workloads:\n- {name: before, namespace: n, workloadIps: [], services: {}}\n";

/// True if the text is a mesh. If not, it has changed nothing, and the error is one line that names the place.
pub(crate) fn of_a_mesh_file(bytes: &[u8]) -> bool {
    // Another text does not come from a file.
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let defaults = Defaults { trust_domain: "cluster.local".to_owned(), cluster: "Kubernetes".to_owned() };
    let mut source = FileSource::new(Origin::Inline(String::new()), defaults);
    assert_eq!(source.apply(BEFORE).expect("a good mesh").len(), 1);
    match source.apply(text) {
        Ok(_) => {
            assert_eq!(source.apply(text).expect("as a moment ago"), [], "the same again changes nothing");
            true
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("LOCAL_XDS:") && !error.contains('\n'), "{error:?}");
            assert_eq!(source.apply(BEFORE).expect("a good mesh"), [], "it has changed something: {error}");
            false
        }
    }
}

/// True if the text is a root that issues certificates. If not, the error says something.
pub(crate) fn of_a_root(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("the year 2027");
    match EmbeddedCa::from_pem(text, Duration::from_secs(86_400), now) {
        Ok(ca) => {
            let identity = Identity::new("cluster.local", "shop", "web").expect("a good identity");
            ca.issue(&identity, now).is_ok_and(|credential| credential.identity() == &identity)
        }
        Err(cause) => {
            assert!(!cause.is_empty());
            false
        }
    }
}
