//! Wakes whoever waits on this core for a change: a new snapshot, a credential, a pod that closes.
//!
//! Not a channel: it carries nothing but "look again". A waiter notes the [`Bell::count`] first, looks, and then waits
//! for a ring after that count, so that no ring between the look and the wait is lost.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

/// A core-local broadcast wake-up. Clones ring and hear the same bell.
#[derive(Clone, Default)]
pub(crate) struct Bell(Rc<Inner>);

#[derive(Default)]
struct Inner {
    rings: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

impl Bell {
    /// How often it has rung; the argument of [`Bell::after`].
    pub(crate) fn count(&self) -> u64 {
        self.0.rings.get()
    }

    /// Wakes everyone who waits.
    pub(crate) fn ring(&self) {
        self.0.rings.set(self.0.rings.get() + 1);
        // Taken out before waking: a waker may run code that waits on this bell again.
        let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    /// Resolves once the bell has rung more often than `count`.
    pub(crate) fn after(&self, count: u64) -> After {
        After { bell: self.clone(), count, slot: None }
    }
}

/// The future of [`Bell::after`]; dropping it forgets the waiter.
pub(crate) struct After {
    bell: Bell,
    count: u64,
    /// Where our waker stands, and the ring count when it was put there: a ring empties the slab.
    slot: Option<(usize, u64)>,
}

impl Future for After {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let rings = self.bell.count();
        if rings > self.count {
            self.slot = None;
            return Poll::Ready(());
        }
        let bell = self.bell.clone();
        let mut waiting = bell.0.waiting.borrow_mut();
        match self.slot {
            Some((slot, _)) => waiting[slot].clone_from(cx.waker()),
            None => self.slot = Some((waiting.insert(cx.waker().clone()), rings)),
        }
        Poll::Pending
    }
}

impl Drop for After {
    fn drop(&mut self) {
        if let Some((slot, rings)) = self.slot
            && rings == self.bell.count()
        {
            self.bell.0.waiting.borrow_mut().remove(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt, task::noop_waker};

    use super::*;

    #[test]
    fn a_ring_between_the_look_and_the_wait_is_heard() {
        let bell = Bell::default();
        let seen = bell.count();
        bell.ring();
        assert!(bell.after(seen).now_or_never().is_some());
    }

    #[test]
    fn a_ring_resolves_every_waiter_and_a_dropped_one_leaves_nothing_behind() {
        let bell = Bell::default();
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut stays = pin!(bell.after(0));
        {
            let mut goes = pin!(bell.after(0));
            assert!(goes.as_mut().poll(&mut cx).is_pending());
            assert!(stays.as_mut().poll(&mut cx).is_pending());
            assert!(stays.as_mut().poll(&mut cx).is_pending(), "polled twice, stands once");
            assert_eq!(bell.0.waiting.borrow().len(), 2);
        }
        assert_eq!(bell.0.waiting.borrow().len(), 1);
        bell.ring();
        assert!(stays.as_mut().poll(&mut cx).is_ready());
        assert!(bell.0.waiting.borrow().is_empty());
    }

    #[test]
    fn a_waiter_dropped_after_the_ring_takes_no_other_waiter_with_it() {
        let bell = Bell::default();
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut old = Box::pin(bell.after(0));
        assert!(old.as_mut().poll(&mut cx).is_pending());
        bell.ring();
        let mut new = Box::pin(bell.after(bell.count()));
        assert!(new.as_mut().poll(&mut cx).is_pending());
        drop(old);
        bell.ring();
        assert!(new.as_mut().poll(&mut cx).is_ready());
    }
}
