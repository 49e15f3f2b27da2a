//! What happens to connections of captured pods: tunnels within and between nodes, plaintext from and to the world
//! outside, addresses, ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::client::{self, End};
use testbed::fixture;
use testbed::http;
use testbed::log::Line;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::serve::{echo, named, who_am_i};
use testbed::wait;
use testbed::wire::tls_record_types;

const PORT: u16 = 8080;

/// A client and a neighbour on node A, a server on node B, each an account of its own.
fn pods() -> Vec<PodSpec> {
    vec![
        PodSpec::new("client", NodeId::A).tenant("web", "client"),
        PodSpec::new("near", NodeId::A).tenant("shop", "near"),
        PodSpec::new("server", NodeId::B).tenant("shop", "server"),
    ]
}

fn with_mesh(fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    fixture::run(MeshSpec::default(), &pods(), fact)
}

fn expect(line: &Line, fields: &[(&str, String)]) -> Result<()> {
    for (name, value) in fields {
        ensure!(line.field(name) == *value, "{name} is {:?}, not {value:?}, in {line}", line.field(name));
    }
    Ok(())
}

fn ip_of(line: &Line, field: &str) -> String {
    line.field(field).rsplit_once(':').map(|(ip, _)| ip.to_owned()).unwrap_or_default()
}

/// Sends `bytes` and their end, hears an answer of another length, and reads what the two daemons log of it.
fn tunnelled(mesh: &Mesh, from: &Pod, to: &Pod, bytes: usize) -> Result<()> {
    const ANSWER: &str = "seven and seventy";
    let (source, destination) = (from.node.context("a pod")?, to.node.context("a pod")?);
    let (source_log, destination_log) = (mesh.daemon(source).log(), mesh.daemon(destination).log());
    let (source_mark, destination_mark) = (source_log.mark(), destination_log.mark());
    let _server = to.serve(PORT, |mut stream, _| {
        std::io::copy(&mut stream, &mut std::io::sink())?;
        stream.write_all(ANSWER.as_bytes())
    })?;
    let mut stream = from.connect(to.at(PORT))?;
    stream.write_all(&vec![b'x'; bytes])?;
    stream.shutdown(Shutdown::Write)?;
    ensure!(client::read_text(&stream)? == ANSWER);

    let (bytes, answer) = (bytes.to_string(), ANSWER.len().to_string());
    let both = [
        ("message", "connection complete".to_owned()),
        ("src.workload", from.name.clone()),
        ("src.namespace", from.namespace.clone()),
        ("src.identity", from.identity()),
        ("dst.addr", to.at(15008).to_string()),
        ("dst.hbone_addr", to.at(PORT).to_string()),
        ("dst.workload", to.name.clone()),
        ("dst.namespace", to.namespace.clone()),
        ("dst.identity", to.identity()),
        ("error", String::new()),
    ];
    // Sent and received are the local pod's words, so the two daemons use them the other way round.
    for (log, mark, direction, sent, received) in [
        (source_log, source_mark, "outbound", &bytes, &answer),
        (destination_log, destination_mark, "inbound", &answer, &bytes),
    ] {
        let line = log.await_access(mark, direction, |line| line.has("direction", direction))?;
        expect(&line, &both)?;
        expect(&line, &[("bytes_sent", sent.clone()), ("bytes_recv", received.clone())])?;
        ensure!(ip_of(&line, "src.addr") == from.address.to_string(), "src.addr in {line}");
        ensure!(line.field("duration").ends_with("ms"), "duration in {line}");
    }
    Ok(())
}

#[test]
fn captured_pods_of_two_nodes_talk_in_tunnels_both_ways_and_both_daemons_log_both_identities() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        tunnelled(mesh, &client, &server, 1000)?;
        tunnelled(mesh, &server, &client, 70_000)
    })
}

#[test]
fn captured_pods_of_one_node_talk_in_tunnels_too() -> Result<()> {
    with_mesh(|mesh| {
        let (client, near) = (mesh.pod("client"), mesh.pod("near"));
        tunnelled(mesh, &client, &near, 1000)?;
        tunnelled(mesh, &near, &client, 1)
    })
}

#[test]
fn the_wire_between_nodes_carries_tls_and_never_the_payload() -> Result<()> {
    const SECRET: &[u8] = b"the payload nobody on the way may read";
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let capture = mesh.capture()?;
        let stream = client.connect(server.at(PORT))?;
        client::round_trip(&stream, &SECRET.repeat(100))?;
        drop(stream);
        let recording = capture.stop()?;
        ensure!(!recording.contains(SECRET), "the payload crossed the wire in the clear");
        let mut tunnels = 0;
        for (flow, bytes) in recording.flows() {
            ensure!(flow.from.port() == 15008 || flow.to.port() == 15008, "{flow:?} is no tunnel");
            ensure!(tls_record_types(bytes).is_some_and(|types| types.contains(&23)), "{flow:?} is no TLS");
            tunnels += usize::from(bytes.len() > 100 * SECRET.len());
        }
        ensure!(tunnels == 2, "{tunnels} directions carried as much as the payload");
        Ok(())
    })
}

#[test]
fn many_connections_of_a_pod_to_one_peer_share_a_tunnel() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        let capture = mesh.capture()?;
        let streams = (0..20).map(|_| client.connect(server.at(PORT))).collect::<Result<Vec<_>>>()?;
        streams.iter().try_for_each(|stream| client::round_trip(stream, b"hello"))?;
        drop(streams);
        let flows = capture.stop()?.flows_of_port(15008).count();
        ensure!(flows == 2, "{flows} directions instead of one tunnel's two");
        Ok(())
    })
}

#[test]
fn a_host_outside_reaches_a_captured_pod_in_plaintext_and_is_seen_by_its_own_address() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, server) = (mesh.outside("outside")?, mesh.pod("server"));
        let mark = mesh.daemon(NodeId::B).log().mark();
        let _server = server.serve(PORT, who_am_i)?;
        let seen: SocketAddr = client::read_text(&outside.connect(server.at(PORT))?)?.trim().parse()?;
        ensure!(seen.ip() == outside.address, "the application saw {seen}");
        let line = mesh
            .daemon(NodeId::B)
            .log()
            .await_access(mark, "the inbound line", |line| line.has("direction", "inbound"))?;
        expect(
            &line,
            &[
                ("dst.addr", server.at(PORT).to_string()),
                ("dst.workload", server.name),
                ("src.identity", String::new()),
                ("dst.hbone_addr", String::new()),
            ],
        )?;
        ensure!(ip_of(&line, "src.addr") == outside.address.to_string(), "src.addr in {line}");
        Ok(())
    })
}

#[test]
fn a_captured_pod_reaches_a_host_outside_unchanged() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, client) = (mesh.outside("outside")?, mesh.pod("client"));
        let mark = mesh.daemon(NodeId::A).log().mark();
        let _server = outside.serve(PORT, who_am_i)?;
        let _site = outside.serve(80, http::site("internet"))?;
        let seen: SocketAddr = client::read_text(&client.connect(outside.at(PORT))?)?.trim().parse()?;
        ensure!(seen.ip() == client.address, "the outside saw {seen}");
        let answer = http::get(&client.netns, outside.at(80), "/")?;
        ensure!(answer.body == format!("internet served / to {}\n", client.address), "{answer:?}");
        let line = mesh
            .daemon(NodeId::A)
            .log()
            .await_access(mark, "the outbound line", |line| line.has("direction", "outbound"))?;
        expect(
            &line,
            &[
                ("dst.addr", outside.at(PORT).to_string()),
                ("src.workload", client.name),
                ("dst.identity", String::new()),
            ],
        )
    })
}

#[test]
fn uncaptured_pods_of_the_mesh_are_reached_and_reach_in_plaintext() -> Result<()> {
    with_mesh(|mesh| {
        let plain = mesh.add_pod(&PodSpec::new("plain", NodeId::B).uncaptured())?;
        let client = mesh.pod("client");
        let (_there, _here) = (plain.serve(PORT, who_am_i)?, client.serve(PORT, who_am_i)?);
        for (from, to) in [(&client, &plain), (&plain, &client)] {
            let seen: SocketAddr = client::read_text(&from.connect(to.at(PORT))?)?.trim().parse()?;
            ensure!(seen.ip() == from.address, "{} was seen as {seen}", from.name);
        }
        Ok(())
    })
}

#[test]
fn the_application_sees_the_address_of_the_client_behind_a_tunnel() -> Result<()> {
    with_mesh(|mesh| {
        for (from, to) in [("client", "server"), ("server", "near"), ("client", "near")] {
            let (from, to) = (mesh.pod(from), mesh.pod(to));
            let _server = to.serve(PORT, who_am_i)?;
            let seen: SocketAddr = client::read_text(&from.connect(to.at(PORT))?)?.trim().parse()?;
            ensure!(seen.ip() == from.address, "{} was seen as {seen} by {}", from.name, to.name);
        }
        Ok(())
    })
}

#[test]
fn a_half_closed_connection_still_carries_the_other_direction() -> Result<()> {
    with_mesh(|mesh| {
        let outside = mesh.outside("outside")?;
        // The server speaks only after it has seen the client's end.
        let count = |mut stream: &TcpStream, _| -> std::io::Result<()> {
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard)?;
            write!(stream, "heard {}", heard.len())
        };
        for (from, to) in [
            (mesh.pod("client"), mesh.pod("server")),
            (mesh.pod("client"), mesh.pod("near")),
            (outside.clone(), mesh.pod("server")),
        ] {
            let _server = to.serve(PORT, count)?;
            let mut stream = from.connect(to.at(PORT))?;
            stream.write_all(&[1; 300_000])?;
            stream.shutdown(Shutdown::Write)?;
            ensure!(client::read_text(&stream)? == "heard 300000", "{} to {}", from.name, to.name);
        }
        // And the other way round: the server has ended, the client still speaks.
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let listening = server.serve(PORT, who_am_i)?;
        let mut stream = client.connect(server.at(PORT))?;
        client::read_text(&stream)?;
        stream.write_all(&[1; 300_000])?;
        ensure!(listening.open() == 1, "the server's end took the whole connection down");
        drop(stream);
        wait::until("the server to see the end", Duration::from_secs(5), || listening.endings().len() == 1)?;
        ensure!(listening.endings()[0].result.is_ok(), "{:?}", listening.endings());
        Ok(())
    })
}

#[test]
fn a_server_that_dies_with_requests_unread_resets_its_client_which_never_sees_half_an_answer_as_a_whole_one()
-> Result<()> {
    const ASKED: usize = 400_000;
    const READ: usize = 32_000;
    with_mesh(|mesh| {
        let client = mesh.pod("client");
        for to in ["server", "near"] {
            let server = mesh.pod(to);
            let _server = server.serve(PORT, |mut stream, _| {
                stream.write_all(&[b'h'; 50_000])?;
                stream.read_exact(&mut [0; READ])?;
                // More is there, and left unread: the kernel closes as it does for a process that was killed.
                stream.peek(&mut [0])?;
                Ok(())
            })?;
            // The kernel tells of a reset once, either to the send or to the receive, so it takes some to meet both.
            for round in 0..100 {
                let stream = client.connect(server.at(PORT))?;
                // Its own write may hear of the reset too.
                if (&stream).write_all(&vec![b'q'; ASKED]).is_ok() {
                    let end = client::await_end(&stream)?;
                    ensure!(matches!(end, End::Reset(_)), "connection {round} to {to} ended with {end:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_service_address_reaches_every_backend_at_its_own_port() -> Result<()> {
    const CONNECTIONS: usize = 40;
    with_mesh(|mesh| {
        let (client, near, server) = (mesh.pod("client"), mesh.pod("near"), mesh.pod("server"));
        let service =
            mesh.add_service("shop", "shop", Ipv4Addr::new(10, 96, 0, 7), 80, &[(&near, 8081), (&server, 8082)])?;
        let (_near, _server) = (near.serve(8081, named("near"))?, server.serve(8082, named("server"))?);
        let reach = || -> Result<String> {
            let stream = client.connect(service)?;
            let name = client::read_line(&stream)?;
            client::round_trip(&stream, b"order")?;
            Ok(name)
        };
        wait::until_ok("the service to be known", Duration::from_secs(5), reach)?;
        let mark = mesh.daemon(NodeId::A).log().mark();
        let reached = (0..CONNECTIONS).map(|_| reach()).collect::<Result<Vec<_>>>()?;
        for backend in ["near", "server"] {
            let count = reached.iter().filter(|name| *name == backend).count();
            // With an even choice one side has fewer than 5 of 40 once in ten million runs.
            ensure!(count >= 5, "{backend} was reached {count} times of {CONNECTIONS}");
        }
        let line = mesh
            .daemon(NodeId::A)
            .log()
            .await_access(mark, "an outbound line to server", |line| line.has("dst.workload", "server"))?;
        expect(
            &line,
            &[("dst.service", "shop.shop.svc.cluster.local".into()), ("dst.hbone_addr", server.at(8082).to_string())],
        )
    })
}

#[test]
fn a_pod_reaches_itself_directly_and_through_its_own_service() -> Result<()> {
    with_mesh(|mesh| {
        let client = mesh.pod("client");
        let service = mesh.add_service("own", "web", Ipv4Addr::new(10, 96, 0, 9), 80, &[(&client, PORT)])?;
        let _server = client.serve(PORT, who_am_i)?;
        for target in [client.at(PORT), service] {
            wait::until_ok("the answer", Duration::from_secs(5), || {
                let seen: SocketAddr = client::read_text(&client.connect(target)?)?.trim().parse()?;
                ensure!(seen.ip() == client.address, "seen as {seen} through {target}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_service_without_backends_refuses_the_client_and_says_why() -> Result<()> {
    with_mesh(|mesh| {
        let client = mesh.pod("client");
        let service = mesh.add_service("empty", "shop", Ipv4Addr::new(10, 96, 0, 8), 80, &[])?;
        let log = mesh.daemon(NodeId::A).log();
        // Until the service is known the address is passed through, and nobody answers there.
        wait::until_ok("the refusal", Duration::from_secs(8), || {
            let mark = log.mark();
            let end = client.turned_away(service)?;
            ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{end:?}");
            log.await_line(mark, "the refusal", Duration::from_millis(300), |line| {
                line.is_access() && line.text().contains("upstream")
            })
            .map(drop)
        })
    })
}

#[test]
fn a_port_nobody_listens_at_ends_the_connection_without_data_and_is_logged_as_an_error() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let marks = NodeId::ALL.map(|id| (id, mesh.daemon(id).log().mark()));
        let end = client.turned_away(server.at(9))?;
        ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{end:?}");
        for (id, mark) in marks {
            mesh.daemon(id).log().await_access(mark, "an error", |line| {
                !line.field("error").is_empty() && line.field("level") == "error"
            })?;
        }
        Ok(())
    })
}

#[test]
fn both_daemons_count_connections_and_bytes_by_workload() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _echo = server.serve(PORT, echo)?;
        for _ in 0..3 {
            let stream = client.connect(server.at(PORT))?;
            client::round_trip(&stream, &[7; 5000])?;
            stream.shutdown(Shutdown::Write)?;
            client::await_end(&stream)?;
        }
        for (id, reporter) in [(NodeId::A, "source"), (NodeId::B, "destination")] {
            let (source, destination) = (client.identity(), server.identity());
            let labels = [
                ("reporter", reporter),
                ("source_workload", "client"),
                ("source_workload_namespace", "web"),
                ("source_principal", &source),
                ("destination_workload", "server"),
                ("destination_principal", &destination),
                ("connection_security_policy", "mutual_tls"),
                ("response_flags", "-"),
                ("request_protocol", "tcp"),
            ];
            wait::until_ok("the counters", Duration::from_secs(5), || {
                let page = mesh.daemon(id).metrics()?;
                let value = |name: &str| page.sum(name, &labels);
                for (name, expected) in [
                    ("istio_tcp_connections_opened_total", 3.0),
                    ("istio_tcp_connections_closed_total", 3.0),
                    ("istio_tcp_received_bytes_total", 15_000.0),
                    ("istio_tcp_sent_bytes_total", 15_000.0),
                    ("istio_tcp_connections_failed_total", 0.0),
                ] {
                    #[expect(clippy::float_cmp, reason = "sums of small whole numbers are exact")]
                    let equal = value(name) == expected;
                    ensure!(equal, "{id}: {name} is {}, not {expected}", value(name));
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}
