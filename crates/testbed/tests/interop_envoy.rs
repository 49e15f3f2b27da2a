//! A mesh in which Envoy is the other end of the tunnels, in both roles: what the daemon and a foreign implementation of
//! CONNECT over HTTP/2, mutual TLS and SPIFFE have to agree on. Run by `make interop`.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use testbed::certificate::{Authority, Leaf, LeafSpec};
use testbed::client::{self, End};
use testbed::envoy::{Acceptor, Answer, Dialler, Envoy, Peers};
use testbed::fixture;
use testbed::log::{Line, Log, Mark};
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::serve::{Server, echo};
use testbed::transfer::{self, First, Pattern, Side};
use testbed::wait;
use testbed::workload_file::PolicyEntry;

/// Where applications listen.
const PORT: u16 = 8080;
/// Where Envoy takes connections for its tunnels.
const ENTRY: u16 = 20_001;
const TRANSFER_BYTES: u64 = 16 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

/// A captured pod on each node, and one of node B that belongs to Envoy.
fn with_mesh(fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    let pods = [
        PodSpec::new("client", NodeId::A).tenant("web", "client"),
        PodSpec::new("server", NodeId::A).tenant("shop", "server"),
        PodSpec::new("envoy", NodeId::B).tenant("edge", "envoy").uncaptured(),
    ];
    fixture::run(MeshSpec::default(), &pods, fact)
}

/// A certificate of the mesh's CA for Envoy, naming `identity`.
fn leaf(mesh: &Mesh, identity: &str) -> Result<Leaf> {
    Authority::from_root_file(&mesh.ca_root_file())?.sign(&LeafSpec::named(&[identity]))
}

/// Envoy in its pod as an HBONE server that presents `identity`, and the mesh told that it is one. Returns when node A's
/// daemon knows.
fn accepting(mesh: &mut Mesh, identity: &str, acceptor: &Acceptor) -> Result<Envoy> {
    let pod = mesh.pod("envoy");
    let envoy = Envoy::accept(&pod, &leaf(mesh, identity)?, &mesh.ca_root_file(), acceptor)?;
    mesh.edit(|model| model.workloads.values_mut().for_each(|workload| workload.captured = true))?;
    let (client, log) = (mesh.pod("client"), mesh.daemon(NodeId::A).log());
    wait::until_ok("the daemon to know that Envoy speaks HBONE", PATIENCE, || {
        let mark = log.mark();
        // What becomes of this one is the test's own question; only which way it takes counts here.
        let end = client::await_end(&hung_up(client.connect(pod.at(PORT))?)?)?;
        ensure!(!matches!(end, End::Silence(_)), "no end came");
        log.await_line(mark, "a tunnel", Duration::from_millis(500), |line| {
            line.is_access() && line.has("dst.hbone_addr", &pod.at(PORT).to_string())
        })
    })?;
    Ok(envoy)
}

/// Envoy in its pod as an HBONE client that presents `identity`, with an entry that leads to `authority` through the
/// captured pod `server`, whom it expects there.
fn dialling(mesh: &Mesh, identity: &str, authority: SocketAddr) -> Result<Envoy> {
    dialling_to(mesh, identity, authority, &mesh.pod("server").identity())
}

fn dialling_to(mesh: &Mesh, identity: &str, authority: SocketAddr, expected: &str) -> Result<Envoy> {
    let dialler = Dialler { port: ENTRY, hop: mesh.pod("server").at(15008), authority, expected: expected.to_owned() };
    Envoy::dial(&mesh.pod("envoy"), &leaf(mesh, identity)?, &mesh.ca_root_file(), &dialler)
}

/// A connection into the tunnels of the Envoy that dials.
fn enter(mesh: &Mesh) -> Result<TcpStream> {
    mesh.pod("envoy").connect((Ipv4Addr::LOCALHOST, ENTRY).into())
}

fn forwarding() -> Acceptor {
    let peers = Peers::Prefix("spiffe://cluster.local/".into());
    Acceptor { peers, answer: Answer::Forward, streams_max: 100, goodbye_after: 0 }
}

/// An application that exchanges as many bytes as [`exchange`] does, and checks them.
fn exchanging(pod: &Pod) -> Result<Server> {
    let pattern = Arc::new(Pattern::default());
    pod.serve(PORT, move |stream, _| {
        transfer::run(stream, &pattern, Side::server(0, TRANSFER_BYTES, First::Client)).map_err(io::Error::other)
    })
}

fn exchange(stream: &TcpStream) -> Result<()> {
    transfer::run(stream, &Pattern::default(), Side::client(0, TRANSFER_BYTES, First::Client))
}

/// Waits for the end of the only connection of `application`.
fn await_good_end(application: &Server) -> Result<()> {
    wait::until("the application to see the end", PATIENCE, || !application.endings().is_empty())?;
    for ending in application.endings() {
        ending.result.map_err(|error| anyhow!("the application: {error}"))?;
    }
    Ok(())
}

/// How a connection ends that is to be refused. That may be quicker than the return of `connect`. Nothing is said on it:
/// bytes left unread would make even an orderly close a reset.
fn refusal(connected: Result<TcpStream>) -> Result<End> {
    match connected {
        Ok(stream) => client::await_end(&stream),
        Err(error) if error.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::ConnectionReset) => {
            Ok(End::Reset(0))
        }
        Err(error) => Err(error),
    }
}

fn hung_up(stream: TcpStream) -> Result<TcpStream> {
    stream.shutdown(Shutdown::Write)?;
    Ok(stream)
}

/// Opens `count` connections, one after the other, says hello on each while all are open, and closes them.
fn all_at_once(count: usize, connect: impl Fn() -> Result<TcpStream>) -> Result<()> {
    let mut streams = Vec::new();
    for at in 0..count {
        let stream = connect()?;
        client::round_trip(&stream, b"first").with_context(|| format!("connection {at} of {count}"))?;
        streams.push(stream);
    }
    for (at, stream) in streams.iter().enumerate() {
        let text = format!("{at} with all the others open");
        client::round_trip(stream, text.as_bytes()).with_context(|| format!("connection {at} of {count}"))?;
    }
    for stream in streams {
        ensure!(client::await_end(&hung_up(stream)?)? == End::Clean(0), "a connection ended badly");
    }
    Ok(())
}

/// How many CONNECTs that brought data each tunnel carried, the most first, once Envoy has told of all `count`.
fn per_tunnel(envoy: &Envoy, mark: Mark, count: usize) -> Result<Vec<usize>> {
    let useful = || envoy.connects_since(mark).into_iter().filter(|line| !line.has("received", "0"));
    wait::until("Envoy's lines", PATIENCE, || useful().count() >= count)?;
    let mut tunnels = BTreeMap::<String, usize>::new();
    for line in useful() {
        *tunnels.entry(line.field("tunnel")).or_default() += 1;
    }
    let mut counts: Vec<usize> = tunnels.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    Ok(counts)
}

fn expect(line: &Line, fields: &[(&str, &str)]) -> Result<()> {
    for (name, value) in fields {
        ensure!(line.has(name, value), "{name} is {:?}, not {value:?}, in {line}", line.field(name));
    }
    Ok(())
}

fn expect_part(line: &Line, name: &str, part: &str) -> Result<()> {
    ensure!(line.field(name).contains(part), "{name} is {:?}, without {part:?}, in {line}", line.field(name));
    Ok(())
}

#[test]
fn a_captured_pod_reaches_an_application_behind_envoy_and_each_end_proves_who_it_is() -> Result<()> {
    with_mesh(|mesh| {
        let (client, behind) = (mesh.pod("client"), mesh.pod("envoy"));
        let only_client = Acceptor { peers: Peers::Exactly(client.identity()), ..forwarding() };
        let envoy = accepting(mesh, &behind.identity(), &only_client)?;
        let application = exchanging(&behind)?;
        let log = mesh.daemon(NodeId::A).log();
        let (mark, envoy_mark) = (log.mark(), envoy.log().mark());

        let stream = client.connect(behind.at(PORT))?;
        exchange(&stream)?;
        await_good_end(&application)?;

        let (authority, source, bytes) =
            (behind.at(PORT).to_string(), stream.local_addr()?.to_string(), TRANSFER_BYTES.to_string());
        let request = envoy.await_connect(envoy_mark, "the CONNECT", |line| line.has("status", "200"))?;
        expect(
            &request,
            &[
                ("peer", &client.identity()),
                ("own", &behind.identity()),
                ("tls", "TLSv1.3"),
                ("sni", ""),
                ("protocol", "HTTP/2"),
                ("method", "CONNECT"),
                ("authority", &authority),
                ("forwarded", &format!("for=\"{source}\"")),
                ("received", &bytes),
            ],
        )?;
        for part in ["k8s.namespace.name=web", "service.name=client"] {
            expect_part(&request, "baggage", part)?;
        }
        ensure!(request.field("traceparent").len() == 55, "traceparent in {request}");
        let from = format!("{}:", client.address);
        ensure!(request.field("tunnel").starts_with(&from), "the tunnel does not come from the pod: {request}");

        let line = log.await_access(mark, "the connection", |line| line.has("bytes_sent", &bytes))?;
        expect(
            &line,
            &[
                ("message", "connection complete"),
                ("src.identity", &client.identity()),
                ("dst.identity", &behind.identity()),
                ("dst.hbone_addr", &authority),
                ("bytes_recv", &bytes),
                ("error", ""),
            ],
        )
    })
}

#[test]
fn envoy_reaches_an_application_in_a_captured_pod_that_sees_the_address_of_the_client() -> Result<()> {
    with_mesh(|mesh| {
        let (server, behind) = (mesh.pod("server"), mesh.pod("envoy"));
        let envoy = dialling(mesh, &behind.identity(), server.at(PORT))?;
        let application = exchanging(&server)?;
        let log = mesh.daemon(NodeId::A).log();
        let (mark, envoy_mark) = (log.mark(), envoy.log().mark());

        exchange(&enter(mesh)?)?;
        await_good_end(&application)?;
        let seen = application.endings()[0].peer;
        ensure!(seen.ip() == behind.address, "the application saw {seen}");

        let bytes = TRANSFER_BYTES.to_string();
        let line = envoy.await_connect(envoy_mark, "the CONNECT", |line| line.has("received", &bytes))?;
        expect(&line, &[("peer", &server.identity())])?;
        let line = log.await_access(mark, "the connection", |line| line.has("bytes_sent", &bytes))?;
        expect(
            &line,
            &[
                ("message", "connection complete"),
                ("direction", "inbound"),
                ("src.workload", &behind.name),
                ("src.identity", &behind.identity()),
                ("dst.identity", &server.identity()),
                ("dst.hbone_addr", &server.at(PORT).to_string()),
                ("bytes_recv", &bytes),
                ("error", ""),
            ],
        )
    })
}

#[test]
fn an_envoy_whose_certificate_names_another_workload_gets_no_connection_and_the_application_a_reset() -> Result<()> {
    let rows = [
        ("another account", "spiffe://cluster.local/ns/edge/sa/thief"),
        ("another namespace", "spiffe://cluster.local/ns/web/sa/envoy"),
        ("another trust domain", "spiffe://elsewhere.example/ns/edge/sa/envoy"),
    ];
    for (name, identity) in rows {
        with_mesh(|mesh| {
            let (client, behind) = (mesh.pod("client"), mesh.pod("envoy"));
            let envoy = accepting(mesh, identity, &forwarding())?;
            let application = behind.serve(PORT, echo)?;
            let log = mesh.daemon(NodeId::A).log();
            let mark = log.mark();
            let end = refusal(client.connect(behind.at(PORT)))?;
            ensure!(end == End::Reset(0), "{end:?}");
            let line = log.await_access(mark, "the refusal", |line| line.has("direction", "outbound"))?;
            expect(&line, &[("level", "error"), ("message", "connection complete"), ("bytes_sent", "0")])?;
            for part in ["identity verification error", &behind.identity(), identity] {
                expect_part(&line, "error", part)?;
            }
            ensure!(envoy.connects_since(Log::start()).is_empty(), "Envoy was sent a CONNECT");
            ensure!(application.accepted() == 0, "the application was reached");
            Ok(())
        })
        .with_context(|| name)?;
    }
    Ok(())
}

#[test]
fn an_envoy_that_expects_somebody_else_refuses_the_handshake_in_either_role() -> Result<()> {
    const NOBODY: &str = "spiffe://cluster.local/ns/web/sa/nobody";
    with_mesh(|mesh| {
        let (client, server, behind) = (mesh.pod("client"), mesh.pod("server"), mesh.pod("envoy"));
        let log = mesh.daemon(NodeId::A).log().clone();
        {
            let application = server.serve(PORT, echo)?;
            let envoy = dialling_to(mesh, &behind.identity(), server.at(PORT), NOBODY)?;
            let end = refusal(enter(mesh))?;
            ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{end:?}");
            let line = envoy.await_connect(Log::start(), "its refusal", |_| true)?;
            expect_part(&line, "failure", "CERTIFICATE_VERIFY_FAILED")?;
            ensure!(application.accepted() == 0, "the application was reached");
        }
        let only_nobody = Acceptor { peers: Peers::Exactly(NOBODY.into()), ..forwarding() };
        let envoy = accepting(mesh, &behind.identity(), &only_nobody)?;
        let application = behind.serve(PORT, echo)?;
        let mark = log.mark();
        let end = refusal(client.connect(behind.at(PORT)))?;
        ensure!(end == End::Reset(0), "{end:?}");
        envoy.log().await_line(Log::start(), "its refusal", PATIENCE, |line| {
            line.has("event", "tunnel") && line.field("failure").contains("CERTIFICATE_VERIFY_FAILED")
        })?;
        let line = log.await_access(mark, "what the client's side says", |line| line.has("direction", "outbound"))?;
        expect(&line, &[("level", "error")])?;
        // Envoy refuses after our side of the handshake is done, so it is the tunnel that breaks.
        expect_part(&line, "error", "tunnel")?;
        ensure!(application.accepted() == 0, "the application was reached");
        Ok(())
    })
}

#[test]
fn an_envoy_that_is_not_of_this_trust_domain_or_of_this_ca_is_refused_at_the_handshake() -> Result<()> {
    with_mesh(|mesh| {
        let (server, behind) = (mesh.pod("server"), mesh.pod("envoy"));
        let application = server.serve(PORT, echo)?;
        let log = mesh.daemon(NodeId::A).log();
        let foreign = "spiffe://elsewhere.example/ns/edge/sa/envoy";
        let rows = [
            ("another trust domain", leaf(mesh, foreign)?, "elsewhere.example"),
            ("another CA", Authority::stranger()?.sign(&LeafSpec::named(&[&behind.identity()]))?, "issued"),
            ("no SPIFFE name", leaf(mesh, "https://elsewhere.example/envoy")?, "SPIFFE"),
        ];
        for (name, leaf, word) in rows {
            let mark = log.mark();
            let dialler =
                Dialler { port: ENTRY, hop: server.at(15008), authority: server.at(PORT), expected: server.identity() };
            let envoy = Envoy::dial(&behind, &leaf, &mesh.ca_root_file(), &dialler)?;
            let end = refusal(enter(mesh))?;
            ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{name}: {end:?}");
            let line = envoy.await_connect(Log::start(), name, |_| true)?;
            expect(&line, &[("answer", ""), ("tunnel", "")]).context(name)?;
            // The daemon said why, in TLS's own words, before it hung up.
            envoy.await_alert().context(name)?;
            log.await_line(mark, name, PATIENCE, |line| line.is_access() && line.field("error").contains(word))?;
        }
        ensure!(application.accepted() == 0, "the application was reached");
        Ok(())
    })
}

#[test]
fn a_policy_that_does_not_allow_envoy_answers_its_connect_with_401() -> Result<()> {
    with_mesh(|mesh| {
        let (server, behind) = (mesh.pod("server"), mesh.pod("envoy"));
        let application = server.serve(PORT, echo)?;
        let envoy = dialling(mesh, &behind.identity(), server.at(PORT))?;
        let policy = |name: &str, action: &'static str, principal: &str| PolicyEntry {
            name: name.into(),
            namespace: "shop".into(),
            scope: "WorkloadSelector",
            action,
            rules: PolicyEntry::from_principals(&[principal]),
        };
        let rows = [
            (policy("not-envoy", "Deny", &behind.principal()), "explicitly denied by: shop/not-envoy"),
            (policy("only-client", "Allow", &mesh.pod("client").principal()), "allow policies exist, but none allowed"),
        ];
        for (policy, reason) in rows {
            let name = policy.name.clone();
            wait::until_ok("Envoy to be let in", PATIENCE, || client::round_trip(&enter(mesh)?, b"let me in"))?;
            mesh.add_policy(policy, &[&server])?;
            let log = mesh.daemon(NodeId::A).log();
            let refused = wait::until_ok("a refusal", PATIENCE, || {
                let (mark, envoy_mark, accepted) = (log.mark(), envoy.log().mark(), application.accepted());
                let end = refusal(enter(mesh))?;
                let line = envoy.await_connect(envoy_mark, "the answer", |_| true)?;
                expect_part(&line, "answer", "401")?;
                ensure!(application.accepted() == accepted, "the application was reached");
                ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{end:?}");
                log.await_access(mark, "the refusal", |line| line.has("direction", "inbound"))
            })
            .context(name)?;
            expect(&refused, &[("level", "error"), ("src.identity", &behind.identity())])?;
            expect_part(&refused, "error", reason)?;
            mesh.edit(|model| {
                model.policies.clear();
                model.workloads.values_mut().for_each(|workload| workload.policies.clear());
            })?;
        }
        Ok(())
    })
}

#[test]
fn an_authority_that_leads_nowhere_answers_envoy_with_503_and_a_foreign_one_with_400() -> Result<()> {
    with_mesh(|mesh| {
        let (server, behind) = (mesh.pod("server"), mesh.pod("envoy"));
        let rows = [
            ("where nobody listens", server.at(9), "503"),
            ("the proxy itself", server.at(15001), "503"),
            ("another pod", mesh.pod("client").at(PORT), "400"),
        ];
        for (name, authority, status) in rows {
            let envoy = dialling(mesh, &behind.identity(), authority)?;
            let end = refusal(enter(mesh))?;
            ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{name}: {end:?}");
            let line = envoy.await_connect(Log::start(), name, |_| true)?;
            expect_part(&line, "answer", status).context(name)?;
        }
        Ok(())
    })
}

#[test]
fn a_refusal_by_envoy_resets_the_application_and_the_log_names_the_status() -> Result<()> {
    let rows = [
        (Answer::Status(401), "http status: 401"),
        (Answer::ForwardOnlyFor("spiffe://cluster.local/ns/web/sa/nobody".into()), "http status: 403"),
        // Nobody listens behind it.
        (Answer::Forward, "http status: 503"),
        // A success, but not the one that opens a tunnel.
        (Answer::Status(204), "http status: 204"),
    ];
    for (answer, word) in rows {
        with_mesh(|mesh| {
            let (client, behind) = (mesh.pod("client"), mesh.pod("envoy"));
            let _envoy = accepting(mesh, &behind.identity(), &Acceptor { answer, ..forwarding() })?;
            let log = mesh.daemon(NodeId::A).log();
            let mark = log.mark();
            let end = refusal(client.connect(behind.at(PORT)))?;
            ensure!(end == End::Reset(0), "{end:?}");
            let line = log.await_access(mark, "the refusal", |line| line.has("direction", "outbound"))?;
            expect(
                &line,
                &[
                    ("level", "error"),
                    ("message", "connection complete"),
                    ("dst.hbone_addr", &behind.at(PORT).to_string()),
                    ("dst.identity", &behind.identity()),
                ],
            )?;
            expect_part(&line, "error", word)
        })
        .context(word)?;
    }
    Ok(())
}

#[test]
fn an_envoy_that_admits_this_identity_by_policy_lets_it_through() -> Result<()> {
    with_mesh(|mesh| {
        let (client, behind) = (mesh.pod("client"), mesh.pod("envoy"));
        let answer = Answer::ForwardOnlyFor(client.identity());
        let _envoy = accepting(mesh, &behind.identity(), &Acceptor { answer, ..forwarding() })?;
        let _application = behind.serve(PORT, echo)?;
        client::round_trip(&client.connect(behind.at(PORT))?, b"let me in")
    })
}

#[test]
fn connections_of_envoy_share_tunnels_of_200_streams() -> Result<()> {
    const CONNECTIONS: usize = 450;
    with_mesh(|mesh| {
        let (server, behind) = (mesh.pod("server"), mesh.pod("envoy"));
        let envoy = dialling(mesh, &behind.identity(), server.at(PORT))?;
        let application = server.serve(PORT, echo)?;
        let mark = envoy.log().mark();
        all_at_once(CONNECTIONS, || enter(mesh))?;
        ensure!(application.most_at_once() == CONNECTIONS, "{} at once", application.most_at_once());
        let tunnels = per_tunnel(&envoy, mark, CONNECTIONS)?;
        ensure!(tunnels == [200, 200, 50], "streams of each tunnel: {tunnels:?}");
        Ok(())
    })
}

#[test]
fn connections_of_a_captured_pod_share_tunnels_to_envoy_and_keep_to_its_limit_of_streams() -> Result<()> {
    // What Envoy allows a tunnel, connections, streams that each tunnel is to carry. Our own limit is 100.
    let rows = [(10, 25, vec![10, 10, 5]), (1000, 120, vec![100, 20])];
    for (streams_max, connections, expected) in rows {
        with_mesh(|mesh| {
            let (client, behind) = (mesh.pod("client"), mesh.pod("envoy"));
            let envoy = accepting(mesh, &behind.identity(), &Acceptor { streams_max, ..forwarding() })?;
            let application = behind.serve(PORT, echo)?;
            let mark = envoy.log().mark();
            all_at_once(connections, || client.connect(behind.at(PORT)))?;
            ensure!(application.most_at_once() == connections, "{} at once", application.most_at_once());
            let tunnels = per_tunnel(&envoy, mark, connections)?;
            ensure!(tunnels == expected, "Envoy allows {streams_max} streams; there were {tunnels:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_goodbye_of_envoy_to_a_tunnel_ends_no_connection_and_the_next_one_takes_another() -> Result<()> {
    const CONNECTIONS: usize = 12;
    with_mesh(|mesh| {
        let (client, behind) = (mesh.pod("client"), mesh.pod("envoy"));
        let envoy = accepting(mesh, &behind.identity(), &Acceptor { goodbye_after: 5, ..forwarding() })?;
        let application = behind.serve(PORT, echo)?;
        let mark = envoy.log().mark();
        all_at_once(CONNECTIONS, || client.connect(behind.at(PORT)))?;
        ensure!(application.most_at_once() == CONNECTIONS, "{} at once", application.most_at_once());
        let tunnels = per_tunnel(&envoy, mark, CONNECTIONS)?;
        ensure!(tunnels.len() >= 3, "streams of each tunnel: {tunnels:?}");
        Ok(())
    })
}
