//! What a pod's application sends out: captured on 15001, decided, and carried on in plain TCP or through a tunnel.

use std::{net::SocketAddr, pin::pin, rc::Rc, sync::Arc};

use futures_util::future::{Either, select};
use hbone::{
    TunnelStream,
    baggage::Baggage,
    forwarded::Forwarded,
    pool::{Lent, PoolKey},
    request::ConnectRequest,
    traceparent::Traceparent,
};
use mesh_state::{
    identity::Identity,
    name::{Authority, Hop},
    route::{self, Destination, Route},
    workload::Workload,
};
use reactor::{Chunk, Runtime, Stream};
use telemetry::connection::Reporter;

use crate::{
    connections::Tracked,
    core::Core,
    deadline::within,
    dial::{self, Dialled},
    error::{Error, Unsupported},
    network::PodNetwork,
    pod::{Pod, turn_away},
    record::{self, Direction, Record},
    relay,
};

/// Carries one captured connection from its first byte to its record.
pub(crate) async fn serve<R: Runtime, N: PodNetwork<R>>(core: Rc<Core<R, N>>, pod: Rc<Pod<R, N>>, client: R::Stream) {
    // An application that is gone already has no addresses any more, and needs no answer.
    let (Ok(peer), Ok(target)) = (client.peer_addr(), client.original_dst()) else { return };
    let _open = core.metrics.socket(Reporter::Source);
    let outbound = Outbound { core: &core, pod: &pod, peer, target };
    let _place = match pod.place() {
        Ok(place) => place,
        Err(error) => {
            record::refused_early(Direction::Outbound, peer, target, &error);
            return turn_away(client);
        }
    };
    // Before it is decided, which may take as long as its workload does to arrive: a pod that goes meanwhile takes it
    // along, and a drain waits for it.
    let tracked = core.connections.track(pod.uid.clone(), None);
    let (source, route) = match unless_stopped(&tracked, outbound.decide()).await {
        Ok(decided) => decided,
        Err(error) => {
            record::refused_early(Direction::Outbound, peer, target, &error);
            return turn_away(client);
        }
    };
    match route {
        Route::Passthrough { target } => {
            outbound.relay_plain(&source, client, target, &Destination::default(), &tracked).await
        }
        Route::Direct { target, destination } => {
            outbound.relay_plain(&source, client, target, &destination, &tracked).await;
        }
        Route::Hbone { hop, authority, expected, destination } => {
            let tunnel = Tunnelled { hop, authority, expected, destination };
            outbound.relay_tunnel(&source, client, tunnel, &tracked).await;
        }
        // What cannot be carried yet is refused by name and counted; it never falls back to plain TCP.
        Route::DoubleHbone { destination, .. } => {
            turn_away(client);
            outbound.refuse(&source, &destination, Unsupported::DoubleHbone);
        }
        Route::Resolve(lookup) => {
            turn_away(client);
            outbound.refuse(&source, &Destination::default(), Unsupported::HostnameWorkload(lookup.hostname().clone()));
        }
    }
}

/// One captured connection, while it is decided and connected.
struct Outbound<'a, R: Runtime, N> {
    core: &'a Rc<Core<R, N>>,
    pod: &'a Rc<Pod<R, N>>,
    peer: SocketAddr,
    target: SocketAddr,
}

/// Where a tunnelled connection goes.
struct Tunnelled {
    hop: Hop,
    authority: Authority,
    expected: Vec<Identity>,
    destination: Destination,
}

impl<R: Runtime, N: PodNetwork<R>> Outbound<'_, R, N> {
    async fn decide(&self) -> Result<(Arc<Workload>, Route), Error> {
        let Self { core, target, peer, .. } = *self;
        if target.ip().is_loopback() && core.config.ports.forbidden().contains(&target.port()) {
            return Err(Error::RecursiveCall { target });
        }
        let source = core.workload(self.pod, Direction::Outbound).await?;
        let query = route::Query { source: &source, peer: peer.ip(), target };
        let draw = core.runtime.draw();
        let route = core.decided(self.pod, |snapshot| {
            let route = route::outbound(snapshot, &query, draw);
            match snapshot.is_on_demand().then(|| route::lacking(snapshot, &query, &route)).flatten() {
                Some(sought) => Err(sought),
                None => Ok(route),
            }
        });
        let route = route.await??;
        Ok((source, route))
    }

    fn refuse(&self, source: &Workload, destination: &Destination, what: Unsupported) {
        let record = Record::outbound(self.core, self.peer, self.target, source, destination, None);
        record.finish(Err(Error::Unsupported { target: self.target, what }));
    }

    async fn relay_plain(
        &self,
        source: &Workload,
        client: R::Stream,
        target: SocketAddr,
        destination: &Destination,
        tracked: &Tracked,
    ) {
        let record = Record::outbound(self.core, self.peer, target, source, destination, None);
        let connecting = dial::plain(self.core, self.pod, target, None);
        let ended = match unless_stopped(tracked, connecting).await {
            Ok(server) => relay::run(relay::plain(client), relay::plain(server), &record, pin!(tracked.stopped()))
                .await
                .map_err(Error::from),
            Err(error) => {
                turn_away(client);
                Err(error)
            }
        };
        record.finish(ended);
    }

    async fn relay_tunnel(&self, source: &Workload, client: R::Stream, tunnel: Tunnelled, tracked: &Tracked) {
        let record =
            Record::outbound(self.core, self.peer, tunnel.hop.0, source, &tunnel.destination, Some(&tunnel.authority));
        let ended = match unless_stopped(tracked, self.open(source, tunnel)).await {
            // The place in the tunnel is held until the relay has ended: the pool counts streams by it.
            Ok((stream, lent)) => {
                tracked.through(lent.peer.clone());
                let (send, receive) = stream.split();
                relay::run(relay::plain(client), relay::tunnel(send, receive), &record, pin!(tracked.stopped()))
                    .await
                    .map_err(Error::from)
            }
            Err(error) => {
                turn_away(client);
                Err(error)
            }
        };
        record.finish(ended);
    }

    /// Opens a stream to `tunnel`'s authority. Nothing of the application is sent before the answer is 200.
    async fn open(&self, source: &Workload, tunnel: Tunnelled) -> Result<(TunnelStream<Chunk>, Lent<Dialled>), Error> {
        let Tunnelled { hop: Hop(hop), authority, expected, destination } = tunnel;
        let credential = self.core.credential(self.pod, &source.identity).await?;
        let key = PoolKey { source: source.identity.clone(), expected, hop, source_ip: self.peer.ip() };
        let lent = dial::tunnel(self.core, self.pod, &key, &credential).await?;
        let host = destination.service.as_ref().map(|service| service.hostname.to_string());
        let request = ConnectRequest {
            authority: authority.clone(),
            baggage: Some(Baggage::of_workload(source).to_string()),
            forwarded: Some(Forwarded { for_: self.peer, host }.to_string()),
            traceparent: Some(
                Traceparent::from_draws([self.core.runtime.draw(), self.core.runtime.draw(), self.core.runtime.draw()])
                    .to_string(),
            ),
        };
        let waited = self.core.config.response_timeout;
        let stream = within(&self.core.runtime, waited, lent.open(request))
            .await
            .map_err(|_| Error::ResponseTimedOut { authority: authority.to_string(), hop, waited })??;
        Ok((stream, lent))
    }
}

/// `step`, unless the connection is stopped before it is done.
pub(crate) async fn unless_stopped<T>(
    tracked: &Tracked,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match select(pin!(step), pin!(tracked.stopped())).await {
        Either::Left((done, _)) => done,
        Either::Right((why, _)) => Err(Error::Stopped(why)),
    }
}
