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
fn strict_peer_authentication_turns_plaintext_away_and_leaves_tunnels_alone() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let stranger = mesh.outside("stranger")?;
        let _application = server.serve(PORT, echo)?;
        let mut live = client.connect(server.at(PORT))?;
        echoes(&mut live)?;
        echoes(&mut stranger.connect(server.at(PORT))?).context("plaintext before")?;
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "strict", "namespace": "shop" },
            "spec": { "mtls": { "mode": "STRICT" } },
        });
        mesh.istiod_mut().put(&[strict])?;
        let plaintext = || stranger.connect(server.at(PORT)).and_then(|mut stream| echoes(&mut stream));
        wait::until("plaintext to be refused", PATIENCE, || plaintext().is_err())?;
        // istiod names the policy at the workload in one message and sends it in the next. Between them the daemon goes by
        // what it had, so neither tunnels of before nor new ones notice.
        echoes(&mut live).context("the tunnel of before")?;
        tunnelled(mesh, &client, &server)?;
        ensure!(plaintext().is_err(), "plaintext was let in beside tunnels");
        mesh.istiod_mut().delete("PeerAuthentication", "shop", "strict")?;
        wait::until_ok("plaintext again", PATIENCE, plaintext)?;
        echoes(&mut live).context("the tunnel of before, at last")
    })
}

#[test]
fn a_policy_that_goes_or_comes_while_istiod_is_away_is_gone_or_in_force_when_it_is_back() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let from_client = json!([{ "from": [{ "source": { "principals": [client.principal()] } }] }]);
        let asked = || client.connect(server.at(PORT)).and_then(|mut stream| echoes(&mut stream));
        mesh.istiod_mut().put(&[policy("DENY", &from_client)])?;
        wait::until("a refusal", PATIENCE, || asked().is_err())?;
        mesh.istiod_mut().stop();
        ensure!(asked().is_err(), "it is in force without istiod");
        mesh.istiod_mut().delete("AuthorizationPolicy", "shop", "decide")?;
        mesh.istiod_mut().resume()?;
        wait::until_ok("it to be let in again", PATIENCE * 2, asked)?;
        mesh.istiod_mut().stop();
        mesh.istiod_mut().put(&[policy("DENY", &from_client)])?;
        asked().context("nobody was told")?;
        mesh.istiod_mut().resume()?;
        wait::until("another refusal", PATIENCE * 2, || asked().is_err())
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
fn on_demand_connections_wait_for_what_istiod_says_of_their_targets() -> Result<()> {
    fixture::run(MeshSpec::with_istiod().with("XDS_ON_DEMAND", "true"), &pods(), |mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        let stranger = mesh.outside("stranger")?;
        let _stranger = stranger.serve(PORT, who_am_i)?;
        mesh.istiod_mut().put(&[service("shop", "web", VIP, 80, "server", PORT)])?;
        wait::until("the service in istiod", PATIENCE, || {
            mesh.istiod().index().is_ok_and(|index| index.to_string().contains("shop/web"))
        })?;
        let fact = |mesh: &Mesh| -> Result<()> {
            tunnelled(mesh, &client, &server).context("a pod of the other node")?;
            let line = sent_to(mesh, (VIP, 80).into())?;
            ensure!(line.has("dst.hbone_addr", &server.at(PORT).to_string()), "the service's pod: {line}");
            let seen = client::read_text(&client.connect(stranger.at(PORT))?)?;
            ensure!(seen.starts_with(&client.address.to_string()), "what is nobody's is passed through: {seen}");
            let frames = mesh.istiod().frames()?;
            for address in [server.address, VIP, stranger.address] {
                let key = format!("/{address}");
                let asked = frames.iter().filter(|frame| frame.subscribe.contains(&key)).count();
                ensure!(asked == 1, "{key} was asked for {asked} times: {frames:?}");
            }
            Ok(())
        };
        fact(mesh).map_err(|error| anyhow!("{error:#}\nistiod:\n{}", mesh.istiod().said()))?;
        // Who was nobody is a pod now, of which istiod says its own name. It is asked for again when the answer is old, and
        // istiod answers only because it was unsubscribed from first; which holds of the stranger, too.
        let free = mesh.next_address(NodeId::B);
        sent_to(mesh, (free, PORT).into()).context("nobody's address")?;
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))?;
        ensure!(late.address == free, "{} is at {free}", late.address);
        let _late = late.serve(PORT, echo)?;
        wait::until_ok("a tunnel to the late pod", Duration::from_secs(60), || tunnelled(mesh, &client, &late))?;
        wait::until_ok("the stranger once more", Duration::from_secs(10), || {
            client::read_text(&client.connect(stranger.at(PORT))?).map(drop)
        })?;
        mesh.remove_pod(&late)
    })
}

#[test]
fn a_daemon_whose_token_is_unknown_or_may_not_ask_for_others_gets_no_certificate_until_it_may() -> Result<()> {
    with_mesh(|mesh| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _application = server.serve(PORT, echo)?;
        mesh.istiod_mut().revoke_token_of("node-b")?;
        let late = mesh.add_pod(&PodSpec::new("late", NodeId::B).tenant("shop", "late"))?;
        let _late = late.serve(PORT, echo)?;
        let outcomes = |mesh: &Mesh, code: &str| -> Result<usize> {
            let calls = mesh.istiod().calls()?;
            Ok(calls.iter().filter(|call| call.identity == late.identity() && call.code == code).count())
        };
        let another = |mesh: &Mesh, code: &str, before: usize| {
            wait::until_ok(code, Duration::from_secs(60), || {
                ensure!(outcomes(mesh, code)? > before, "{:?}", mesh.istiod().calls()?);
                Ok(())
            })
        };
        another(mesh, "Unauthenticated", 0).context("nobody knows the token")?;
        mesh.istiod_mut().grant_token_of("node-b", "somebody")?;
        let refused = outcomes(mesh, "Unauthenticated")?;
        another(mesh, "Unauthenticated", refused).context("somebody may not")?;
        ensure!(outcomes(mesh, "OK")? == 0, "a certificate for an account that may not have it");
        tunnelled(mesh, &client, &server).context("a pod that has its certificate")?;
        mesh.istiod_mut().grant_token_of("node-b", "ztunnel")?;
        another(mesh, "OK", 0).context("it may")?;
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

/// As an operator replaces a root to its end. Only what is short-lived renews; who has a certificate by the old root is
/// believed by whoever has one, too.
#[test]
fn a_root_is_forgotten_when_all_have_renewed_and_no_connection_fails() -> Result<()> {
    with_mesh(|mesh| {
        mesh.istiod().shorten_certificates(8)?;
        let here = mesh.add_pod(&PodSpec::new("short-a", NodeId::A).tenant("web", "short"))?;
        let there = mesh.add_pod(&PodSpec::new("short-b", NodeId::B).tenant("shop", "short"))?;
        let _application = there.serve(PORT, echo)?;
        wait::until_ok("the first tunnel", PATIENCE, || tunnelled(mesh, &here, &there))?;
        let mut stream = here.connect(there.at(PORT))?;
        // Each twice: the first may have been on its way before the step.
        let all_renewed = |mesh: &Mesh| -> Result<()> {
            let before = mesh.istiod().calls()?.len();
            wait::until_ok("renewals", Duration::from_secs(60), || {
                tunnelled(mesh, &here, &there)?;
                let calls = mesh.istiod().calls()?.split_off(before);
                let issued = |pod: &Pod| {
                    calls.iter().filter(|call| call.identity == pod.identity() && call.code == "OK").count()
                };
                ensure!(issued(&here) >= 2 && issued(&there) >= 2, "{calls:?}");
                Ok(())
            })
        };
        let log = mesh.daemon(NodeId::B).log().clone();
        let mark = log.mark();
        for step in [Rotation::Trust, Rotation::Sign, Rotation::Forget] {
            mesh.istiod().rotate(step)?;
            all_renewed(mesh).with_context(|| format!("{step:?}"))?;
        }
        let failed: Vec<Line> =
            log.access_since(mark).into_iter().filter(|line| !line.field("error").is_empty()).collect();
        ensure!(failed.is_empty(), "{failed:?}");
        echoes(&mut stream).context("the connection of before")?;
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        tunnelled(mesh, &client, &server).context("pods whose certificates are of the old root")?;
        [here, there].iter().try_for_each(|pod| mesh.remove_pod(pod))
    })
}
