//! Who may talk to whom: allowed, refused with a reason, and cut off when the policy changes, in tunnels and in
//! plaintext.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use testbed::certificate::{Authority, LeafSpec};
use testbed::client::{self, End};
use testbed::fixture;
use testbed::log::Line;
use testbed::mesh::{Mesh, MeshSpec, NodeId, Pod, PodSpec};
use testbed::peer::{Peer, Reply};
use testbed::serve::echo;
use testbed::wait;
use testbed::workload_file::PolicyEntry;

const PORT: u16 = 8080;
const RELOAD_PATIENCE: Duration = Duration::from_secs(5);

fn with_mesh(fact: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    let pods = [
        PodSpec::new("web", NodeId::A).tenant("retail", "web"),
        PodSpec::new("spy", NodeId::A).tenant("rivals", "spy"),
        PodSpec::new("shop", NodeId::B).tenant("retail", "shop"),
    ];
    fixture::run(MeshSpec::default(), &pods, fact)
}

fn only_web() -> PolicyEntry {
    PolicyEntry {
        name: "only-web".into(),
        namespace: "retail".into(),
        scope: "WorkloadSelector",
        action: "Allow",
        rules: PolicyEntry::from_principals(&["cluster.local/ns/retail/sa/web"]),
    }
}

fn no_spies() -> PolicyEntry {
    PolicyEntry {
        name: "no-spies".into(),
        namespace: "retail".into(),
        scope: "Namespace",
        action: "Deny",
        rules: "[[[{namespaces: [{Exact: rivals}]}]]]".into(),
    }
}

/// What STRICT peer authentication becomes: whoever has no identity is refused.
fn strict() -> PolicyEntry {
    PolicyEntry {
        name: "strict".into(),
        namespace: "istio-system".into(),
        scope: "WorkloadSelector",
        action: "Deny",
        rules: "[[[{notPrincipals: [{Presence: []}]}]]]".into(),
    }
}

fn allowed(from: &Pod, to: &Pod) -> Result<()> {
    client::round_trip(&from.connect(to.at(PORT))?, b"let me in")
}

/// Waits until `from` is refused: connected by its own daemon, then ended without a byte.
fn await_refusal(from: &Pod, to: &Pod) -> Result<()> {
    wait::until_ok("the refusal", RELOAD_PATIENCE, || {
        let stream = from.connect(to.at(PORT))?;
        match client::round_trip(&stream, b"let me in") {
            Ok(()) => bail!("{} reached {}", from.name, to.name),
            Err(_) => Ok(()),
        }
    })
}

#[test]
fn an_allow_policy_lets_in_whom_it_names_and_refuses_the_others_with_401() -> Result<()> {
    with_mesh(|mesh| {
        let (web, spy, shop) = (mesh.pod("web"), mesh.pod("spy"), mesh.pod("shop"));
        let listening = shop.serve(PORT, echo)?;
        for pod in [&web, &spy] {
            allowed(pod, &shop)?;
        }
        mesh.add_policy(only_web(), &[&shop])?;
        await_refusal(&spy, &shop)?;
        allowed(&web, &shop)?;

        let accepted = listening.accepted();
        let marks = NodeId::ALL.map(|id| mesh.daemon(id).log().mark());
        let end = spy.turned_away(shop.at(PORT))?;
        ensure!(matches!(end, End::Clean(0) | End::Reset(0)), "{end:?}");
        // The attempt before, made while the policy arrived, may have been cut instead of refused, and be logged only now.
        let refusal = |word: &'static str| {
            let spy = spy.identity();
            move |line: &Line| line.has("src.identity", &spy) && line.field("error").contains(word)
        };
        let why = "policy rejection: allow policies exist, but none allowed";
        let refused = mesh.daemon(NodeId::B).log().await_access(marks[1], "the refusal", refusal(why))?;
        ensure!(refused.has("direction", "inbound") && refused.has("dst.workload", "shop"), "{refused}");
        let told = mesh.daemon(NodeId::A).log().await_access(marks[0], "the client's side", refusal("401"))?;
        ensure!(told.has("direction", "outbound"), "{told}");
        ensure!(listening.accepted() == accepted, "the application saw a refused connection");
        let refusals =
            mesh.daemon(NodeId::B).metrics()?.sum("istio_tcp_connections_failed_total", &[("response_flags", "DENY")]);
        ensure!(refusals >= 1.0, "no DENY in the metrics");
        Ok(())
    })
}

#[test]
fn the_service_that_was_asked_for_is_told_by_the_receiving_side_too_whether_it_lets_in_or_refuses() -> Result<()> {
    with_mesh(|mesh| {
        let (web, spy, shop) = (mesh.pod("web"), mesh.pod("spy"), mesh.pod("shop"));
        let _listening = shop.serve(PORT, echo)?;
        // Both are behind the same port: which of them is meant only the sender knows.
        let names = ["first", "second"];
        let mut services = Vec::new();
        for (name, vip) in names.iter().zip([Ipv4Addr::new(10, 96, 0, 21), Ipv4Addr::new(10, 96, 0, 22)]) {
            services.push((*name, mesh.add_service(name, "retail", vip, 80, &[(&shop, PORT)])?));
        }
        mesh.add_policy(only_web(), &[&shop])?;
        await_refusal(&spy, &shop)?;
        for (name, address) in services {
            wait::until_ok("the service to be known", RELOAD_PATIENCE, || {
                client::round_trip(&web.connect(address)?, b"let me in")
            })?;
            for from in [&web, &spy] {
                let mark = mesh.daemon(NodeId::B).log().mark();
                drop(client::round_trip(&from.connect(address)?, b"let me in"));
                let line = mesh.daemon(NodeId::B).log().await_access(mark, "the receiving side", |line| {
                    line.has("src.identity", &from.identity()) && line.field("error").is_empty() == (from.name == "web")
                })?;
                ensure!(line.has("dst.service", &format!("{name}.retail.svc.cluster.local")), "{line}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_deny_policy_refuses_whom_it_names_and_the_log_names_the_policy() -> Result<()> {
    with_mesh(|mesh| {
        let (web, spy, shop) = (mesh.pod("web"), mesh.pod("spy"), mesh.pod("shop"));
        let _listening = shop.serve(PORT, echo)?;
        allowed(&spy, &shop)?;
        mesh.add_policy(no_spies(), &[])?;
        let mark = mesh.daemon(NodeId::B).log().mark();
        await_refusal(&spy, &shop)?;
        mesh.daemon(NodeId::B).log().await_access(mark, "the policy's name", |line| {
            line.field("error").contains("explicitly denied by: retail/no-spies")
        })?;
        allowed(&web, &shop)
    })
}

#[test]
fn plaintext_from_outside_is_refused_where_identities_are_demanded_and_tunnels_are_not() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, web, shop) = (mesh.outside("outside")?, mesh.pod("web"), mesh.pod("shop"));
        let _listening = shop.serve(PORT, echo)?;
        allowed(&outside, &shop)?;
        mesh.add_policy(strict(), &[&shop])?;
        let mark = mesh.daemon(NodeId::B).log().mark();
        await_refusal(&outside, &shop)?;
        mesh.daemon(NodeId::B).log().await_access(mark, "the policy's name", |line| {
            line.field("error").contains("explicitly denied by: istio-system/strict")
        })?;
        allowed(&web, &shop)
    })
}

#[test]
fn a_policy_that_comes_while_connected_cuts_only_the_connections_it_refuses() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, web, spy, shop) = (mesh.outside("outside")?, mesh.pod("web"), mesh.pod("spy"), mesh.pod("shop"));
        let _listening = shop.serve(PORT, echo)?;
        let connect = |pod: &Pod| -> Result<_> {
            let stream = pod.connect(shop.at(PORT))?;
            client::round_trip(&stream, b"hello")?;
            Ok(stream)
        };
        let (stays, cut, cut_too) = (connect(&web)?, connect(&spy)?, connect(&outside)?);
        mesh.add_policy(only_web(), &[&shop])?;
        // A connection cut by policy must not look like one that ended well.
        for (name, stream) in [("the spy's tunnel", &cut), ("the plaintext connection", &cut_too)] {
            let end = client::await_end(stream)?;
            ensure!(end == End::Reset(0), "{name} ended with {end:?}");
        }
        client::round_trip(&stays, b"still here")?;
        mesh.edit(|model| {
            model.policies.clear();
            model.workloads.values_mut().for_each(|workload| workload.policies.clear());
        })?;
        wait::until_ok("the policy to be gone", RELOAD_PATIENCE, || allowed(&spy, &shop))
    })
}

#[test]
fn a_policy_on_ports_and_addresses_sees_the_applications_port_and_the_clients_address() -> Result<()> {
    with_mesh(|mesh| {
        let (web, spy, shop) = (mesh.pod("web"), mesh.pod("spy"), mesh.pod("shop"));
        let (_one, _two) = (shop.serve(PORT, echo)?, shop.serve(PORT + 1, echo)?);
        let rules = format!("[[[{{sourceIps: [\"{}/32\"]}}], [{{destinationPorts: [{}]}}]]]", web.address, PORT + 1);
        mesh.add_policy(PolicyEntry { rules, ..only_web() }, &[&shop])?;
        await_refusal(&web, &shop)?;
        client::round_trip(&web.connect(shop.at(PORT + 1))?, b"the allowed port")?;
        let other = spy.connect(shop.at(PORT + 1))?;
        ensure!(client::round_trip(&other, b"the wrong address").is_err());
        Ok(())
    })
}

#[test]
fn a_hand_made_client_with_an_unlisted_identity_is_answered_401_and_a_listed_one_200() -> Result<()> {
    with_mesh(|mesh| {
        let (outside, shop) = (mesh.outside("outside")?, mesh.pod("shop"));
        let _listening = shop.serve(PORT, echo)?;
        mesh.add_policy(only_web(), &[&shop])?;
        let authority = Authority::from_root_file(&mesh.ca_root_file())?;
        let tunnel = |name: &str| -> Result<Reply> {
            let leaf = authority.sign(&LeafSpec::named(&[&format!("spiffe://cluster.local/ns/retail/sa/{name}")]))?;
            Peer::connect(&outside.netns, shop.at(15008), Some(&leaf))?.tunnel(&shop.at(PORT).to_string(), b"ping")
        };
        wait::until_ok("the 401", RELOAD_PATIENCE, || {
            let reply = tunnel("stranger")?;
            ensure!(reply == Reply::Status(401, vec![]), "{reply:?}");
            Ok(())
        })?;
        let reply = tunnel("web")?;
        ensure!(reply == Reply::Status(200, b"ping".to_vec()), "{reply:?}");
        Ok(())
    })
}
