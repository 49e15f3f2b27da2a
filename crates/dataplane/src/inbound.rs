//! Tunnels that reach a pod on 15008: mutual TLS, then each CONNECT admitted, connected to the application and relayed.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use hbone::{
    TlsError, TunnelStream,
    baggage::Baggage,
    h2::server::{Incoming, Server},
};
use mesh_state::{
    admit::{self, Admission},
    identity::Identity,
    name::Authority,
};
use reactor::{Chunk, Runtime, Stream};
use telemetry::connection::Reporter;

use crate::{
    connections::{InboundFacts, InboundRequest},
    core::Core,
    deadline::within,
    dial,
    error::Error,
    network::PodNetwork,
    outbound::unless_stopped,
    peers::Watch,
    pod::{Pod, Stage},
    record::{self, Direction, InboundPeer, Record},
    relay,
};

/// Who is at the other end of a tunnel.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    local: SocketAddr,
    identity: Identity,
    watch: Watch,
}

/// Serves one tunnel until it ends.
pub(crate) async fn serve<R: Runtime, N: PodNetwork<R>>(core: Rc<Core<R, N>>, pod: Rc<Pod<R, N>>, stream: R::Stream) {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let _open = core.metrics.socket(Reporter::Destination);
    let _member = pod.tunnels.join();
    let closed = pin!(pod.reached(Stage::Closed));
    match select(pin!(tunnel(&core, &pod, stream, peer, local)), closed).await {
        Either::Left((Ok(()), _)) => {}
        Either::Left((Err(error), _)) => {
            if error.is_of_revocation() {
                core.metrics.revoked(Reporter::Destination);
            }
            record::refused_early(Direction::Inbound, peer, local, &error);
        }
        // What was queued when the pod closed (resets, GOAWAY) gets a moment; then the peer sees a torn connection,
        // which it must not take for a clean end.
        Either::Right(((), tunnel)) => drop(within(&core.runtime, dial::LAST_FRAMES, tunnel).await),
    }
}

async fn tunnel<R: Runtime, N: PodNetwork<R>>(
    core: &Rc<Core<R, N>>,
    pod: &Rc<Pod<R, N>>,
    stream: R::Stream,
    address: SocketAddr,
    local: SocketAddr,
) -> Result<(), Error> {
    let _place = pod.tunnel_place()?;
    let workload = core.workload(pod, Direction::Inbound).await?;
    let credential = core.credential(pod, &workload.identity).await?;
    let shake = async {
        let (mut tls, identity) = credential.acceptor().accept(stream.into_io()).await?;
        let known = core.peers.enter(tls.take_proof()).map_err(TlsError::Certificate)?;
        let server = Server::<_, Chunk>::handshake(tls, &core.config.h2).await.map_err(Error::H2Handshake)?;
        Ok::<_, Error>((server, identity, known))
    };
    let waited = core.config.handshake_timeout;
    let (mut server, identity, known) = within(&core.runtime, waited, shake)
        .await
        .map_err(|_| Error::HandshakeTimedOut { peer: address, waited })??;
    drop((workload, credential));

    let peer = Peer { address, local, identity, watch: known.watch() };
    let mut alive = pin!(dial::keepalive(core, server.pinger()));
    let mut revoked = pin!(known.revoked());
    let mut draining = pin!(pod.reached(Stage::Draining));
    let mut told = false;
    loop {
        let accepted = {
            let until = async { if told { std::future::pending().await } else { draining.as_mut().await } };
            let ended = pin!(select(alive.as_mut(), revoked.as_mut()));
            match select(pin!(server.accept()), pin!(select(ended, pin!(until)))).await {
                Either::Left((accepted, _)) => Some(accepted),
                Either::Right((Either::Left((Either::Left((silent, _)), _)), _)) => {
                    silent.tell(address);
                    return Ok(());
                }
                Either::Right((Either::Left((Either::Right(_), _)), _)) => break,
                Either::Right((Either::Right(_), _)) => None,
            }
        };
        match accepted {
            Some(Some(Ok(incoming))) => {
                let serving = connect(core.clone(), pod.clone(), incoming, peer.clone());
                core.runtime.spawn(pod.tenant, serving).detach();
            }
            Some(Some(Err(error))) => {
                // The streams have learnt it and wrote their records; the tunnel itself has none.
                tracing::debug!(%address, %error, "inbound tunnel broke");
                return Ok(());
            }
            Some(None) => return Ok(()),
            None => {
                server.graceful_shutdown();
                told = true;
            }
        }
    }
    // Its connections know already, and write their records. It is told goodbye, and not waited for.
    core.metrics.revoked(Reporter::Destination);
    server.abort();
    let goodbye = async { while let Some(Ok(_)) = server.accept().await {} };
    let _said = within(&core.runtime, dial::LAST_FRAMES, goodbye).await;
    Ok(())
}

/// One CONNECT, from its headers to its record.
async fn connect<R: Runtime, N: PodNetwork<R>>(
    core: Rc<Core<R, N>>,
    pod: Rc<Pod<R, N>>,
    incoming: Incoming<Chunk>,
    peer: Peer,
) {
    let early = |incoming: Incoming<Chunk>, error: &Error| {
        record::refused_early(Direction::Inbound, peer.address, peer.local, error);
        incoming.refuse(record::status(error));
    };
    let authority = match authority(&incoming) {
        Ok(authority) => authority,
        Err(error) => return early(incoming, &error),
    };
    let _place = match pod.place() {
        Ok(place) => place,
        Err(error) => return early(incoming, &error),
    };
    let facts = InboundFacts {
        peer: peer.address,
        local: peer.local.ip(),
        identity: Some(peer.identity.clone()),
        request: InboundRequest::Tunnel(authority.clone()),
    };
    // Entered before the verdict, so that a policy that arrives in between finds the connection.
    let tracked = core.connections.track(pod.uid.clone(), Some(facts.clone()));
    tracked.through(peer.watch.clone());
    let workload = match unless_stopped(&tracked, core.workload(&pod, Direction::Inbound)).await {
        Ok(workload) => workload,
        Err(error) => return early(incoming, &error),
    };
    let deciding = core.decided(&pod, |snapshot| facts.admit_or_lack(snapshot, &workload, &core.config));
    let verdict = match unless_stopped(&tracked, deciding).await {
        Ok(verdict) => verdict,
        Err(error) => return early(incoming, &error),
    };
    record::dry_runs(&facts, &verdict);
    let admission = match verdict {
        Err(refusal) if !record::is_a_verdict(&refusal) => return early(incoming, &Error::Refused(refusal)),
        verdict => verdict,
    };
    let baggage = incoming.baggage();
    let host = incoming.forwarded_host();
    let service = core.with_snapshot(|snapshot| admit::attribute(snapshot, &workload, facts.request(), host).cloned());
    let from = InboundPeer {
        peer: peer.address,
        local: peer.local,
        identity: Some(&peer.identity),
        baggage: baggage.as_ref(),
    };
    let record = Record::inbound(&core, &from, &workload, service.as_deref(), Some(&authority));
    let admission = match admission {
        Ok(admission) => admission,
        Err(refusal) => {
            let error = Error::Refused(refusal);
            incoming.refuse(record::status(&error));
            return record.finish(Err(error));
        }
    };
    let server = match unless_stopped(&tracked, application(&core, &pod, &admission, peer.address.ip())).await {
        Ok(server) => server,
        Err(error) => {
            incoming.refuse(record::status(&error));
            return record.finish(Err(error));
        }
    };
    // The answer comes only now that the application is connected: a 200 that ends in a refusal helps nobody.
    let answer = core.config.response_baggage.then(|| Baggage::of_workload(&workload).to_string());
    let ended = match incoming.accept(answer) {
        Ok(stream) => {
            let (send, receive) = TunnelStream::split(stream);
            relay::run(relay::tunnel(send, receive), relay::plain(server), &record, pin!(tracked.stopped()))
                .await
                .map_err(Error::from)
        }
        Err(error) => Err(Error::Broken(relay::Broken::Stream(error))),
    };
    record.finish(ended);
}

/// A connection to the application, told what it wants to be told first.
async fn application<R: Runtime, N: PodNetwork<R>>(
    core: &Core<R, N>,
    pod: &Pod<R, N>,
    admission: &Admission,
    peer: IpAddr,
) -> Result<R::Stream, Error> {
    let target = admission.target;
    let source = (pod.keeps_source && admission.keeps_source).then_some(peer);
    let server = dial::plain(core, pod, target, source).await?;
    if let Some(header) = &admission.proxy_header {
        let told = server.send(Chunk::from(Bytes::from(header.to_bytes()))).await;
        told.map_err(|source| Error::Connect { target, source })?;
    }
    Ok(server)
}

fn authority(incoming: &Incoming<Chunk>) -> Result<Authority, Error> {
    if !incoming.is_connect() {
        return Err(Error::Method { method: incoming.method().to_owned() });
    }
    Ok(Authority::parse(incoming.authority().ok_or(Error::NoAuthority)?)?)
}
