//! A network namespace held by its descriptor, and the one way to do something inside it. It makes no sockets itself.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process,
    sync::Arc,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, kept alive by an open descriptor that all clones share.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    id: NetnsId,
}

/// Which namespace it is: device and inode of its nsfs file. The kernel gives an inode number out again once a
/// namespace is gone, so two ids may only be compared while a [`Netns`] of the first is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// `st_dev` of the nsfs mount.
    pub dev: u64,
    /// `st_ino`: the number that `lsns` and `/proc/PID/ns/net` show.
    pub ino: u64,
}

impl Netns {
    /// Takes over a descriptor received from the CNI agent.
    ///
    /// That it is a namespace at all is not asked here: `setns` with `CLONE_NEWNET` refuses everything else, and an
    /// early answer would have to be an ioctl that old kernels lack.
    ///
    /// # Errors
    /// `fstat` failed.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd: Arc::new(fd), id: NetnsId { dev: stat.st_dev, ino: stat.st_ino } })
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not mounted, or descriptors are exhausted.
    pub fn current() -> io::Result<Self> {
        Self::from_fd(fs::File::open(OF_THIS_THREAD)?.into())
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `inside` in this namespace, on this thread, and brings the thread back to where it was.
    ///
    /// Synchronous on purpose: a future that yielded inside would take every other task of the thread with it. A panic
    /// of `inside` goes on only after the return. Calls nest. 15 us on a busy virtual machine of 2 cores, Linux 6.18
    /// (mean of 100,000 in a release build), of which 7 go into opening the way back.
    ///
    /// A thread that cannot return ends the process: it would go on making sockets in a stranger's namespace, which is
    /// one tenant's traffic in another's network, and there is no other thread to do its work.
    ///
    /// # Errors
    /// The namespace could not be entered; `inside` did not run.
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> io::Result<T> {
        // Opened on each call, not remembered per thread: so it is right wherever the thread was before, nested calls
        // included, and no static outlives the call. A remembered one would save the open, half of the cost.
        let home = fs::File::open(OF_THIS_THREAD)?;
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
        let _way_back = WayBack { home: home.into(), from: self.id };
        Ok(inside())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// `thread-self`, because `self` is the main thread's, which is not the one that moves.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// Returns the thread when dropped, so that unwinding returns too.
struct WayBack {
    home: OwnedFd,
    from: NetnsId,
}

impl Drop for WayBack {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network)) {
            // Straight to stderr: the log has a thread of its own, which an abort does not wait for.
            let _ = writeln!(
                io::stderr(),
                "fatal: this thread cannot return from {} to its own network namespace: {error}; \
                 going on would put one pod's sockets into another's network (was CAP_SYS_ADMIN dropped?)",
                self.from
            );
            process::abort();
        }
    }
}
