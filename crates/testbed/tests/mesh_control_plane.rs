//! Two real daemons that know the mesh from a control plane over gRPC and have their certificates from its CA: captured
//! connections, policy, and a control plane that goes away and comes back.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::proto::discovery::Resource;
use control::proto::security::{Authorization, Clause, Match, MatchType, Rule, StringMatch};
use control::xds::Kind;
use testbed::ca_server::Root;
use testbed::client::{self, End};
use testbed::fixture;
use testbed::log::Log;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::serve::{echo, named, who_am_i};
use testbed::wait;
use testbed::xds_server::{Seen, policy};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

fn pods() -> Vec<PodSpec> {
    vec![
        PodSpec::new("client", NodeId::A).tenant("web", "client"),
        PodSpec::new("server", NodeId::B).tenant("shop", "server"),
    ]
}

fn with_mesh(fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    fixture::run(MeshSpec::with_control_plane(), &pods(), fact)
}

/// One request over a connection of its own; what the server says.
fn asked(from: &Pod, to: &Pod) -> Result<String> {
    client::read_text(&from.connect(to.at(PORT))?)
}

/// A round trip on a connection that is there.
fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping");
    Ok(())
}

/// Refuses whoever is `principal` everywhere.
fn deny(principal: &str) -> Authorization {
    let principals = vec![StringMatch { match_type: Some(MatchType::Exact(principal.into())) }];
    let matches = vec![Match { principals, ..Match::default() }];
    Authorization {
        name: "deny".into(),
        namespace: "istio-system".into(),
        action: 1,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        ..Authorization::default()
    }
}

#[test]
fn a_captured_connection_is_tunnelled_by_identities_of_the_control_planes_ca() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, who_am_i)?;
        let log = mesh.daemon(NodeId::B).log();
        let mark = log.mark();
        let seen = asked(&client, &server)?;
        ensure!(seen.starts_with(&client.address.to_string()), "the server saw {seen}");
        let line = log.await_access(mark, "inbound", |line| line.has("direction", "inbound"))?;
        ensure!(line.field("src.identity") == client.identity(), "{line}");
        ensure!(line.field("dst.identity") == server.identity(), "{line}");
        let mut asked: Vec<String> = mesh.control_plane().ca.asked().into_iter().map(|asked| asked.identity).collect();
        asked.sort();
        ensure!(asked == [server.identity(), client.identity()], "each daemon asks for its own pods: {asked:?}");
        let page = mesh.daemon(NodeId::A).metrics()?;
        let connected = page.sum("coretunnel_xds_connected", &[]);
        ensure!(connected == 1.0, "coretunnel_xds_connected is {connected}");
        Ok(())
    })
}

#[test]
fn status_tells_of_control_plane_ca_pods_and_each_cores_generation_and_connections() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream)?;
        let page = mesh.daemon(NodeId::A).status()?;
        ensure!(page["pending"].as_array().is_some_and(Vec::is_empty), "{page}");
        ensure!(page["xds"]["connected"] == true && page["zds"]["connected"] == true, "{page}");
        ensure!(page["xds"]["addresses"] == 2 && page["zds"]["pods"] == 1, "{page}");
        ensure!(page["ca"]["issued"] == 1 && page["ca"]["failed"] == 0, "{page}");
        let cores: Vec<_> = page["cores"].as_array().into_iter().flatten().map(|core| &core["standing"]).collect();
        let sum = |of: &str| cores.iter().filter_map(|core| core[of].as_u64()).sum::<u64>();
        ensure!(cores.len() == 2 && sum("pods") == 1 && sum("connections") == 1, "{page}");
        ensure!(cores.iter().all(|core| core["generation"] == page["generation"]), "{page}");
        ensure!(cores.iter().all(|core| core["generation_age_s"].as_f64().is_some_and(|age| age > 0.0)), "{page}");

        mesh.control_plane_mut().stop();
        let daemon = mesh.daemon(NodeId::A);
        wait::until("status that tells of the loss", PATIENCE, || {
            daemon.status().is_ok_and(|page| {
                let why = page["xds"]["last_lost"]["why"].as_str().is_some_and(|why| !why.is_empty());
                page["xds"]["connected"] == false && why && page["xds"]["addresses"] == 2
            })
        })
    })
}

#[test]
fn a_service_and_a_policy_of_the_control_plane_steer_and_refuse_and_a_live_connection_is_closed() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let vip = mesh.add_service("web", "shop", [10, 96, 0, 7].into(), 80, &[(&server, PORT)])?;
        let mut stream = wait::until_ok("the service", PATIENCE, || {
            let mut stream = client.connect(vip)?;
            echoes(&mut stream)?;
            Ok(stream)
        })?;
        mesh.control_plane().xds.update([policy(&deny(&client.principal()))], &[]);
        ensure!(matches!(client::await_end(&stream)?, End::Reset(_) | End::Clean(_)), "closed, however");
        ensure!(echoes(&mut stream).is_err());
        wait::until("a refusal", PATIENCE, || client.turned_away(server.at(PORT)).is_ok())?;
        mesh.control_plane().xds.update([], &["istio-system/deny"]);
        wait::until_ok("it to be let in again", PATIENCE, || echoes(&mut client.connect(vip)?))
    })
}

/// What STRICT peer authentication becomes: whoever has no identity is refused.
fn strict() -> Authorization {
    let not_principals = vec![StringMatch { match_type: Some(MatchType::Presence(())) }];
    let matches = vec![Match { not_principals, ..Match::default() }];
    Authorization {
        name: "strict".into(),
        namespace: "istio-system".into(),
        scope: 2,
        action: 1,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        ..Authorization::default()
    }
}

/// The mesh's workloads and services, the server's naming one more policy.
fn naming(mesh: &Mesh, policy: &str) -> Result<Vec<Resource>> {
    let mut model = mesh.model().clone();
    model.workloads.get_mut("server").context("the server")?.policies.push(policy.into());
    model.to_resources()
}

/// As istiod does it: the workload names the policy in one response, and the next one brings the policy. Negative control,
/// done by hand: with a patience of nothing the first connection is closed.
#[test]
fn live_tunnels_survive_a_policy_that_permits_them_and_comes_after_the_workload_that_names_it() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server, stranger) = (mesh.pod("client"), mesh.pod("server"), mesh.outside("stranger")?);
        let _server = server.serve(PORT, echo)?;
        let mut live = client.connect(server.at(PORT))?;
        echoes(&mut live)?;
        let mut plain = stranger.connect(server.at(PORT))?;
        echoes(&mut plain)?;
        let before = mesh.control_plane().xds.answers().len();
        let set = naming(mesh, "istio-system/strict")?;
        mesh.control_plane().xds.update(set.into_iter().chain([policy(&strict())]), &[]);
        ensure!(matches!(client::await_end(&plain)?, End::Reset(_) | End::Clean(_)), "what it forbids is closed");
        wait::until("plaintext to be refused", PATIENCE, || {
            stranger.connect(server.at(PORT)).and_then(|mut stream| echoes(&mut stream)).is_err()
        })?;
        let answers = mesh.control_plane().xds.answers().split_off(before);
        for stream in answers.iter().map(|seen| seen.stream) {
            let mut kinds = answers.iter().filter(|seen| seen.stream == stream).map(Seen::kind);
            ensure!(kinds.next() == Some(Some(Kind::Address)), "the policy came first: {answers:?}");
        }
        echoes(&mut live).context("the tunnel of before")?;
        echoes(&mut client.connect(server.at(PORT))?).context("a new one")?;

        // One that never comes is waited for, and then refuses everybody.
        let log = mesh.daemon(NodeId::B).log();
        let mark = log.mark();
        let set = naming(mesh, "istio-system/never")?;
        mesh.control_plane().xds.update(set, &[]);
        ensure!(matches!(client::await_end(&live)?, End::Reset(_) | End::Clean(_)), "closed, however");
        log.await_line(mark, "the reason", PATIENCE, |line| {
            line.text().contains("istio-system/never") && line.text().contains("has not come")
        })?;
        Ok(())
    })
}

/// Adds a pod that the CNI agent tells of and the control plane does not yet.
fn unheard_of(mesh: &mut Mesh) -> Result<Pod> {
    mesh.control_plane().xds.mute(|name| name.ends_with("/late"));
    mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))
}

#[test]
fn a_new_pod_waits_for_its_workload_unless_it_is_to_be_served_before() -> Result<()> {
    with_mesh(|mesh| {
        let late = unheard_of(mesh)?;
        let log = mesh.daemon(NodeId::B).log();
        let mark = log.mark();
        late.turned_away(mesh.pod("server").at(PORT))?;
        log.await_access(mark, "the reason", |line| line.field("error").contains("local workload: shop/late did not"))?;
        mesh.remove_pod(&late)
    })
}

#[test]
fn a_new_pod_is_served_by_what_the_cni_agent_says_of_it_as_far_as_policy_permits() -> Result<()> {
    let spec = MeshSpec::with_control_plane().with("CORETUNNEL_NEW_PODS", "serve");
    fixture::run(spec, &pods(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let vip = mesh.add_service("web", "shop", [10, 96, 0, 7].into(), 80, &[(&server, PORT)])?;
        let late = unheard_of(mesh)?;
        let _late = late.serve(PORT, echo)?;
        // Out of it: by its own identity, through the mesh's services.
        let log = mesh.daemon(NodeId::B).log().clone();
        let mark = log.mark();
        wait::until_ok("the service", PATIENCE, || echoes(&mut late.connect(vip)?))?;
        log.await_access(mark, "the tunnel", |line| {
            line.has("direction", "inbound") && line.has("src.identity", &late.identity())
        })?;
        // Into it: the other node does not know it either, so in plain.
        echoes(&mut client.connect(late.at(PORT))?)?;
        // A policy that selects some workloads: nobody can say whether this one is among them.
        let stranger = mesh.outside("stranger")?;
        let set = naming(mesh, "istio-system/strict")?;
        let set = set.into_iter().filter(|resource| resource.name.ends_with("/server"));
        mesh.control_plane().xds.update(set.chain([policy(&strict())]), &[]);
        wait::until("the policy", PATIENCE, || {
            stranger.connect(server.at(PORT)).and_then(|mut stream| echoes(&mut stream)).is_err()
        })?;
        let mark = log.mark();
        ensure!(client.connect(late.at(PORT)).and_then(|mut stream| echoes(&mut stream)).is_err(), "it was let in");
        log.await_access(mark, "the reason", |line| line.field("error").contains("local workload: shop/late did not"))?;
        echoes(&mut late.connect(vip)?).context("out of it, policy is the other end's")?;
        // Its workload, which names no policy.
        mesh.control_plane().xds.unmute();
        wait::until_ok("its workload", PATIENCE, || {
            let mark = log.mark();
            echoes(&mut client.connect(late.at(PORT))?)?;
            let line = log.await_access(mark, "inbound", |line| line.has("direction", "inbound"))?;
            ensure!(line.field("src.identity") == client.identity(), "in plain: {line}");
            Ok(())
        })?;
        mesh.remove_pod(&late)
    })
}

/// PING after 30 s, and 10 s to answer it (§8.1); TCP would take hours.
const UNTIL_SILENCE_IS_NOTICED: Duration = Duration::from_secs(60);

#[test]
fn a_control_plane_that_falls_silent_is_noticed_left_and_found_again() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let log = mesh.daemon(NodeId::B).log();
        let mark = log.mark();
        mesh.control_plane().fall_silent()?;
        mesh.control_plane().xds.update([policy(&deny(&client.principal()))], &[]);
        log.await_line(mark, "the end of the connection", UNTIL_SILENCE_IS_NOTICED, |line| {
            line.text().contains("did not answer a PING")
        })?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream).context("nobody was told of the policy")?;
        mesh.control_plane().speak_again()?;
        // An attempt takes 5 s to fail.
        wait::until("the policy", PATIENCE, || client.turned_away(server.at(PORT)).is_ok())?;
        let end = client::await_end(&stream)?;
        ensure!(matches!(end, End::Reset(_) | End::Clean(_)), "the connection of before: {end:?}");
        Ok(())
    })
}

#[test]
fn a_control_plane_that_goes_away_takes_nothing_with_it_and_what_is_new_waits_for_its_return() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream)?;
        mesh.control_plane_mut().stop();
        echoes(&mut stream)?;
        echoes(&mut client.connect(server.at(PORT))?).context("a new connection of a pod that was there")?;
        // A new pod is taken in, and has no certificate yet.
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))?;
        let _late = late.serve(PORT, named("late"))?;
        mesh.control_plane_mut().resume()?;
        let log = mesh.daemon(NodeId::B).log();
        let mark = log.mark();
        wait::until_ok("the new pod to be reached in a tunnel", PATIENCE, || {
            let said = client::read_line(&client.connect(late.at(PORT))?)?;
            ensure!(said == "late", "{said:?}");
            let lines = log.access_since(mark);
            ensure!(lines.iter().any(|line| line.field("src.identity") == client.identity()), "in plain so far");
            Ok(())
        })?;
        echoes(&mut stream).context("the connection from before")?;
        let streams = mesh.control_plane().xds.requests();
        let again = streams.iter().filter(|seen| !seen.request.initial_resource_versions.is_empty()).count();
        ensure!(again >= 2, "both daemons said what they have: {again}");
        mesh.remove_pod(&late)
    })
}

/// As a mesh's operator replaces a root: first it is told, then it signs, then the old one is told no more; each step when
/// all that are short-lived have renewed since the one before. The server's certificate is not renewed at all: it learns of
/// the new root by its neighbour's, and its clients believe the old one by their neighbour's. Each connection is in a
/// tunnel of its own. Negative control, done by hand: credentials that do not give their neighbours the new roots.
#[test]
fn a_root_is_replaced_under_load_and_no_connection_fails() -> Result<()> {
    let spec = MeshSpec::with_control_plane().with("POOL_UNUSED_RELEASE_TIMEOUT", "1s");
    fixture::run(spec, &pods(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        // Those that are there have certificates of a day; those of the two that come now end soon.
        let ca = mesh.control_plane().ca.clone();
        ca.set_lifetime(Duration::from_secs(4));
        let late = [("late-a", NodeId::A), ("late-b", NodeId::B)].map(|(name, node)| PodSpec::new(name, node));
        let [from, news] = [mesh.add_pod(&late[0])?, mesh.add_pod(&late[1])?];
        let log = mesh.daemon(NodeId::B).log();
        let mark = log.mark();
        let before = fixture::descriptors(mesh)?;
        let until_all_have_renewed = || -> Result<()> {
            let asked = ca.asked().len();
            let renewed =
                |pod: &Pod| ca.asked()[asked..].iter().filter(|asked| asked.identity == pod.identity()).count();
            // Twice: the first may have been on its way before the step.
            while renewed(&from) < 2 || renewed(&news) < 2 {
                echoes(&mut from.connect(server.at(PORT))?)?;
                // Its tunnel is let go after a second, so the next one shakes hands.
                fixture::await_descriptors(mesh, &before)?;
            }
            Ok(())
        };
        let new = Root::new("the mesh's next CA")?;
        until_all_have_renewed()?;
        ca.announce(&new);
        until_all_have_renewed()?;
        ca.rotate(new);
        until_all_have_renewed()?;
        ca.forget_old_roots();
        until_all_have_renewed()?;
        let lines = log.access_since(mark);
        let tunnels: BTreeSet<String> = lines.iter().map(|line| line.field("src.addr")).collect();
        ensure!(tunnels.len() >= 8, "{} handshakes show nothing", tunnels.len());
        let failed: Vec<_> = lines.iter().filter(|line| !line.field("error").is_empty()).collect();
        ensure!(failed.is_empty(), "{failed:?}");
        // Whose certificates are of the old root still are believed: a node's pods believe the roots of all of them.
        echoes(&mut client.connect(server.at(PORT))?).context("pods whose certificates are of the old root")?;
        mesh.remove_pod(&from)?;
        mesh.remove_pod(&news)
    })
}

#[test]
fn a_daemon_that_starts_without_its_control_plane_is_not_ready_and_captures_when_it_is() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        mesh.control_plane_mut().stop();
        drop(mesh.take_daemon(NodeId::B));
        mesh.launch_daemon(NodeId::B)?;
        let log = mesh.daemon(NodeId::B).log();
        log.await_line(Log::start(), "the attempt", PATIENCE, |line| {
            line.text().contains("no connection to the control plane")
        })?;
        ensure!(!mesh.daemon(NodeId::B).is_ready(), "ready without a mesh");
        mesh.control_plane_mut().resume()?;
        mesh.daemon_mut(NodeId::B).await_ready(testbed::daemon::START_PATIENCE)?;
        wait::until_ok("the server to be reached again", PATIENCE, || echoes(&mut client.connect(server.at(PORT))?))
    })
}
