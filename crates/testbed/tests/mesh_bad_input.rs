//! What peers, agents and operators may get wrong: each time a clear refusal that names the cause, no leak, and
//! everyone else undisturbed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testbed::certificate::{Authority, Leaf, LeafSpec};
use testbed::client::{self, End};
use testbed::fixture;
use testbed::impostor::Impostor;
use testbed::log::Log;
use testbed::mesh::{Mesh, MeshSpec, NodeId, PodSpec};
use testbed::peer::{Peer, Reply};
use testbed::serve::echo;
use testbed::wait;
use testbed::workload_file;
use testbed::zds_agent::{Answer, PodRecord, add_packet, del_packet, field, keep_packet, snapshot_packet};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);
/// Header fields of a request.
type Fields<'a> = Vec<(&'a str, &'a str)>;

/// The reconnect after a protocol error backs off; the agent accepts one connection in 200 ms.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(20);

fn with_mesh(fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    fixture::run(MeshSpec::default(), &[PodSpec::new("client", NodeId::A), PodSpec::new("server", NodeId::B)], fact)
}

fn record(name: &str) -> PodRecord {
    PodRecord { name: name.into(), namespace: "default".into(), service_account: name.into(), netns: None }
}

/// Opens a connection between the mesh's two pods and hands back what proves that it still lives.
fn bystander(mesh: &Mesh) -> Result<(testbed::serve::Server, impl Fn() -> Result<()> + use<>)> {
    let (client, target) = (mesh.pod("client"), mesh.pod("server").at(PORT));
    let server = mesh.pod("server").serve(PORT, echo)?;
    let lasting = client.connect(target)?;
    client::round_trip(&lasting, b"before")?;
    let undisturbed = move || {
        client::round_trip(&lasting, b"on the connection of before").context("the bystander's connection")?;
        client::round_trip(&client.connect(target)?, b"on a new one").context("the bystander's new connection")
    };
    Ok((server, undisturbed))
}

#[test]
fn a_packet_of_the_agent_that_makes_no_sense_is_refused_by_name_and_only_the_agents_connection_suffers() -> Result<()> {
    with_mesh(|mesh| {
        let (_server, undisturbed) = bystander(mesh)?;
        let before = fixture::descriptors(mesh)?;
        let netns = mesh.pod("client").netns;
        let fd: BorrowedFd<'_> = netns.fd();
        let add = add_packet("uid-of-new", &record("new"));
        // Packet, descriptors, a word of the refusal.
        let rows: [(&str, Vec<u8>, Vec<BorrowedFd<'_>>, &str); 8] = [
            ("an Add without a descriptor", add.clone(), vec![], "control message"),
            ("an Add with two descriptors", add.clone(), vec![fd, fd], ""),
            ("a Del with a descriptor", del_packet("uid-of-new"), vec![fd], "descriptor"),
            ("an Add cut short", add[..add.len() - 3].to_vec(), vec![fd], ""),
            ("a packet of 2000 bytes", field(1, &[b'x'; 2000]), vec![fd], ""),
            ("no payload", vec![], vec![], ""),
            ("an unknown payload", field(9, b"?"), vec![], ""),
            ("a varint without end", vec![0xff; 20], vec![], ""),
        ];
        let log = mesh.daemon(NodeId::A).log();
        for (name, packet, fds, word) in rows {
            let agent = &mesh.node(NodeId::A).agent;
            let connection = agent.await_in_sync(RECONNECT_PATIENCE)?;
            let mark = log.mark();
            match (agent.request(&packet, &fds, PATIENCE)?, packet.is_empty()) {
                (Answer::Nack(words), _) => {
                    ensure!(
                        words.contains("failure to read message") && words.contains(word),
                        "{name}: refused with {words:?}"
                    );
                }
                // SOCK_SEQPACKET can't tell an empty packet from the end of the connection.
                (Answer::Closed, true) => {}
                (other, _) => bail!("{name}: {other:?}"),
            }
            if !packet.is_empty() {
                log.await_line(mark, name, PATIENCE, |line| matches!(line.field("level").as_str(), "warn" | "error"))?;
            }
            agent.await_newer_than(connection, RECONNECT_PATIENCE).with_context(|| format!("after {name}"))?;
            undisturbed().with_context(|| format!("after {name}"))?;
            fixture::await_descriptors(mesh, &before).with_context(|| format!("after {name}"))?;
        }
        wait::until("readiness to come back", PATIENCE, || mesh.daemon(NodeId::A).is_ready())
    })
}

#[test]
fn a_descriptor_that_is_no_network_namespace_leaves_its_pod_pending_and_all_others_running() -> Result<()> {
    with_mesh(|mesh| {
        let (_server, undisturbed) = bystander(mesh)?;
        let before = fixture::descriptors(mesh)?;
        let no_netns = File::open("/dev/null")?;
        let agent = &mesh.node(NodeId::A).agent;
        let answer = agent.request(&add_packet("uid-of-null", &record("null")), &[no_netns.as_fd()], PATIENCE)?;
        ensure!(matches!(&answer, Answer::Nack(words) if words.contains("failure to start proxy")), "{answer:?}");
        undisturbed()?;
        ensure!(!mesh.daemon(NodeId::A).is_ready(), "ready although a pod could not be started");
        ensure!(agent.request(&del_packet("uid-of-null"), &[], PATIENCE)? == Answer::Ack);
        wait::until("readiness to come back", PATIENCE, || mesh.daemon(NodeId::A).is_ready())?;
        undisturbed()?;
        fixture::await_descriptors(mesh, &before)
    })
}

#[test]
fn a_request_that_only_another_image_could_understand_is_refused_and_ends_the_daemon_with_status_1() -> Result<()> {
    let no_info = field(1, &field(1, b"uid-of-new"));
    let rows = [
        ("KeepWorkload", keep_packet("uid-of-client"), false),
        ("SnapshotSent", snapshot_packet(), false),
        ("workload_info", no_info, true),
    ];
    with_mesh(|mesh| {
        for (word, packet, with_fd) in rows {
            let netns = mesh.pod("client").netns;
            let fds = if with_fd { vec![netns.fd()] } else { vec![] };
            let answer = mesh.node(NodeId::A).agent.request(&packet, &fds, PATIENCE)?;
            ensure!(matches!(&answer, Answer::Nack(words) if words.contains(word)), "{word}: {answer:?}");
            let mut daemon = mesh.take_daemon(NodeId::A).context("a daemon")?;
            let status = daemon.await_exit(PATIENCE)?;
            ensure!(status.code() == Some(1), "{word}: {status}");
            daemon.log().await_line(Log::start(), word, PATIENCE, |line| line.text().contains(word))?;
            mesh.start_daemon(NodeId::A)?;
        }
        let (_server, undisturbed) = bystander(mesh)?;
        undisturbed()
    })
}

#[test]
fn a_connect_that_can_not_be_meant_for_this_pod_is_answered_400_and_one_that_leads_nowhere_503() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, server) = (mesh.outside("outside")?, mesh.pod("server"));
        let (_server, undisturbed) = bystander(mesh)?;
        let leaf = Authority::from_root_file(&mesh.ca_root_file())?
            .sign(&LeafSpec::named(&["spiffe://cluster.local/ns/default/sa/client"]))?;
        let good = server.at(PORT).to_string();
        let foreign = mesh.pod("client").at(PORT).to_string();
        let (itself, nobody) = (server.at(15001).to_string(), server.at(9).to_string());
        let rows: [(&str, Fields<'_>, u16); 9] = [
            ("no authority", vec![(":method", "CONNECT")], 400),
            ("a foreign address", vec![(":method", "CONNECT"), (":authority", &foreign)], 400),
            ("no port", vec![(":method", "CONNECT"), (":authority", "10.244.2.2")], 400),
            ("a port out of range", vec![(":method", "CONNECT"), (":authority", "10.244.2.2:99999")], 400),
            ("a port that is no number", vec![(":method", "CONNECT"), (":authority", "10.244.2.2:http")], 400),
            (
                "another method",
                vec![(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", &good)],
                400,
            ),
            ("the daemon's own port", vec![(":method", "CONNECT"), (":authority", &itself)], 503),
            ("a port nobody listens at", vec![(":method", "CONNECT"), (":authority", &nobody)], 503),
            ("a hostname nobody has", vec![(":method", "CONNECT"), (":authority", "nowhere.example:80")], 503),
        ];
        let log = mesh.daemon(NodeId::B).log();
        let mut peer = Peer::connect(&outside.netns, server.at(15008), Some(&leaf))?;
        for (name, fields, status) in rows {
            let mark = log.mark();
            let reply = peer.request(&fields, b"")?;
            ensure!(reply == Reply::Status(status, vec![]), "{name}: {reply:?}");
            log.await_access(mark, name, |line| !line.field("error").is_empty())?;
            // One bad stream must not take the tunnel's others with it.
            let reply = peer.tunnel(&good, b"ping")?;
            ensure!(reply == Reply::Status(200, b"ping".to_vec()), "after {name}: {reply:?}");
        }
        // What an HTTP/2 library may not even hand on: a reset is as good an answer as a 400.
        for authority in ["", "a b:80", "[::1:80", "user@10.244.2.2:8080"] {
            let reply = peer.tunnel(authority, b"")?;
            ensure!(matches!(reply, Reply::Status(400, _) | Reply::Reset(_)), "authority {authority:?}: {reply:?}");
        }
        ensure!(peer.tunnel(&good, b"ping")? == Reply::Status(200, b"ping".to_vec()));
        undisturbed()
    })
}

#[test]
fn a_client_certificate_that_proves_nothing_is_refused_and_the_log_says_what_is_wrong_with_it() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, server) = (mesh.outside("outside")?, mesh.pod("server"));
        let (_server, undisturbed) = bystander(mesh)?;
        let authority = Authority::from_root_file(&mesh.ca_root_file())?;
        let good = LeafSpec::named(&["spiffe://cluster.local/ns/default/sa/client"]);
        let sign = |spec: &LeafSpec| authority.sign(spec).map(Some);
        let rows: [(&str, Option<Leaf>, &str); 7] = [
            (
                "another trust domain",
                sign(&LeafSpec::named(&["spiffe://other.example/ns/default/sa/client"]))?,
                "other.example",
            ),
            ("expired", sign(&good.clone().expired())?, "expired"),
            ("no SPIFFE name", sign(&LeafSpec::named(&["https://cluster.local/client"]))?, "SPIFFE"),
            ("no name at all", sign(&LeafSpec::named(&[]))?, "SPIFFE"),
            ("a stranger's signature", Some(Authority::stranger()?.sign(&good)?), "issue"),
            ("cut short", Some(authority.sign(&good)?.cut_short()), "certificate"),
            ("no certificate", None, "certificate"),
        ];
        let log = mesh.daemon(NodeId::B).log();
        for (name, leaf, word) in rows {
            let mark = log.mark();
            ensure!(Peer::connect(&outside.netns, server.at(15008), leaf.as_ref()).is_err(), "{name} was accepted");
            let line =
                log.await_access(mark, name, |line| line.field("error").to_lowercase().contains(&word.to_lowercase()))?;
            ensure!(
                line.field("level") == "warn" && line.field("src.addr").starts_with(&outside.address.to_string()),
                "{line}"
            );
        }
        // The names of two identities in one certificate are no contradiction: the first of our trust domain counts.
        let two = authority
            .sign(&LeafSpec::named(&["spiffe://cluster.local/ns/a/sa/a", "spiffe://cluster.local/ns/b/sa/b"]))?;
        let reply = Peer::connect(&outside.netns, server.at(15008), Some(&two))?
            .tunnel(&server.at(PORT).to_string(), b"ping")?;
        ensure!(reply == Reply::Status(200, b"ping".to_vec()), "{reply:?}");
        undisturbed()
    })
}

#[test]
fn bytes_that_are_no_tls_and_connections_that_say_nothing_harm_nobody() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, server) = (mesh.outside("outside")?, mesh.pod("server"));
        let (_server, undisturbed) = bystander(mesh)?;
        for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 70_000], b"\x16\x03\x01\xff\xff", b"\x16"] {
            let mut stream = outside.connect(server.at(15008))?;
            // The daemon may have hung up in the middle of the longer ones.
            let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
            let end = client::await_end(&stream)?;
            ensure!(!matches!(end, End::Silence(_)), "{} bytes of nonsense: {end:?}", bytes.len());
        }
        let silent = (0..50).map(|_| outside.connect(server.at(15008))).collect::<Result<Vec<TcpStream>>>()?;
        undisturbed()?;
        drop(silent);
        undisturbed()
    })
}

#[test]
fn calls_to_the_daemons_own_ports_come_to_an_end_and_never_loop() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, client, server) = (mesh.outside("outside")?, mesh.pod("client"), mesh.pod("server"));
        let (_server, undisturbed) = bystander(mesh)?;
        for (from, name, address) in [
            (&client, "itself", client.address),
            (&client, "its loopback", Ipv4Addr::LOCALHOST),
            (&client, "another pod", server.address),
            (&outside, "a pod", server.address),
        ] {
            for port in [15001, 15006, 15008] {
                let call = format!("from {} to {name} at port {port}", from.name);
                // The daemon may have hung up by now: as good an end as any later one.
                let Ok(mut stream) = from.connect((address, port).into()) else { continue };
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
                match client::await_end(&stream).with_context(|| call.clone())? {
                    End::Clean(bytes) | End::Reset(bytes) => {
                        // A TLS alert is seven bytes; anything longer would be an answer.
                        ensure!(bytes <= 7, "{call}: {bytes} bytes came back");
                    }
                    End::Silence(_) => bail!("{call}: it hangs"),
                }
            }
        }
        undisturbed()
    })
}

#[test]
fn a_server_that_is_not_who_it_should_be_gets_no_data_and_the_client_no_clean_end() -> Result<()> {
    with_mesh(|mesh| {
        // Uncaptured for real, but the mesh believes that it speaks HBONE.
        let victim = mesh.add_pod(&PodSpec::new("victim", NodeId::B).uncaptured())?;
        mesh.edit(|model| model.workloads.values_mut().for_each(|workload| workload.captured = true))?;
        let client = mesh.pod("client");
        let authority = Authority::from_root_file(&mesh.ca_root_file())?;
        let own = "spiffe://cluster.local/ns/default/sa/victim";
        let rows = [
            (
                "another account",
                authority.sign(&LeafSpec::named(&["spiffe://cluster.local/ns/default/sa/thief"]))?,
                "thief",
            ),
            (
                "another trust domain",
                authority.sign(&LeafSpec::named(&["spiffe://other.example/ns/default/sa/victim"]))?,
                "other.example",
            ),
            ("expired", authority.sign(&LeafSpec::named(&[own]).expired())?, "expired"),
            ("a stranger's signature", Authority::stranger()?.sign(&LeafSpec::named(&[own]))?, "issue"),
        ];
        let log = mesh.daemon(NodeId::A).log();
        for (name, leaf, word) in rows {
            let impostor = Impostor::start(&victim, &leaf)?;
            // The workload file may not be read yet; until then the connection goes out in plaintext and finds no
            // listener.
            wait::until_ok(name, PATIENCE, || {
                let mark = log.mark();
                let mut stream = client.connect(victim.at(PORT))?;
                // Unread bytes in the daemon: it must reset, and never pretend an orderly end.
                stream.write_all(b"for the victim's eyes only")?;
                let end = stream.read(&mut [0; 16]).err().map(|error| error.kind());
                ensure!(end == Some(std::io::ErrorKind::ConnectionReset), "the client saw {end:?}");
                log.await_line(mark, word, Duration::from_millis(500), |line| {
                    line.is_access() && line.field("error").contains(word)
                })
                .map(drop)
            })?;
            ensure!(impostor.believers() == 0, "{name}: data was sent to an impostor");
        }
        Ok(())
    })
}

#[test]
fn a_workload_file_that_can_not_be_read_is_refused_by_line_and_field_and_the_old_one_stays() -> Result<()> {
    with_mesh(|mesh| {
        let (_server, undisturbed) = bystander(mesh)?;
        let path = mesh.workload_file(NodeId::A).to_owned();
        let good = mesh.model().to_yaml();
        let line_of = |text: &str, needle: &str| text.lines().position(|line| line.contains(needle)).map(|at| at + 1);
        // What is replaced in the file, by what, and the field that the error must name.
        let rows = [
            ("an unknown key", "  serviceAccount: \"client\"", "  serviceAcount: \"client\"", "serviceAcount"),
            (
                "a key twice",
                "  serviceAccount: \"client\"",
                "  serviceAccount: \"client\"\n  serviceAccount: \"thief\"",
                "serviceAccount",
            ),
            ("a wrong type", "  workloadIps: [\"10.244.1.2\"]", "  workloadIps: 7", "workloadIps"),
            ("no address", "  workloadIps: [\"10.244.1.2\"]", "  workloadIps: [\"10.244.1\"]", "workloadIps"),
            ("an unknown word", "  protocol: HBONE", "  protocol: CARRIER-PIGEON", "protocol"),
            ("no YAML", "services: []", "services: [", ""),
        ];
        let log = mesh.daemon(NodeId::A).log();
        for (name, from, to, field) in rows {
            let bad = good.replacen(from, to, 1);
            ensure!(bad != good, "{name}: {from:?} is not in\n{good}");
            let mark = log.mark();
            workload_file::replace(&path, &bad)?;
            let line = log.await_line(mark, name, PATIENCE, |line| {
                matches!(line.field("level").as_str(), "warn" | "error")
                    && line.text().contains(&*path.to_string_lossy())
            })?;
            ensure!(line.text().contains(field), "{name}: the field {field:?} is not named in {line}");
            if let Some(number) = line_of(&bad, to.lines().next_back().unwrap_or(to)).filter(|_| !field.is_empty()) {
                ensure!(line.text().contains(&format!(":{number}")), "{name}: line {number} is not named in {line}");
            }
            undisturbed().with_context(|| format!("after {name}"))?;
        }
        // And it recovers: a new pod of the next good file is known.
        workload_file::replace(&path, &good)?;
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::A))?;
        client::round_trip(&late.connect(mesh.pod("server").at(PORT))?, b"known after all")?;
        mesh.remove_pod(&late)
    })
}

#[test]
fn a_daemon_that_is_started_with_a_broken_file_or_flag_says_so_and_does_not_run() -> Result<()> {
    with_mesh(|mesh| {
        mesh.take_daemon(NodeId::A).context("a daemon")?.kill()?;
        let (mesh_file, root_file) = (mesh.workload_file(NodeId::A).to_owned(), mesh.ca_root_file());
        let root = fs::read_to_string(&root_file)?;
        let half_a_certificate = root[..root.len() / 3].to_owned();
        for (path, good, broken) in [
            (&mesh_file, mesh.model().to_yaml(), "workloads:\n- name: 7\n  nonsense: true\n"),
            (&root_file, root, &half_a_certificate),
        ] {
            workload_file::replace(path, broken)?;
            let error = format!("{:#}", mesh.start_daemon(NodeId::A).err().context("it started")?);
            ensure!(error.contains("exited") && error.contains(&*path.to_string_lossy()), "{error}");
            workload_file::replace(path, &good)?;
        }
        for cores in ["100000", "many", "1-0", "0%"] {
            mesh.set_cores(cores);
            let error = format!("{:#}", mesh.start_daemon(NodeId::A).err().context("it started")?);
            ensure!(error.contains("exited") && error.contains("cores"), "--cores {cores}: {error}");
        }
        mesh.set_cores("2");
        mesh.start_daemon(NodeId::A)
    })
}
