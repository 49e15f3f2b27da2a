//! In which pieces bytes come in, and how many before anybody else has a turn.

mod on_core;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io::Write,
    net::TcpStream as StdStream,
    rc::Rc,
    thread,
};

use on_core::{config, listen, on_core, on_each_engine, until};
use reactor::{Listener, Reactor, Stream, TcpStream};
use rustix::{io::ioctl_fionread, net::sockopt::set_socket_recv_buffer_size_force};

const KIB: usize = 1 << 10;
const QUEUE: usize = 8 << 20;

/// A connection whose end on the core holds as much as is sent to it, and the other end.
async fn connection(reactor: &Reactor) -> (TcpStream, StdStream) {
    let (listener, address) = listen(reactor);
    let outside = thread::spawn(move || StdStream::connect(address).unwrap());
    let inside = listener.accept().await.unwrap();
    set_socket_recv_buffer_size_force(&inside, QUEUE).unwrap();
    (inside, outside.join().unwrap())
}

/// Sends so much from outside, and waits until all of it is there to be read.
async fn queue(reactor: &Reactor, stream: &TcpStream, outside: &StdStream, bytes: usize) {
    let before = ioctl_fionread(stream).unwrap();
    let mut from = outside.try_clone().unwrap();
    let writer = thread::spawn(move || from.write_all(&vec![7; bytes]).unwrap());
    until(reactor, "all of it is there", || ioctl_fionread(stream).unwrap() == before + bytes as u64).await;
    writer.join().unwrap();
}

#[test]
fn a_flow_that_proves_to_be_bulk_comes_in_large_pieces_until_a_piece_is_short() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (stream, outside) = connection(&reactor).await;
            for _ in 0..2 {
                queue(&reactor, &stream, &outside, 1024 * KIB).await;
                let mut pieces = Vec::new();
                while pieces.iter().sum::<usize>() < 1024 * KIB {
                    pieces.push(stream.receive(1024 * KIB).await.unwrap().len());
                }
                // What is left of the mebibyte is a short piece, and the flow begins anew.
                assert_eq!(pieces, [16, 64, 256, 256, 256, 176].map(|piece| piece * KIB));
            }
        });
    });
}

/// Negative control: without the limit all four mebibytes come in one poll.
#[test]
fn a_task_that_always_finds_bytes_lets_the_others_go_on_after_some() {
    on_each_engine(|| {
        on_core(config(), |reactor| async move {
            let (stream, outside) = connection(&reactor).await;
            queue(&reactor, &stream, &outside, 4096 * KIB).await;
            let received = Rc::new(Cell::new(0));
            let count = received.clone();
            let mut receives = Box::pin(async move {
                while count.get() < 4096 * KIB {
                    count.set(count.get() + stream.receive(1024 * KIB).await.unwrap().len());
                }
            });
            let (mut polls, mut most) = (0, 0);
            poll_fn(|context| {
                let before = received.get();
                let polled = receives.as_mut().poll(context);
                polls += 1;
                most = most.max(received.get() - before);
                polled
            })
            .await;
            assert!(most <= 512 * KIB && polls >= 8, "{most} bytes in one of {polls} polls");
            drop(outside);
        });
    });
}
