//! Pods, daemons and agents that come, go and die while traffic runs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use testbed::client::{self, End};
use testbed::fixture;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::redirect::{INBOUND_HBONE_PORT, OUTBOUND_PORT};
use testbed::serve::{Server, echo};
use testbed::wait;

const PORT: u16 = 8080;
const EXIT_PATIENCE: Duration = Duration::from_secs(15);

fn pods() -> Vec<PodSpec> {
    vec![PodSpec::new("client", NodeId::A), PodSpec::new("server", NodeId::B)]
}

fn with_mesh(spec: MeshSpec, fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    fixture::run(spec, &pods(), fact)
}

/// Connections made one after the other, an echo on each, until told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Traffic {
    fn start(from: &Pod, to: &Pod) -> Self {
        let (from, target) = (from.clone(), to.at(PORT));
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopping, counting) = (stop.clone(), done.clone());
        let thread = thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let number = counting.load(Ordering::Relaxed);
                let stream = from.connect(target).with_context(|| format!("connection {number}"))?;
                client::round_trip(&stream, &[1; 1000]).with_context(|| format!("connection {number}"))?;
                stream.shutdown(Shutdown::Write)?;
                ensure!(client::await_end(&stream)? == End::Clean(0), "connection {number} was cut");
                counting.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, done, thread }
    }

    /// Waits for so many more exchanges.
    fn await_more(&self, count: usize) -> Result<()> {
        let from = self.done.load(Ordering::Relaxed);
        wait::until("traffic to go on", Duration::from_secs(20), || {
            self.thread.is_finished() || self.done.load(Ordering::Relaxed) >= from + count
        })?;
        Ok(())
    }

    fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the traffic panicked"))??;
        Ok(self.done.load(Ordering::Relaxed))
    }
}

#[test]
fn pods_come_and_go_under_traffic_and_take_their_descriptors_with_them() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let before = fixture::descriptors(mesh)?;
        let traffic = Traffic::start(&client, &server);
        traffic.await_more(3)?;
        for round in 0..4 {
            let near = mesh.add_pod(&PodSpec::new(&format!("near-{round}"), NodeId::A))?;
            let far = mesh.add_pod(&PodSpec::new(&format!("far-{round}"), NodeId::B))?;
            let _server = far.serve(PORT, echo)?;
            let streams = (0..30).map(|_| near.connect(far.at(PORT))).collect::<Result<Vec<_>>>()?;
            streams.iter().try_for_each(|stream| client::round_trip(stream, b"a new pod talks at once"))?;
            // Removed with these open, and its link is cut as soon as the daemon has acknowledged: what it has to say to
            // the other node must have left by then. The applications there must not take it for an orderly end.
            mesh.remove_pod(&far)?;
            for stream in &streams {
                let end = client::await_end(stream)?;
                ensure!(end == End::Reset(0), "a removed pod's connection ended with {end:?}");
            }
            mesh.remove_pod(&near)?;
            traffic.await_more(1)?;
        }
        traffic.stop()?;
        fixture::await_descriptors(mesh, &before)
    })
}

#[test]
fn a_pod_announced_twice_is_one_pod_and_one_with_a_new_namespace_replaces_the_old() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let before = fixture::descriptors(mesh)?;
        mesh.announce_again(&client)?;
        client::round_trip(&client.connect(server.at(PORT))?, b"after the second announcement")?;
        fixture::await_descriptors(mesh, &before)?;
        let reborn = mesh.rebirth(&client)?;
        client::round_trip(&reborn.connect(server.at(PORT))?, b"from the new namespace")?;
        drop(client);
        fixture::await_descriptors(mesh, &before)
    })
}

#[test]
fn sigterm_lets_live_connections_finish_and_takes_no_new_ones() -> Result<()> {
    for draining in NodeId::ALL {
        with_mesh(MeshSpec::default().with("CONNECTION_TERMINATION_DEADLINE", "15s"), |mesh| {
            let (client, server) = (mesh.pod("client"), mesh.pod("server"));
            let _echo = server.serve(PORT, echo)?;
            let stream = client.connect(server.at(PORT))?;
            client::round_trip(&stream, b"before")?;
            let mut daemon = mesh.take_daemon(draining).context("a daemon")?;
            daemon.signal(Signal::TERM)?;
            wait::until("new connections to be refused", Duration::from_secs(5), || {
                client.connect(server.at(PORT)).and_then(|stream| client::round_trip(&stream, b"late")).is_err()
            })?;
            for _ in 0..3 {
                client::round_trip(&stream, &[7; 100_000]).with_context(|| format!("while {draining} drains"))?;
            }
            ensure!(daemon.is_running(), "the daemon of {draining} left while a connection was open");
            stream.shutdown(Shutdown::Write)?;
            ensure!(client::await_end(&stream)? == End::Clean(0), "the drained connection did not end well");
            let closed = Instant::now();
            let status = daemon.await_exit(EXIT_PATIENCE)?;
            ensure!(status.success(), "{status}");
            ensure!(closed.elapsed() < Duration::from_secs(10), "it waited for its deadline although nothing was open");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_drain_that_takes_too_long_is_cut_and_the_application_sees_a_reset() -> Result<()> {
    with_mesh(MeshSpec::default().with("CONNECTION_TERMINATION_DEADLINE", "1s"), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let stream = client.connect(server.at(PORT))?;
        client::round_trip(&stream, b"before")?;
        let mut daemon = mesh.take_daemon(NodeId::B).context("a daemon")?;
        daemon.signal(Signal::TERM)?;
        ensure!(client::await_end(&stream)? == End::Reset(0));
        let status = daemon.await_exit(EXIT_PATIENCE)?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
}

#[test]
fn a_restarted_daemon_takes_up_its_pods_again() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        for id in NodeId::ALL {
            client::round_trip(&client.connect(server.at(PORT))?, b"before")?;
            let mut daemon = mesh.take_daemon(id).context("a daemon")?;
            daemon.signal(Signal::TERM)?;
            ensure!(daemon.await_exit(EXIT_PATIENCE)?.success());
            ensure!(
                client.connect(server.at(PORT)).and_then(|stream| client::round_trip(&stream, b"without")).is_err()
            );
            mesh.start_daemon(id)?;
            client::round_trip(&client.connect(server.at(PORT))?, b"after")
                .with_context(|| format!("after the restart on {id}"))?;
        }
        Ok(())
    })
}

#[test]
fn an_upgrade_with_both_daemons_at_once_loses_no_connection() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let lasting = client.connect(server.at(PORT))?;
        client::round_trip(&lasting, b"before")?;
        let mut old = mesh.take_daemon(NodeId::A).context("a daemon")?;
        mesh.start_daemon(NodeId::A)?;
        client::round_trip(&client.connect(server.at(PORT))?, b"both are there")?;
        old.signal(Signal::TERM)?;
        client::round_trip(&lasting, b"the old one drains")?;
        // What connects while the old one closes may wait in its listener's queue, which the kernel resets with the
        // listener. What comes after is the new one's.
        for port in [OUTBOUND_PORT, INBOUND_HBONE_PORT] {
            wait::until_ok("the old daemon's listeners to be gone", Duration::from_secs(5), || {
                let listeners = client.netns.listeners(port)?;
                ensure!(listeners == 1, "{listeners} sockets listen at {port}");
                Ok(())
            })?;
        }
        let traffic = Traffic::start(&client, &server);
        traffic.await_more(20)?;
        lasting.shutdown(Shutdown::Write)?;
        ensure!(client::await_end(&lasting)? == End::Clean(0));
        ensure!(old.await_exit(EXIT_PATIENCE)?.success());
        traffic.await_more(5)?;
        traffic.stop().map(drop)
    })
}

#[test]
fn a_restarted_agent_finds_the_pods_running_and_their_connections_whole() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let lasting = client.connect(server.at(PORT))?;
        client::round_trip(&lasting, b"before")?;
        let before = fixture::descriptors(mesh)?;
        let traffic = Traffic::start(&client, &server);
        for id in NodeId::ALL {
            let agent = &mut mesh.node_mut(id).agent;
            let connection = agent.await_in_sync(Duration::from_secs(5))?;
            agent.stop();
            let readiness = || mesh.daemon(id).is_ready();
            wait::until("the daemon to be unready without its agent", Duration::from_secs(5), || !readiness())?;
            traffic.await_more(2)?;
            let agent = &mut mesh.node_mut(id).agent;
            agent.restart()?;
            agent.await_newer_than(connection, Duration::from_secs(20))?;
            wait::until("readiness to come back", Duration::from_secs(5), || mesh.daemon(id).is_ready())?;
        }
        traffic.await_more(2)?;
        traffic.stop()?;
        client::round_trip(&lasting, b"after")?;
        fixture::await_descriptors(mesh, &before)
    })
}

#[test]
fn a_pod_kept_without_its_namespace_stays_and_one_not_named_in_the_snapshot_goes() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let gone = mesh.add_pod(&PodSpec::new("gone", NodeId::A))?;
        let _echo = server.serve(PORT, echo)?;
        for pod in [&client, &gone] {
            client::round_trip(&pod.connect(server.at(PORT))?, b"before")?;
        }
        let agent = &mut mesh.node_mut(NodeId::A).agent;
        let connection = agent.await_in_sync(Duration::from_secs(5))?;
        agent.stop();
        agent.forget_netns(&client.uid());
        agent.forget_pod(&gone.uid());
        agent.restart()?;
        agent.await_newer_than(connection, Duration::from_secs(20))?;
        client::round_trip(&client.connect(server.at(PORT))?, b"kept")?;
        // Nobody listens at 15001 of a pod that was let go.
        wait::until("the other pod to be let go", Duration::from_secs(5), || gone.connect(server.at(PORT)).is_err())
    })
}

/// Sends without end and without reading; hears nothing back.
fn pour(mut stream: &TcpStream, _peer: std::net::SocketAddr) -> std::io::Result<()> {
    let block = vec![9; 64 * 1024];
    loop {
        stream.write_all(&block)?;
    }
}

/// Reads without end; an orderly end is a success, a reset an error.
fn drink(mut stream: &TcpStream, _peer: std::net::SocketAddr) -> std::io::Result<()> {
    std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
}

#[test]
fn when_the_servers_daemon_is_killed_in_mid_transfer_the_client_sees_a_reset_and_never_a_clean_end() -> Result<()> {
    for _ in 0..3 {
        with_mesh(MeshSpec::default(), |mesh| {
            let (client, server) = (mesh.pod("client"), mesh.pod("server"));
            let _pouring = server.serve(PORT, pour)?;
            let mut streams = Vec::new();
            for _ in 0..4 {
                let mut stream = client.connect(server.at(PORT))?;
                stream.read_exact(&mut vec![0; 1_000_000])?;
                streams.push(stream);
            }
            mesh.take_daemon(NodeId::B).context("a daemon")?.kill()?;
            for stream in &streams {
                let end = client::await_end(stream)?;
                ensure!(matches!(end, End::Reset(_)), "{end:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn when_the_clients_daemon_is_killed_in_mid_transfer_the_server_sees_a_reset_and_never_a_clean_end() -> Result<()> {
    for _ in 0..3 {
        with_mesh(MeshSpec::default(), |mesh| {
            let (client, server) = (mesh.pod("client"), mesh.pod("server"));
            let drinking = server.serve(PORT, drink)?;
            let streams = (0..4).map(|_| client.connect(server.at(PORT))).collect::<Result<Vec<_>>>()?;
            for mut stream in &streams {
                stream.write_all(&vec![1; 1_000_000])?;
            }
            wait::until("the server to be reached", Duration::from_secs(10), || drinking.open() == streams.len())?;
            mesh.take_daemon(NodeId::A).context("a daemon")?.kill()?;
            wait::until("the server to see the ends", Duration::from_secs(10), || {
                drinking.endings().len() == streams.len()
            })?;
            let clean = drinking.endings().iter().filter(|ending| ending.result.is_ok()).count();
            ensure!(clean == 0, "{clean} of {} applications took the killed daemon for an orderly end", streams.len());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_removed_pods_listeners_are_gone_and_other_pods_connections_are_not() -> Result<()> {
    with_mesh(MeshSpec::default(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let second: Pod = mesh.add_pod(&PodSpec::new("second", NodeId::B))?;
        let (_one, _two): (Server, Server) = (server.serve(PORT, echo)?, second.serve(PORT, echo)?);
        let (to_server, to_second) = (client.connect(server.at(PORT))?, client.connect(second.at(PORT))?);
        for stream in [&to_server, &to_second] {
            client::round_trip(stream, b"both")?;
        }
        mesh.remove_pod(&second)?;
        ensure!(client::await_end(&to_second)? == End::Reset(0));
        client::round_trip(&to_server, b"undisturbed")
    })
}
