//! The daemon as a process, alone on its host: what it prints, how it starts, answers and ends. What it does for pods is
//! tested in `testbed`, which gives it some.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// How long anything may take that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers on ports the kernel chooses.
const KERNELS_PORTS: [&str; 6] =
    ["--metrics-addr", "127.0.0.1:0", "--readiness-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coretunnel"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary was built for this test");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// A directory of one test's own.
fn directory(test: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("cargo's directory is writable");
    directory
}

/// A running daemon without pods, on ports the kernel chose. Killed when dropped.
struct Daemon {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    directory: PathBuf,
    metrics: SocketAddr,
    readiness: SocketAddr,
    admin: SocketAddr,
}

impl Daemon {
    fn start(test: &str, arguments: &[&str]) -> Self {
        Self::start_on(test, "1", arguments)
    }

    fn start_on(test: &str, cores: &str, arguments: &[&str]) -> Self {
        let directory = directory(test);
        let mut child = command(&["run", "--cores", cores, "--log-format", "json", "--local-xds-path", "mesh.yaml"])
            .args(KERNELS_PORTS)
            .args(["--ca-root-file", "root.pem", "--zds-socket", "agent.sock"])
            .args(arguments)
            .current_dir(&directory)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was built for this test");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut daemon = Self { child, lines, directory, metrics: nowhere, readiness: nowhere, admin: nowhere };
        daemon.metrics = daemon.awaited_address("serving metrics");
        daemon.readiness = daemon.awaited_address("serving readiness");
        daemon.admin = daemon.awaited_address("serving admin");
        daemon
    }

    /// Reads the log up to the line with this message.
    fn line(&mut self, message: &str) -> Value {
        let mut seen = String::new();
        for line in self.lines.by_ref() {
            let line = line.expect("text");
            let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if value["message"] == message {
                return value;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        panic!("the log ended without {message:?}:\n{seen}");
    }

    fn awaited_address(&mut self, message: &str) -> SocketAddr {
        let line = self.line(message);
        line["address"].as_str().and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id is not 0");
        rustix::process::kill_process(pid, signal).expect("it is our child");
    }

    /// Waits for its end: its exit code, and the rest of its log.
    fn end(&mut self) -> (Option<i32>, Vec<Value>) {
        let rest = self.lines.by_ref().map(|line| serde_json::from_str(&line.expect("text")).expect("JSON")).collect();
        (self.child.wait().expect("it is our child").code(), rest)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already in a test that went well.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// The status line's code and the body.
fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it said that it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers and closes");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (code, body.to_owned())
}

#[test]
fn the_version_is_told_and_istios_is_the_deployments() {
    let (code, stdout, _) = run(command(&["version"]).env("ISTIO_META_ISTIO_VERSION", "1.30.2"));
    assert_eq!(code, Some(0));
    assert!(
        stdout.starts_with("version.BuildInfo{Version:\"") && stdout.contains("IstioVersion:\"1.30.2\""),
        "{stdout}"
    );
}

#[test]
fn settings_that_cannot_be_used_are_all_named_before_anything_starts() {
    let arguments = ["--cores", "lots", "--metrics-addr", "here"];
    for words in [vec![], vec!["run"], vec!["preflight"]] {
        let mut command = command(&[&words[..], &arguments].concat());
        let (code, stdout, stderr) = run(command.env("LOG_FORMAT", "xml"));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{words:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 3, "{stderr}");
        for says in ["flag --cores=lots", "flag --metrics-addr=here", "env var LOG_FORMAT=xml"] {
            assert!(stderr.contains(says), "{stderr}");
        }
    }
}

#[test]
fn words_that_are_not_understood_end_with_a_hint() {
    let (code, _, stderr) = run(&mut command(&["walk"]));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("walk") && stderr.contains("--help"), "{stderr}");
}

#[test]
fn preflight_says_the_same_in_both_forms_and_in_its_exit_code() {
    let directory = directory("preflight");
    let file = directory.join("file");
    fs::write(&file, "").expect("the directory is ours");
    // Below a file there can be no root.
    for (root, expected) in [(directory.join("root.pem"), 0), (file.join("root.pem"), 1)] {
        let root = root.to_str().expect("UTF-8").to_owned();
        let arguments = [&["preflight", "--ca-root-file", &root], &KERNELS_PORTS[..]].concat();
        let (table_code, table, _) = run(&mut command(&arguments));
        let (code, json, _) = run(command(&arguments).args(["--format", "json"]));
        assert_eq!((table_code, code), (Some(expected), Some(expected)), "{table}");
        let findings: Vec<Value> = serde_json::from_str(&json).expect("JSON");
        assert_eq!(findings.len(), table.lines().count());
        for (finding, line) in findings.iter().zip(table.lines()) {
            assert!(line.contains(finding["found"].as_str().expect("text")), "{finding} {line}");
        }
        assert_eq!(findings.iter().any(|finding| finding["verdict"] == "fatal"), expected == 1, "{table}");
    }
    fs::remove_dir_all(directory).expect("it is ours");
}

#[test]
fn a_host_that_cannot_run_it_is_told_apart_from_bad_settings() {
    let (code, stdout, stderr) = run(command(&["--ca-root-file", "/proc/sys/none/root.pem"]).args(KERNELS_PORTS));
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stderr.contains("this host cannot run coretunnel") && stderr.contains("CA root:"), "{stderr}");
    assert!(stdout.lines().any(|line| line.contains("\terror\t") && line.contains("what=\"CA root\"")), "{stdout}");
    assert!(!stderr.contains("\nok "), "only what is wrong: {stderr}");
}

#[test]
fn it_starts_says_what_it_waits_for_serves_metrics_and_ends_when_told() {
    for signal in [Signal::TERM, Signal::INT] {
        let test = format!("start-{}", signal.as_raw());
        fs::write(directory(&test).join("mesh.yaml"), "workloads: []\n").expect("the directory is ours");
        let mut daemon = Daemon::start(&test, &[]);
        // No agent is there, and nobody has named this node's pods.
        let readiness = ask(daemon.readiness, "GET", "/healthz/ready");
        assert_eq!(readiness.0, 500);
        assert!(readiness.1.starts_with("not ready, pending: "), "{}", readiness.1);
        assert!(readiness.1.contains("workload proxy manager") && !readiness.1.contains("core "), "{}", readiness.1);
        assert_eq!(ask(daemon.readiness, "POST", "/healthz/ready"), (405, String::new()));
        assert_eq!(ask(daemon.readiness, "GET", "/metrics"), (404, String::new()));

        let (code, page) = ask(daemon.metrics, "GET", "/metrics");
        assert_eq!(code, 200);
        for line in [
            "istio_build{component=\"ztunnel\",tag=\"unknown\"} 1\n",
            "istio_tcp_sockets_open{reporter=\"source\"} 0\n",
            "coretunnel_core_series_overflowed_total{core=\"0\"} 0\n",
            "# EOF\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        assert_eq!(ask(daemon.metrics, "GET", "/healthz/ready"), (404, String::new()));

        daemon.signal(signal);
        let (code, rest) = daemon.end();
        assert_eq!(code, Some(0), "{rest:?}");
        for message in ["draining", "shutdown complete"] {
            assert!(rest.iter().any(|line| line["message"] == message), "{message} is not in {rest:?}");
        }
    }
}

/// What `/proc` says of a process's first thread, which is the control thread: its CPUs and its nice value.
fn first_thread(child: &Child) -> (String, i32) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{0}/task/{0}/{file}", child.id())).expect("it runs");
    let cpus = read("status").lines().find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned()));
    // The fields after the name, which is in parentheses, begin with the third; the nice value is the 19th.
    let nice = read("stat").rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16)?.parse().ok());
    (cpus.expect("it is there"), nice.expect("a number"))
}

#[test]
fn the_control_thread_runs_where_no_core_does_or_behind_them() {
    let own = rustix::thread::sched_getaffinity(None).expect("every process runs somewhere").count();
    for (cores, has_spare) in [("0", false), ("1", own > 1)] {
        let test = format!("aside-{cores}");
        fs::write(directory(&test).join("mesh.yaml"), "workloads: []\n").expect("the directory is ours");
        let daemon = Daemon::start_on(&test, cores, &[]);
        let (cpus, nice) = first_thread(&daemon.child);
        if has_spare {
            assert!(!cpus.split([',', '-']).any(|cpu| cpu == "0"), "CPU 0 is the core's: {cpus}");
        } else {
            assert!(nice >= 10, "{nice}");
        }
    }
}

#[test]
fn what_has_no_effect_and_what_is_missing_is_told_at_the_start() {
    let directory = directory("told");
    let arguments = ["--ca-root-file", "/proc/sys/none/root.pem", "--metrics-addr", "127.0.0.1:0"];
    let mut command = command(&arguments);
    command.current_dir(&directory).env("SERVICE_ACCOUNT", "ztunnel").env("PROXY_CONFIG", "secret");
    let (_, stdout, _) = run(&mut command);
    for says in ["variable=\"SERVICE_ACCOUNT\"", "variable=\"PROXY_CONFIG\"", "no mesh is described"] {
        assert!(stdout.lines().any(|line| line.contains("\twarn\t") && line.contains(says)), "{says}: {stdout}");
    }
    assert!(!stdout.contains("secret"), "{stdout}");
    fs::remove_dir_all(directory).expect("it is ours");
}

#[test]
fn status_tells_how_the_daemon_stands_and_without_one_what_to_do() {
    fs::write(directory("status").join("mesh.yaml"), "workloads: []\n").expect("the directory is ours");
    let mut daemon = Daemon::start("status", &[]);
    let at = daemon.admin.to_string();
    let (code, table, stderr) = run(&mut command(&["status", "--admin-addr", &at]));
    assert_eq!(code, Some(0), "{stderr}");
    for line in [
        "ready no, pending: ",
        "xDS   file mesh.yaml\n",
        "CA    embedded, root.pem, 0 issued\n",
        "ZDS   agent.sock, not connected, 0 pods, 0 pending\n",
        "core    generation       age    pods   connections\n0 ",
    ] {
        assert!(table.contains(line), "{line:?} is not in\n{table}");
    }
    let (code, json, _) = run(&mut command(&["status", "--format", "json", "--admin-addr", &at]));
    assert_eq!(code, Some(0));
    let page: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(page["cores"][0]["standing"]["connections"], 0, "{page}");

    daemon.signal(Signal::TERM);
    daemon.end();
    let (code, stdout, stderr) = run(&mut command(&["status", "--admin-addr", &at]));
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    for says in [&at, "no daemon answers", "is coretunnel running", "--admin-addr"] {
        assert!(stderr.contains(says), "{stderr}");
    }
}
