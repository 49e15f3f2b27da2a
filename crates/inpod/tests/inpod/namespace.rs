//! Network namespaces of a test's own, held by nothing but a descriptor.

use std::{fs, net::SocketAddr, process::Command, thread};

use inpod::Netns;
use rustix::thread::{CapabilitySet, UnshareFlags};

/// A namespace with nothing in it but a loopback device that is up.
pub(crate) fn with_loopback() -> Netns {
    let netns = empty();
    ip(&netns, "link set lo up");
    netns
}

/// A namespace as the kernel makes it.
pub(crate) fn empty() -> Netns {
    on_own_thread(|| {
        unshare(UnshareFlags::NEWNET);
        Netns::current().expect("just made")
    })
}

/// `ip` with `arguments`, inside.
pub(crate) fn ip(netns: &Netns, arguments: &str) {
    let run = || Command::new("/usr/sbin/ip").args(arguments.split(' ')).output();
    let output = netns.enter(run).expect("enters").expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sets `net.KEY` inside.
pub(crate) fn sysctl(netns: &Netns, key: &str, value: &str) {
    let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
    netns.enter(|| fs::write(&path, value)).expect("enters").unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// The namespace that the calling thread is in.
pub(crate) fn here() -> inpod::NetnsId {
    Netns::current().expect("/proc is mounted").id()
}

/// Runs `f` on a thread of its own, whose namespace or rights it may then change.
pub(crate) fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Takes rights from the calling thread, for as long as it lives.
pub(crate) fn give_up(rights: CapabilitySet) {
    let mut sets = rustix::thread::capabilities(None).expect("readable");
    sets.effective -= rights;
    sets.permitted -= rights;
    sets.inheritable -= rights;
    rustix::thread::set_capabilities(None, sets).expect("giving up is allowed");
}

/// The loopback address of the family of `address`, with its port.
pub(crate) fn loopback_v4(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], address.port()))
}

#[expect(unsafe_code, reason = "unshare is unsafe for CLONE_FILES, which is not asked for here")]
fn unshare(what: UnshareFlags) {
    // SAFETY: only what was asked for is unshared, never the descriptor table.
    unsafe { rustix::thread::unshare_unsafe(what) }.expect("needs root");
}
