//! Plain TCP that reaches a captured pod from outside the mesh: captured on 15006, admitted by policy without an
//! identity, and carried on to the application.

use std::{pin::pin, rc::Rc};

use mesh_state::admit;
use reactor::{Runtime, Stream};
use telemetry::connection::Reporter;

use crate::{
    connections::{InboundFacts, InboundRequest},
    core::Core,
    dial,
    error::Error,
    network::PodNetwork,
    outbound::unless_stopped,
    pod::{Pod, turn_away},
    record::{self, Direction, InboundPeer, Record},
    relay,
};

/// Carries one captured connection from its first byte to its record.
pub(crate) async fn serve<R: Runtime, N: PodNetwork<R>>(core: Rc<Core<R, N>>, pod: Rc<Pod<R, N>>, client: R::Stream) {
    let (Ok(peer), Ok(target)) = (client.peer_addr(), client.original_dst()) else { return };
    let _open = core.metrics.socket(Reporter::Destination);
    let early = |error: &Error| record::refused_early(Direction::Inbound, peer, target, error);
    if core.config.ports.forbidden().contains(&target.port()) {
        early(&Error::RecursiveCall { target });
        return turn_away(client);
    }
    let _place = match pod.place() {
        Ok(place) => place,
        Err(error) => {
            early(&error);
            return turn_away(client);
        }
    };
    let facts = InboundFacts { peer, local: target.ip(), identity: None, request: InboundRequest::Plaintext(target) };
    // Entered before the verdict, so that a policy that arrives in between finds the connection.
    let tracked = core.connections.track(pod.uid.clone(), Some(facts.clone()));
    let workload = match unless_stopped(&tracked, core.workload(&pod, Direction::Inbound)).await {
        Ok(workload) => workload,
        Err(error) => {
            early(&error);
            return turn_away(client);
        }
    };
    let deciding = core.decided(&pod, |snapshot| facts.admit_or_lack(snapshot, &workload, &core.config));
    let verdict = match unless_stopped(&tracked, deciding).await {
        Ok(verdict) => verdict,
        Err(error) => {
            early(&error);
            return turn_away(client);
        }
    };
    record::dry_runs(&facts, &verdict);
    let service = core.with_snapshot(|snapshot| admit::attribute(snapshot, &workload, facts.request(), None).cloned());
    let record = Record::inbound(
        &core,
        &InboundPeer { peer, local: target, identity: None, baggage: None },
        &workload,
        service.as_deref(),
        None,
    );
    let admission = match verdict {
        Ok(admission) => admission,
        Err(refusal) => {
            turn_away(client);
            return record.finish(Err(Error::Refused(refusal)));
        }
    };
    let source = pod.keeps_source.then_some(peer.ip());
    let ended = match unless_stopped(&tracked, dial::plain(&core, &pod, admission.target, source)).await {
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
