//! Network namespaces for tests: made, entered by closures, gone with their last descriptor. Knows nothing of pods or
//! meshes.
//!
//! A namespace here has no name under `/run/netns`: only the descriptor in [`Namespace`] (and the sockets and processes
//! inside) keeps it alive. So the kernel takes it down whatever happens to the test: return, panic, `SIGKILL`, Ctrl-C.
//! There is nothing to sweep. To look inside while a test is stopped: `nsenter --net=/proc/<pid of the test>/fd/<n> ip
//! addr`.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::tool;

/// A network namespace of this test process. Clones share it; the last one lets it go.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes an empty namespace with its loopback up. `name` appears in errors only.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, or when `ip` is missing.
    pub fn create(name: &str) -> Result<Self> {
        let fd = on_new_thread(|| -> Result<OwnedFd> {
            leave_for_new_namespace().context("unshare(CLONE_NEWNET): the mesh tests need root (CAP_SYS_ADMIN)")?;
            Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
        })?;
        let namespace = Self { name: name.into(), fd: Arc::new(fd) };
        // Ephemeral ports must never fall on a listener's port, and the host's choice is not ours to trust.
        namespace.set("net/ipv4/ip_local_port_range", "32768 60999")?;
        // Duplicate address detection would keep IPv6 addresses tentative for a second.
        namespace
            .set("net/ipv6/conf/all/accept_dad", "0")
            .or_else(|error| if has_ipv6() { Err(error) } else { Ok(()) })?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The calling thread's own.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn current(name: &str) -> Result<Self> {
        let fd = fs::File::open("/proc/thread-self/ns/net").context("open the thread's own network namespace")?;
        Ok(Self { name: name.into(), fd: Arc::new(fd.into()) })
    }

    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside this namespace. Sockets made there stay in it wherever they are used
    /// later.
    ///
    /// # Panics
    /// When `work` does, and when the namespace can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_new_thread(|| {
            self.enter();
            work()
        })
    }

    /// Moves the calling thread here for good. For threads that own themselves: see [`Self::run`] for all others.
    ///
    /// # Panics
    /// When the kernel refuses, which for a descriptor of a live namespace means missing privileges.
    pub fn enter(&self) {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .unwrap_or_else(|error| panic!("setns to {}: {error}", self.name));
    }

    /// Runs `ip -batch` inside, one command a line.
    ///
    /// # Errors
    /// With the failing line as `ip` reports it.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.run(|| tool::run_with_input("ip", &["-batch", "-"], batch))
            .with_context(|| format!("in namespace {}", self.name))?;
        Ok(())
    }

    /// Writes a `/proc/sys` entry of this namespace.
    ///
    /// # Errors
    /// When there is no such entry or it refuses the value.
    pub fn set(&self, entry: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys").join(entry);
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("write {value:?} to {} in {}", path.display(), self.name))
    }

    /// How many sockets listen at a TCP port inside, of any process and either family.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn listeners(&self, port: u16) -> Result<usize> {
        // Not /proc/net: that shows the namespace of the process's first thread.
        let tables =
            self.run(|| ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}"))));
        let mut count = 0;
        for table in tables {
            count += table?.lines().filter(|line| is_listener(line, port)).count();
        }
        Ok(count)
    }

    /// A path by which another process of this machine finds the namespace while this process lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// The descriptor, as a CNI agent hands it over.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Checks once what every namespaced test needs, so that a bare machine gets one clear sentence.
///
/// # Errors
/// When not root, or a tool is missing.
pub fn require_privileges() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the mesh tests make network namespaces: run them as root");
    for name in ["ip", "iptables-restore", "setpriv"] {
        tool::require(name)?;
    }
    Ok(())
}

#[expect(
    deprecated,
    reason = "deprecated because CLONE_FILES can break I/O safety, which CLONE_NEWNET can't; and testbed has no unsafe"
)]
fn leave_for_new_namespace() -> rustix::io::Result<()> {
    rustix::thread::unshare(UnshareFlags::NEWNET)
}

/// Whether a line of `/proc/net/tcp` is of a socket that listens at `port`: `sl local:port remote:port state ..`, in hex.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace();
    let (local, state) = (fields.nth(1), fields.nth(1));
    local.is_some_and(|local| local.ends_with(&format!(":{port:04X}"))) && state == Some("0A")
}

fn has_ipv6() -> bool {
    PathBuf::from("/proc/sys/net/ipv6").exists()
}

fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_made_inside_stays_inside() {
        let inside = Namespace::create("inside").unwrap();
        let other = Namespace::create("other").unwrap();
        let listener = inside.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(inside.run(|| TcpStream::connect(address)).is_ok());
        let listeners = [&inside, &other].map(|namespace| namespace.listeners(address.port()).unwrap());
        assert_eq!(listeners, [1, 0]);
        assert!(other.run(|| TcpStream::connect(address)).is_err(), "another namespace reached it");
        assert!(TcpStream::connect(address).is_err(), "the test's own namespace reached it");
    }

    #[test]
    fn a_refused_ip_command_names_the_namespace_and_the_line() {
        let namespace = Namespace::create("strict").unwrap();
        let error = format!("{:#}", namespace.ip("link set lo up\nlink set nowhere up\n").unwrap_err());
        assert!(error.contains("strict") && error.contains("nowhere"), "{error}");
    }
}
