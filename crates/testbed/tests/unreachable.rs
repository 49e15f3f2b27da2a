//! A connect that a router answers with "unreachable", which needs a router. io_uring told of success where there was none, and
//! the connection then waited for minutes beyond its timeout.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reactor::{CoreConfig, EngineChoice, Runtime, TenantKey};
use socket2::{Domain, Protocol, Socket, Type};
use testbed::fixture;
use testbed::mesh::{Mesh, MeshSpec, NodeId, PodSpec};

/// Nobody has a route to it.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
/// The kernel's own attempts go on for two minutes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects from inside the pod, and tells how that ended.
fn outcome(mesh: &Mesh, engine: EngineChoice) -> Result<Result<(), String>> {
    let socket = mesh.pod("client").netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))?;
    let (tell, told) = mpsc::channel();
    let config = CoreConfig { engine, ..CoreConfig::default() };
    let core = reactor::start(config, move |reactor| async move {
        let connecting = reactor.connect(OwnedFd::from(socket), SocketAddr::from((NOWHERE, 80)), TIMEOUT);
        let outcome =
            reactor.spawn(TenantKey(1), async { connecting.await.map(drop).map_err(|error| error.to_string()) });
        tell.send(outcome.await.expect("it was not cancelled")).expect("the test waits");
    })
    .context("start a core")?;
    let outcome = told.recv_timeout(2 * TIMEOUT).context("the timeout did not hold");
    core.join();
    outcome
}

#[test]
fn what_a_router_calls_unreachable_is_never_taken_for_a_connection() -> Result<()> {
    let pods = [PodSpec::new("client", NodeId::A).uncaptured(), PodSpec::new("other", NodeId::B).uncaptured()];
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        fixture::run(MeshSpec::default(), &pods, |mesh| {
            // Routers answer the first attempts at once, and later ones now and then.
            for _ in 0..2 {
                let outcome = outcome(mesh, engine)?;
                let error = outcome.err().with_context(|| format!("{engine:?}: connected to nowhere"))?;
                ensure!(error.contains("unreachable") || error.contains("no answer"), "{engine:?}: {error}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
