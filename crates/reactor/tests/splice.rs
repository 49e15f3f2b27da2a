//! Splicing: bytes arrive whole whatever their packets were, ends and breaks are told apart, a pipe is only had while it
//! is needed, and without one the caller is told to copy.
//!
//! A binary with one test: some of it counts, or takes away, the descriptors of the whole process.

mod on_core;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream as StdStream},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use on_core::{PATIENCE, config, listen, on_core, on_each_engine, pair, pattern, stuff, unconnected, until};
use reactor::{Chunk, CoreConfig, Listener, Reactor, Runtime, Spliced, Stream, TcpStream};
use rustix::process::{Resource, getrlimit, setrlimit};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A relay's two sockets on the core, and the far end of each outside: what goes into the first comes out of the second.
async fn relay(reactor: &Reactor) -> (StdStream, TcpStream, TcpStream, StdStream) {
    let (listener, address) = listen(reactor);
    let near = thread::spawn(move || StdStream::connect(address).unwrap());
    let source = listener.accept().await.unwrap();
    let (outside, address) = on_core::listening();
    let sink = reactor.connect(unconnected(), address, PATIENCE).await.unwrap();
    let far = outside.accept().unwrap().0;
    let near = near.join().unwrap();
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    near.set_nodelay(true).unwrap();
    (near, source, sink, far)
}

async fn splice_all(source: &TcpStream, sink: &TcpStream) -> usize {
    let mut moved = 0;
    loop {
        match source.splice_to(sink).await {
            Spliced::Moved(count) => moved += count,
            Spliced::End => return moved,
            other => panic!("after {moved} bytes: {other:?}"),
        }
    }
}

async fn bytes_arrive_whole_and_then_their_end(reactor: Reactor) {
    let (mut near, source, sink, mut far) = relay(&reactor).await;
    let sent = pattern(32 << 20);
    let expected = sent.clone();
    let writing = thread::spawn(move || {
        near.write_all(&sent).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).unwrap();
        answer
    });
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        // The end came by itself: the other way is open.
        far.write_all(b"thanks").unwrap();
        got
    });
    assert_eq!(splice_all(&source, &sink).await, expected.len());
    sink.shutdown_write().unwrap();
    assert_eq!(splice_all(&sink, &source).await, 6);
    source.shutdown_write().unwrap();
    until(&reactor, "both are done", || writing.is_finished() && reading.is_finished()).await;
    assert!(reading.join().unwrap() == expected, "other bytes came out");
    assert_eq!(writing.join().unwrap(), b"thanks");
}

/// Each packet takes a slot of the pipe, which are far fewer than its bytes: splices are short without the socket being
/// empty.
async fn many_small_packets_lose_none(reactor: Reactor) {
    const PACKETS: usize = 5_000;
    let (mut near, source, sink, mut far) = relay(&reactor).await;
    let writing = thread::spawn(move || {
        (0..PACKETS).for_each(|number| near.write_all(&[number.to_le_bytes()[0]]).unwrap());
        near
    });
    until(&reactor, "all is written", || writing.is_finished()).await;
    drop(writing.join().unwrap());
    assert_eq!(splice_all(&source, &sink).await, PACKETS);
    sink.shutdown_write().unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert!(got.iter().enumerate().all(|(number, byte)| *byte == number.to_le_bytes()[0]) && got.len() == PACKETS);
}

async fn a_reader_that_stops_stops_the_writer_and_gets_all_when_it_goes_on(reactor: Reactor) {
    let (mut near, source, sink, mut far) = relay(&reactor).await;
    near.set_nonblocking(true).unwrap();
    let piece = pattern(256 << 10);
    let relaying = reactor.spawn(on_core::BODY, async move {
        let moved = splice_all(&source, &sink).await;
        (moved, source, sink)
    });
    // Until the kernel takes no more although the core has had time: several rounds without a byte.
    let (mut taken, mut quiet) = (0_usize, 0);
    while quiet < 50 {
        match near.write(&piece[taken % piece.len()..]) {
            Ok(count) => (taken, quiet) = (taken + count, 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => quiet += 1,
            Err(error) => panic!("{error}"),
        }
        reactor.sleep(Duration::from_millis(2)).await;
    }
    assert!(taken < 64 << 20, "{taken} bytes were taken for a reader that reads none");
    assert!(reactor.counts().pipes == 1 && reactor.counts().lent_bytes == 0);
    near.shutdown(Shutdown::Write).unwrap();
    let reading = thread::spawn(move || {
        let mut got = vec![0; taken];
        far.read_exact(&mut got).unwrap();
        got
    });
    let (moved, _source, _sink) = relaying.await.unwrap();
    until(&reactor, "the reader has it all", || reading.is_finished()).await;
    let got = reading.join().unwrap();
    assert_eq!(moved, taken);
    assert!(got.chunks(piece.len()).all(|chunk| chunk == &piece[..chunk.len()]), "other bytes came out");
}

async fn a_break_of_either_end_is_told_as_whose_it_is(reactor: Reactor) {
    let (near, source, sink, far) = relay(&reactor).await;
    socket2::SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
    drop(near);
    let broke = source.splice_to(&sink).await;
    assert!(
        matches!(&broke, Spliced::SourceBroke(error) if error.kind() == io::ErrorKind::ConnectionReset),
        "{broke:?}"
    );
    // Nothing was taken, so the sink is whole.
    sink.send(Chunk::from(Bytes::from_static(b"whole"))).await.unwrap();
    drop((source, sink, far));

    let (mut near, source, sink, far) = relay(&reactor).await;
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    let broke = loop {
        near.write_all(b"more").unwrap();
        match source.splice_to(&sink).await {
            // It may have gone out before the reset came in.
            Spliced::Moved(_) => {}
            broke => break broke,
        }
    };
    assert!(matches!(&broke, Spliced::SinkBroke(_)), "{broke:?}");
    assert_eq!(sink.send(Chunk::from(Bytes::from_static(b"x"))).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

/// What was in the pipe is lost, so the reader must not take what it has for all.
async fn a_splice_that_is_dropped_with_bytes_in_its_pipe_resets_the_sink(reactor: Reactor) {
    let before = descriptors();
    for _ in 0..20 {
        let (mut near, source, sink, mut far) = relay(&reactor).await;
        stuff(&reactor, &sink).await;
        near.write_all(b"lost").unwrap();
        let mut splicing = Box::pin(source.splice_to(&sink));
        let mut polls = 0;
        while reactor.counts().pipes == 0 {
            assert!(splicing.as_mut().now_or_never().is_none(), "there is no room");
            reactor.yield_now().await;
            polls += 1;
        }
        assert!(polls > 0, "the pipe is of this round");
        drop(splicing);
        assert_eq!(sink.shutdown_write().unwrap_err().kind(), io::ErrorKind::BrokenPipe, "it is torn");
        drop((source, sink));
        let seen = thread::spawn(move || io::copy(&mut far, &mut io::sink()));
        until(&reactor, "the reader sees an end", || seen.is_finished()).await;
        assert_eq!(seen.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(reactor.counts().pipes, 0, "a pipe with bytes in it is not used again");
    }
    until(&reactor, "nothing is under way", || reactor.counts().ops == 0).await;
    assert_eq!(descriptors(), before);
}

async fn an_idle_flow_has_no_pipe_and_an_unused_one_is_closed(reactor: Reactor) {
    let before = descriptors();
    let (near, source, sink, far) = relay(&reactor).await;
    assert!(source.splice_to(&sink).now_or_never().is_none());
    assert_eq!(reactor.counts().pipes, 0, "none before there is something to put into it");
    (&near).write_all(b"word").unwrap();
    assert!(matches!(source.splice_to(&sink).await, Spliced::Moved(4)));
    assert_eq!(reactor.counts().pipes, 1, "kept for whoever comes next");
    let other = relay(&reactor).await;
    (&other.0).write_all(b"next").unwrap();
    assert!(matches!(other.1.splice_to(&other.2).await, Spliced::Moved(4)));
    assert_eq!(reactor.counts().pipes, 1, "and used by them");
    drop((near, source, sink, far, other));
    // Closed by a core that goes to sleep, a second after its last use.
    let deadline = reactor.now() + PATIENCE;
    while reactor.counts().pipes > 0 {
        assert!(reactor.now() < deadline, "it was kept");
        reactor.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(descriptors(), before);
}

async fn without_a_pipe_the_caller_is_told_and_can_go_on_by_copying(reactor: Reactor) {
    let (near, source, sink, mut far) = relay(&reactor).await;
    (&near).write_all(b"one two").unwrap();
    let before = getrlimit(Resource::Nofile);
    let mut none_left = before;
    none_left.current = Some(0);
    setrlimit(Resource::Nofile, none_left).unwrap();
    let spliced = source.splice_to(&sink).await;
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(matches!(spliced, Spliced::Unavailable), "{spliced:?}");
    let copied = source.receive(4).await.unwrap();
    sink.send(Chunk::from(copied)).await.unwrap();
    assert!(matches!(source.splice_to(&sink).await, Spliced::Moved(3)), "and splice when it can");
    let mut got = [0; 7];
    far.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one two");
}

async fn pipes_are_capped(reactor: Reactor) {
    let (mut near, source, sink, _far) = relay(&reactor).await;
    stuff(&reactor, &sink).await;
    near.write_all(b"waits").unwrap();
    let stalled = reactor.spawn(on_core::BODY, async move { splice_all(&source, &sink).await });
    until(&reactor, "the first flow has the only pipe", || reactor.counts().pipes == 1).await;
    let (client, server) = pair(&reactor).await;
    let (_peer, sink) = pair(&reactor).await;
    server.send(Chunk::from(Bytes::from_static(b"word"))).await.unwrap();
    assert!(matches!(client.splice_to(&sink).await, Spliced::Unavailable));
    stalled.cancel().await;
    assert!(matches!(client.splice_to(&sink).await, Spliced::Moved(4)), "and has it when it is free");
}

#[test]
fn splicing_keeps_its_promises_on_both_engines() {
    on_each_engine(|| {
        on_core(config(), bytes_arrive_whole_and_then_their_end);
        on_core(config(), many_small_packets_lose_none);
        on_core(config(), a_reader_that_stops_stops_the_writer_and_gets_all_when_it_goes_on);
        on_core(config(), a_break_of_either_end_is_told_as_whose_it_is);
        on_core(config(), a_splice_that_is_dropped_with_bytes_in_its_pipe_resets_the_sink);
        on_core(config(), an_idle_flow_has_no_pipe_and_an_unused_one_is_closed);
        on_core(config(), without_a_pipe_the_caller_is_told_and_can_go_on_by_copying);
        on_core(CoreConfig { pipes_max: 1, ..config() }, pipes_are_capped);
    });
}
