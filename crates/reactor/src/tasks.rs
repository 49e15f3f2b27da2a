//! All tasks of a core: a bound on their number, and the means to end them with the core.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use slab::Slab;

use crate::{
    gate::{Inside, Woken},
    quota::Quota,
    task::{self, Done, Task, TaskEnded},
    tenant::{Row, TenantKey},
};

/// Lets the tenant's other tasks run first, and other tenants when the turn is over.
pub(crate) fn yield_now() -> impl Future<Output = ()> + 'static {
    let mut yielded = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

/// See the module.
pub(crate) struct Tasks {
    inside: Rc<Inside>,
    /// A waker of every task: waking is how a task is brought to be run, or dropped.
    live: RefCell<Slab<Waker>>,
    live_max: usize,
    quota: Quota,
    ending: Cell<bool>,
    panicked: Cell<u64>,
    refused: Cell<u64>,
}

impl Tasks {
    pub(crate) fn new(inside: Rc<Inside>, live_max: usize) -> Rc<Self> {
        Rc::new(Self {
            inside,
            live: RefCell::default(),
            live_max,
            quota: Quota::of(live_max),
            ending: Cell::new(false),
            panicked: Cell::new(0),
            refused: Cell::new(0),
        })
    }

    /// Starts a task, or refuses it at the limit and while the core ends.
    #[track_caller]
    pub(crate) fn spawn<T: 'static>(
        self: &Rc<Self>,
        tenant: TenantKey,
        future: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        if self.ending.get() {
            return Task::never(TaskEnded::CoreEnded);
        }
        if self.live() >= self.live_max {
            self.refused.set(self.refused.get() + 1);
            tracing::warn!(tasks_max = self.live_max, "a task was refused: the core runs as many as it may");
            return Task::never(TaskEnded::Refused);
        }
        let row = self.inside.row(tenant);
        if !self.quota.take(row) {
            self.refused.set(self.refused.get() + 1);
            let tasks_max = self.quota.tenant_max();
            tracing::warn!(
                tasks_max,
                tenant = tenant.0,
                "a task was refused: its tenant has as many as it may on a core"
            );
            return Task::never(TaskEnded::Refused);
        }
        let slot = self.live.borrow().vacant_key();
        let gate = self.inside.gate.clone();
        let tasks = self.clone();
        let (runnable, task) = task::prepare(
            future,
            move |runnable| gate.schedule(Woken { row, runnable }),
            move |done| tasks.done(slot, row, done),
        );
        let inserted = self.live.borrow_mut().insert(runnable.waker());
        assert!(inserted == slot, "nothing was spawned in between");
        runnable.schedule();
        task
    }

    /// How many tasks there are.
    pub(crate) fn live(&self) -> usize {
        self.live.borrow().len()
    }

    /// How many tasks panicked so far.
    pub(crate) fn panicked(&self) -> u64 {
        self.panicked.get()
    }

    /// How many tasks were refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Drops all tasks, and whatever their destructors wake.
    pub(crate) fn end(&self) {
        self.ending.set(true);
        while self.live() > 0 {
            let wakers: Vec<_> = self.live.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
            self.inside.admit();
            while let Some(runnable) = self.inside.next() {
                // Dropping what would poll a task cancels it.
                drop(runnable);
            }
        }
    }

    fn done(&self, slot: usize, row: Row, done: Done) {
        self.quota.give_back(row);
        if done == Done::Panicked {
            self.panicked.set(self.panicked.get() + 1);
        }
        let waker = self.live.borrow_mut().remove(slot);
        drop(waker);
    }
}
