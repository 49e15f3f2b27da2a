//! The two ways into a core from another thread: commands in order, and the newest of something.
//!
//! Both are bounded, neither ever blocks, and a receiver may be polled on any runtime. Waking the parked core is the
//! receiver's waker's doing, not theirs. What they are not: channels between tasks of one core.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use crossbeam_channel as channel;
use futures_util::task::AtomicWaker;

/// A mailbox that keeps the order of at most `capacity` messages.
///
/// Worst case `capacity` messages of memory, allocated at once.
pub fn ordered<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (messages, waiting) = channel::bounded(capacity);
    let bell = Arc::new(AtomicWaker::new());
    (Sender { messages, bell: Bell(bell.clone()) }, Receiver { messages: waiting, bell })
}

/// A mailbox with room for one message, for a sender that only cares about the newest.
pub fn latest<T: Send>() -> (LatestSender<T>, LatestReceiver<T>) {
    let (sender, receiver) = ordered(1);
    (LatestSender(sender), LatestReceiver(receiver))
}

/// The sending end of [`ordered`]. Clones send into the same mailbox.
pub struct Sender<T> {
    // Before the bell: the last sender must be gone from the channel when the receiver is woken to notice it.
    messages: channel::Sender<T>,
    bell: Bell,
}

/// Why a message was not taken, and the message.
#[derive(thiserror::Error)]
pub enum TrySendError<T> {
    /// The mailbox holds as many messages as it can.
    #[error("the mailbox is full: its core is behind")]
    Full(T),
    /// The receiver was dropped.
    #[error("the mailbox is closed: its core has ended")]
    Closed(T),
}

/// The receiving end of [`ordered`].
pub struct Receiver<T> {
    messages: channel::Receiver<T>,
    bell: Arc<AtomicWaker>,
}

/// The sending end of [`latest`].
pub struct LatestSender<T>(Sender<T>);

/// The receiving end of [`latest`].
pub struct LatestReceiver<T>(Receiver<T>);

impl<T: Send> Sender<T> {
    /// Puts `message` at the end of the mailbox and wakes the receiver.
    ///
    /// # Errors
    /// [`TrySendError`], with the message, when there is no room or nobody to receive it.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.messages.try_send(message).map_err(|refused| match refused {
            channel::TrySendError::Full(message) => TrySendError::Full(message),
            channel::TrySendError::Disconnected(message) => TrySendError::Closed(message),
        })?;
        self.bell.0.wake();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { messages: self.messages.clone(), bell: Bell(self.bell.0.clone()) }
    }
}

impl<T: Send> Receiver<T> {
    /// The next message; `None` once the mailbox is empty and all senders are gone. Dropping the future loses no
    /// message. One task may wait at a time.
    pub async fn recv(&self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn poll_recv(&self, context: &Context<'_>) -> Poll<Option<T>> {
        if let Poll::Ready(message) = self.look() {
            return Poll::Ready(message);
        }
        self.bell.register(context.waker());
        // A message sent between the look and the registration rang for nobody, so look again.
        self.look()
    }

    fn look(&self) -> Poll<Option<T>> {
        match self.messages.try_recv() {
            Ok(message) => Poll::Ready(Some(message)),
            Err(channel::TryRecvError::Disconnected) => Poll::Ready(None),
            Err(channel::TryRecvError::Empty) => Poll::Pending,
        }
    }
}

impl<T: Send> LatestSender<T> {
    /// Offers `message`. While the last one has not been taken it comes back: keep only the newest, and offer it again
    /// when the receiver shows a sign of life. It also comes back once the receiver is gone.
    pub fn offer(&mut self, message: T) -> Option<T> {
        self.0.try_send(message).err().map(TrySendError::into_inner)
    }
}

impl<T: Send> LatestReceiver<T> {
    /// The message that waits, or the next one; `None` once the sender is gone. Dropping the future loses no message.
    pub async fn recv(&self) -> Option<T> {
        self.0.recv().await
    }
}

impl<T> TrySendError<T> {
    /// Whether there will be room later.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    /// The message that was not taken.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<T> std::fmt::Debug for TrySendError<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if self.is_full() { "Full" } else { "Closed" })
    }
}

/// Rings once more when its sender goes, so that the receiver learns of the last one.
struct Bell(Arc<AtomicWaker>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Rings(AtomicUsize);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_ordered_mailbox_keeps_order_and_says_why_it_refuses() {
        let (sender, receiver) = ordered(2);
        sender.try_send(1).unwrap();
        sender.clone().try_send(2).unwrap();
        let full = sender.try_send(3).unwrap_err();
        assert!(full.is_full());
        assert_eq!(full.into_inner(), 3);
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(Some(1)));
        sender.try_send(4).unwrap();
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(Some(2)));
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(Some(4)));
        assert_eq!(poll_once(receiver.recv()), Poll::Pending);
        drop(receiver);
        assert!(matches!(sender.try_send(5), Err(TrySendError::Closed(5))));
    }

    #[test]
    fn what_was_sent_is_received_before_the_end_of_the_senders() {
        let (sender, receiver) = ordered(2);
        sender.try_send(1).unwrap();
        drop(sender);
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(Some(1)));
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(None));
    }

    #[test]
    fn a_waiting_receiver_is_woken_by_a_message_and_by_the_last_sender_leaving() {
        let (sender, receiver) = ordered::<u8>(1);
        let rings = Arc::new(Rings::default());
        let waker = Waker::from(rings.clone());
        let mut context = Context::from_waker(&waker);
        let mut waiting = Box::pin(receiver.recv());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        sender.try_send(1).unwrap();
        assert_eq!(rings.0.load(Ordering::Relaxed), 1);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(Some(1)));
        let mut waiting = Box::pin(receiver.recv());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        drop(sender);
        assert_eq!(rings.0.load(Ordering::Relaxed), 2);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(None));
    }

    #[test]
    fn a_latest_mailbox_hands_back_what_finds_the_last_one_untaken() {
        let (mut sender, receiver) = latest();
        assert_eq!(sender.offer(1), None);
        assert_eq!(sender.offer(2), Some(2));
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(Some(1)));
        assert_eq!(sender.offer(3), None);
        assert_eq!(poll_once(receiver.recv()), Poll::Ready(Some(3)));
        drop(receiver);
        assert_eq!(sender.offer(4), Some(4));
    }
}
