//! What the host is like, as far as the daemon cares. It asks and tries, and judges nothing; whatever it makes is gone
//! when it returns.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use inpod::{
    Netns,
    socket::{SocketError, SocketOptions},
};
use reactor::{CoreConfig, EngineChoice, StartError};
use rustix::{
    fs::Access,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
    process::{Resource, getrlimit},
};

use crate::config::Settings;

/// Everything that is judged.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// The sysctl `kernel.io_uring_disabled`; kernels before 6.6 have none.
    pub(super) uring_disabled: Option<u32>,
    pub(super) attempt: Attempt,
    pub(super) process: Process,
    pub(super) memlock: Limit,
    pub(super) nofile: Limit,
    /// Going into our own network namespace, which takes what going into a pod's takes.
    pub(super) setns: Result<(), Refusal>,
    pub(super) mark: Mark,
    pub(super) metrics_port: Port,
    pub(super) readiness_port: Port,
    pub(super) admin_port: Port,
    pub(super) zds: Zds,
    pub(super) root: Root,
}

/// What the kernel says of this process in `/proc/self/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// `CapEff`, by number.
    pub(super) capabilities: u64,
    /// A seccomp filter is on.
    pub(super) filtered: bool,
    /// The effective and the supplementary groups.
    pub(super) groups: Vec<u64>,
    /// It is in `kernel.io_uring_group`.
    pub(super) in_uring_group: bool,
}

/// How starting a core went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    Started,
    NoRing(Refusal),
    LockedMemory { limit: u64, needed: u64 },
    NoDescriptors(Refusal),
    Host(String),
}

/// A resource limit; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) soft: Option<u64>,
    pub(super) hard: Option<u64>,
}

/// What the kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Option<Errno>,
    pub(super) says: String,
}

/// How setting `SO_MARK` went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    Set,
    Refused(Refusal),
    /// There was no socket to set it on.
    NotTried(Refusal),
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    Free,
    /// `by` is who listens there, if this process may see that.
    Taken {
        by: Option<String>,
    },
    Refused(Refusal),
}

/// The CNI agent's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Zds {
    Abstract,
    Socket,
    NotASocket,
    /// The directory is there, the socket is not.
    Directory,
    Nothing,
}

/// The embedded CA's root file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Root {
    /// `lockable`: the lock file beside it can be made or opened.
    Present {
        regular: bool,
        readable: bool,
        mode: u32,
        lockable: bool,
    },
    /// `nearest` is the first of its parents that exists; `writable`: that is a directory in which it can be made.
    Missing {
        nearest: PathBuf,
        writable: bool,
    },
    Refused(Refusal),
}

impl Facts {
    pub(super) fn gather(settings: &Settings) -> Self {
        let mut process = parse_status(&read("/proc/self/status").unwrap_or_default());
        // -1, which does not parse, is nobody's group.
        let uring_group = read_number("/proc/sys/kernel/io_uring_group");
        process.in_uring_group = uring_group.is_some_and(|group| process.groups.contains(&group));
        Self {
            release: read("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            uring_disabled: read_number("/proc/sys/kernel/io_uring_disabled"),
            attempt: attempt(settings.engine),
            process,
            memlock: limit(Resource::Memlock),
            nofile: limit(Resource::Nofile),
            setns: Netns::current().and_then(|netns| netns.enter(|| ())).map_err(Refusal::from),
            mark: mark(settings.sockets.packet_mark),
            metrics_port: port(settings.servers.metrics),
            readiness_port: port(settings.servers.readiness),
            admin_port: port(settings.servers.admin),
            zds: zds(&settings.mesh.zds_socket),
            root: root(&settings.certificates.root_file),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { errno: Errno::from_io_error(&error), says: error.to_string() }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno: Some(errno), says: errno.to_string() }
    }
}

fn read(file: &str) -> Option<String> {
    fs::read_to_string(file).ok()
}

fn read_number<T: std::str::FromStr>(file: &str) -> Option<T> {
    read(file)?.trim().parse().ok()
}

fn limit(resource: Resource) -> Limit {
    let limit = getrlimit(resource);
    Limit { soft: limit.current, hard: limit.maximum }
}

fn parse_status(status: &str) -> Process {
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("").trim();
    // Real, effective, saved, file system.
    let effective = field("Gid").split_whitespace().nth(1);
    Process {
        capabilities: u64::from_str_radix(field("CapEff"), 16).unwrap_or(0),
        filtered: field("Seccomp") == "2",
        groups: effective
            .into_iter()
            .chain(field("Groups").split_whitespace())
            .filter_map(|group| group.parse().ok())
            .collect(),
        in_uring_group: false,
    }
}

/// Only a real ring tells what seccomp, a sysctl, an LSM and limits together allow. `auto` is tried as io_uring, which is
/// what it wants.
fn attempt(engine: EngineChoice) -> Attempt {
    let engine = if engine == EngineChoice::Epoll { engine } else { EngineChoice::Uring };
    // Unpinned, so that it speaks of io_uring alone.
    let config = CoreConfig { name: "preflight".to_owned(), engine, ring_entries: 8, ..CoreConfig::default() };
    match reactor::start(config, |_| async {}) {
        Ok(core) => {
            core.join();
            Attempt::Started
        }
        Err(StartError::Ring { source, .. }) => Attempt::NoRing(source.into()),
        Err(StartError::LockedMemory { limit, needed, .. }) => Attempt::LockedMemory { limit, needed },
        Err(StartError::Descriptors { source, .. }) => Attempt::NoDescriptors(source.into()),
        Err(StartError::Host { cause, .. }) => Attempt::Host(cause),
    }
}

fn mark(mark: u32) -> Mark {
    let options = SocketOptions { mark: Some(mark), reuse_port: false, keepalive: None, user_timeout: None };
    // Never connected, so the port means nothing.
    let target = SocketAddr::from(([127, 0, 0, 1], 9));
    let netns = match Netns::current() {
        Ok(netns) => netns,
        Err(error) => return Mark::NotTried(error.into()),
    };
    match inpod::socket::outgoing(&netns, target, None, &options) {
        Ok(_) => Mark::Set,
        Err(error @ SocketError::Option { .. }) => Mark::Refused(refusal(&error)),
        Err(error) => Mark::NotTried(refusal(&error)),
    }
}

fn refusal(error: &SocketError) -> Refusal {
    Refusal { errno: error.errno().map(Errno::from_raw_os_error), says: error.to_string() }
}

fn port(address: SocketAddr) -> Port {
    match bind(address) {
        Ok(()) => Port::Free,
        Err(Errno::ADDRINUSE) => Port::Taken { by: listener_on(address.port()) },
        Err(errno) => Port::Refused(errno.into()),
    }
}

/// As the admin servers bind, so that a daemon which is being replaced is not in the way. It must not listen: the kernel
/// would share the running daemon's connections with a socket that never accepts.
fn bind(address: SocketAddr) -> rustix::io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)
}

/// Who listens on a port, as `name (pid 7)`. `None` if it is in another PID namespace, or another user's.
fn listener_on(port: u16) -> Option<String> {
    let tables = [read("/proc/net/tcp"), read("/proc/net/tcp6")];
    let names: Vec<String> = tables
        .iter()
        .flatten()
        .flat_map(|table| listening_inodes(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if names.is_empty() {
        return None;
    }
    let holds = |process: &Path| {
        let descriptors = fs::read_dir(process.join("fd")).ok()?;
        let mut targets = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        targets.any(|target| names.iter().any(|name| target.as_os_str() == name.as_str())).then_some(())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        holds(&entry.path())?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some(format!("{} (pid {pid})", name.trim()))
    })
}

/// The inodes of the sockets that listen on `port`, in the text of `/proc/net/tcp` or `/proc/net/tcp6`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let listens = u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == LISTEN;
        listens.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().filter_map(inode).collect()
}

fn zds(socket: &Path) -> Zds {
    if socket.as_os_str().as_encoded_bytes().starts_with(b"@") {
        return Zds::Abstract;
    }
    match fs::metadata(socket) {
        Ok(metadata) if metadata.file_type().is_socket() => Zds::Socket,
        Ok(_) => Zds::NotASocket,
        Err(_) if parent(socket).is_dir() => Zds::Directory,
        Err(_) => Zds::Nothing,
    }
}

fn root(file: &Path) -> Root {
    match fs::metadata(file) {
        Ok(metadata) => Root::Present {
            regular: metadata.is_file(),
            readable: allowed(file, Access::READ_OK),
            mode: metadata.permissions().mode() & 0o777,
            lockable: lockable(file),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut nearest = parent(file);
            while !nearest.exists() {
                nearest = parent(nearest);
            }
            Root::Missing { nearest: nearest.to_owned(), writable: can_make_in(nearest) }
        }
        Err(error) => Root::Refused(error.into()),
    }
}

/// The embedded CA locks a file beside the root each time it opens it.
fn lockable(file: &Path) -> bool {
    let mut lock = file.as_os_str().to_owned();
    lock.push(".lock");
    if Path::new(&lock).exists() { allowed(Path::new(&lock), Access::WRITE_OK) } else { can_make_in(parent(file)) }
}

pub(super) fn can_make_in(directory: &Path) -> bool {
    directory.is_dir() && allowed(directory, Access::WRITE_OK | Access::EXEC_OK)
}

fn allowed(path: &Path, access: Access) -> bool {
    rustix::fs::access(path, access).is_ok()
}

/// The directory a path is in: of a bare name, where we are; of the top, itself.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process};

    use super::*;
    use crate::{cli::Flags, config};

    #[test]
    fn a_process_is_read_from_its_status() {
        let status =
            "Name:\tx\nGid:\t5\t6\t7\t8\nGroups:\t1 20 \nCapEff:\t0000000000203000\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let expected =
            Process { capabilities: 0x20_3000, filtered: true, groups: vec![6, 1, 20], in_uring_group: false };
        assert_eq!(parse_status(status), expected);
        assert!(!parse_status("Seccomp:\t0\nSeccomp_filters:\t2\n").filtered);
        for odd in ["", "CapEff:", "Gid:\t1", "CapEff:\tzz\nGroups:\tx y"] {
            assert_eq!(parse_status(odd), Process::default(), "{odd:?}");
        }
    }

    #[test]
    fn only_sockets_that_listen_on_the_port_are_taken_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3AAC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:3AAC 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 100 0 0 10 0
   2: 00000000:3AAD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0 100 0 0 10 0
   3: 00000000000000000000000000000000:3AAC 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 444 1
   4: cut:3AAC short 0A\n";
        assert_eq!(listening_inodes(table, 15_020), [111, 444]);
        assert_eq!(listening_inodes(table, 15_021), [333]);
        assert_eq!(listening_inodes("", 1), Vec::<u64>::new());
    }

    #[test]
    fn a_taken_port_is_found_with_its_holder_and_free_once_that_is_gone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("loopback is there");
            let address = listener.local_addr().expect("it is bound");
            let Port::Taken { by: Some(by) } = port(address) else { panic!("{address}: {:?}", port(address)) };
            assert!(by.ends_with(&format!("(pid {})", process::id())), "{by}");
            drop(listener);
            assert_eq!(port(address), Port::Free, "{address}");
        }
        let elsewhere = port("192.0.2.1:1".parse().expect("an address"));
        assert!(
            matches!(&elsewhere, Port::Refused(refusal) if refusal.errno == Some(Errno::ADDRNOTAVAIL)),
            "{elsewhere:?}"
        );
    }

    #[test]
    fn a_daemon_that_is_being_replaced_does_not_hold_its_port() {
        let old = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .expect("a socket");
        rustix::net::sockopt::set_socket_reuseport(&old, true).expect("it can be shared");
        rustix::net::bind(&old, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback is there");
        rustix::net::listen(&old, 1).expect("it is bound");
        let address = TcpListener::from(old).local_addr().map(|address| (address, port(address)));
        assert!(matches!(address, Ok((_, Port::Free))), "{address:?}");
    }

    #[test]
    fn the_agents_socket_is_told_from_its_directory_and_from_nothing() {
        let directory = Scratch::new("zds");
        let socket = directory.path("agent.sock");
        assert_eq!(zds(&socket), Zds::Directory);
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("the directory is ours");
        assert_eq!(zds(&socket), Zds::Socket);
        drop(listener);
        fs::write(directory.path("file"), "").expect("the directory is ours");
        assert_eq!(zds(&directory.path("file")), Zds::NotASocket);
        assert_eq!(zds(&directory.path("none/agent.sock")), Zds::Nothing);
        assert_eq!(zds(Path::new("@agent")), Zds::Abstract);
        assert_eq!(zds(Path::new("agent.sock")), Zds::Directory);
    }

    #[test]
    fn a_root_file_is_described_or_where_it_would_be_made() {
        let directory = Scratch::new("root");
        let file = directory.path("root.pem");
        let missing = |nearest: &Path, writable| Root::Missing { nearest: nearest.to_owned(), writable };
        assert_eq!(root(&file), missing(&directory.0, true));
        assert_eq!(root(&directory.path("a/b/root.pem")), missing(&directory.0, true));
        assert_eq!(root(Path::new("no-such-root.pem")), missing(Path::new("."), true));

        fs::write(&file, "x").expect("the directory is ours");
        for mode in [0o600, 0o644] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("the file is ours");
            assert_eq!(root(&file), Root::Present { regular: true, readable: true, mode, lockable: true });
        }
        assert!(matches!(root(&directory.0), Root::Present { regular: false, .. }));
        assert!(matches!(root(&file.join("root.pem")), Root::Refused(refusal) if refusal.errno == Some(Errno::NOTDIR)));
        // Nobody can make files there, root included.
        assert_eq!(root(Path::new("/proc/sys/none/root.pem")), missing(Path::new("/proc/sys"), false));
        assert!(!lockable(Path::new("/proc/sys/kernel/osrelease")), "no file can be made beside it");
    }

    #[test]
    fn looking_leaves_nothing_behind() {
        let directory = Scratch::new("gather");
        let flags = Flags {
            ca_root_file: Some(directory.path("new/root.pem").display().to_string()),
            metrics_addr: Some("127.0.0.1:0".to_owned()),
            readiness_addr: Some("127.0.0.1:0".to_owned()),
            admin_addr: Some("127.0.0.1:0".to_owned()),
            ..Flags::default()
        };
        let host = config::Host { cpus: config::Cpus { usable: vec![0] }, has_ipv6: true };
        let settings = config::load(&flags, &config::Environment::default(), &host).expect("the flags are good");
        let facts = Facts::gather(&settings);
        assert!(facts.release.contains('.'), "{facts:?}");
        assert_eq!((facts.metrics_port, facts.attempt), (Port::Free, Attempt::Started));
        assert_eq!(fs::read_dir(&directory.0).expect("the directory is ours").count(), 0);
    }

    /// A directory of one test's own.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("coretunnel-preflight-{test}-{}", process::id()));
            fs::create_dir_all(&directory).expect("the temporary directory is writable");
            Self(directory)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}
