//! Replays the committed fuzz corpora, so that what a fuzzer once found stays found without one.

use std::{fs, path::Path};

#[path = "../fuzz/promises.rs"]
mod promises;

#[test]
fn mesh_files_of_the_corpus_are_taken_whole_or_not_at_all() {
    let taken = replay("local_yaml", promises::of_a_mesh_file);
    assert!(taken.contains(&"good".to_owned()), "the corpus should hold a mesh, not only mistakes: {taken:?}");
}

#[test]
fn roots_of_the_corpus_issue_certificates_or_are_refused() {
    let taken = replay("root_pem", promises::of_a_root);
    assert!(taken.contains(&"good".to_owned()), "the corpus should hold a root, not only mistakes: {taken:?}");
}

#[test]
fn answers_of_the_corpus_are_the_askers_certificate_or_refused() {
    let taken = replay("ca_answer", promises::of_a_ca_answer);
    for good in ["good", "intermediate", "two_roots"] {
        assert!(taken.contains(&good.to_owned()), "the corpus should hold {good}: {taken:?}");
    }
    for bad in ["other_identity", "other_key", "expired", "no_roots", "empty", "cut", "not_pem"] {
        assert!(!taken.contains(&bad.to_owned()), "{bad} is taken");
    }
}

#[test]
fn frames_of_the_corpus_are_the_same_messages_however_they_come() {
    let taken = replay("grpc_frames", promises::of_frames);
    for good in ["one", "several", "nothing_in_it"] {
        assert!(taken.contains(&good.to_owned()), "the corpus should hold {good}: {taken:?}");
    }
    for bad in ["cut", "cut_in_its_head", "compressed", "too_long", "empty"] {
        assert!(!taken.contains(&bad.to_owned()), "{bad} is taken");
    }
}

#[test]
fn responses_of_the_corpus_are_answered_and_what_they_change_can_be_built() {
    let taken = replay("xds_response", promises::of_a_response);
    assert!(taken.contains(&"good".to_owned()), "the corpus should hold a response, not only mistakes: {taken:?}");
}

#[test]
fn resources_of_the_corpus_are_taken_or_refused() {
    let taken = replay("xds_resource", promises::of_a_resource);
    for good in ["workload", "service", "policy"] {
        assert!(taken.contains(&good.to_owned()), "the corpus should hold a good {good}: {taken:?}");
    }
}

#[test]
fn versions_of_the_corpus_are_a_list_or_refused() {
    let taken = replay("kept_versions", promises::of_versions);
    for good in ["good", "none", "twice"] {
        assert!(taken.contains(&good.to_owned()), "the corpus should hold {good}: {taken:?}");
    }
}

/// Files of which the promise says that they are good.
fn replay(name: &str, promise: fn(&[u8]) -> bool) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    files
        .map(|file| file.expect("listed").path())
        .filter(|path| promise(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
        .map(|path| path.file_name().expect("a file").to_string_lossy().into_owned())
        .collect()
}
