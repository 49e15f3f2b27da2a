//! The discovery server, the CA, the node agents and a daemon are killed and started again, in every order, under traffic:
//! what needs nothing new goes on, and a daemon that starts again serves the pods it knew without its control plane.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::daemon::START_PATIENCE;
use testbed::fixture;
use testbed::log::Log;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::serve::echo;
use testbed::wait;

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(20);

fn pods() -> Vec<PodSpec> {
    vec![
        PodSpec::new("client", NodeId::A).tenant("web", "client"),
        PodSpec::new("near", NodeId::A).tenant("shop", "near"),
        PodSpec::new("far", NodeId::B).tenant("shop", "far"),
    ]
}

fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping");
    Ok(())
}

fn connected(from: &Pod, to: &Pod) -> Result<TcpStream> {
    let mut stream = from.connect(to.at(PORT))?;
    echoes(&mut stream)?;
    Ok(stream)
}

/// What is killed. The daemon is node B's; discovery and the CA share a port, so the CA is away with it, and besides falls
/// silent by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Discovery,
    Ca,
    Agents,
    Daemon,
}

impl Part {
    const ALL: [Self; 4] = [Self::Discovery, Self::Ca, Self::Agents, Self::Daemon];

    fn kill(self, mesh: &mut Mesh) {
        match self {
            Self::Discovery => mesh.control_plane_mut().stop(),
            Self::Ca => mesh.control_plane().ca.hold(),
            Self::Agents => NodeId::ALL.into_iter().for_each(|id| mesh.node_mut(id).agent.stop()),
            Self::Daemon => drop(mesh.take_daemon(NodeId::B)),
        }
    }

    fn start(self, mesh: &mut Mesh) -> Result<()> {
        match self {
            Self::Discovery => mesh.control_plane_mut().resume(),
            Self::Ca => {
                mesh.control_plane().ca.go_on();
                Ok(())
            }
            Self::Agents => NodeId::ALL.into_iter().try_for_each(|id| mesh.node_mut(id).agent.restart()),
            Self::Daemon => mesh.launch_daemon(NodeId::B),
        }
    }
}

/// All orders of the parts.
fn orders() -> Vec<Vec<Part>> {
    let mut orders = vec![Vec::new()];
    for _ in Part::ALL {
        orders = orders
            .iter()
            .flat_map(|begun: &Vec<Part>| {
                let left = Part::ALL.into_iter().filter(|part| !begun.contains(part));
                left.map(|next| [begun.clone(), vec![next]].concat()).collect::<Vec<_>>()
            })
            .collect();
    }
    orders
}

#[test]
fn whatever_is_killed_and_started_again_in_whatever_order_connections_that_need_nothing_new_go_on() -> Result<()> {
    let spec = MeshSpec { warm_start: true, ..MeshSpec::with_control_plane() };
    fixture::run(spec, &pods(), |mesh| {
        let [client, near, far] = ["client", "near", "far"].map(|name| mesh.pod(name));
        let (_near, _far) = (near.serve(PORT, echo)?, far.serve(PORT, echo)?);
        let mut here = connected(&client, &near)?;
        let orders = orders();
        ensure!(orders.len() == 24);
        for order in orders {
            let mut there = Some(wait::until_ok("the other node", PATIENCE, || connected(&client, &far))?);
            let mut check = |mesh: &Mesh, what: &str| -> Result<()> {
                // A new connection between pods that have their certificates is nothing new either.
                echoes(&mut here).and_then(|()| connected(&client, &near).map(drop))?;
                if mesh.nodes_with_daemon().contains(&NodeId::B)
                    && let Some(there) = &mut there
                {
                    echoes(there).with_context(|| format!("to the other node, {what}"))?;
                } else {
                    there = None;
                }
                Ok(())
            };
            for part in &order {
                part.kill(mesh);
                check(mesh, "killed").with_context(|| format!("{order:?}, without {part:?}"))?;
            }
            for part in &order {
                part.start(mesh)?;
                check(mesh, "started").with_context(|| format!("{order:?}, with {part:?} again"))?;
            }
            mesh.daemon_mut(NodeId::B).await_ready(START_PATIENCE).with_context(|| format!("{order:?}"))?;
        }
        wait::until_ok("the other node", PATIENCE, || connected(&client, &far)).map(drop)
    })
}

/// The CA is in the daemon here: one in the control plane is away with it. Negative control, in the same test: a daemon whose
/// file is gone reaches nobody and is not ready.
#[test]
fn a_daemon_that_was_killed_serves_its_known_pods_while_the_control_plane_is_away() -> Result<()> {
    let spec = MeshSpec { warm_start: true, embedded_ca: true, ..MeshSpec::with_control_plane() };
    fixture::run(spec, &pods(), |mesh| {
        let [client, far] = ["client", "far"].map(|name| mesh.pod(name));
        let _far = far.serve(PORT, echo)?;
        drop(connected(&client, &far)?);
        let file = mesh.warm_start_file(NodeId::B);
        wait::until("the mesh to be kept", PATIENCE, || file.exists())?;
        mesh.control_plane_mut().stop();

        drop(mesh.take_daemon(NodeId::B));
        mesh.launch_daemon(NodeId::B)?;
        mesh.daemon_mut(NodeId::B).await_ready(START_PATIENCE)?;
        wait::until_ok("a known pod, without a control plane", PATIENCE, || connected(&client, &far))?;
        let log = mesh.daemon(NodeId::B).log();
        let lines = log.all();
        ensure!(lines.iter().any(|line| line.text().contains("warm start: the mesh is as it was last known")));
        ensure!(mesh.daemon(NodeId::B).metrics()?.sum("coretunnel_xds_connected", &[]) == 0.0);
        let identity = client.identity();
        let line = log.await_access(Log::start(), "a tunnel", |line| line.has("src.identity", &identity))?;
        ensure!(line.field("dst.identity") == far.identity(), "{line}");

        drop(mesh.take_daemon(NodeId::B));
        std::fs::remove_file(&file)?;
        mesh.launch_daemon(NodeId::B)?;
        let log = mesh.daemon(NodeId::B).log();
        log.await_line(Log::start(), "the start without", PATIENCE, |line| {
            line.text().contains("nothing was kept yet")
        })?;
        ensure!(!mesh.daemon(NodeId::B).is_ready(), "ready without a mesh");
        mesh.control_plane_mut().resume()?;
        mesh.daemon_mut(NodeId::B).await_ready(START_PATIENCE)?;
        wait::until_ok("all of it again", PATIENCE, || connected(&client, &far)).map(drop)
    })
}
