//! What the test mesh itself promises, without any daemon: routes, capture rules, the recording of the wire. If these
//! fail, no other mesh test means anything.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::http;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::redirect::{INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use testbed::serve::{echo, who_am_i};
use testbed::transfer::{self, First, Pattern, Side};
use testbed::wire::tls_record_types;

fn bare(pods: &[PodSpec]) -> Result<Mesh> {
    Mesh::start(MeshSpec::bare(), pods)
}

fn read_all(mut stream: &TcpStream) -> Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Answers each connection with the destination it had before any redirection.
fn tell_original_dst(pod: &Pod, port: u16) -> Result<testbed::serve::Server> {
    pod.serve(port, |mut stream, _| {
        let original = socket2::SockRef::from(stream)
            .original_dst_v4()?
            .as_socket()
            .map_or_else(String::new, |address| address.to_string());
        stream.write_all(original.as_bytes())?;
        stream.shutdown(Shutdown::Write)
    })
}

#[test]
fn pods_of_both_nodes_and_hosts_outside_reach_each_other_by_their_own_addresses() -> Result<()> {
    let mut mesh = bare(&[
        PodSpec::new("one", NodeId::A).uncaptured(),
        PodSpec::new("near", NodeId::A).uncaptured(),
        PodSpec::new("far", NodeId::B).uncaptured(),
    ])?;
    let outside = mesh.outside("outside")?;
    let everyone = [mesh.pod("one"), mesh.pod("near"), mesh.pod("far"), outside];
    for server in &everyone {
        let _listening = server.serve(8080, who_am_i)?;
        for client in everyone.iter().filter(|client| client.name != server.name) {
            let seen: SocketAddr = read_all(&client.connect(server.at(8080))?)?.trim().parse()?;
            ensure!(seen.ip() == client.address, "{} was seen as {seen} by {}", client.name, server.name);
        }
    }
    Ok(())
}

#[test]
fn a_captured_pods_connections_are_redirected_and_keep_their_original_destination() -> Result<()> {
    let mesh = bare(&[PodSpec::new("captured", NodeId::A), PodSpec::new("far", NodeId::B).uncaptured()])?;
    let (captured, far) = (mesh.pod("captured"), mesh.pod("far"));
    let _outbound = tell_original_dst(&captured, OUTBOUND_PORT)?;
    let _inbound = tell_original_dst(&captured, INBOUND_PLAINTEXT_PORT)?;
    let _hbone = captured.serve(INBOUND_HBONE_PORT, who_am_i)?;
    let _own = captured.serve(9000, |mut stream, _| stream.write_all(b"own"))?;

    ensure!(read_all(&captured.connect(far.at(80))?)? == far.at(80).to_string(), "an outgoing connection");
    ensure!(read_all(&far.connect(captured.at(80))?)? == captured.at(80).to_string(), "an incoming connection");
    ensure!(
        read_all(&far.connect(captured.at(INBOUND_HBONE_PORT))?)?.starts_with(&far.address.to_string()),
        "an incoming tunnel"
    );
    for own in [captured.at(9000), (Ipv4Addr::LOCALHOST, 9000).into()] {
        ensure!(read_all(&captured.connect(own)?)? == "own", "a connection of the pod to itself at {own} was captured");
    }
    Ok(())
}

#[test]
fn a_marked_socket_leaves_uncaptured_and_may_use_the_clients_address_towards_the_application() -> Result<()> {
    let mesh = bare(&[PodSpec::new("captured", NodeId::A), PodSpec::new("far", NodeId::B).uncaptured()])?;
    let (captured, far) = (mesh.pod("captured"), mesh.pod("far"));
    let _application = captured.serve(9000, who_am_i)?;
    let _elsewhere = far.serve(9000, who_am_i)?;
    let connect = |source: Option<Ipv4Addr>, target: SocketAddr| -> Result<TcpStream> {
        captured.netns.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_mark(1337)?;
            if let Some(source) = source {
                socket.set_ip_transparent_v4(true)?;
                socket.set_freebind_v4(true)?;
                socket.bind(&SocketAddr::from((source, 0)).into())?;
            }
            socket.connect_timeout(&target.into(), testbed::serve::SOCKET_PATIENCE)?;
            Ok(socket.into())
        })
    };
    let seen = read_all(&connect(None, far.at(9000))?)?;
    ensure!(seen.starts_with(&captured.address.to_string()), "a marked socket was seen as {seen}");
    let seen = read_all(&connect(Some(far.address), captured.at(9000))?)?;
    ensure!(seen.starts_with(&far.address.to_string()), "a spoofed source was seen as {seen}");
    Ok(())
}

#[test]
fn what_uncaptured_pods_say_is_read_from_the_wire() -> Result<()> {
    let mesh = bare(&[
        PodSpec::new("client", NodeId::A).uncaptured(),
        PodSpec::new("server", NodeId::B).uncaptured(),
        PodSpec::new("near", NodeId::A).uncaptured(),
    ])?;
    let (client, server, near) = (mesh.pod("client"), mesh.pod("server"), mesh.pod("near"));
    let (_far, _near) = (server.serve(80, http::site("shop"))?, near.serve(80, http::site("near"))?);
    let capture = mesh.capture()?;
    for (target, path) in [(&server, "/a-word-for-the-wire"), (&near, "/never-leaves-the-node")] {
        ensure!(http::get(&client.netns, target.at(80), path)?.status == 200);
    }
    let recording = capture.stop()?;
    ensure!(recording.contains(b"a-word-for-the-wire") && recording.contains(b"shop served"));
    ensure!(!recording.contains(b"never-leaves-the-node"), "what stays within a node is not on the wire");
    let (_, bytes) = recording.flows_of_port(80).next().context("no flow of port 80")?;
    ensure!(tls_record_types(bytes).is_none(), "plaintext was taken for TLS");
    Ok(())
}

#[test]
fn a_transfer_between_nodes_arrives_whole_whoever_closes_first() -> Result<()> {
    const BYTES: u64 = 4 * 1024 * 1024;
    let mesh = bare(&[PodSpec::new("client", NodeId::A).uncaptured(), PodSpec::new("server", NodeId::B).uncaptured()])?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let pattern = Pattern::default();
    for first in [First::Client, First::Server] {
        let (accepted, awaited) = mpsc::sync_channel(1);
        let _listening =
            server.serve(8080, move |stream, _| accepted.send(stream.try_clone()?).map_err(std::io::Error::other))?;
        let near = client.connect(server.at(8080))?;
        let far = awaited.recv()?;
        thread::scope(|scope| {
            let serving = scope.spawn(|| transfer::run(&far, &pattern, Side::server(1, BYTES, first)));
            transfer::run(&near, &pattern, Side::client(1, BYTES, first))?;
            serving.join().map_err(|_| anyhow::anyhow!("the server's side panicked"))?
        })?;
    }
    Ok(())
}

#[test]
fn pods_come_and_go_and_leave_no_interface_behind() -> Result<()> {
    let mut mesh = bare(&[PodSpec::new("stays", NodeId::A).uncaptured()])?;
    let stays = mesh.pod("stays");
    let node = mesh.node(NodeId::A).namespace().clone();
    // Not /proc/net: that shows the namespace of the process's first thread.
    let interfaces =
        || node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).map(|table| table.lines().count());
    let before = interfaces()?;
    for round in 0..3 {
        let passing = mesh.add_pod(&PodSpec::new(&format!("passing-{round}"), NodeId::A))?;
        let _server = passing.serve(INBOUND_PLAINTEXT_PORT, echo)?;
        stays.connect(passing.at(1))?.write_all(b"x")?;
        ensure!(interfaces()? == before + 1);
        mesh.remove_pod(&passing)?;
        let again = stays.netns.run(|| TcpStream::connect_timeout(&passing.at(1), Duration::from_millis(200)));
        ensure!(again.is_err(), "a removed pod still answers");
    }
    ensure!(interfaces()? == before);
    Ok(())
}
