//! A core's io_uring: requests in, completions out, and the place where the core sleeps.
//!
//! DEFER_TASKRUN is what makes it cheap (no interrupt per completion) and exact: what the kernel does for a completion it
//! does in an entry of ours, and in no other system call. Older kernels get COOP_TASKRUN, or neither. The requests are single-shot. A request is never lost: what finds the submission queue full waits in
//! a backlog, in order, because a cancellation must not overtake what it cancels. Completions that overflow their queue
//! are kept by the kernel (NODROP) and come with a later enter.

#![expect(unsafe_code, reason = "the kernel is handed addresses")]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use io_uring::{
    IoUring, opcode, squeue,
    types::{Fd, SubmitArgs, Timespec},
};

use super::{Reaped, table::OpKey};

/// Names of requests that are nobody's operation. No [`OpKey`] has an index of all ones.
const BELL: u64 = u32::MAX as u64;
const CANCELLATION: u64 = 1 << 32 | u32::MAX as u64;

/// System calls that one enter makes to have deferred work done. Since Linux 6.13 each does 20 pieces of it: 6 us or so
/// of polls, and of sends that had waited for room as much as these move.
const PUT_OFF_MAX: usize = 256;

/// See the module.
pub(crate) struct Ring {
    ring: IoUring,
    /// Requests that found the submission queue full. At most one per operation and one cancellation of each.
    backlog: VecDeque<squeue::Entry>,
    /// Requests of which only a failure is told, with the result that stands for none.
    silent: Vec<Reaped>,
    /// Whether some of them were seen by an earlier enter, and it is not known yet how they went.
    unsettled: bool,
    bell: Bell,
}

/// The read of the core's eventfd that is always under way, so that another thread can end a park.
struct Bell {
    descriptor: i32,
    /// Where the kernel writes the count. On the heap, because the ring moves.
    count: Box<u64>,
    under_way: bool,
}

impl Ring {
    /// A ring of `entries` requests per enter. Only the calling thread may use it. `bell` must stay open as long.
    ///
    /// # Errors
    /// What the kernel says: io_uring forbidden, memory locked, out of descriptors.
    pub(crate) fn new(entries: u32, bell: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            ring: build(entries)?,
            backlog: VecDeque::new(),
            silent: Vec::new(),
            unsettled: false,
            bell: Bell { descriptor: bell.as_raw_fd(), count: Box::new(0), under_way: false },
        })
    }

    /// Hands a request to the kernel with the next enter. One for which a result is `expected` is over as soon as the kernel
    /// has seen it, and wakes nobody unless it fails: otherwise it is complete with that result after the enter that
    /// carries it.
    ///
    /// # Safety
    /// Whatever `entry` refers to stays in place until the completion of `key` was reaped.
    pub(crate) unsafe fn push(&mut self, key: OpKey, entry: squeue::Entry, expected: Option<i32>) {
        let mut entry = entry.user_data(key.user_data());
        if let Some(result) = expected.filter(|_| self.ring.params().is_feature_skip_cqe_on_success()) {
            self.silent.push(Reaped { key, result });
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        }
        // SAFETY: passed on to the caller.
        unsafe { self.queue(entry) };
    }

    /// Asks the kernel to end an operation early. Its completion comes in any case.
    pub(crate) fn cancel(&mut self, key: OpKey) {
        let entry = opcode::AsyncCancel::new(key.user_data()).build().user_data(CANCELLATION);
        // SAFETY: a cancellation refers to no memory.
        unsafe { self.queue(entry) };
    }

    /// Gives the kernel all requests, and takes what it has completed. With `park`, waits that long for a completion
    /// unless there is one; the bell is one.
    ///
    /// # Errors
    /// Only what makes the ring useless.
    pub(crate) fn enter(&mut self, park: Option<Duration>, reaped: &mut Vec<Reaped>) -> io::Result<()> {
        if !self.bell.under_way {
            self.arm_bell();
        }
        // One queue's worth: what found no room, as a thousand cancellations at once may not, goes with the next enters.
        self.fill();
        let park = park.filter(|_| self.backlog.is_empty() && !self.unsettled);
        self.exchange(park)?;
        self.reap(reaped);
        // What the kernel has put off is in the order of its coming, so somebody's single message may stand behind a burst of
        // thousands; and only what was reaped can take turns.
        for _ in 0..PUT_OFF_MAX {
            let mut submission = self.ring.submission();
            submission.sync();
            if !submission.taskrun() {
                break;
            }
            drop(submission);
            self.exchange(None)?;
            self.reap(reaped);
        }
        Ok(())
    }

    /// One system call.
    fn exchange(&self, park: Option<Duration>) -> io::Result<()> {
        let submitted = match park {
            Some(at_most) => {
                let at_most = Timespec::from(at_most);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&at_most))
            }
            None => self.ring.submit(),
        };
        match submitted {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The park was long enough, or a signal ended it; completions first, or no memory just now: what is queued
                // stays queued.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Hands out those silent requests of which nothing was told although the kernel has seen them. To be called when all that
    /// was reaped is dealt with: what failed is among it.
    pub(crate) fn silent_successes(&mut self) -> std::vec::Drain<'_, Reaped> {
        // A failure may stand among the completions that found no room, and come with a later enter.
        let seen = self.backlog.is_empty() && {
            let mut submission = self.ring.submission();
            submission.sync();
            submission.is_empty() && !submission.cq_overflow()
        };
        self.unsettled = !seen && !self.silent.is_empty();
        let settled = if seen { self.silent.len() } else { 0 };
        self.silent.drain(..settled)
    }

    /// Whether the kernel will still write into the bell's count.
    pub(crate) fn bell_under_way(&self) -> bool {
        self.bell.under_way
    }

    fn reap(&mut self, reaped: &mut Vec<Reaped>) {
        for entry in self.ring.completion() {
            match entry.user_data() {
                BELL => self.bell.under_way = false,
                CANCELLATION => {}
                user_data => reaped.push(Reaped { key: OpKey::of_user_data(user_data), result: entry.result() }),
            }
        }
    }

    fn arm_bell(&mut self) {
        let count: *mut u64 = &mut *self.bell.count;
        let entry = opcode::Read::new(Fd(self.bell.descriptor), count.cast(), 8).build().user_data(BELL);
        self.bell.under_way = true;
        // SAFETY: the count is on the heap, and its owner stays until the read is complete (see `Engine::close`).
        unsafe { self.queue(entry) };
    }

    /// # Safety
    /// As [`Ring::push`].
    unsafe fn queue(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: passed on to the caller.
            let queued = unsafe { self.ring.submission().push(&entry) };
            if queued.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn fill(&mut self) {
        let mut submission = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever queued the entry has vouched for what it refers to.
            let queued = unsafe { submission.push(entry) };
            if queued.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }
}

/// Whether this process may use a ring, and one that can do what is asked of it here.
///
/// # Errors
/// What the kernel says; an error without errno is an io_uring that is too old.
pub(crate) fn probe() -> io::Result<()> {
    let mut ring = build(2)?;
    // Waiting with a timeout came with Linux 5.11, completions that are never dropped with 5.5.
    if !(ring.params().is_feature_ext_arg() && ring.params().is_feature_nodrop()) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring is older than Linux 5.11's"));
    }
    // A filter can let a ring be made and yet not be used.
    // SAFETY: a no-op refers to nothing.
    unsafe { ring.submission().push(&opcode::Nop::new().build()) }.expect("the queue is empty");
    ring.submit_and_wait(1).map(drop)
}

/// A ring with as much of what makes it cheap as this kernel knows.
fn build(entries: u32) -> io::Result<IoUring> {
    let mut last = None;
    // DEFER_TASKRUN came with Linux 6.1, SINGLE_ISSUER with 6.0, COOP_TASKRUN with 5.19, SUBMIT_ALL with 5.18.
    for (deferred, single_issuer, cooperative) in
        [(true, true, true), (false, true, true), (false, false, true), (false, false, false)]
    {
        let mut builder = IoUring::builder();
        // A completion for every request, and as many again for cancellations and what stood waiting.
        builder.setup_cqsize(entries.saturating_mul(4)).setup_clamp().dontfork();
        if cooperative {
            builder.setup_coop_taskrun().setup_submit_all();
        }
        if single_issuer {
            builder.setup_single_issuer();
        }
        if deferred {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        }
        match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            built => return built,
        }
    }
    Err(last.expect("at least one way was tried"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::{fd::AsFd, unix::net::UnixStream},
        time::Instant,
    };

    use super::*;

    fn key(index: u64) -> OpKey {
        OpKey::of_user_data(index)
    }

    fn nop(ring: &mut Ring, index: u64) {
        // SAFETY: a no-op refers to nothing.
        unsafe { ring.push(key(index), opcode::Nop::new().build(), None) };
    }

    #[test]
    fn requests_beyond_the_queue_are_kept_in_order_and_none_is_lost() {
        let (bell, _other) = UnixStream::pair().unwrap();
        let mut ring = Ring::new(4, bell.as_fd()).unwrap();
        (0..1000).for_each(|index| nop(&mut ring, index));
        let mut reaped = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        while reaped.len() < 1000 {
            assert!(Instant::now() < deadline, "only {} of 1000 came", reaped.len());
            ring.enter(Some(Duration::from_millis(100)), &mut reaped).unwrap();
        }
        assert_eq!(reaped, (0..1000).map(|index| Reaped { key: key(index), result: 0 }).collect::<Vec<_>>());
    }

    #[test]
    fn a_park_ends_by_the_bell_and_by_its_time() {
        let (bell, mut rope) = UnixStream::pair().unwrap();
        let mut ring = Ring::new(4, bell.as_fd()).unwrap();
        let mut reaped = Vec::new();
        let began = Instant::now();
        ring.enter(Some(Duration::from_millis(20)), &mut reaped).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20), "nothing has happened: {reaped:?}");
        assert!(ring.bell_under_way());
        rope.write_all(&[0; 8]).unwrap();
        ring.enter(Some(Duration::from_secs(60)), &mut reaped).unwrap();
        assert!(!ring.bell_under_way() && began.elapsed() < Duration::from_secs(30));
        assert_eq!(reaped, []);
    }

    #[test]
    fn a_cancelled_operation_completes_as_cancelled() {
        let (bell, _rope) = UnixStream::pair().unwrap();
        let (idle, _other) = UnixStream::pair().unwrap();
        let mut ring = Ring::new(4, bell.as_fd()).unwrap();
        let poll = opcode::PollAdd::new(Fd(idle.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: a poll refers to nothing.
        unsafe { ring.push(key(7), poll, None) };
        ring.cancel(key(7));
        let mut reaped = Vec::new();
        ring.enter(Some(Duration::from_secs(60)), &mut reaped).unwrap();
        assert_eq!(reaped, [Reaped { key: key(7), result: -libc::ECANCELED }]);
    }
}
