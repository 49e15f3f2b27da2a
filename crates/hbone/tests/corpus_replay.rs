//! Every file of the fuzz corpora, through the code that the fuzzer drives.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

use hbone::credential::Credential;
use hbone::revocation::Revocations;
use mesh_state::identity::Identity;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");

#[test]
fn every_file_of_the_corpora_is_survived() {
    for (name, check) in checks::CHECKS {
        let mut files = 0;
        for entry in fs::read_dir(Path::new(CORPUS).join(name)).expect("a corpus for each check") {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("a file");
            files += 1;
            std::panic::catch_unwind(|| check(&bytes)).unwrap_or_else(|_| panic!("{} fails", path.display()));
        }
        assert!(files >= 5, "the corpus of {name} is gone: {files} files");
    }
}

#[test]
fn every_corpus_has_its_check() {
    let mut names: Vec<_> = fs::read_dir(CORPUS)
        .expect("the corpora")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII"))
        .collect();
    names.sort();
    let mut checks: Vec<_> = checks::CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    checks.sort();
    assert_eq!(names, checks);
}

#[test]
fn the_corpus_reaches_the_end_of_the_good_way() {
    let good = fs::read_to_string(Path::new(CORPUS).join("credential_pem/good")).expect("the good one");
    let [chain, key, roots] = good.split('\0').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let alice = Identity::new("cluster.local", "shop", "alice").expect("an identity");
    Credential::from_pem(&alice, chain, key, roots, 1_800_000_000).expect("good");
}

#[test]
fn the_corpus_of_revocation_lists_has_lists() {
    let lists = |name: &str| {
        let bytes = fs::read(Path::new(CORPUS).join("revocation_list").join(name)).expect("a file");
        Revocations::read(&bytes).map(|lists| lists.len())
    };
    assert_eq!((lists("good"), lists("between_others"), lists("der")), (Ok(1), Ok(2), Ok(1)));
}
