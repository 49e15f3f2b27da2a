//! Each outcome of each check.

use Verdict::{Fatal, Good, Warning};

use super::*;
use crate::{cli::Flags, config, preflight::facts::Process};

const ALL: u64 = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW | 1 << CAP_SYS_ADMIN;

fn fine() -> Facts {
    Facts {
        release: "6.8.0-45-generic".to_owned(),
        uring_disabled: Some(0),
        attempt: Attempt::Started,
        process: Process { capabilities: ALL, ..Process::default() },
        memlock: Limit { soft: Some(8 << 20), hard: Some(8 << 20) },
        nofile: Limit { soft: Some(1_024), hard: Some(1 << 20) },
        setns: Ok(()),
        mark: Mark::Set,
        metrics_port: Port::Free,
        readiness_port: Port::Free,
        admin_port: Port::Free,
        zds: Zds::Socket,
        root: Root::Present { regular: true, readable: true, mode: 0o600, lockable: true },
    }
}

/// On a host where io_uring is to be used and nothing else, so that what is in its way shows.
fn settings() -> Settings {
    with_engine(EngineChoice::Uring)
}

fn with_engine(engine: EngineChoice) -> Settings {
    let host = config::Host { cpus: config::Cpus { usable: vec![0, 1] }, has_ipv6: true };
    let loaded = config::load(&Flags::default(), &config::Environment::default(), &host).expect("defaults are good");
    Settings { engine, ..loaded }
}

fn refusal(errno: Errno) -> Refusal {
    errno.into()
}

/// What is different from a good host, the verdict, and words of the line in which it shows.
type Row<'a> = (&'a dyn Fn(&mut Facts), Verdict, &'a [&'a str]);

#[track_caller]
fn holds(check: Check, rows: &[Row<'_>]) {
    for (index, (change, verdict, words)) in rows.iter().enumerate() {
        let mut facts = fine();
        change(&mut facts);
        let finding = check(&facts, &settings());
        let line = super::super::table(std::slice::from_ref(&finding));
        assert_eq!(finding.verdict, *verdict, "row {index}: {line}");
        assert_eq!(finding.cure.is_some(), *verdict != Good, "row {index}: {line}");
        assert!(finding.cure.as_ref().is_none_or(|cure| cure.ends_with('.')), "row {index}: {line}");
        for word in *words {
            assert!(line.contains(word), "row {index} lacks {word:?}: {line}");
        }
    }
}

#[test]
fn a_good_host_has_nothing_but_good_lines_of_which_no_two_are_named_alike() {
    let findings = judge(&fine(), &settings());
    assert_eq!(findings.len(), CHECKS.len());
    assert!(findings.iter().all(|finding| finding.verdict == Good), "{findings:#?}");
    let names: std::collections::BTreeSet<_> = findings.iter().map(|finding| finding.what).collect();
    assert_eq!(names.len(), findings.len());
}

#[test]
fn a_release_is_read_by_its_first_two_numbers() {
    for (release, expected) in [
        ("6.18.44", Some((6, 18))),
        ("5.15-rc3", Some((5, 15))),
        ("6.1+", Some((6, 1))),
        ("6.10", Some((6, 10))),
        ("", None),
        ("6", None),
        ("six.1", None),
        ("6.x", None),
    ] {
        assert_eq!(version(release), expected, "{release:?}");
    }
}

#[test]
fn a_kernel_is_too_old_slow_or_good() {
    holds(
        kernel,
        &[
            (&|facts| facts.release = "4.18.0-553.el8".into(), Fatal, &["4.18.0-553.el8", "at least 5.11"]),
            (&|facts| facts.release = "5.10.99".into(), Fatal, &["5.10.99"]),
            (&|facts| facts.release = "5.11.0".into(), Warning, &["COOP_TASKRUN", "SINGLE_ISSUER"]),
            (&|facts| facts.release = "5.18.9".into(), Warning, &["COOP_TASKRUN"]),
            (&|facts| facts.release = "5.19.0".into(), Warning, &["SINGLE_ISSUER", "somewhat"]),
            (&|facts| facts.release = "6.0.0".into(), Good, &["6.0.0"]),
            (&|facts| facts.release = String::new(), Warning, &["unknown", "/proc"]),
        ],
    );
}

#[test]
fn a_ring_refused_by_sysctl_seccomp_an_lsm_the_kernel_or_a_limit_is_told_apart() {
    fn refused(facts: &mut Facts, errno: Errno, sysctl: Option<u32>, capabilities: u64, filtered: bool) {
        facts.attempt = Attempt::NoRing(refusal(errno));
        facts.uring_disabled = sysctl;
        facts.process = Process { capabilities, filtered, ..Process::default() };
    }
    holds(
        uring,
        &[
            (&|_| {}, Good, &["a core that started"]),
            (
                &|facts| refused(facts, Errno::PERM, Some(2), ALL, false),
                Fatal,
                &["io_uring_disabled=2", "io_uring_disabled=0"],
            ),
            (&|facts| refused(facts, Errno::PERM, Some(2), ALL, true), Fatal, &["io_uring_disabled=2"]),
            (
                &|facts| refused(facts, Errno::PERM, Some(1), 0, true),
                Fatal,
                &["io_uring_disabled=1", "SYS_ADMIN", "io_uring_group"],
            ),
            (&|facts| refused(facts, Errno::PERM, Some(1), ALL, true), Fatal, &["by seccomp", "Localhost"]),
            (
                &|facts| {
                    refused(facts, Errno::PERM, Some(1), 0, true);
                    facts.process.in_uring_group = true;
                },
                Fatal,
                &["by seccomp"],
            ),
            (&|facts| refused(facts, Errno::PERM, Some(0), ALL, true), Fatal, &["by seccomp", "io_uring_enter"]),
            (&|facts| refused(facts, Errno::PERM, None, 0, true), Fatal, &["by seccomp"]),
            (&|facts| refused(facts, Errno::PERM, Some(0), ALL, false), Fatal, &["LSM", "SELinux"]),
            (&|facts| refused(facts, Errno::ACCESS, Some(0), ALL, true), Fatal, &["LSM"]),
            (&|facts| refused(facts, Errno::NOSYS, Some(0), ALL, true), Fatal, &["seccomp hides it", "Unconfined"]),
            (&|facts| refused(facts, Errno::NOSYS, Some(0), ALL, false), Fatal, &["though the kernel has it"]),
            (&|facts| refused(facts, Errno::NOSYS, None, ALL, false), Fatal, &["CONFIG_IO_URING", "gVisor"]),
            (&|facts| refused(facts, Errno::NOMEM, Some(0), ALL, false), Fatal, &["ENOMEM", "LimitMEMLOCK"]),
            (&|facts| refused(facts, Errno::MFILE, Some(0), ALL, false), Fatal, &["LimitNOFILE"]),
            (&|facts| refused(facts, Errno::NFILE, Some(0), ALL, false), Fatal, &["fs.file-max"]),
            (
                &|facts| refused(facts, Errno::INVAL, Some(0), ALL, false),
                Fatal,
                &["Invalid argument", "io_uring_setup(2)"],
            ),
            (&|facts| facts.attempt = Attempt::NoRing(Refusal { errno: None, says: "odd".into() }), Fatal, &["odd"]),
            (&|facts| facts.attempt = Attempt::LockedMemory { limit: 1, needed: 2 }, Fatal, &["RLIMIT_MEMLOCK"]),
            (&|facts| facts.attempt = Attempt::NoDescriptors(refusal(Errno::MFILE)), Fatal, &["LimitNOFILE"]),
            (&|facts| facts.attempt = Attempt::Host("no thread".into()), Fatal, &["no thread", "pids.max"]),
            (
                &|facts| {
                    facts.attempt = Attempt::Host("MemLockLimit".into());
                    facts.memlock.soft = Some(MEMLOCK_MIN - 1);
                },
                Fatal,
                &["too little locked memory", "RLIMIT_MEMLOCK"],
            ),
        ],
    );
}

#[test]
fn what_forbids_io_uring_is_a_warning_that_names_epoll_where_epoll_will_do() {
    fn forbidden() -> Facts {
        let mut facts = fine();
        facts.attempt = Attempt::NoRing(refusal(Errno::PERM));
        facts.process.filtered = true;
        facts
    }
    let verdict_of = |facts: &Facts, engine| {
        let finding = uring(facts, &with_engine(engine));
        (finding.verdict, super::super::table(std::slice::from_ref(&finding)))
    };
    assert_eq!(verdict_of(&forbidden(), EngineChoice::Uring).0, Fatal);
    let (verdict, line) = verdict_of(&forbidden(), EngineChoice::Auto);
    assert_eq!(verdict, Warning, "{line}");
    for word in ["by seccomp", "--engine auto takes epoll", "Localhost"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let (verdict, line) = verdict_of(&fine(), EngineChoice::Epoll);
    assert!(verdict == Good && line.contains("with --engine epoll"), "{line}");

    let mut none_left = fine();
    none_left.attempt = Attempt::NoRing(refusal(Errno::MFILE));
    assert_eq!(verdict_of(&none_left, EngineChoice::Auto).0, Fatal, "epoll would fare no better");

    let mut old = fine();
    (old.release, old.memlock) = ("5.4.0".into(), Limit { soft: Some(64 << 10), hard: Some(64 << 10) });
    for (engine, verdict) in [(EngineChoice::Uring, Fatal), (EngineChoice::Auto, Warning), (EngineChoice::Epoll, Good)]
    {
        assert_eq!(kernel(&old, &with_engine(engine)).verdict, verdict, "{engine:?}");
        assert_eq!(locked_memory(&old, &with_engine(engine)).verdict, verdict, "{engine:?}");
    }
}

#[test]
fn locked_memory_is_enough_or_can_be_raised_by_us_or_by_root_only() {
    fn limits(facts: &mut Facts, soft: Option<u64>, hard: Option<u64>) {
        facts.memlock = Limit { soft, hard };
    }
    holds(
        locked_memory,
        &[
            (&|facts| limits(facts, None, None), Good, &["no limit"]),
            (&|facts| limits(facts, Some(512 << 10), None), Good, &["512 KiB"]),
            (
                &|facts| limits(facts, Some((512 << 10) - 1), None),
                Fatal,
                &["511 KiB", "ulimit -l 512", "hard limit allows"],
            ),
            (&|facts| limits(facts, Some(64 << 10), Some(8 << 20)), Fatal, &["64 KiB", "hard limit allows"]),
            (&|facts| limits(facts, Some(64 << 10), Some(64 << 10)), Fatal, &["container runtime", "LimitMEMLOCK"]),
            (
                &|facts| facts.attempt = Attempt::LockedMemory { limit: 8 << 20, needed: 16 << 20 },
                Fatal,
                &["8192 KiB", "16384 KiB", "ulimit -l 16384"],
            ),
        ],
    );
}

#[test]
fn descriptors_are_too_few_few_or_enough_by_the_hard_limit() {
    fn hard(facts: &mut Facts, hard: Option<u64>) {
        facts.nofile.hard = hard;
    }
    holds(
        descriptors,
        &[
            (&|facts| hard(facts, Some(4_095)), Fatal, &["4095", "LimitNOFILE"]),
            (&|facts| hard(facts, Some(4_096)), Warning, &["LimitNOFILE"]),
            (&|facts| hard(facts, Some(19_999)), Warning, &["19999"]),
            (&|facts| hard(facts, Some(20_000)), Good, &["20000"]),
            (&|facts| hard(facts, None), Good, &["no hard limit"]),
        ],
    );
}

#[test]
fn capabilities_are_missed_one_by_one() {
    for (check, bit, verdict, name) in [
        (net_admin as Check, CAP_NET_ADMIN, Fatal, "NET_ADMIN"),
        (sys_admin, CAP_SYS_ADMIN, Fatal, "SYS_ADMIN"),
        (net_raw, CAP_NET_RAW, Warning, "NET_RAW"),
    ] {
        holds(
            check,
            &[
                (&|facts| facts.process.capabilities = 1 << bit, Good, &[name]),
                (&|facts| facts.process.capabilities = !(1 << bit), verdict, &["missing", name, "securityContext"]),
            ],
        );
    }
}

#[test]
fn a_closed_namespace_is_for_want_of_a_right_a_user_namespace_proc_or_descriptors() {
    holds(
        namespace,
        &[
            (&|_| {}, Good, &["entered"]),
            (
                &|facts| {
                    facts.setns = Err(refusal(Errno::PERM));
                    facts.process.capabilities = 0;
                },
                Fatal,
                &["add SYS_ADMIN"],
            ),
            (&|facts| facts.setns = Err(refusal(Errno::PERM)), Fatal, &["hostUsers", "seccomp"]),
            (&|facts| facts.setns = Err(refusal(Errno::NOENT)), Fatal, &["/proc"]),
            (&|facts| facts.setns = Err(refusal(Errno::MFILE)), Fatal, &["LimitNOFILE"]),
            (&|facts| facts.setns = Err(refusal(Errno::NOMEM)), Fatal, &["setns(2)"]),
        ],
    );
}

#[test]
fn a_mark_can_be_set_is_refused_or_could_not_be_tried() {
    holds(
        packet_mark,
        &[
            (&|_| {}, Good, &["1337"]),
            (
                &|facts| {
                    facts.mark = Mark::Refused(refusal(Errno::PERM));
                    facts.process.capabilities = 0;
                },
                Fatal,
                &["add NET_ADMIN"],
            ),
            (&|facts| facts.mark = Mark::Refused(refusal(Errno::PERM)), Fatal, &["hostUsers"]),
            (&|facts| facts.mark = Mark::NotTried(refusal(Errno::PERM)), Warning, &["lines above"]),
        ],
    );
}

#[test]
fn cores_are_listed() {
    holds(cores, &[(&|_| {}, Good, &["CPU 0, 1"])]);
}

#[test]
fn a_port_is_free_taken_or_not_to_be_had() {
    fn all(facts: &mut Facts, port: Port) {
        (facts.metrics_port, facts.readiness_port, facts.admin_port) = (port.clone(), port.clone(), port);
    }
    for (check, flag, number) in [
        (metrics_port as Check, "--metrics-addr", "15020"),
        (readiness_port, "--readiness-addr", "15021"),
        (admin_port, "--admin-addr", "15000"),
    ] {
        holds(
            check,
            &[
                (&|_| {}, Good, &[number, "free"]),
                (
                    &|facts| all(facts, Port::Taken { by: Some("envoy (pid 7)".into()) }),
                    Fatal,
                    &["taken by envoy (pid 7)", "stop envoy", flag],
                ),
                (&|facts| all(facts, Port::Taken { by: None }), Fatal, &["cannot be seen", "ss -ltnp", number]),
                (&|facts| all(facts, Port::Refused(refusal(Errno::ACCESS))), Fatal, &["NET_BIND_SERVICE"]),
                (&|facts| all(facts, Port::Refused(refusal(Errno::ADDRNOTAVAIL))), Fatal, &["this host has", flag]),
                (&|facts| all(facts, Port::Refused(refusal(Errno::AFNOSUPPORT))), Fatal, &["IPV6_ENABLED=false"]),
                (&|facts| all(facts, Port::Refused(refusal(Errno::MFILE))), Fatal, &["LimitNOFILE"]),
                (&|facts| all(facts, Port::Refused(refusal(Errno::NOBUFS))), Fatal, &[flag]),
            ],
        );
    }
}

#[test]
fn no_two_servers_have_one_address_unless_the_kernel_chooses_the_port() {
    for (address, verdict) in [("127.0.0.1:9000", Fatal), ("127.0.0.1:0", Good)] {
        let address: SocketAddr = address.parse().expect("an address");
        let other = SocketAddr::from(([127, 0, 0, 1], 9001));
        let servers = config::Servers { metrics: address, readiness: address, admin: other };
        let of_readiness = Settings { servers, ..settings() };
        let servers = config::Servers { metrics: other, readiness: address, admin: address };
        let of_admin = Settings { servers, ..settings() };
        assert_eq!(readiness_port(&fine(), &of_readiness).verdict, verdict, "{address}");
        assert_eq!(admin_port(&fine(), &of_admin).verdict, verdict, "{address}");
        assert_eq!(admin_port(&fine(), &of_readiness).verdict, Good, "{address}");
    }
}

#[test]
fn the_agent_may_come_later() {
    holds(
        agent_socket,
        &[
            (&|facts| facts.zds = Zds::Abstract, Good, &["abstract"]),
            (&|facts| facts.zds = Zds::Socket, Good, &["ztunnel.sock"]),
            (&|facts| facts.zds = Zds::Directory, Good, &["will wait"]),
            (&|facts| facts.zds = Zds::NotASocket, Warning, &["no socket", "INPOD_UDS"]),
            (&|facts| facts.zds = Zds::Nothing, Warning, &["not even", "hostPath"]),
        ],
    );
}

#[test]
fn a_root_file_is_private_or_can_be_made() {
    let present = |regular, readable, mode, lockable| {
        move |facts: &mut Facts| facts.root = Root::Present { regular, readable, mode, lockable }
    };
    let missing =
        |writable| move |facts: &mut Facts| facts.root = Root::Missing { nearest: "/var/run".into(), writable };
    holds(
        root_file,
        &[
            (&present(true, true, 0o600, true), Good, &["root.pem"]),
            (&present(true, true, 0o400, true), Good, &["root.pem"]),
            (&present(true, true, 0o640, true), Warning, &["mode 640", "chmod 0600"]),
            (&present(true, true, 0o604, true), Warning, &["mode 604"]),
            (&present(true, true, 0o600, false), Fatal, &["no lock", "emptyDir"]),
            (&present(true, false, 0o600, true), Fatal, &["unreadable", "chown"]),
            (&present(false, true, 0o755, true), Fatal, &["no file", "--ca-root-file"]),
            (&missing(true), Good, &["/var/run to make it in"]),
            (&missing(false), Fatal, &["nothing can be made in /var/run", "writable volume"]),
            (
                &|facts| facts.root = Root::Refused(refusal(Errno::ACCESS)),
                Fatal,
                &["out of reach", "Permission denied"],
            ),
        ],
    );
}

#[test]
fn where_another_ca_issues_certificates_no_root_file_is_looked_for() {
    let host = config::Host { cpus: config::Cpus { usable: vec![0, 1] }, has_ipv6: true };
    let environment = config::Environment::from([("CA_ADDRESS", "https://istiod:15012")]);
    let settings = config::load(&Flags::default(), &environment, &host).expect("good");
    let facts = Facts { root: Root::Missing { nearest: "/".into(), writable: false }, ..fine() };
    let finding = root_file(&facts, &settings);
    assert_eq!(finding.verdict, Good, "{finding:?}");
}
