//! Much at once: whole transfers in either order of closing, and many connections over both cores.

use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use testbed::client;
use testbed::fixture;
use testbed::mesh::{Mesh, MeshSpec, NodeId, PodSpec};
use testbed::serve::{SOCKET_PATIENCE, Server, echo};
use testbed::transfer::{self, First, Pattern, Side};

const PORT: u16 = 8080;
const BYTES: u64 = 64 * 1024 * 1024;
const TRANSFERS: usize = 50;
/// Transfers under way at once: more than the daemons have cores, few enough that none stalls for long.
const AT_ONCE: usize = 4;

/// A server whose accepted connections come out of the channel.
fn accept_into_channel(mesh: &Mesh, pod: &str) -> Result<(Server, Receiver<TcpStream>)> {
    let (accepted, awaited) = mpsc::sync_channel(1);
    let server = mesh
        .pod(pod)
        .serve(PORT, move |stream, _| accepted.send(stream.try_clone()?).map_err(std::io::Error::other))?;
    Ok((server, awaited))
}

fn transfers_arrive_whole(first: First) -> Result<()> {
    let pods = [PodSpec::new("client", NodeId::A), PodSpec::new("server", NodeId::B)];
    fixture::run(MeshSpec::default(), &pods, |mesh| {
        let client = mesh.pod("client");
        let (_server, accepted) = accept_into_channel(mesh, "server")?;
        let target = mesh.pod("server").at(PORT);
        // Connecting is one at a time, so that each client knows which accepted connection is its own.
        let connecting = Mutex::new(accepted);
        let pattern = Pattern::default();
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            loop {
                let flow = next.fetch_add(1, Ordering::Relaxed);
                if flow >= TRANSFERS {
                    return Ok(());
                }
                let (near, far) = {
                    let accepted = connecting.lock().map_err(|_| anyhow!("another transfer panicked"))?;
                    let near = client.connect(target)?;
                    (near, accepted.recv_timeout(SOCKET_PATIENCE).context("the server's side of the connection")?)
                };
                thread::scope(|scope| {
                    let serving = scope.spawn(|| transfer::run(&far, &pattern, Side::server(flow, BYTES, first)));
                    let here = transfer::run(&near, &pattern, Side::client(flow, BYTES, first));
                    let there = serving.join().map_err(|_| anyhow!("the server's side panicked"))?;
                    // Both, since one alone does not tell which way the bytes were lost.
                    let told = [&here, &there].map(|side| side.as_ref().err().map(|error| format!("{error:#}")));
                    ensure!(
                        here.is_ok() && there.is_ok(),
                        "transfer {flow}: the client's and the server's side: {told:?}"
                    );
                    Ok(())
                })?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a transfer panicked"))?)
        })?;
        daemons_agree_on_the_bytes(mesh)
    })
}

/// What the pods moved is exactly what both daemons counted.
fn daemons_agree_on_the_bytes(mesh: &Mesh) -> Result<()> {
    let expected = u64::try_from(TRANSFERS)? * BYTES;
    for (id, reporter) in [(NodeId::A, "source"), (NodeId::B, "destination")] {
        let page = mesh.daemon(id).metrics()?;
        for name in ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"] {
            let counted = page.sum(name, &[("reporter", reporter)]);
            #[expect(clippy::cast_precision_loss, clippy::float_cmp, reason = "3.4e9 is far below 2^53")]
            let equal = counted == expected as f64;
            ensure!(equal, "{id}: {name} says {counted}, and {expected} bytes were moved");
        }
    }
    Ok(())
}

#[test]
fn fifty_times_64_mib_each_way_arrive_whole_when_the_client_closes_first() -> Result<()> {
    transfers_arrive_whole(First::Client)
}

#[test]
fn fifty_times_64_mib_each_way_arrive_whole_when_the_server_closes_first() -> Result<()> {
    transfers_arrive_whole(First::Server)
}

#[test]
fn five_hundred_connections_at_once_are_served_by_both_cores_of_both_daemons() -> Result<()> {
    const EACH: usize = 125;
    let pairs =
        [("client-1", "server-1"), ("client-2", "server-2"), ("client-3", "server-3"), ("client-4", "server-4")];
    let pods: Vec<PodSpec> = pairs
        .iter()
        .flat_map(|(client, server)| [PodSpec::new(client, NodeId::A), PodSpec::new(server, NodeId::B)])
        .collect();
    fixture::run(MeshSpec::default(), &pods, |mesh| {
        let before = NodeId::ALL.map(|id| mesh.daemon(id).thread_cpu());
        let servers = pairs.iter().map(|(_, server)| mesh.pod(server).serve(PORT, echo)).collect::<Result<Vec<_>>>()?;
        let mut streams = Vec::new();
        for _ in 0..EACH {
            for (client, server) in pairs {
                streams.push(Arc::new(mesh.pod(client).connect(mesh.pod(server).at(PORT))?));
            }
        }
        for round in 0..3_u8 {
            streams.iter().try_for_each(|stream| client::round_trip(stream, &[round; 200]))?;
        }
        let open: usize = servers.iter().map(Server::open).sum();
        ensure!(open == 4 * EACH, "{open} connections are open at once");
        for (id, before) in NodeId::ALL.into_iter().zip(before) {
            let (before, after) = (before?, mesh.daemon(id).thread_cpu()?);
            let spent: Vec<(&String, Duration)> = after
                .iter()
                .map(|(name, time)| (name, time.saturating_sub(before.get(name).copied().unwrap_or_default())))
                .filter(|(name, _)| name.starts_with("core-"))
                .collect();
            // 250 connections' handshakes and echoes of a core cost tens of milliseconds; an idle core's heartbeat a
            // fraction of one.
            let busy = spent.iter().filter(|(_, time)| *time > Duration::from_millis(10)).count();
            ensure!(busy == 2, "{id}: cores busy with this: {spent:?} of threads {:?}", after.keys());
        }
        drop(streams);
        Ok(())
    })
}
