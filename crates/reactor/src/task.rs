//! A task: a future that a core polls when it was woken, whose panic ends it alone.
//!
//! The pieces are public so that the simulation schedules by other means what it spawns in the same way. Queues and
//! turns are not here but in `turns`.

#![expect(unsafe_code, reason = "a pinned future has to be dropped in place under catch_unwind")]

use std::{
    any::Any,
    future::Future,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use async_task::{Builder, FallibleTask};

/// A task that was woken: running it polls it once. It knows where it was spawned, which is a task's name.
pub type Runnable = async_task::Runnable<&'static Location<'static>>;

/// A spawned task. Awaiting it yields its output; dropping it cancels the task.
#[must_use = "dropping a task cancels it: await it, hold it, or detach it"]
pub struct Task<T> {
    /// The reason if there never was a task.
    inner: Result<FallibleTask<Result<T, Panicked>, &'static Location<'static>>, TaskEnded>,
}

/// Why a task has no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskEnded {
    /// It panicked. The panic was logged and counted.
    #[error("the task panicked")]
    Panicked,
    /// The core already runs as many tasks as it may, so this one never ran.
    #[error("the core already runs as many tasks as it may")]
    Refused,
    /// The core ended before the task did.
    #[error("the core ended before the task did")]
    CoreEnded,
}

/// How a task's future was done with, for whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It ran to its end.
    Finished,
    /// It was dropped before its end.
    Cancelled,
    /// It panicked, or its destructor did.
    Panicked,
}

/// Makes a task of `future`. The [`Runnable`] polls it once when run, and comes back through `schedule` when it was
/// woken, from any thread; it must be run and dropped on this thread. `done` is called on this thread, once.
#[track_caller]
pub fn prepare<T: 'static>(
    future: impl Future<Output = T> + 'static,
    schedule: impl Fn(Runnable) + Send + Sync + 'static,
    done: impl FnOnce(Done) + 'static,
) -> (Runnable, Task<T>) {
    let shielded = Shielded { future: Some(ManuallyDrop::new(future)), done: Some(done) };
    let (runnable, task) = Builder::new().metadata(Location::caller()).spawn_local(move |_spawned| shielded, schedule);
    (runnable, Task { inner: Ok(task.fallible()) })
}

impl<T> Task<T> {
    /// A task that never runs.
    pub fn never(why: TaskEnded) -> Self {
        Self { inner: Err(why) }
    }

    /// Lets the task go on by itself.
    pub fn detach(self) {
        if let Ok(task) = self.inner {
            task.detach();
        }
    }

    /// Cancels the task and waits until its future is gone; its output if it had one by then.
    pub async fn cancel(self) -> Option<T> {
        self.inner.ok()?.cancel().await?.ok()
    }

    /// Whether the task is over.
    pub fn is_finished(&self) -> bool {
        self.inner.as_ref().map_or(true, FallibleTask::is_finished)
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskEnded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let task = match &mut self.inner {
            Ok(task) => task,
            Err(why) => return Poll::Ready(Err(*why)),
        };
        Pin::new(task).poll(context).map(|output| match output {
            Some(Ok(output)) => Ok(output),
            Some(Err(Panicked)) => Err(TaskEnded::Panicked),
            // Only its handle cancels a task, and the handle is here; so the core dropped it, when it ended.
            None => Err(TaskEnded::CoreEnded),
        })
    }
}

impl<T> std::fmt::Debug for Task<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Task").field("finished", &self.is_finished()).finish()
    }
}

struct Panicked;

/// Keeps a panic of the future, also one in its destructor, from reaching whoever polls or drops the task:
/// `async_task` would abort the process on the latter.
struct Shielded<F, D: FnOnce(Done)> {
    /// Pinned with the struct. `None` once it was dropped.
    future: Option<ManuallyDrop<F>>,
    done: Option<D>,
}

impl<F: Future, D: FnOnce(Done)> Future for Shielded<F, D> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing below moves `future`: it is polled in place and dropped in place.
        let this = unsafe { self.get_unchecked_mut() };
        let future = this.future.as_mut().expect("a finished task is not polled again");
        // SAFETY: `future` is pinned because it is part of `self`, which is, and `end` drops it where it is.
        let future = unsafe { Pin::new_unchecked(&mut **future) };
        let polled = catch_unwind(AssertUnwindSafe(|| future.poll(context)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => match this.end(Done::Finished) {
                Done::Panicked => Poll::Ready(Err(Panicked)),
                Done::Finished | Done::Cancelled => Poll::Ready(Ok(output)),
            },
            Err(panic) => {
                log(&*panic);
                this.end(Done::Panicked);
                Poll::Ready(Err(Panicked))
            }
        }
    }
}

impl<F, D: FnOnce(Done)> Shielded<F, D> {
    /// Drops the future in place and reports how it was done with.
    fn end(&mut self, mut done: Done) -> Done {
        if let Some(future) = &mut self.future {
            // SAFETY: `None` is stored right below, so this happens once and nobody sees the future again.
            let dropped = catch_unwind(AssertUnwindSafe(|| unsafe { ManuallyDrop::drop(future) }));
            self.future = None;
            if let Err(panic) = dropped {
                log(&*panic);
                done = Done::Panicked;
            }
        }
        if let Some(report) = self.done.take() {
            report(done);
        }
        done
    }
}

impl<F, D: FnOnce(Done)> Drop for Shielded<F, D> {
    fn drop(&mut self) {
        self.end(Done::Cancelled);
    }
}

fn log(panic: &(dyn Any + Send)) {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = message, "a task panicked and was ended; its core goes on");
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin, rc::Rc, task::Waker};

    use super::*;

    fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> (Runnable, Task<T>, Rc<Cell<Option<Done>>>) {
        let done = Rc::new(Cell::new(None));
        let seen = done.clone();
        let (runnable, task) = prepare(future, |_| {}, move |how| seen.set(Some(how)));
        (runnable, task, done)
    }

    fn now<T>(task: Task<T>) -> Poll<Result<T, TaskEnded>> {
        pin!(task).poll(&mut Context::from_waker(Waker::noop()))
    }

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("a destructor's panic");
        }
    }

    #[test]
    fn a_finished_task_has_its_output() {
        let (runnable, task, done) = spawn(async { 7 });
        runnable.run();
        assert!(task.is_finished());
        assert_eq!(now(task), Poll::Ready(Ok(7)));
        assert_eq!(done.get(), Some(Done::Finished));
    }

    #[test]
    fn a_panic_stays_in_its_task() {
        let (runnable, task, done) = spawn(async { panic!("on purpose") });
        runnable.run();
        assert_eq!(now::<()>(task), Poll::Ready(Err(TaskEnded::Panicked)));
        assert_eq!(done.get(), Some(Done::Panicked));
    }

    #[test]
    fn a_panicking_destructor_stays_in_its_task_when_it_finishes_and_when_it_is_cancelled() {
        let held = Bomb;
        let (runnable, task, done) = spawn(async move {
            let _until_the_end = held;
        });
        runnable.run();
        assert_eq!(now(task), Poll::Ready(Err(TaskEnded::Panicked)));
        assert_eq!(done.get(), Some(Done::Panicked));

        let bomb = Bomb;
        let (runnable, task, done) = spawn(async move {
            std::future::pending::<()>().await;
            drop(bomb);
        });
        drop(task);
        runnable.run();
        assert_eq!(done.get(), Some(Done::Panicked));
    }

    #[test]
    fn a_dropped_task_is_cancelled_and_a_detached_one_runs() {
        let (runnable, task, done) = spawn(async {});
        drop(task);
        runnable.run();
        assert_eq!(done.get(), Some(Done::Cancelled));
        let (runnable, task, done) = spawn(async {});
        task.detach();
        runnable.run();
        assert_eq!(done.get(), Some(Done::Finished));
    }

    #[test]
    fn a_refused_task_says_so() {
        assert_eq!(now(Task::<()>::never(TaskEnded::Refused)), Poll::Ready(Err(TaskEnded::Refused)));
    }
}
