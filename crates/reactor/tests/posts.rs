//! A post wakes nobody for the usual, and everybody who has to go on.

mod on_core;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io::{ErrorKind, Read},
    net::TcpStream as StdStream,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use on_core::{
    PATIENCE, config, deep_sleeper, listening, on_core, on_each_engine, pair, pattern, stuff, unconnected, until,
};
use reactor::{Chunk, Reactor, Runtime, Stream, TcpStream};
use socket2::SockRef;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn chunk(reactor: &Reactor, bytes: &[u8]) -> Chunk {
    let mut lease = reactor.lease(bytes.len());
    lease.put_slice(bytes);
    lease.into()
}

/// A stream of this core, and its peer outside of it.
async fn connected(reactor: &Reactor) -> (TcpStream, StdStream) {
    let (listener, address) = listening();
    let stream = reactor.connect(unconnected(), address, PATIENCE).await.unwrap();
    (stream, listener.accept().unwrap().0)
}

/// Polled once, and how often it was woken since; `asked_again` is what a task does that has nothing else to wait for.
async fn wakes_of_a_post(reactor: Reactor, asked_again: bool) -> usize {
    let (stream, mut peer) = connected(&reactor).await;
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut post = pin!(stream.post(chunk(&reactor, b"hello")));
    for _ in 0..1 + usize::from(asked_again) {
        assert!(post.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    // It was handed over by the time another operation has gone round.
    let (near, far) = pair(&reactor).await;
    near.send(chunk(&reactor, b".")).await.unwrap();
    far.receive(1).await.unwrap();
    let mut read = [0; 5];
    peer.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
    assert!(matches!(post.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(()))));
    wakes.0.load(Ordering::Relaxed)
}

/// Negative control: a post that is asked for again is one that somebody waits for, and does wake.
#[test]
fn that_a_post_went_out_at_once_wakes_nobody_unless_it_alone_is_waited_for() {
    on_each_engine(|| {
        assert_eq!(on_core(config(), |reactor| wakes_of_a_post(reactor, false)), 0);
        assert_eq!(on_core(config(), |reactor| wakes_of_a_post(reactor, true)), 1);
    });
}

#[test]
fn a_post_that_is_all_a_task_waits_for_ends_its_sleep() {
    on_each_engine(|| {
        on_core(deep_sleeper(), |reactor| async move {
            let (stream, mut peer) = connected(&reactor).await;
            let mut post = pin!(stream.post(chunk(&reactor, b"hello")));
            // As in a select whose other side was there at once.
            poll_fn(|context| Poll::Ready(post.as_mut().poll(context).is_pending())).await;
            post.await.unwrap();
            let mut read = [0; 5];
            peer.read_exact(&mut read).unwrap();
        });
    });
}

/// The part that did not fit is sent although nobody asks for it again.
#[test]
fn a_post_into_a_full_socket_goes_out_whole_when_there_is_room() {
    on_each_engine(|| {
        on_core(deep_sleeper(), |reactor| async move {
            let (stream, mut peer) = connected(&reactor).await;
            stuff(&reactor, &stream).await;
            let bytes = pattern(16 << 10);
            let sent = Rc::new(Cell::new(false));
            let (done, outgoing) = (sent.clone(), chunk(&reactor, &bytes));
            let task = reactor.spawn(on_core::BODY, async move {
                stream.post(outgoing).await.unwrap();
                done.set(true);
                stream.shutdown_write().unwrap();
                stream
            });
            reactor.sleep(Duration::from_millis(20)).await;
            assert!(!sent.get(), "there is no room");
            let read = std::thread::spawn(move || {
                let mut all = Vec::new();
                peer.read_to_end(&mut all).map(|_| all)
            });
            drop(task.await.unwrap());
            let all = read.join().unwrap().unwrap();
            assert!(all.ends_with(&bytes), "the tail of {} bytes differs", all.len());
        });
    });
}

/// The receive is asked before the post, which has heard of the reset.
#[test]
fn a_reset_that_a_post_has_heard_of_is_no_orderly_end_to_a_receive_that_is_asked_first() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (stream, peer) = connected(&reactor).await;
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            let mut post = pin!(stream.post(chunk(&reactor, b"hello")));
            let pending = poll_fn(|context| Poll::Ready(post.as_mut().poll(context).is_pending())).await;
            assert!(pending);
            let before = reactor.counts().ops_completed;
            until(&reactor, "the post is complete", || reactor.counts().ops_completed > before).await;
            let error = stream.receive(100).await.expect_err("it was cut");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        });
    });
}
