//! What the facts mean: one pure decision for each line. Nothing is asked of the host here.

use std::net::SocketAddr;

use reactor::EngineChoice;
use rustix::io::Errno;

use super::{
    Finding, Verdict,
    facts::{Attempt, Facts, Limit, Mark, Port, Refusal, Root, Zds},
};
use crate::config::Settings;

/// The ring's wait with a time limit (`IORING_ENTER_EXT_ARG`), in which every core sleeps.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// `IORING_SETUP_SINGLE_ISSUER`; `IORING_SETUP_COOP_TASKRUN` came before it, with 5.19.
const KERNEL_GOOD: (u32, u32) = (6, 0);
const KERNEL_COOPERATIVE: (u32, u32) = (5, 19);
/// glommio refuses to start a core with less.
const MEMLOCK_MIN: u64 = 512 << 10;
/// Two descriptors per connection, and one listener per port and pod: a node with 100 pods and hardly any traffic.
const NOFILE_MIN: u64 = 4_096;
/// What leaves room for 10,000 connections.
const NOFILE_GOOD: u64 = 20_000;

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

type Check = fn(&Facts, &Settings) -> Finding;

const CHECKS: [Check; 15] = [
    kernel,
    uring,
    locked_memory,
    descriptors,
    net_admin,
    sys_admin,
    net_raw,
    namespace,
    packet_mark,
    cores,
    metrics_port,
    readiness_port,
    admin_port,
    agent_socket,
    root_file,
];

/// All findings, in the order in which an operator would mend them.
pub(super) fn judge(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    CHECKS.iter().map(|check| check(facts, settings)).collect()
}

/// What stands in the way of io_uring stops the daemon only if nothing else will do: `auto` takes epoll, and says so.
fn of_uring(finding: Finding, settings: &Settings) -> Finding {
    match (settings.engine, finding.verdict, finding.cure) {
        (EngineChoice::Auto, Verdict::Fatal, Some(cure)) => Finding {
            verdict: Verdict::Warning,
            cure: Some(format!("--engine auto takes epoll, which costs more CPU; for io_uring: {cure}")),
            ..finding
        },
        (EngineChoice::Epoll, Verdict::Fatal | Verdict::Warning, _) => {
            let need = "nothing of io_uring, with --engine epoll".to_owned();
            Finding { verdict: Verdict::Good, need, cure: None, ..finding }
        }
        (_, _, cure) => Finding { cure, ..finding },
    }
}

fn kernel(facts: &Facts, settings: &Settings) -> Finding {
    of_uring(kernel_for_uring(facts), settings)
}

fn kernel_for_uring(facts: &Facts) -> Finding {
    let found = if facts.release.is_empty() { "an unknown release" } else { &facts.release };
    let need = format!("Linux {} or newer, {} for full speed", dotted(KERNEL_MIN), dotted(KERNEL_GOOD));
    let line = Line::new("kernel", found, need);
    match version(&facts.release) {
        None => line.warning("mount /proc, or see with uname -r that the kernel is new enough."),
        Some(version) if version < KERNEL_MIN => {
            line.fatal(format!("run on a kernel of at least {}, better 6.1.", dotted(KERNEL_MIN)))
        }
        Some(version) if version < KERNEL_COOPERATIVE => line.warning(
            "it runs, with an interrupt per completion: Linux 5.19 brings COOP_TASKRUN and 6.0 SINGLE_ISSUER, so upgrade.",
        ),
        Some(version) if version < KERNEL_GOOD => {
            line.warning("it runs, somewhat slower: Linux 6.0 brings SINGLE_ISSUER, so upgrade.")
        }
        Some(_) => line.good(),
    }
}

fn uring(facts: &Facts, settings: &Settings) -> Finding {
    let line = |found: String| Line::new("io_uring", found, "a core that starts");
    let short_of_memory = || {
        let line = line("a ring, but too little locked memory for a core".to_owned());
        of_uring(line.fatal("raise RLIMIT_MEMLOCK as its own line says."), settings)
    };
    match &facts.attempt {
        Attempt::Started if settings.engine == EngineChoice::Epoll => {
            Line::new("io_uring", "a core that started on epoll", "nothing of io_uring, with --engine epoll").good()
        }
        Attempt::LockedMemory { .. } => short_of_memory(),
        // glommio may word its refusal as any I/O error.
        Attempt::Host(_) if !at_least(facts.memlock.soft, MEMLOCK_MIN) => short_of_memory(),
        Attempt::Started => line("a core that started".to_owned()).good(),
        Attempt::NoRing(refusal) if out_of_descriptors(refusal) => no_ring(facts, refusal, line),
        Attempt::NoRing(refusal) => of_uring(no_ring(facts, refusal, line), settings),
        Attempt::NoDescriptors(refusal) => {
            line(format!("no descriptor for a core ({})", refusal.says)).fatal(OUT_OF_DESCRIPTORS)
        }
        Attempt::Host(cause) => line(format!("a core whose thread did not start ({cause})"))
            .fatal("see that threads can be made: raise pids.max or ulimit -u."),
    }
}

/// epoll would fare no better.
fn out_of_descriptors(refusal: &Refusal) -> bool {
    matches!(refusal.errno, Some(Errno::MFILE | Errno::NFILE))
}

const OUT_OF_DESCRIPTORS: &str =
    "raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=) or, if the whole host is out of them, sysctl -w fs.file-max.";
const UNCONFINED: &str = "allow io_uring_setup, io_uring_enter and io_uring_register in a Localhost seccomp profile, or set \
                          seccompProfile: {type: Unconfined} (docker: --security-opt seccomp=unconfined).";

/// EPERM has three causes that look alike, and each has a cure of its own. The sysctl is asked after the system call was
/// let in, so a filter hides it; both may have to be mended, one after the other.
fn no_ring(facts: &Facts, refusal: &Refusal, line: impl Fn(String) -> Line) -> Finding {
    let privileged = has(facts, CAP_SYS_ADMIN) || facts.process.in_uring_group;
    match (refusal.errno, facts.uring_disabled) {
        (Some(Errno::PERM), Some(2..)) => {
            line("it forbidden for everyone by kernel.io_uring_disabled=2".to_owned()).fatal("sysctl -w kernel.io_uring_disabled=0 on the node.")
        }
        (Some(Errno::PERM), Some(1)) if !privileged => {
            line("it forbidden for this process by kernel.io_uring_disabled=1".to_owned()).fatal(
                "give the container CAP_SYS_ADMIN (securityContext.capabilities.add: [SYS_ADMIN]) or the group of \
                 kernel.io_uring_group, or sysctl -w kernel.io_uring_disabled=0 on the node.",
            )
        }
        (Some(Errno::PERM), _) if facts.process.filtered => line("it forbidden by seccomp (EPERM)".to_owned()).fatal(UNCONFINED),
        (Some(Errno::PERM | Errno::ACCESS), _) => line(format!("it forbidden, not by sysctl or seccomp but perhaps by an LSM ({})", refusal.says))
            .fatal("allow io_uring in the container's SELinux or AppArmor profile; the node's audit log names it."),
        (Some(Errno::NOSYS), _) if facts.process.filtered => line("no such system call: seccomp hides it (ENOSYS)".to_owned()).fatal(UNCONFINED),
        // The sysctl is there only if io_uring is built in, so something between us and the kernel says no.
        (Some(Errno::NOSYS), Some(_)) => line("no such system call, though the kernel has it (ENOSYS)".to_owned()).fatal(UNCONFINED),
        (Some(Errno::NOSYS), None) => line("no such system call (ENOSYS)".to_owned())
            .fatal("run on a kernel built with CONFIG_IO_URING=y, and outside of sandboxes without it such as gVisor."),
        (Some(Errno::NOMEM), _) => line("no memory for a ring (ENOMEM)".to_owned())
            .fatal("raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=infinity) or, from Linux 5.12 on, the container's memory limit."),
        (Some(Errno::MFILE | Errno::NFILE), _) => line(format!("no descriptor for a ring ({})", refusal.says)).fatal(OUT_OF_DESCRIPTORS),
        _ => line(format!("no ring ({})", refusal.says)).fatal("look the error up in io_uring_setup(2)."),
    }
}

fn locked_memory(facts: &Facts, settings: &Settings) -> Finding {
    of_uring(locked_memory_for_uring(facts), settings)
}

fn locked_memory_for_uring(facts: &Facts) -> Finding {
    let Limit { soft, hard } = facts.memlock;
    let needed = match facts.attempt {
        Attempt::LockedMemory { needed, .. } => needed,
        Attempt::Started | Attempt::NoRing(_) | Attempt::NoDescriptors(_) | Attempt::Host(_) => MEMLOCK_MIN,
    };
    let line = Line::new("RLIMIT_MEMLOCK", bytes(soft), bytes(Some(needed)));
    let kib = needed.div_ceil(1024);
    if at_least(soft, needed) {
        line.good()
    } else if at_least(hard, needed) {
        line.fatal(format!(
            "ulimit -l {kib} before the start, which the hard limit allows, or LimitMEMLOCK=infinity in the unit."
        ))
    } else {
        line.fatal(format!(
            "set LimitMEMLOCK=infinity in the unit (in Kubernetes: in that of the container runtime, as pods inherit its \
             limits), or as root ulimit -l {kib} before the start."
        ))
    }
}

fn descriptors(facts: &Facts, _: &Settings) -> Finding {
    // The daemon raises its soft limit itself.
    let hard = facts.nofile.hard;
    let found = hard.map_or("no hard limit".to_owned(), |hard| format!("a hard limit of {hard}"));
    let line = Line::new("RLIMIT_NOFILE", found, format!("{NOFILE_MIN}, {NOFILE_GOOD} for 10000 connections at once"));
    let cure = "set LimitNOFILE=1048576 in the unit (in Kubernetes: in that of the container runtime), or as root ulimit -Hn 1048576.";
    if !at_least(hard, NOFILE_MIN) {
        line.fatal(cure)
    } else if !at_least(hard, NOFILE_GOOD) {
        line.warning(cure)
    } else {
        line.good()
    }
}

fn net_admin(facts: &Facts, _: &Settings) -> Finding {
    let line =
        Line::new("CAP_NET_ADMIN", presence(facts, CAP_NET_ADMIN), "it to mark packets and to keep clients' addresses");
    if has(facts, CAP_NET_ADMIN) { line.good() } else { line.fatal(grant("NET_ADMIN")) }
}

fn sys_admin(facts: &Facts, _: &Settings) -> Finding {
    let line = Line::new("CAP_SYS_ADMIN", presence(facts, CAP_SYS_ADMIN), "it to enter pods' network namespaces");
    if has(facts, CAP_SYS_ADMIN) { line.good() } else { line.fatal(grant("SYS_ADMIN")) }
}

/// The kernel takes it in the place of CAP_NET_ADMIN where an address is kept or a packet marked, so it alone blocks nothing.
fn net_raw(facts: &Facts, _: &Settings) -> Finding {
    let line = Line::new("CAP_NET_RAW", presence(facts, CAP_NET_RAW), "it as ztunnel has it");
    if has(facts, CAP_NET_RAW) { line.good() } else { line.warning(grant("NET_RAW")) }
}

fn namespace(facts: &Facts, _: &Settings) -> Finding {
    let line = |found: String| Line::new("setns", found, "network namespaces that can be entered");
    match &facts.setns {
        Ok(()) => line("our own network namespace entered".to_owned()).good(),
        Err(refusal) => {
            let line = line(format!("our own network namespace closed ({})", refusal.says));
            match refusal.errno {
                Some(Errno::PERM) if !has(facts, CAP_SYS_ADMIN) => line.fatal(grant("SYS_ADMIN")),
                Some(Errno::PERM) => line.fatal(
                    "run in the host's user namespace (hostUsers: true), and allow setns in the seccomp profile.",
                ),
                Some(Errno::NOENT | Errno::NOTDIR) => line.fatal("mount /proc, with hidepid off."),
                Some(Errno::MFILE | Errno::NFILE) => line.fatal(OUT_OF_DESCRIPTORS),
                _ => line.fatal("look the error up in setns(2)."),
            }
        }
    }
}

fn packet_mark(facts: &Facts, settings: &Settings) -> Finding {
    let line = |found: String| {
        Line::new(
            "SO_MARK",
            found,
            format!("mark {} on sockets, else the proxy captures itself", settings.sockets.packet_mark),
        )
    };
    match &facts.mark {
        Mark::Set => line("that it can be set".to_owned()).good(),
        Mark::Refused(refusal) if refusal.errno == Some(Errno::PERM) && has(facts, CAP_NET_ADMIN) => {
            line(format!("it refused ({})", refusal.says))
                .fatal("run in the user namespace that owns the network namespace (hostUsers: true).")
        }
        Mark::Refused(refusal) => line(format!("it refused ({})", refusal.says)).fatal(grant("NET_ADMIN")),
        Mark::NotTried(refusal) => line(format!("no socket to try it on ({})", refusal.says))
            .warning("mend what the lines above name, then look again."),
    }
}

/// Whether they may be used was decided where the settings were read.
fn cores(_: &Facts, settings: &Settings) -> Finding {
    let list: Vec<String> = settings.cores.iter().map(ToString::to_string).collect();
    Line::new("cores", format!("CPU {}", list.join(", ")), "CPUs this process may use").good()
}

fn metrics_port(facts: &Facts, settings: &Settings) -> Finding {
    port("metrics port", "--metrics-addr", settings.servers.metrics, &facts.metrics_port)
}

fn readiness_port(facts: &Facts, settings: &Settings) -> Finding {
    let servers = &settings.servers;
    port_of_its_own("readiness port", "--readiness-addr", servers.readiness, &[servers.metrics], &facts.readiness_port)
}

fn admin_port(facts: &Facts, settings: &Settings) -> Finding {
    let servers = &settings.servers;
    let others = [servers.metrics, servers.readiness];
    port_of_its_own("admin port", "--admin-addr", servers.admin, &others, &facts.admin_port)
}

fn port_of_its_own(
    what: &'static str,
    flag: &str,
    address: SocketAddr,
    others: &[SocketAddr],
    found: &Port,
) -> Finding {
    // Both would bind, because listeners share their port with a daemon that is being replaced.
    if others.contains(&address) && address.port() != 0 {
        return Line::new(what, format!("{address} for another server too"), "an address of its own")
            .fatal(format!("give {flag}, --metrics-addr and the others different ports."));
    }
    port(what, flag, address, found)
}

fn port(what: &'static str, flag: &str, address: SocketAddr, port: &Port) -> Finding {
    let line = |found: String| Line::new(what, found, "an address to listen on");
    match port {
        Port::Free => line(format!("{address} free")).good(),
        Port::Taken { by: Some(by) } => {
            line(format!("{address} taken by {by}")).fatal(format!("stop {by}, or give another address with {flag}."))
        }
        Port::Taken { by: None } => {
            line(format!("{address} taken by a process that cannot be seen from here")).fatal(format!(
                "find it with ss -ltnp 'sport = :{}' on the node and stop it, or give another address with {flag}.",
                address.port()
            ))
        }
        Port::Refused(refusal) => {
            let line = line(format!("{address} not to be had ({})", refusal.says));
            match refusal.errno {
                Some(Errno::ACCESS | Errno::PERM) => {
                    line.fatal(format!("give a port of 1024 or above with {flag}, or add CAP_NET_BIND_SERVICE."))
                }
                Some(Errno::ADDRNOTAVAIL) => line.fatal(format!("give an address that this host has with {flag}.")),
                Some(Errno::AFNOSUPPORT) => {
                    line.fatal(format!("set IPV6_ENABLED=false, or give an IPv4 address with {flag}."))
                }
                Some(Errno::MFILE | Errno::NFILE) => line.fatal(OUT_OF_DESCRIPTORS),
                _ => line.fatal(format!("give another address with {flag}.")),
            }
        }
    }
}

/// Never fatal: the agent may come later, and the daemon tries until it does.
fn agent_socket(facts: &Facts, settings: &Settings) -> Finding {
    let socket = settings.mesh.zds_socket.display();
    let line = |found: String| Line::new("CNI agent's socket", found, "the socket, or at least its directory");
    match facts.zds {
        Zds::Abstract => line(format!("abstract name {socket}")).good(),
        Zds::Socket => line(socket.to_string()).good(),
        Zds::Directory => line(format!("the directory of {socket}, for which the daemon will wait")).good(),
        Zds::NotASocket => line(format!("{socket} to be no socket"))
            .warning("point --zds-socket (INPOD_UDS) at the CNI agent's socket."),
        Zds::Nothing => line(format!("not even the directory of {socket}")).warning(
            "mount the CNI agent's directory as a hostPath, or give the socket with --zds-socket (INPOD_UDS).",
        ),
    }
}

fn root_file(facts: &Facts, settings: &Settings) -> Finding {
    if let Some(server) = &settings.certificates.server {
        return Line::new("CA root", format!("a CA at {}, so none is made here", server.address), "either").good();
    }
    let file = settings.certificates.root_file.display();
    let line = |found: String| Line::new("CA root", found, "a private file, or a directory to make it in");
    match &facts.root {
        Root::Present { regular: false, .. } => {
            line(format!("{file} to be no file")).fatal("give the root's PEM file with --ca-root-file.")
        }
        Root::Present { readable: false, mode, .. } => {
            line(format!("{file} unreadable (mode {mode:03o})")).fatal("chown it to the daemon's user, with mode 0600.")
        }
        Root::Present { lockable: false, .. } => line(format!("{file} where no lock can be made beside it"))
            .fatal("copy it into a writable directory, such as an emptyDir, and give it with --ca-root-file."),
        Root::Present { mode, .. } if mode & 0o044 != 0 => {
            line(format!("{file}, which holds the CA's key, open to others (mode {mode:03o})"))
                .warning(format!("chmod 0600 {file}."))
        }
        Root::Present { .. } => line(file.to_string()).good(),
        Root::Missing { writable: true, nearest } => {
            line(format!("no {file} yet, and {} to make it in", nearest.display())).good()
        }
        Root::Missing { writable: false, nearest } => {
            line(format!("no {file}, and that nothing can be made in {}", nearest.display()))
                .fatal("mount a writable volume there, or give another file with --ca-root-file.")
        }
        Root::Refused(refusal) => line(format!("{file} out of reach ({})", refusal.says))
            .fatal("make its path one that the daemon's user may search, or give another file with --ca-root-file."),
    }
}

/// A finding before its verdict.
pub(super) struct Line {
    what: &'static str,
    found: String,
    need: String,
}

impl Line {
    pub(super) fn new(what: &'static str, found: impl Into<String>, need: impl Into<String>) -> Self {
        Self { what, found: found.into(), need: need.into() }
    }

    pub(super) fn good(self) -> Finding {
        Finding { what: self.what, verdict: Verdict::Good, found: self.found, need: self.need, cure: None }
    }

    pub(super) fn warning(self, cure: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warning, cure: Some(cure.into()), ..self.good() }
    }

    pub(super) fn fatal(self, cure: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Fatal, cure: Some(cure.into()), ..self.good() }
    }
}

fn has(facts: &Facts, capability: u32) -> bool {
    facts.process.capabilities >> capability & 1 == 1
}

fn presence(facts: &Facts, capability: u32) -> &'static str {
    if has(facts, capability) { "it" } else { "that it is missing" }
}

fn grant(capability: &str) -> String {
    format!(
        "add {capability} to the container's securityContext.capabilities.add, or run as root (systemd: AmbientCapabilities=CAP_{capability})."
    )
}

/// `None` is without limit.
fn at_least(limit: Option<u64>, needed: u64) -> bool {
    limit.is_none_or(|limit| limit >= needed)
}

fn bytes(limit: Option<u64>) -> String {
    match limit {
        None => "no limit".to_owned(),
        Some(bytes) => format!("{} KiB", bytes / 1024),
    }
}

/// The first two numbers of a release such as `6.1.0-13-amd64` or `5.15-rc3`.
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests;
