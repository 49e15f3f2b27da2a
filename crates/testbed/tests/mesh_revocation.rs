//! Revocation lists at real daemons: whoever is named is refused, its tunnels that are up are closed, and nobody else
//! notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::client::{self, End};
use testbed::fixture;
use testbed::log::Log;
use testbed::mesh::{Mesh, MeshSpec, NodeId, PodSpec};
use testbed::serve::echo;
use testbed::wait;

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);
const REJECTED: &str = "istio_crl_policy_rejections_total";

fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping");
    Ok(())
}

/// As the kubelet replaces a ConfigMap's file: whole or not at all.
fn replace(file: &Path, text: &str) -> Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text)?;
    Ok(std::fs::rename(beside, file)?)
}

/// A mesh whose daemons read their lists from `file`, which is not there yet, with two clients on one node and a server
/// on the other.
fn with_mesh(fact: impl FnOnce(&mut Mesh, &Path) -> Result<()>) -> Result<()> {
    let directory = TempDir::new()?;
    let file = directory.path().join("ca-crl.pem");
    let spec = MeshSpec::with_control_plane().with("CRL_PATH", &file.to_string_lossy());
    let pods = [
        PodSpec::new("client", NodeId::A).tenant("web", "client"),
        PodSpec::new("other", NodeId::A).tenant("web", "other"),
        PodSpec::new("server", NodeId::B).tenant("shop", "server"),
    ];
    fixture::run(spec, &pods, |mesh| fact(mesh, &file))
}

#[test]
fn a_revoked_client_is_refused_and_its_tunnels_are_closed_and_a_bad_list_changes_nothing() -> Result<()> {
    with_mesh(|mesh, file| {
        let (client, other, server) = (mesh.pod("client"), mesh.pod("other"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let (log, ca) = (mesh.daemon(NodeId::B).log(), mesh.control_plane().ca.clone());
        log.await_line(Log::start(), "the missing file", PATIENCE, |line| line.text().contains("ConfigMap"))?;
        let mut live = client.connect(server.at(PORT))?;
        let mut others = other.connect(server.at(PORT))?;
        echoes(&mut live).context("without a list nobody is revoked")?;
        echoes(&mut others)?;

        // The negative control: a list, and the client is not on it.
        let mark = log.mark();
        replace(file, &ca.revocation_list(&[])?)?;
        log.await_line(mark, "the list", PATIENCE, |line| line.text().contains("revocation lists read"))?;
        echoes(&mut live)?;

        replace(file, &ca.revocation_list(&[&client.identity()])?)?;
        ensure!(matches!(client::await_end(&live)?, End::Reset(_)), "closed, and not as if it were whole");
        let line =
            log.await_access(mark, "the closed connection", |line| line.has("src.identity", &client.identity()))?;
        ensure!(line.field("error").contains("peer certificate revoked by CRL"), "{line}");
        let page = mesh.daemon(NodeId::B).metrics()?;
        ensure!(page.sum("istio_tcp_connections_failed_total", &[("response_flags", "CERT_REVOKED")]) == 1.0);
        ensure!(page.sum(REJECTED, &[("reporter", "destination")]) == 1.0, "one tunnel was closed");
        client.turned_away(server.at(PORT)).context("a new connection of the revoked one")?;
        echoes(&mut others).context("another client's connection")?;
        echoes(&mut other.connect(server.at(PORT))?)?;
        let rejected = mesh.daemon(NodeId::B).metrics()?.sum(REJECTED, &[("reporter", "destination")]);
        ensure!(rejected >= 2.0, "and a handshake refused: {rejected}");

        let mark = log.mark();
        replace(file, "-----BEGIN X509 CRL-----\nbroken\n-----END X509 CRL-----\n")?;
        log.await_line(mark, "the refusal of the file", PATIENCE, |line| {
            line.text().contains("ca-crl.pem") && line.text().contains("last good ones stay")
        })?;
        client.turned_away(server.at(PORT)).context("the last good list stays in force")?;
        echoes(&mut others)?;

        replace(file, &ca.revocation_list(&[])?)?;
        wait::until_ok("the client to be let in again", PATIENCE, || echoes(&mut client.connect(server.at(PORT))?))
    })
}

#[test]
fn a_revoked_server_is_not_connected_to_and_tunnels_to_it_are_closed() -> Result<()> {
    with_mesh(|mesh, file| {
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        let _server = server.serve(PORT, echo)?;
        let (log, ca) = (mesh.daemon(NodeId::A).log(), mesh.control_plane().ca.clone());
        let mut live = client.connect(server.at(PORT))?;
        echoes(&mut live)?;
        let mark = log.mark();
        replace(file, &ca.revocation_list(&[&server.identity()])?)?;
        ensure!(matches!(client::await_end(&live)?, End::Reset(_)));
        let line = log.await_access(mark, "the closed connection", |line| line.has("direction", "outbound"))?;
        ensure!(line.field("error").contains("peer certificate revoked by CRL"), "{line}");
        let mark = log.mark();
        client.turned_away(server.at(PORT))?;
        let line = log.await_access(mark, "the refused connection", |line| line.has("direction", "outbound"))?;
        ensure!(line.field("error").contains("is revoked"), "{line}");
        let page = mesh.daemon(NodeId::A).metrics()?;
        ensure!(page.sum(REJECTED, &[("reporter", "source")]) >= 2.0);
        ensure!(page.sum("istio_tcp_connections_failed_total", &[("response_flags", "CERT_REVOKED")]) >= 2.0);
        Ok(())
    })
}
