//! Which way into the kernel a core takes: what was asked for, what this host allows, and why it came out so.

use std::{fmt, io};

use super::uring;
use crate::StartError;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where it is to be had, else epoll.
    #[default]
    Auto,
    /// io_uring, or the core does not start.
    Uring,
    /// epoll.
    Epoll,
}

/// The ways into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Completions of a ring.
    Uring,
    /// Readiness, and a system call per operation.
    Epoll,
}

/// What came of an [`EngineChoice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChosen {
    /// The way that is taken.
    pub kind: EngineKind,
    /// Why that one.
    pub reason: EngineReason,
}

/// Why an engine was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineReason {
    /// The choice named it.
    Asked,
    /// io_uring is there, and preferred.
    Preferred,
    /// The kernel has io_uring, and seccomp, a sysctl or an LSM forbids it: the errno.
    UringForbidden(i32),
    /// The kernel has no io_uring, or an older one than this needs (Linux 5.11).
    UringUnsupported,
    /// `RLIMIT_MEMLOCK` is lower than a ring and its host need; in bytes.
    LockedMemory {
        /// What is allowed.
        limit: u64,
        /// What is needed.
        needed: u64,
    },
    /// io_uring was refused for another reason: the errno, such as `ENOMEM`.
    UringRefused(i32),
}

impl EngineChoice {
    /// Tries what there is. Without a core: for telling beforehand what one would use.
    ///
    /// # Errors
    /// [`StartError::Ring`] or [`StartError::LockedMemory`] if io_uring was asked for by name and is not to be had; `core`
    /// is the name in it. Also [`StartError::Ring`] when `Auto` is out of descriptors, because then epoll is no way out.
    pub fn resolve(self, core: &str) -> Result<EngineChosen, StartError> {
        match self {
            Self::Epoll => Ok(EngineChosen { kind: EngineKind::Epoll, reason: EngineReason::Asked }),
            Self::Uring => {
                uring_usable(core)?;
                Ok(EngineChosen { kind: EngineKind::Uring, reason: EngineReason::Asked })
            }
            Self::Auto => match uring_usable(core) {
                Ok(()) => Ok(EngineChosen { kind: EngineKind::Uring, reason: EngineReason::Preferred }),
                Err(error) => match EngineReason::of(&error) {
                    Some(reason) => Ok(EngineChosen { kind: EngineKind::Epoll, reason }),
                    None => Err(error),
                },
            },
        }
    }
}

fn uring_usable(core: &str) -> Result<(), StartError> {
    crate::cores::locked_memory_suffices(core)?;
    uring::probe().map_err(|source| StartError::Ring { core: core.to_owned(), source })
}

impl EngineReason {
    /// A word for metrics and programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Preferred => "preferred",
            Self::UringForbidden(_) => "uring_forbidden",
            Self::UringUnsupported => "uring_unsupported",
            Self::LockedMemory { .. } => "locked_memory",
            Self::UringRefused(_) => "uring_refused",
        }
    }

    /// Why io_uring is out of the question; `None` if epoll would fare no better.
    fn of(error: &StartError) -> Option<Self> {
        match error {
            StartError::LockedMemory { limit, needed, .. } => {
                Some(Self::LockedMemory { limit: *limit, needed: *needed })
            }
            StartError::Ring { source, .. } => match source.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => None,
                Some(errno @ (libc::EPERM | libc::EACCES)) => Some(Self::UringForbidden(errno)),
                Some(libc::ENOSYS) | None => Some(Self::UringUnsupported),
                Some(errno) => Some(Self::UringRefused(errno)),
            },
            StartError::Descriptors { .. } | StartError::Host { .. } => None,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

impl fmt::Display for EngineReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = |errno: i32| io::Error::from_raw_os_error(errno);
        match self {
            Self::Asked => write!(formatter, "it was asked for"),
            Self::Preferred => write!(formatter, "io_uring is there and costs least"),
            Self::UringForbidden(number) => {
                write!(
                    formatter,
                    "io_uring is forbidden, by seccomp, kernel.io_uring_disabled or an LSM: {}",
                    errno(*number)
                )
            }
            Self::UringUnsupported => write!(formatter, "io_uring is missing, or older than Linux 5.11's"),
            Self::LockedMemory { limit, needed } => {
                write!(formatter, "io_uring needs RLIMIT_MEMLOCK of {needed} bytes, and it is {limit}")
            }
            Self::UringRefused(number) => write!(formatter, "io_uring was refused: {}", errno(*number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_io_uring_is_told_apart_and_a_lack_of_descriptors_is_none() {
        let ring = |errno| StartError::Ring { core: "x".into(), source: io::Error::from_raw_os_error(errno) };
        let too_old = StartError::Ring { core: "x".into(), source: io::Error::other("too old") };
        let locked = StartError::LockedMemory { core: "x".into(), limit: 1, needed: 2 };
        for (error, word) in [
            (ring(libc::EPERM), Some("uring_forbidden")),
            (ring(libc::EACCES), Some("uring_forbidden")),
            (ring(libc::ENOSYS), Some("uring_unsupported")),
            (too_old, Some("uring_unsupported")),
            (ring(libc::ENOMEM), Some("uring_refused")),
            (locked, Some("locked_memory")),
            (ring(libc::EMFILE), None),
        ] {
            let reason = EngineReason::of(&error);
            assert_eq!(reason.as_ref().map(EngineReason::word), word, "{error}");
        }
    }

    #[test]
    fn what_was_asked_for_is_taken() {
        let chosen = EngineChoice::Epoll.resolve("x").unwrap();
        assert_eq!((chosen.kind, chosen.reason), (EngineKind::Epoll, EngineReason::Asked));
        let chosen = EngineChoice::Uring.resolve("x").unwrap();
        assert_eq!((chosen.kind, chosen.reason), (EngineKind::Uring, EngineReason::Asked));
        assert_eq!(EngineChoice::Auto.resolve("x").unwrap().reason, EngineReason::Preferred);
    }
}
