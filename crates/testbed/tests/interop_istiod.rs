//! The real istiod and its CA with the real daemon: objects of Kubernetes in, what becomes of captured connections out.
//! `make interop-istio`.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use testbed::client::{self, End};
use testbed::fixture;
use testbed::istiod::{Frame, Istiod, Rotation, service};
use testbed::log::Line;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::serve::{echo, named, who_am_i};
use testbed::wait;

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(15);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);

fn pods() -> Vec<PodSpec> {
    vec![
        PodSpec::new("client", NodeId::A).tenant("web", "client"),
        PodSpec::new("server", NodeId::B).tenant("shop", "server"),
    ]
}

fn with_mesh(fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    fixture::run(MeshSpec::with_istiod(), &pods(), |mesh| {
        // Both daemons are ready when they have the mesh; that each has the other's pods is what this waits for.
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        {
            let _warm = server.serve(PORT, echo)?;
            wait::until_ok("the first tunnel", PATIENCE, || tunnelled(mesh, &client, &server))?;
        }
        fact(mesh).map_err(|error| anyhow!("{error:#}\nistiod:\n{}", mesh.istiod().said()))
    })
}

fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping", "{answer:?}");
    Ok(())
}

/// One connection that both ends' certificates carry.
fn tunnelled(mesh: &Mesh, from: &Pod, to: &Pod) -> Result<()> {
    let log = mesh.daemon(NodeId::B).log();
    let mark = log.mark();
    client::round_trip(&from.connect(to.at(PORT))?, b"through a tunnel")?;
    let line = log.await_access(mark, "inbound", |line| line.has("direction", "inbound"))?;
    let identities = (line.field("src.identity"), line.field("dst.identity"));
    ensure!(identities == (from.identity(), to.identity()), "{line}");
    Ok(())
}

/// Where one connection from the client to `target` was sent, by its daemon's log.
fn sent_to(mesh: &Mesh, target: SocketAddr) -> Result<Line> {
    let log = mesh.daemon(NodeId::A).log();
    let mark = log.mark();
    // Whether it is made or refused is nothing to this.
    drop(mesh.pod("client").connect(target));
    log.await_access(mark, "where it went", |line| line.has("direction", "outbound"))
}

/// Responses about `kind` that had something in them.
fn responses(frames: &[Frame], kind: &str) -> Vec<Frame> {
    let is = |frame: &&Frame| frame.kind == kind && !(frame.sent.is_empty() && frame.removed.is_empty());
    frames.iter().filter(is).cloned().collect()
}

fn policy(action: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "decide", "namespace": "shop" },
        "spec": { "action": action, "selector": { "matchLabels": { "app": "server" } }, "rules": rules },
    })
}

#[test]
fn pods_of_the_real_istiod_are_tunnelled_by_identities_of_its_ca() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, who_am_i)?;
        let seen = client::read_text(&client.connect(server.at(PORT))?)?;
        ensure!(seen.starts_with(&client.address.to_string()), "the server saw {seen}");
        let calls = mesh.istiod().calls()?;
        let identities: BTreeSet<String> = calls.iter().map(|call| call.identity.clone()).collect();
        ensure!(identities == [client.identity(), server.identity()].into(), "{calls:?}");
        ensure!(calls.iter().all(|call| call.code == "OK"), "each daemon asks for its own pods only: {calls:?}");
        let refused: Vec<Frame> = mesh.istiod().frames()?.into_iter().filter(|frame| !frame.error.is_empty()).collect();
        ensure!(refused.is_empty(), "{refused:?}");
        Ok(())
    })
}

#[test]
fn a_service_leads_to_its_ready_pods_and_follows_their_changes() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _first = server.serve(PORT, named("first"))?;
        let vip: SocketAddr = (VIP, 80).into();
        let asked = |mesh: &Mesh| client::read_line(&mesh.pod("client").connect(vip)?);
        mesh.istiod_mut().put(&[service("shop", "web", VIP, 80, "server", PORT)])?;
        let is = |mesh: &Mesh, name: &str| -> Result<()> {
            let said = asked(mesh)?;
            ensure!(said == name, "{said:?}");
            Ok(())
        };
        wait::until_ok("the service", PATIENCE, || is(mesh, "first"))?;

        // Another port of the same pod.
        let _second = server.serve(PORT + 1, named("second"))?;
        mesh.istiod_mut().put(&[service("shop", "web", VIP, 80, "server", PORT + 1)])?;
        wait::until_ok("its new target port", PATIENCE, || is(mesh, "second"))?;

        // No pod is ready, and then one is.
        mesh.istiod_mut().set_ready(&server, false)?;
        wait::until("a refusal", PATIENCE, || asked(mesh).is_err())?;
        mesh.istiod_mut().set_ready(&server, true)?;
        wait::until_ok("the pod to be ready again", PATIENCE, || is(mesh, "second"))?;

        mesh.istiod_mut().delete("Service", "shop", "web")?;
        wait::until("the service to be gone", PATIENCE, || asked(mesh).is_err())?;
        let _ = client;
        Ok(())
    })
}

#[test]
fn an_authorization_policy_refuses_closes_what_is_open_and_ends_with_its_object() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream)?;
        let log = mesh.daemon(NodeId::B).log().clone();
        let mark = log.mark();
        let from_client = json!([{ "from": [{ "source": { "principals": [client.principal()] } }] }]);
        mesh.istiod_mut().put(&[policy("DENY", &from_client)])?;
        let end = client::await_end(&stream)?;
        ensure!(matches!(end, End::Reset(_) | End::Clean(_)), "{end:?}");
        wait::until_ok("a refusal", PATIENCE, || {
            ensure!(client::round_trip(&client.connect(server.at(PORT))?, b"let me in").is_err(), "it was let in");
            Ok(())
        })?;
        log.await_access(mark, "the refusal", |line| line.field("error").contains("shop/decide"))?;
        // The same object, now the other way round.
        mesh.istiod_mut().put(&[policy("ALLOW", &from_client)])?;
        wait::until_ok("it to be let in", PATIENCE, || echoes(&mut client.connect(server.at(PORT))?))?;
        mesh.istiod_mut()
            .put(&[policy("ALLOW", &json!([{ "from": [{ "source": { "namespaces": ["nobody"] } }] }]))])?;
        wait::until("another refusal", PATIENCE, || {
            client.connect(server.at(PORT)).and_then(|mut stream| echoes(&mut stream)).is_err()
        })?;
        mesh.istiod_mut().delete("AuthorizationPolicy", "shop", "decide")?;
        wait::until_ok("it to be let in again", PATIENCE, || echoes(&mut client.connect(server.at(PORT))?))
    })
}

#[test]
fn strict_peer_authentication_turns_plaintext_away_and_lets_new_tunnels_in() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let stranger = mesh.outside("stranger")?;
        let _application = server.serve(PORT, echo)?;
        echoes(&mut stranger.connect(server.at(PORT))?).context("plaintext before")?;
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "strict", "namespace": "shop" },
            "spec": { "mtls": { "mode": "STRICT" } },
        });
        mesh.istiod_mut().put(&[strict])?;
        let plaintext = || stranger.connect(server.at(PORT)).and_then(|mut stream| echoes(&mut stream));
        wait::until("plaintext to be refused", PATIENCE, || plaintext().is_err())?;
        // istiod names the policy at the workload in one message and sends it in the next, and between them a policy that is
        // not known lets nobody in: tunnels of before are reset, new ones are let in as soon as it is there.
        wait::until_ok("a tunnel", PATIENCE, || tunnelled(mesh, &client, &server))?;
        ensure!(plaintext().is_err(), "plaintext was let in beside tunnels");
        mesh.istiod_mut().delete("PeerAuthentication", "shop", "strict")?;
        wait::until_ok("plaintext again", PATIENCE, plaintext)
    })
}

/// The objects of a waypoint of the namespace `shop` that is `pod`.
fn waypoint(name: &str, pod: &Pod) -> Vec<Value> {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": { "name": "istio-waypoint" },
        "spec": { "controllerName": "istio.io/mesh-controller" },
    });
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": name, "namespace": "shop", "labels": { "istio.io/waypoint-for": "service" } },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
        "status": { "addresses": [{ "type": "IPAddress", "value": pod.address }] },
    });
    vec![class, gateway]
}

fn weighted_service(canary_weight: u32) -> Value {
    let mut object = service("shop", "web", VIP, 80, "server", PORT);
    object["metadata"]["labels"] =
        json!({ "istio.io/use-waypoint": "first", "istio.io/use-waypoint-canary": "second" });
    object["metadata"]["annotations"] = json!({ "istio.io/use-waypoint-canary-weight": canary_weight.to_string() });
    object
}

#[test]
fn a_waypoint_takes_the_connections_of_its_service_by_weight_and_gives_them_back_when_it_is_detached() -> Result<()> {
    with_mesh(|mesh| {
        let server = mesh.pod("server");
        let _application = server.serve(PORT, named("server"))?;
        let vip: SocketAddr = (VIP, 80).into();
        // Nobody is a waypoint there: that a connection was sent to one is what its refusal says.
        let first = mesh.add_pod(&PodSpec::new("first", NodeId::B).tenant("shop", "first").uncaptured())?;
        let second = mesh.add_pod(&PodSpec::new("second", NodeId::B).tenant("shop", "second").uncaptured())?;
        mesh.istiod_mut().put(&waypoint("first", &first))?;
        mesh.istiod_mut().put(&waypoint("second", &second))?;
        let went_to = |mesh: &Mesh, pod: &Pod| -> Result<()> {
            let line = sent_to(mesh, vip)?;
            let wanted = pod.at(15008).to_string();
            ensure!(line.has("dst.addr", &wanted), "not to {wanted}: {line}; {:#}", mesh.istiod().index()?);
            Ok(())
        };
        let mut plain = service("shop", "web", VIP, 80, "server", PORT);
        mesh.istiod_mut().put(&[plain.clone()])?;
        let direct = |mesh: &Mesh| -> Result<()> {
            let said = client::read_line(&mesh.pod("client").connect(vip)?)?;
            ensure!(said == "server", "{said:?}");
            Ok(())
        };
        wait::until_ok("the service", PATIENCE, || direct(mesh))?;
        plain["metadata"]["labels"] = json!({ "istio.io/use-waypoint": "first" });
        mesh.istiod_mut().put(&[plain])?;
        wait::until_ok("the waypoint", PATIENCE, || went_to(mesh, &first))?;
        mesh.istiod_mut().put(&[weighted_service(100)])?;
        wait::until_ok("the canary, which has all of the weight", PATIENCE, || went_to(mesh, &second))?;
        mesh.istiod_mut().put(&[weighted_service(50)])?;
        wait::until_ok("both", PATIENCE, || {
            // By chance one is missing once in 2^19.
            let seen: BTreeSet<String> =
                (0..20).map(|_| Ok(sent_to(mesh, vip)?.field("dst.addr"))).collect::<Result<_>>()?;
            ensure!(seen == [first.at(15008).to_string(), second.at(15008).to_string()].into(), "{seen:?}");
            Ok(())
        })?;
        mesh.istiod_mut().put(&[service("shop", "web", VIP, 80, "server", PORT)])?;
        wait::until_ok("the service without its waypoints", PATIENCE, || direct(mesh))
    })
}

#[test]
fn a_workload_behind_another_networks_gateway_is_known_as_such_and_not_connected_to_in_plain() -> Result<()> {
    with_mesh(|mesh| {
        let gateway = mesh.add_pod(&PodSpec::new("east-west", NodeId::B).tenant("edge", "east-west").uncaptured())?;
        // Of the class that says that another cluster's gateway is meant; one of `istio-east-west` would be our own.
        let east_west = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {
                "name": "remote", "namespace": "edge", "labels": { "topology.istio.io/network": "remote" },
            },
            "spec": {
                "gatewayClassName": "istio-remote",
                "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
            },
            "status": { "addresses": [{ "type": "IPAddress", "value": gateway.address }] },
        });
        let remote = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {
                "name": "remote", "namespace": "shop",
                "labels": { "app": "remote", "topology.istio.io/network": "remote" },
                "annotations": { "ambient.istio.io/redirection": "enabled" },
            },
            "spec": { "network": "remote", "serviceAccount": "remote", "labels": { "app": "remote" } },
        });
        let entry = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": { "name": "remote", "namespace": "shop" },
            "spec": {
                "hosts": ["remote.example.com"], "addresses": [VIP], "resolution": "STATIC",
                "ports": [{ "number": 80, "name": "tcp", "protocol": "TCP" }],
                "workloadSelector": { "labels": { "app": "remote" } },
            },
        });
        mesh.istiod_mut().put(&[east_west, remote, entry])?;
        // Double HBONE is not there yet; that the service, its network and its gateway arrived is what the refusal says, and
        // that istiod without its multi-network support tells nobody to expect behind the gateway.
        wait::until_ok("the gateway", PATIENCE, || {
            let line = sent_to(mesh, (VIP, 80).into())?;
            let (error, index) = (line.field("error"), mesh.istiod().index()?);
            for part in ["behind the gateway", "shop/remote.example.com", "\"remote\""] {
                ensure!(error.contains(part), "no {part} in {line}; {index:#}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_pod_added_to_the_cluster_is_one_delta_and_a_removed_one_is_named() -> Result<()> {
    with_mesh(|mesh| {
        let client = mesh.pod("client");
        let before = mesh.istiod().frames()?.len();
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))?;
        let _application = late.serve(PORT, echo)?;
        wait::until_ok("the new pod", PATIENCE, || tunnelled(mesh, &client, &late))?;
        mesh.remove_pod(&late)?;
        let name = "Kubernetes//Pod/shop/late";
        wait::until_ok("its removal", PATIENCE, || {
            let frames = mesh.istiod().frames()?.split_off(before);
            let seen = responses(&frames, "Address");
            ensure!(seen.iter().filter(|frame| frame.removed == [name]).count() == 2, "two daemons: {seen:?}");
            ensure!(
                seen.iter().all(|frame| frame.sent.iter().all(|sent| sent == name)),
                "something else too: {seen:?}"
            );
            Ok(())
        })
    })
}

/// Each stream after `mark` opens with what the daemon has; what came back first.
fn reconnected(istiod: &Istiod, mark: usize) -> Result<Vec<(Frame, Frame)>> {
    let frames = istiod.frames()?.split_off(mark);
    let asked: Vec<&Frame> =
        frames.iter().filter(|frame| frame.kind == "Address" && !frame.versions.is_empty()).collect();
    ensure!(asked.len() == 2, "{} daemons are back", asked.len());
    let answers: Vec<(Frame, Frame)> = asked
        .into_iter()
        .filter_map(|asked| {
            let answer = frames
                .iter()
                .find(|frame| frame.stream == asked.stream && frame.kind == "Address" && frame.is_response)?;
            Some((asked.clone(), answer.clone()))
        })
        .collect();
    ensure!(answers.len() == 2, "{} daemons have an answer", answers.len());
    Ok(answers)
}

#[test]
fn a_restarted_istiod_is_told_the_versions_and_sends_only_the_difference() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let gone = mesh.add_pod(&PodSpec::new("gone", NodeId::B).tenant("shop", "gone").uncaptured())?;
        mesh.istiod_mut().put(&[service("shop", "web", VIP, 80, "server", PORT)])?;
        wait::until_ok("the service", PATIENCE, || echoes(&mut client.connect((VIP, 80).into())?))?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream)?;

        mesh.istiod_mut().stop();
        echoes(&mut stream).context("without istiod")?;
        echoes(&mut client.connect(server.at(PORT))?).context("a new connection without istiod")?;
        // While it is away: one object goes, one comes, the rest stays.
        mesh.istiod_mut().delete_pod(&gone)?;
        let other = Ipv4Addr::new(10, 96, 0, 8);
        mesh.istiod_mut().put(&[service("shop", "other", other, 80, "nobody", PORT)])?;
        mesh.istiod_mut().resume()?;

        let streams = wait::until_ok("both daemons", PATIENCE, || reconnected(mesh.istiod(), 0))?;
        for (asked, answer) in streams {
            for name in ["Kubernetes//Pod/shop/server", "Kubernetes//Pod/shop/gone", "shop/web.shop.svc.cluster.local"]
            {
                ensure!(asked.versions.get(name).is_some_and(|version| !version.is_empty()), "{name}: {asked:?}");
            }
            ensure!(answer.sent == ["shop/other.shop.svc.cluster.local"], "{answer:?}");
            ensure!(answer.removed == ["Kubernetes//Pod/shop/gone"], "{answer:?}");
        }
        echoes(&mut stream).context("the connection from before")
    })
}

#[test]
fn a_disconnected_stream_comes_back_and_costs_nothing_that_is_known() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let mut stream = client.connect(server.at(PORT))?;
        let mark = mesh.istiod().frames()?.len();
        ensure!(mesh.istiod().disconnect()? >= 2, "two daemons were connected");
        wait::until_ok("both daemons", PATIENCE, || {
            let frames = mesh.istiod().frames()?.split_off(mark);
            let back: BTreeSet<u64> =
                frames.iter().filter(|frame| !frame.versions.is_empty()).map(|frame| frame.stream).collect();
            ensure!(back.len() == 2, "{} are back", back.len());
            Ok(())
        })?;
        // A change after the reconnect arrives, and nothing before it had.
        mesh.istiod_mut().put(&[service("shop", "web", VIP, 80, "server", PORT)])?;
        wait::until_ok("the service", PATIENCE, || echoes(&mut client.connect((VIP, 80).into())?))?;
        let frames = mesh.istiod().frames()?.split_off(mark);
        let sent: BTreeSet<String> = responses(&frames, "Address").into_iter().flat_map(|frame| frame.sent).collect();
        // The service's endpoint is a changed workload.
        let expected = ["Kubernetes//Pod/shop/server".to_owned(), "shop/web.shop.svc.cluster.local".to_owned()];
        ensure!(sent == expected.into(), "{sent:?}");
        echoes(&mut stream)
    })
}

#[test]
fn on_demand_a_daemon_asks_for_no_wildcard_and_is_given_the_pods_of_its_own_node() -> Result<()> {
    fixture::run(MeshSpec::with_istiod().with("XDS_ON_DEMAND", "true"), &pods(), |mesh| {
        wait::until_ok("each daemon's own pod", PATIENCE, || {
            let frames = mesh.istiod().frames()?;
            for (daemon, own) in [("coretunnel-node-a", "web/client"), ("coretunnel-node-b", "shop/server")] {
                let opening = frames.iter().find(|frame| frame.node.contains(daemon)).context("no stream yet")?;
                let given: BTreeSet<&String> = frames
                    .iter()
                    .filter(|frame| frame.stream == opening.stream && frame.kind == "Address")
                    .flat_map(|frame| &frame.sent)
                    .collect();
                let own = format!("Kubernetes//Pod/{own}");
                ensure!(given == BTreeSet::from([&own]), "{daemon} was given {given:?}");
            }
            Ok(())
        })?;
        let frames = mesh.istiod().frames()?;
        let wildcard = |names: &[String]| names.iter().any(|name| name == "*");
        // Said and taken back in one message, which is how a client says that it wants none.
        for frame in frames.iter().filter(|frame| frame.kind == "Address" && wildcard(&frame.subscribe)) {
            ensure!(wildcard(&frame.unsubscribe), "{frame:?}");
        }
        Ok(())
    })
}

#[test]
fn a_daemon_whose_token_may_not_ask_for_others_gets_no_certificate_until_it_may() -> Result<()> {
    with_mesh(|mesh| {
        let client = mesh.pod("client");
        mesh.istiod_mut().grant_token_of("node-b", "somebody")?;
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))?;
        let _application = late.serve(PORT, echo)?;
        let outcome = |mesh: &Mesh, code: &str| {
            let calls = mesh.istiod().calls()?;
            let wanted = calls.iter().any(|call| call.identity == late.identity() && call.code == code);
            ensure!(wanted, "{code}: {calls:?}");
            Ok(())
        };
        wait::until_ok("the refusal", PATIENCE, || outcome(mesh, "Unauthenticated"))?;
        ensure!(outcome(mesh, "OK").is_err(), "a certificate for an account that may not have it");
        mesh.istiod_mut().grant_token_of("node-b", "ztunnel")?;
        wait::until_ok("the certificate", Duration::from_secs(60), || outcome(mesh, "OK"))?;
        wait::until_ok("a tunnel", PATIENCE, || tunnelled(mesh, &client, &late))?;
        mesh.remove_pod(&late)
    })
}

#[test]
fn a_ca_that_is_away_costs_new_pods_their_wait_and_nobody_else_anything() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        mesh.istiod_mut().refuse_certificates("Unavailable")?;
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))?;
        let _late = late.serve(PORT, echo)?;
        wait::until("the daemon to ask", PATIENCE, || {
            mesh.istiod().calls().is_ok_and(|calls| calls.iter().any(|call| call.identity == late.identity()))
        })?;
        tunnelled(mesh, &client, &server).context("a pod that has its certificate")?;
        mesh.istiod_mut().refuse_certificates("")?;
        wait::until_ok("the late pod's tunnel", Duration::from_secs(60), || tunnelled(mesh, &client, &late))?;
        mesh.remove_pod(&late)
    })
}

#[test]
fn a_rotated_root_is_trusted_at_once_and_certificates_follow_without_a_failed_connection() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let mut stream = client.connect(server.at(PORT))?;
        echoes(&mut stream)?;
        let mut late = Vec::new();
        for (name, step) in [("trust", Rotation::Trust), ("sign", Rotation::Sign)] {
            mesh.istiod_mut().rotate(step)?;
            // Who comes after a step has a certificate of its time, and meets those from before it. A daemon hears of a new
            // root with the next certificate it is given, hence a pod for each.
            let here = mesh.add_pod(&PodSpec::new(&format!("{name}-a"), NodeId::A).tenant("web", name))?;
            let there = mesh.add_pod(&PodSpec::new(&format!("{name}-b"), NodeId::B).tenant("shop", name))?;
            let _late = there.serve(PORT, echo)?;
            for (from, to) in [(&here, &there), (&client, &there), (&here, &server)] {
                wait::until_ok("a tunnel", PATIENCE, || tunnelled(mesh, from, to))
                    .with_context(|| format!("{name}: from {} to {}", from.name, to.name))?;
            }
            tunnelled(mesh, &client, &server).context(name)?;
            echoes(&mut stream).context(name)?;
            late.extend([here, there]);
        }
        late.iter().try_for_each(|pod| mesh.remove_pod(pod))
    })
}
