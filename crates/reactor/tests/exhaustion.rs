//! A process without descriptors: accepting fails instead of spinning, and goes on when there are some again.
//!
//! A binary with one test: the limit is the whole process's.

mod on_core;

use std::net::TcpStream as StdStream;

use on_core::{config, listen, on_core, on_each_engine};
use reactor::{Listener, Stream};
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn a_connection_that_finds_no_descriptor_waits_for_one() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (listener, address) = listen(&reactor);
            let client = StdStream::connect(address).unwrap();
            let before = getrlimit(Resource::Nofile);
            let mut none_left = before;
            none_left.current = Some(0);
            setrlimit(Resource::Nofile, none_left).unwrap();
            let completed = reactor.counts().ops_completed;
            let refused = listener.accept().await.err().unwrap();
            assert_eq!(refused.raw_os_error(), Some(libc::EMFILE), "{refused}");
            assert_eq!(reactor.counts().ops_completed, completed + 1, "one try, one error");
            setrlimit(Resource::Nofile, before).unwrap();
            let accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        });
    });
}
