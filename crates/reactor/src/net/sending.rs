//! Sending a chunk, by hand rather than as an async function: every relayed connection keeps room for two of these as long as
//! it lives, and this is 72 bytes instead of 224.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;

use super::stream::TcpStream;
use crate::{
    Chunk,
    engine::{
        Op,
        operation::{Brought, Operation},
    },
};

/// A chunk on its way out, until all of it has left. Dropping it withdraws what the kernel has not taken.
pub(crate) struct Sending<'a> {
    stream: &'a TcpStream,
    /// Whether the next operation is a [post](crate::Stream::post).
    posted: bool,
    state: State,
}

enum State {
    /// Nothing has been asked for.
    New(Chunk),
    UnderWay(Op),
    Over,
}

impl<'a> Sending<'a> {
    pub(super) fn new(stream: &'a TcpStream, chunk: Chunk, posted: bool) -> Self {
        Self { stream, posted, state: State::New(chunk) }
    }

    /// Asks the kernel for the next piece of `chunk`.
    fn next(&mut self, chunk: Chunk) -> io::Result<State> {
        let socket = self.stream.socket.descriptor();
        // What a post leaves over has to wait for room.
        let first = mem::take(&mut self.posted);
        let operation = if first { Operation::Post { socket, chunk } } else { Operation::Send { socket, chunk } };
        Ok(State::UnderWay(self.stream.parts.start(operation)?))
    }
}

impl Future for Sending<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.state = match mem::replace(&mut self.state, State::Over) {
                State::New(chunk) if chunk.is_empty() => return Poll::Ready(Ok(())),
                State::New(chunk) => {
                    self.stream.socket.begin_send()?;
                    self.next(chunk)?
                }
                State::UnderWay(mut op) => {
                    let Poll::Ready(completion) = Pin::new(&mut op).poll(context) else {
                        self.state = State::UnderWay(op);
                        return Poll::Pending;
                    };
                    match completion.outcome? {
                        Brought::Rest(rest) if rest.has_remaining() => self.next(rest)?,
                        Brought::Rest(_) => {
                            self.stream.socket.sent();
                            return Poll::Ready(Ok(()));
                        }
                        brought => unreachable!("a send brought {brought:?}"),
                    }
                }
                State::Over => panic!("polled again after the chunk has left"),
            };
        }
    }
}
