//! Daemons without io_uring, because it is forbidden or because epoll was asked for, do what the others do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, ensure};
use testbed::fixture;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::serve::echo;
use testbed::transfer::{self, First, Pattern, Side};

const PORT: u16 = 8080;
const BYTES: u64 = 16 << 20;

/// A tunnel between the nodes and one within, a transfer both ways through it, and what both daemons say they run on.
fn carries(spec: MeshSpec, engine: &str, reason: &str) -> Result<()> {
    let pods = [PodSpec::new("client", NodeId::A), PodSpec::new("near", NodeId::A), PodSpec::new("server", NodeId::B)];
    fixture::run(spec, &pods, |mesh| {
        for target in ["near", "server"] {
            let _server = mesh.pod(target).serve(PORT, echo)?;
            let mut stream = mesh.pod("client").connect(mesh.pod(target).at(PORT))?;
            stream.write_all(b"hello")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer == "hello", "{target} answered {answer:?}");
        }
        transfer_both_ways(&mesh.pod("client"), &mesh.pod("server"))?;
        bulk_in_plain_goes_through_pipes(mesh)?;
        for id in NodeId::ALL {
            let page = mesh.daemon(id).metrics()?;
            let labels = [("engine", engine), ("reason", reason)];
            ensure!(page.sum("coretunnel_engine", &labels) == 1.0, "{id} runs on something else: {:?}", page.samples());
            let said = mesh.daemon(id).log().all();
            let line = said.iter().find(|line| line.text().contains("cores reach the kernel by"));
            let line = line.with_context(|| format!("{id} does not say what it runs on"))?;
            ensure!((line.field("engine"), line.field("reason")) == (engine.into(), reason.into()), "{line}");
        }
        Ok(())
    })
}

fn transfer_both_ways(client: &Pod, server: &Pod) -> Result<()> {
    let (accepted, awaited) = std::sync::mpsc::sync_channel(1);
    let serve = move |stream: &TcpStream, _| accepted.send(stream.try_clone()?).map_err(std::io::Error::other);
    let _server = server.serve(PORT + 1, serve)?;
    let near = client.connect(server.at(PORT + 1))?;
    let far = awaited.recv_timeout(testbed::serve::SOCKET_PATIENCE).context("the server's side of the connection")?;
    let pattern = Pattern::default();
    std::thread::scope(|scope| {
        let there = scope.spawn(|| transfer::run(&far, &pattern, Side::server(0, BYTES, First::Client)));
        let here = transfer::run(&near, &pattern, Side::client(0, BYTES, First::Client));
        let there = there.join().map_err(|_| anyhow::anyhow!("the server's side panicked"))?;
        here.and(there)
    })
}

/// A pipe is kept for a second after its last use, so that it can still be seen; that it goes then, the fixture checks.
fn bulk_in_plain_goes_through_pipes(mesh: &mut Mesh) -> Result<()> {
    let outside = mesh.outside("outside")?;
    let pipes = |mesh: &Mesh| {
        let names = mesh.daemon(NodeId::A).open_file_names();
        names.iter().filter(|name| name.starts_with("pipe:")).count()
    };
    let before = pipes(mesh);
    transfer_both_ways(&mesh.pod("client"), &outside)?;
    let after = pipes(mesh);
    ensure!(after > before, "{after} ends of pipes after a bulk transfer, and {before} before: it was copied");
    Ok(())
}

#[test]
fn daemons_told_to_use_epoll_carry_tunnels() -> Result<()> {
    let arguments = vec!["--engine".to_owned(), "epoll".to_owned()];
    carries(MeshSpec { arguments, ..MeshSpec::default() }, "epoll", "asked")
}

#[test]
fn daemons_to_which_io_uring_is_forbidden_carry_tunnels_over_epoll_and_say_why() -> Result<()> {
    carries(MeshSpec { io_uring: false, ..MeshSpec::default() }, "epoll", "uring_forbidden")
}

#[test]
fn daemons_that_may_use_io_uring_do() -> Result<()> {
    carries(MeshSpec::default(), "uring", "preferred")
}
