//! One CONNECT stream: a sending and a receiving half with their own ends, and credit in both directions.
//!
//! The rule about endings: the receiving half ends cleanly on END_STREAM or on a reset that says NO_ERROR, and on
//! nothing else. CANCEL is an error here, unlike in the reference: what it cut short must not look complete.

use std::future::poll_fn;
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use ::h2::{RecvStream, SendStream};
use bytes::{Buf, Bytes};

use super::Payload;
use super::leaving::{End, Exit};
use crate::error::{ResetCode, StreamError, TunnelError};

/// An open stream.
pub struct TunnelStream<B: Buf> {
    send: SendHalf<B>,
    receive: ReceiveHalf,
    baggage: Option<String>,
}

impl<B: Buf> TunnelStream<B> {
    pub(super) fn new(
        send: SendStream<Payload<B>>,
        receive: RecvStream,
        exit: Exit<B>,
        baggage: Option<String>,
    ) -> Self {
        Self {
            send: SendHalf { stream: Some(send), state: Sending::Open, exit },
            receive: ReceiveHalf { stream: receive },
            baggage,
        }
    }

    /// What the other end's answer said about its workload; `None` on the side that answered.
    pub fn baggage(&self) -> Option<&str> {
        self.baggage.as_deref()
    }

    /// The two halves. The stream counts as open until both are dropped.
    pub fn split(self) -> (SendHalf<B>, ReceiveHalf) {
        (self.send, self.receive)
    }
}

/// The half that sends. Dropped before [`finish`](Self::finish) it aborts the stream with CANCEL; dropped after, all
/// that was delivered still goes out.
pub struct SendHalf<B: Buf> {
    /// `None` only while it is being dropped.
    stream: Option<SendStream<Payload<B>>>,
    state: Sending,
    exit: Exit<B>,
}

enum Sending {
    Open,
    Finished(Rc<End>),
    Reset(ResetCode),
}

impl<B: Buf> SendHalf<B> {
    /// Waits until at least one byte may be sent, and says how many of the `wanted` may be.
    ///
    /// Ask with the bytes in hand: what is granted is taken from all streams of the tunnel until it is used, or until a
    /// smaller wish replaces it ([`release`](Self::release) wishes for nothing).
    pub async fn capacity(&mut self, wanted: usize) -> Result<usize, StreamError> {
        assert!(wanted > 0, "a wish for nothing would wait for ever");
        self.stream().reserve_capacity(wanted);
        poll_fn(|cx| self.poll_capacity(cx)).await.map(|granted| granted.min(wanted))
    }

    /// Gives back what [`capacity`](Self::capacity) granted and nobody used.
    pub fn release(&mut self) {
        self.stream().reserve_capacity(0);
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        loop {
            let granted = self.stream().capacity();
            if granted > 0 {
                return Poll::Ready(Ok(granted));
            }
            // Ready means that capacity may have grown, so it is read again; it can be gone by then.
            match ready!(self.stream().poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(self.ended())),
            }
        }
    }

    /// Queues a chunk of at most the granted capacity. An empty one is nothing.
    pub fn deliver(&mut self, chunk: B) -> Result<(), StreamError> {
        assert!(!matches!(self.state, Sending::Finished(_)), "nothing is delivered after the end");
        // Peers count empty frames as an attack.
        if !chunk.has_remaining() {
            return Ok(());
        }
        self.stream().send_data(Payload::Chunk(chunk), false).map_err(|_| self.ended())
    }

    /// Says that nothing more comes, after all that was delivered.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        match self.state {
            Sending::Open => {}
            Sending::Finished(_) => return Ok(()),
            Sending::Reset(code) => return Err(StreamError::Reset(code)),
        }
        let (end, mark) = self.exit.end();
        self.stream().send_data(Payload::End(mark), true).map_err(|_| self.ended())?;
        self.state = Sending::Finished(end);
        Ok(())
    }

    /// Aborts both directions, at once: what is queued is not sent any more. Only a finished half is different: what
    /// it queued is a complete transfer, so it is left to go out, and dropping both halves tells the peer to stop.
    pub fn reset(&mut self, code: ResetCode) {
        if matches!(self.state, Sending::Open) {
            self.stream().send_reset(code.into());
            self.state = Sending::Reset(code);
        }
    }

    /// Waits until the peer aborts the stream or the tunnel breaks; for ever if neither happens.
    pub async fn reset_by_peer(&mut self) -> StreamError {
        match poll_fn(|cx| self.stream().poll_reset(cx)).await {
            Ok(reason) => StreamError::Reset(reason.into()),
            Err(error) => StreamError::of(&error),
        }
    }

    fn stream(&mut self) -> &mut SendStream<Payload<B>> {
        self.stream.as_mut().expect("taken only by drop")
    }

    /// Why the stream takes nothing more.
    fn ended(&mut self) -> StreamError {
        if let Sending::Reset(code) = self.state {
            return StreamError::Reset(code);
        }
        match self.stream().poll_reset(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(reason)) => StreamError::Reset(reason.into()),
            Poll::Ready(Err(error)) => StreamError::of(&error),
            Poll::Pending => StreamError::Tunnel(TunnelError::Closed),
        }
    }
}

impl<B: Buf> Drop for SendHalf<B> {
    fn drop(&mut self) {
        // Left to itself h2 would keep an unfinished stream until the receiving half goes too.
        self.reset(ResetCode::CANCEL);
        if let (Sending::Finished(end), Some(stream)) =
            (mem::replace(&mut self.state, Sending::Reset(ResetCode::CANCEL)), self.stream.take())
        {
            self.exit.leave(end, stream);
        }
    }
}

/// The half that receives.
pub struct ReceiveHalf {
    stream: RecvStream,
}

impl ReceiveHalf {
    /// Waits for bytes; `None` is the clean end. The peer may send as many again only after [`grant`](Self::grant).
    /// Cancelling the wait loses nothing.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            return Poll::Ready(match ready!(self.stream.poll_data(cx)) {
                None => Ok(None),
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => Ok(Some(bytes)),
                Some(Err(error)) => match StreamError::of(&error) {
                    // Only a reset from the peer: a tunnel that goes away with NO_ERROR in mid-stream has cut it.
                    StreamError::Reset(ResetCode::NO_ERROR) if error.is_remote() => Ok(None),
                    ended => Err(ended),
                },
            });
        }
    }

    /// Lets the peer send `count` more bytes: as many as were received and have been passed on.
    pub fn grant(&mut self, count: usize) {
        let credit = self.stream.flow_control();
        let count = count.min(credit.used_capacity());
        credit.release_capacity(count).expect("no more than what is used");
    }
}
