//! Replays the committed fuzz corpus, so that what a fuzzer once found stays found without one.

#[path = "../fuzz/checks.rs"]
mod checks;
#[path = "../fuzz/names.rs"]
mod names;

use std::fs;
use std::path::Path;

use mesh_state::identity::Identity;
use mesh_state::name::Authority;

#[test]
fn what_parses_of_the_identity_corpus_prints_and_reads_as_it_was() {
    let parsed = replay("identity", |text| {
        let Ok(identity) = Identity::parse(text) else {
            return false;
        };
        assert_eq!(identity.to_string(), text);
        assert_eq!(Identity::parse(&identity.to_string()), Ok(identity));
        true
    });
    assert!(parsed >= 3, "the corpus should hold identities, not only what is none: {parsed} parsed");
}

#[test]
fn what_parses_of_the_authority_corpus_reads_again_as_what_it_prints() {
    let parsed = replay("authority", |text| {
        let Ok(authority) = Authority::parse(text) else {
            return false;
        };
        assert_eq!(Authority::parse(&authority.to_string()), Ok(authority), "{text:?}");
        true
    });
    assert!(parsed >= 3, "the corpus should hold authorities, not only what is none: {parsed} parsed");
}

#[test]
fn any_changes_of_the_corpus_leave_indices_that_are_right() {
    let changes: usize = contents("changes").iter().map(|bytes| checks::changes(bytes)).sum();
    assert!(changes >= 200, "the corpus should hold changes: {changes}");
}

#[test]
fn any_warm_start_of_the_corpus_is_a_mesh_or_refused() {
    let meshes = contents("warm").iter().filter(|bytes| checks::warm(bytes)).count();
    assert!(meshes >= 3, "the corpus should hold meshes, not only what is none: {meshes}");
}

#[test]
fn what_is_answered_of_the_name_corpus_depends_on_neither_case_nor_the_final_dot() {
    let answered = replay("dns_name", names::check);
    assert!(answered >= 5, "the corpus should hold names of the mesh, not only others: {answered} answered");
}

/// How many files of a corpus `parse` says it parsed. Bytes that are no text are skipped as the fuzzer skips them.
fn replay(corpus: &str, parse: impl Fn(&str) -> bool) -> usize {
    let texts = contents(corpus).into_iter().filter_map(|bytes| String::from_utf8(bytes).ok());
    texts.filter(|text| parse(text)).count()
}

fn contents(corpus: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    files.map(|file| read(&file.expect("listed").path())).collect()
}
