//! The real CNI agent's ZDS server with the real daemon, and the rules that agent lays in a pod beside ours:
//! `make interop-istio`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::client;
use testbed::cni_agent::{self, CniAgent};
use testbed::daemon::{Daemon, DaemonSpec, START_PATIENCE, Source};
use testbed::launcher::Launcher;
use testbed::log::Log;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::namespace::Namespace;
use testbed::redirect;
use testbed::serve::{echo, who_am_i};
use testbed::tool;
use testbed::wait;
use testbed::zds_agent::PodRecord;

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(15);
/// Short, so that a test sees many probes.
const TORTURE: Duration = Duration::from_millis(50);

/// A node whose agent is the real one. The mesh gives it pods and says nothing of them to daemons.
struct World {
    agent: Option<CniAgent>,
    daemons: Vec<Daemon>,
    mesh: Mesh,
    socket: PathBuf,
    // After the daemons, and before the directory of the socket.
    launcher: Launcher,
    _directory: tempfile::TempDir,
}

impl World {
    fn start(keepalive: Duration) -> Result<Self> {
        let pods = [
            PodSpec::new("client", NodeId::A).tenant("web", "client"),
            PodSpec::new("server", NodeId::A).tenant("shop", "server"),
        ];
        let mesh = Mesh::start(MeshSpec::bare(), &pods)?;
        let directory = tempfile::Builder::new().prefix("coretunnel-zds-").tempdir()?;
        let socket = directory.path().join("zds.sock");
        let agent = Some(CniAgent::start(&socket, keepalive)?);
        Ok(Self { agent, daemons: Vec::new(), mesh, socket, launcher: Launcher::start(true)?, _directory: directory })
    }

    fn agent(&self) -> &CniAgent {
        self.agent.as_ref().expect("no test takes it without putting another there")
    }

    fn start_daemon(&mut self) -> Result<()> {
        let namespace = Namespace::create(&format!("daemon-{}", self.daemons.len()))?;
        let spec = DaemonSpec {
            node: NodeId::A.to_string(),
            source: Source::File {
                workload_file: self.mesh.workload_file(NodeId::A).to_owned(),
                ca_root_file: self.mesh.ca_root_file(),
            },
            zds_socket: self.socket.clone(),
            cores: "2".into(),
            environment: BTreeMap::new(),
            arguments: Vec::new(),
            peer: None,
        };
        let mut daemon = Daemon::start(&self.launcher, &namespace, &spec)?;
        daemon.await_ready(START_PATIENCE)?;
        self.daemons.push(daemon);
        Ok(())
    }

    fn record(&self, name: &str) -> PodRecord {
        let pod = self.mesh.pod(name);
        PodRecord {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            netns: Some(pod.netns.clone()),
        }
    }

    fn register(&self, name: &str) -> Result<()> {
        self.agent().register_pod(&self.mesh.pod(name).uid(), &self.record(name))
    }

    fn add(&self, name: &str) -> Result<()> {
        self.agent().add_pod(&self.mesh.pod(name).uid(), &self.record(name))
    }

    /// Runs `fact` on one with its pods registered and a daemon, and shows all logs when it doesn't hold.
    fn run(keepalive: Duration, fact: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut world = Self::start(keepalive)?;
        world.register("client")?;
        world.register("server")?;
        world.start_daemon()?;
        fact(&mut world).map_err(|error| {
            let daemons: Vec<String> = world.daemons.iter().map(|daemon| daemon.log().tail(Log::start())).collect();
            let agent = world.agent.as_ref().map(CniAgent::said).unwrap_or_default();
            anyhow::anyhow!("{error:#}\nthe agent:\n{agent}\nthe daemons:\n{}", daemons.join("\n--\n"))
        })
    }
}

fn asks(from: &Pod, to: &Pod) -> Result<String> {
    client::read_text(&from.connect(to.at(PORT))?)
}

fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping", "{answer:?}");
    Ok(())
}

/// Connections that the daemon's log says it carried in tunnels or in itself, from `source`.
fn carried(daemon: &Daemon, source: &Pod) -> usize {
    let lines = daemon.log().access_since(Log::start());
    lines.iter().filter(|line| line.has("src.workload", &source.name) && line.has("error", "")).count()
}

#[test]
fn pods_of_the_real_agents_snapshot_are_captured() -> Result<()> {
    World::run(CniAgent::KEEPALIVE, |world| {
        let (client, server) = (world.mesh.pod("client"), world.mesh.pod("server"));
        let _application = server.serve(PORT, who_am_i)?;
        let seen = asks(&client, &server)?;
        ensure!(seen.starts_with(&client.address.to_string()), "the server saw {seen}");
        wait::until("the connection's line", PATIENCE, || carried(&world.daemons[0], &client) > 0)
    })
}

#[test]
fn a_pod_added_later_is_captured_when_the_real_agent_has_its_answer_and_not_once_it_is_removed() -> Result<()> {
    World::run(CniAgent::KEEPALIVE, |world| {
        let (client, late) =
            (world.mesh.pod("client"), world.mesh.add_pod(&PodSpec::new("late", NodeId::A).tenant("shop", "late"))?);
        let _application = late.serve(PORT, who_am_i)?;
        world.add("late")?;
        ensure!(late.netns.listeners(15008)? > 0, "an Add is answered before its pod is listened in");
        asks(&client, &late)?;
        wait::until("the connection's line", PATIENCE, || carried(&world.daemons[0], &client) > 0)?;
        world.agent().del_pod(&late.uid())?;
        wait::until("its listeners to close", PATIENCE, || late.netns.listeners(15008).is_ok_and(|count| count == 0))
    })
}

#[test]
fn idle_probes_every_50_ms_disturb_neither_the_connection_nor_what_is_sent_between_them() -> Result<()> {
    World::run(TORTURE, |world| {
        let client = world.mesh.pod("client");
        for number in 0..10 {
            let name = format!("late-{number}");
            let late = world.mesh.add_pod(&PodSpec::new(&name, NodeId::A))?;
            world.add(&name).with_context(|| name.clone())?;
            ensure!(late.netns.listeners(15008)? > 0, "{name}");
            world.agent().del_pod(&late.uid()).with_context(|| format!("{name}'s end"))?;
        }
        let said = world.agent().said();
        ensure!(said.matches("new ztunnel connected").count() <= 1, "it reconnected:\n{said}");
        ensure!(!said.contains("protocol error") && !said.contains("failed to handle conn"), "{said}");
        ensure!(client.netns.listeners(15008)? > 0, "the pod of the snapshot");
        Ok(())
    })
}

#[test]
fn a_restarted_agent_gets_its_daemon_back_and_neither_ends_a_connection_nor_forgets_a_pod() -> Result<()> {
    World::run(CniAgent::KEEPALIVE, |world| {
        let (client, server) = (world.mesh.pod("client"), world.mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream)?;
        world.agent = None;
        echoes(&mut stream).context("without an agent")?;
        echoes(&mut client.connect(server.at(PORT))?).context("a new connection without an agent")?;
        world.agent = Some(CniAgent::start(&world.socket, CniAgent::KEEPALIVE)?);
        world.register("client")?;
        world.register("server")?;
        let late = world.mesh.add_pod(&PodSpec::new("late", NodeId::A))?;
        wait::until_ok("the daemon to be there again", PATIENCE, || world.add("late"))?;
        ensure!(late.netns.listeners(15008)? > 0, "the new pod");
        echoes(&mut stream).context("the connection from before")?;
        echoes(&mut client.connect(server.at(PORT))?).context("a new connection with the new agent")
    })
}

#[test]
fn of_two_daemons_the_newer_gets_the_real_agents_adds_and_both_its_removals() -> Result<()> {
    World::run(CniAgent::KEEPALIVE, |world| {
        world.start_daemon()?;
        let late = world.mesh.add_pod(&PodSpec::new("late", NodeId::A))?;
        world.add("late")?;
        ensure!(late.netns.listeners(15008)? > 0, "the new pod");
        let server = world.mesh.pod("server");
        let both = server.netns.listeners(15008)?;
        let one = late.netns.listeners(15008)?;
        ensure!(both == 2 * one, "{both} listeners of both daemons, {one} of one");
        world.agent().del_pod(&server.uid())?;
        wait::until("both to leave it", PATIENCE, || server.netns.listeners(15008).is_ok_and(|count| count == 0))
    })
}

#[test]
fn an_add_that_the_daemon_refuses_is_the_real_agents_error_in_the_daemons_words() -> Result<()> {
    World::run(CniAgent::KEEPALIVE, |world| {
        // A namespace, as the agent checks, but not of the network.
        let error = world.agent().add_pod_of("uid-of-broken", &world.record("client"), Path::new("/proc/self/ns/mnt"));
        let words = format!("{:#}", error.err().context("it was taken")?);
        ensure!(words.contains("got ack error") && words.contains("failure to start proxy"), "{words}");
        // The connection goes on, and so does who was there.
        let late = world.mesh.add_pod(&PodSpec::new("late", NodeId::A))?;
        world.add("late")?;
        ensure!(late.netns.listeners(15008)? > 0, "the pod after it");
        ensure!(world.mesh.pod("client").netns.listeners(15008)? > 0, "the pod before it");
        world.agent().del_pod("uid-of-broken")
    })
}

#[test]
fn without_a_daemon_the_real_agents_add_fails_and_the_snapshot_makes_up_for_it() -> Result<()> {
    let mut world = World::start(CniAgent::KEEPALIVE)?;
    let error = world.add("client").err().context("an Add without a daemon")?;
    ensure!(format!("{error:#}").contains("no ztunnel connection"), "{error:#}");
    world.start_daemon()?;
    ensure!(world.mesh.pod("client").netns.listeners(15008)? > 0, "the pod of the failed Add");
    Ok(())
}

/// What `iptables-save` says without counters and comments, `ip rule` and the table it leads to.
fn rules(namespace: &Namespace) -> Result<Vec<String>> {
    namespace.run(|| {
        let saved = tool::run_with_input("iptables-save", &[], "")?;
        let mut lines: Vec<String> = saved
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
            .collect();
        lines.extend(tool::run_with_input("ip", &["rule", "show"], "")?.lines().map(str::to_owned));
        lines.extend(
            tool::run_with_input("ip", &["route", "show", "table", "100"], "")?.lines().map(|line| line.trim().into()),
        );
        Ok(lines)
    })
}

#[test]
fn the_real_agents_rules_in_a_pod_are_those_of_the_testbed() -> Result<()> {
    let (ours, theirs) = (Namespace::create("ours")?, Namespace::create("theirs")?);
    redirect::capture(&ours)?;
    cni_agent::capture(&Launcher::start(true)?, &theirs)?;
    let (ours, theirs) = (rules(&ours)?, rules(&theirs)?);
    // An empty pod would compare equal to an empty pod.
    ensure!(theirs.iter().any(|line| line.contains("--to-ports 15008") || line.contains("15001")), "{theirs:#?}");
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).cloned().collect()
    };
    let (only_ours, only_theirs) = (only(&ours, &theirs), only(&theirs, &ours));
    ensure!(only_ours.is_empty() && only_theirs.is_empty(), "ours: {only_ours:#?}\nistio's: {only_theirs:#?}");
    let order =
        |lines: &[String]| -> Vec<String> { lines.iter().filter(|line| line.starts_with("-A")).cloned().collect() };
    ensure!(order(&ours) == order(&theirs), "in another order: {:#?}\nistio's: {:#?}", order(&ours), order(&theirs));
    Ok(())
}
