//! A connection that the peer has reset never looks like one that it has ended, whichever call hears of it first.

mod on_core;

use std::{io::ErrorKind, net::TcpStream as StdStream, thread, time::Duration};

use on_core::{config, listen, on_core, on_each_engine};
use reactor::{Listener, Runtime, Stream, TcpStream};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A stream whose peer has sent `before`, and then a reset, which is here already.
async fn reset_after(reactor: &reactor::Reactor, before: &'static [u8]) -> TcpStream {
    let (listener, address) = listen(reactor);
    let peer = thread::spawn(move || {
        let peer = StdStream::connect(address).unwrap();
        std::io::Write::write_all(&mut &peer, before).unwrap();
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        peer
    });
    let stream = listener.accept().await.unwrap();
    // Loopback delivers within the call that closes.
    drop(peer.join().unwrap());
    stream
}

#[test]
fn a_reset_that_a_send_has_heard_of_is_no_orderly_end_to_the_receive_after_it() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            for before in [&b""[..], b"half an answer"] {
                let stream = reset_after(&reactor, before).await;
                let mut lease = reactor.lease(5);
                lease.put_slice(b"hello");
                let error = stream.send(lease.into()).await.expect_err("nobody is there");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                let mut received = Vec::new();
                let end = loop {
                    match stream.receive(100).await {
                        Ok(bytes) if bytes.is_empty() => break None,
                        Ok(bytes) => received.extend_from_slice(&bytes),
                        Err(error) => break Some(error.kind()),
                    }
                };
                assert_eq!(end, Some(ErrorKind::ConnectionReset), "after {:?}", String::from_utf8_lossy(&received));
            }
        });
    });
}

#[test]
fn a_reset_that_a_write_of_the_adapter_has_heard_of_is_no_orderly_end_to_its_read() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let mut io = reset_after(&reactor, b"half an answer").await.into_io();
            let error = io.write_all(b"hello").await.expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let error = io.read_to_end(&mut Vec::new()).await.expect_err("it was cut");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        });
    });
}
