//! Replays the committed fuzz corpora, so that what a fuzzer once found stays found without one.

use std::{fs, path::Path};

use inpod::zds::wire::{PACKET_MAX, RESPONSE_MAX, Request, nack};

#[path = "../fuzz/conversation.rs"]
mod conversation;
#[path = "inpod/descriptors.rs"]
mod descriptors;

#[test]
fn packets_of_the_corpus_are_read_or_refused() {
    let mut read = 0;
    for (name, packet) in corpus("zds_packet") {
        match Request::decode(&packet) {
            Ok(_) => {
                assert!(packet.len() <= PACKET_MAX, "{name}");
                read += 1;
            }
            Err(error) => assert!(nack(&error.to_string()).len() <= RESPONSE_MAX, "{name}"),
        }
    }
    assert!(read >= 4, "the corpus should hold every request, not only what is none: {read} read");
}

#[test]
fn conversations_of_the_corpus_keep_what_must_hold_and_leave_nothing_open() {
    let mut answered = 0;
    for (_, script) in corpus("zds_session") {
        answered += descriptors::none_left_open(|| conversation::hold(&script));
    }
    assert!(answered >= 100, "the corpus should hold conversations: {answered} answers");
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    files
        .map(|file| {
            let path = file.expect("listed").path();
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.display().to_string(), bytes)
        })
        .collect()
}
