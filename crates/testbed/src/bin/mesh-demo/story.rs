//! What the demonstration claims, section by section. Each claim is checked as it is made; the first that is false ends
//! the story.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::http;
use testbed::log::{Line, Log};
use testbed::mesh::{Mesh, MeshSpec, NodeId, PodSpec};
use testbed::wait;
use testbed::wire::{self, Recording, tls_record_types};
use testbed::workload_file::PolicyEntry;

use crate::latency;
use crate::screen::Screen;

/// Words no other traffic contains.
const SECRET: &str = "/cart/open-sesame-4711";
const WEB_PORT: u16 = 8080;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);

/// Tells it all.
pub(crate) fn tell(screen: &Screen) -> Result<()> {
    let mut mesh = bring_up(screen)?;
    let _shop = mesh.pod("shop").serve(WEB_PORT, http::site("the shop"))?;
    request_over_the_wire(screen, &mut mesh)?;
    refusal(screen, &mut mesh)?;
    latency::quiet_and_noisy(screen, &mesh)?;
    screen.section("Good bye");
    screen.step("stopping both daemons as a rollout does (SIGTERM)", || stop(&mut mesh))?;
    screen.say("All of the above was checked while it was shown.");
    Ok(())
}

fn bring_up(screen: &Screen) -> Result<Mesh> {
    screen.section("A mesh of two nodes");
    let pods = [
        PodSpec::new("web", NodeId::A).tenant("retail", "web"),
        PodSpec::new("spy", NodeId::A).tenant("rivals", "spy"),
        PodSpec::new("plain", NodeId::A).tenant("legacy", "plain").uncaptured(),
        PodSpec::new("shop", NodeId::B).tenant("retail", "shop"),
        PodSpec::new("store", NodeId::B).tenant("rivals", "store"),
        PodSpec::new("still", NodeId::B).tenant("legacy", "still").uncaptured(),
    ];
    let mut mesh = screen
        .step("two network namespaces as nodes, six as pods, a daemon and a node agent on each node", || {
            Mesh::start(MeshSpec::default(), &pods)
        })?;
    let shop = mesh.pod("shop");
    mesh.add_service("shop", "retail", SERVICE, 80, &[(&shop, WEB_PORT)])?;
    let mut rows = vec![["pod", "node", "address", "captured", "identity"].map(String::from).to_vec()];
    for name in ["web", "spy", "plain", "shop", "store", "still"] {
        let pod = mesh.pod(name);
        let node = pod.node.map_or_else(String::new, |node| node.to_string());
        let captured = if pod.captured { "yes" } else { "no" };
        let identity = if pod.captured { pod.identity() } else { "-".into() };
        rows.push(vec![pod.name, node, pod.address.to_string(), captured.into(), identity]);
    }
    screen.table(&rows);
    for id in NodeId::ALL {
        let cores = mesh.daemon(id).thread_cpu()?.keys().filter(|name| name.starts_with("core-")).count();
        screen.fact(&format!(
            "the daemon of {id} is ready: process {}, {cores} cores, pods handed to it over ZDS",
            mesh.daemon(id).pid()
        ));
    }
    Ok(mesh)
}

fn request_over_the_wire(screen: &Screen, mesh: &mut Mesh) -> Result<()> {
    let (web, plain, shop) = (mesh.pod("web"), mesh.pod("plain"), mesh.pod("shop"));
    let service = SocketAddr::from((SERVICE, 80));
    screen.section("A request from a pod to a service on the other node");
    screen.say(&format!("web asks the service shop at {service}, which stands for {} on node-b.", shop.at(WEB_PORT)));
    wait::until_ok("the service to be known", Duration::from_secs(10), || http::get(&web.netns, service, "/"))?;

    // Both ends have written that one down before the request that counts is made, so the lines after it are of that.
    for id in NodeId::ALL {
        mesh.daemon(id)
            .log()
            .await_access(Log::start(), "the first request", |line| !line.field("dst.hbone_addr").is_empty())?;
    }

    let marks = NodeId::ALL.map(|id| mesh.daemon(id).log().mark());
    let capture = mesh.capture()?;
    let answer = http::get(&web.netns, service, SECRET)?;
    let recording = capture.stop()?;
    ensure!(answer.status == 200 && answer.body.contains(SECRET), "the shop answered {answer:?}");
    screen.fact("web knows nothing of a proxy: it connected, asked and was answered");
    screen.quote(&answer.body);
    ensure!(answer.body.contains(&web.address.to_string()), "the shop saw another client than {}", web.address);
    screen.fact(&format!("the shop saw its client by the pod's own address, {}", web.address));

    screen.section("What the wire between the nodes carried");
    tls_only(screen, &recording)?;
    let capture = mesh.capture()?;
    let answer = http::get(&plain.netns, shop.at(WEB_PORT), SECRET)?;
    let recording = capture.stop()?;
    ensure!(
        answer.status == 200 && recording.contains(SECRET.as_bytes()),
        "the counter-check found nothing: the recording is blind"
    );
    screen
        .fact("counter-check: the same request from the uncaptured pod plain is in the recording, readable by anyone");

    screen.section("Who talked to whom, as both ends know it");
    for (id, mark, direction) in [(NodeId::A, marks[0], "outbound"), (NodeId::B, marks[1], "inbound")] {
        let line = mesh.daemon(id).log().await_access(mark, direction, |line| line.has("direction", direction))?;
        for (field, expected) in [("src.identity", web.identity()), ("dst.identity", shop.identity())] {
            ensure!(line.has(field, &expected), "{field} is not {expected} in {line}");
        }
        screen.fact(&format!("{id} ({direction}): {} -> {}", line.field("src.identity"), line.field("dst.identity")));
        screen.quote(&excerpt(
            &line,
            &["src.addr", "dst.addr", "dst.hbone_addr", "dst.service", "bytes_sent", "bytes_recv", "duration"],
        ));
    }
    Ok(())
}

fn tls_only(screen: &Screen, recording: &Recording) -> Result<()> {
    ensure!(!recording.contains(SECRET.as_bytes()), "the payload crossed the wire in the clear");
    let mut records = 0;
    let mut shown = None;
    for (flow, bytes) in recording.flows() {
        if bytes.is_empty() {
            continue;
        }
        ensure!(flow.from.port() == 15008 || flow.to.port() == 15008, "{flow:?} is no tunnel");
        // A tunnel that was there before the recording began is recorded from some record on; the alignment holds
        // either way.
        let types = tls_record_types(bytes).with_context(|| format!("{flow:?} is no TLS"))?;
        records += types.len();
        if flow.to.port() == 15008 {
            shown = shown.or(Some((flow, bytes)));
        }
    }
    let (flow, bytes) = shown.context("nothing was recorded towards port 15008")?;
    screen.fact(&format!(
        "{records} TLS records to and from port 15008, {} bytes, and nothing else",
        recording.payload_bytes()
    ));
    screen.fact(&format!("\"{SECRET}\" is nowhere in them"));
    screen.say(&format!("From {} to {}:", flow.from, flow.to));
    screen.quote(&wire::hex_dump(&bytes[..bytes.len().min(64)]));
    Ok(())
}

fn refusal(screen: &Screen, mesh: &mut Mesh) -> Result<()> {
    let (web, spy, shop) = (mesh.pod("web"), mesh.pod("spy"), mesh.pod("shop"));
    screen.section("A connection that policy refuses");
    let before =
        http::get(&spy.netns, shop.at(WEB_PORT), "/before").context("without policy the spy should reach the shop")?;
    ensure!(before.status == 200, "{before:?}");
    screen.say(&format!("New policy retail/only-web: shop admits {} only.", web.principal()));
    mesh.add_policy(
        PolicyEntry {
            name: "only-web".into(),
            namespace: "retail".into(),
            scope: "WorkloadSelector",
            action: "Allow",
            rules: PolicyEntry::from_principals(&[&web.principal()]),
        },
        &[&shop],
    )?;
    screen.step("both daemons take it up from their files", || {
        wait::until("the spy to be refused", Duration::from_secs(10), || {
            http::get(&spy.netns, shop.at(WEB_PORT), "/spy").is_err()
        })
    })?;
    let marks = NodeId::ALL.map(|id| mesh.daemon(id).log().mark());
    ensure!(http::get(&spy.netns, shop.at(WEB_PORT), "/spy").is_err(), "the spy was let in");
    // The attempt before, made while the policy arrived, may have been cut instead of refused, and be logged only now.
    let refusal = |word: &'static str| {
        let spy = spy.identity();
        move |line: &Line| line.has("src.identity", &spy) && line.field("error").contains(word)
    };
    let (server_log, client_log) = (mesh.daemon(NodeId::B).log(), mesh.daemon(NodeId::A).log());
    let refused = server_log.await_access(marks[1], "the refusal", refusal("policy rejection"))?;
    let told = client_log.await_access(marks[0], "the client's side", refusal("401"))?;
    screen.fact(&format!("node-b refused {}:", spy.identity()));
    screen.quote(&refused.field("error"));
    screen.fact("node-a was told by the tunnel's status and closed its application's connection:");
    screen.quote(&told.field("error"));
    ensure!(http::get(&web.netns, shop.at(WEB_PORT), "/after")?.status == 200);
    screen.fact("web still gets its answers");
    Ok(())
}

fn stop(mesh: &mut Mesh) -> Result<()> {
    for id in mesh.nodes_with_daemon() {
        let daemon = mesh.daemon_mut(id);
        daemon.signal(rustix::process::Signal::TERM)?;
        let status = daemon.await_exit(Duration::from_secs(15))?;
        ensure!(status.success(), "the daemon of {id} ended with {status}");
    }
    Ok(())
}

fn excerpt(line: &Line, fields: &[&str]) -> String {
    let shown = fields
        .iter()
        .filter(|field| !line.field(field).is_empty())
        .map(|field| format!("{field}={}", line.field(field)));
    shown.collect::<Vec<_>>().join(" ")
}
