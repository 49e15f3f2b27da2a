//! Outgoing connections of a pod: plain ones, and tunnels through the pod's pool.
//!
//! Every step has a bound of its own, so that an error can say which step was slow and who to look at.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_util::future::{Either, select};
use hbone::{
    Pinger, TlsError,
    credential::Credential,
    h2::client::{self, Tunnel},
    pool::{Checkout, Lent, PoolKey, Turn, Usable},
};
use reactor::{Chunk, Runtime, Stream};
use telemetry::connection::Reporter;

use crate::{
    config::Config,
    core::Core,
    deadline::within,
    error::Error,
    network::PodNetwork,
    peers::Watch,
    pod::{Pod, Stage},
};

/// How long a tunnel whose pod has closed may take to send what is queued: resets and the goodbye.
pub(crate) const LAST_FRAMES: Duration = Duration::from_millis(100);

/// A tunnel to lend, and who is at its other end.
#[derive(Clone)]
pub(crate) struct Dialled {
    tunnel: Tunnel<Chunk>,
    pub(crate) peer: Watch,
}

impl Deref for Dialled {
    type Target = Tunnel<Chunk>;

    fn deref(&self) -> &Tunnel<Chunk> {
        &self.tunnel
    }
}

impl Usable for Dialled {
    fn is_usable(&self) -> bool {
        !self.peer.is_revoked() && self.tunnel.is_usable()
    }

    fn streams_max(&self) -> usize {
        Usable::streams_max(&self.tunnel)
    }
}

/// Connects to `target` from inside the pod, from `source` where that is given and can be kept.
pub(crate) async fn plain<R: Runtime, N: PodNetwork<R>>(
    core: &Core<R, N>,
    pod: &Pod<R, N>,
    target: SocketAddr,
    source: Option<IpAddr>,
) -> Result<R::Stream, Error> {
    // A connection from an address to itself keeps its source by nature, and binding it would take one of its ports.
    let source = source.filter(|source| *source != target.ip());
    let made = pod.network.outgoing(target, source).map_err(|source| Error::Socket { target, source })?;
    if let Some(error) = made.source_lost {
        tracing::warn!(pod = %pod.name(), %target, ?source, %error, "the application will see the pod's own address");
    }
    let waited = core.config.connect_timeout;
    core.runtime.connect(made.socket, target, waited).await.map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => Error::ConnectTimedOut { target, waited },
        _ => Error::Connect { target, source },
    })
}

/// A place on a tunnel to the hop of `key`: on one that is there, or on a new one, of which at most one is dialled.
pub(crate) async fn tunnel<R: Runtime, N: PodNetwork<R>>(
    core: &Rc<Core<R, N>>,
    pod: &Rc<Pod<R, N>>,
    key: &PoolKey,
    credential: &Credential,
) -> Result<Lent<Dialled>, Error> {
    let ticket = match pod.pool.checkout(key, core.runtime.now()) {
        Checkout::Ready(lent) => return Ok(lent),
        Checkout::Full => return Err(Error::PoolFull { pod: pod.name() }),
        Checkout::Dial(ticket) => ticket,
        Checkout::Wait(waiting) => match waiting.await? {
            Turn::Lent(lent) => return Ok(lent),
            Turn::Dial(ticket) => ticket,
        },
    };
    match handshake(core, pod, key, credential).await {
        Ok(tunnel) => {
            let streams_max = tunnel.streams_max();
            Ok(ticket.fulfil(tunnel, streams_max, core.runtime.now()))
        }
        Err(error) => {
            if error.is_of_revocation() {
                core.metrics.revoked(Reporter::Source);
            }
            ticket.fail(error.to_string().into());
            Err(error)
        }
    }
}

/// TCP, TLS and HTTP/2 to the hop; leaves the tunnel driven by a task of its own.
async fn handshake<R: Runtime, N: PodNetwork<R>>(
    core: &Rc<Core<R, N>>,
    pod: &Rc<Pod<R, N>>,
    key: &PoolKey,
    credential: &Credential,
) -> Result<Dialled, Error> {
    let hop = key.hop;
    let stream = plain(core, pod, hop, None).await.map_err(|error| match error {
        Error::ConnectTimedOut { target: hop, waited } => Error::HopTimedOut { hop, waited },
        error => error,
    })?;
    let shake = async {
        let mut tls = credential.connector(&key.expected).connect(stream.into_io()).await?;
        let known = core.peers.enter(tls.take_proof()).map_err(TlsError::Certificate)?;
        let (tunnel, driver) = client::handshake(tls, &core.config.h2).await.map_err(Error::H2Handshake)?;
        Ok::<_, Error>((tunnel, driver, known))
    };
    let waited = core.config.handshake_timeout;
    let (tunnel, driver, known) =
        within(&core.runtime, waited, shake).await.map_err(|_| Error::HandshakeTimedOut { peer: hop, waited })??;

    let pinger = tunnel.pinger();
    let peer = known.watch();
    let (driving_core, driving_pod) = (core.clone(), pod.clone());
    let member = pod.tunnels.join();
    let drive = async move {
        let _member = member;
        let mut driver = pin!(driver);
        let alive = pin!(keepalive(&driving_core, pinger));
        let closed = pin!(driving_pod.reached(Stage::Closed));
        let revoked = pin!(async {
            known.revoked().await;
            driving_core.metrics.revoked(Reporter::Source);
        });
        // Whoever is revoked hears nothing more, not even a goodbye: dropping the driver cuts all streams.
        let ended = match select(select(driver.as_mut(), alive), select(closed, revoked)).await {
            Either::Left((ended, _)) => Either::Left((ended, ())),
            Either::Right((Either::Left(_), _)) => Either::Right(()),
            Either::Right((Either::Right(_), _)) => return,
        };
        match ended {
            Either::Left((Either::Left((Ok(()), _)), _)) => {}
            Either::Left((Either::Left((Err(error), _)), _)) => tracing::debug!(%hop, %error, "tunnel ended"),
            Either::Left((Either::Right((silent, _)), _)) => silent.tell(hop),
            Either::Right(()) => drop(within(&driving_core.runtime, LAST_FRAMES, driver).await),
        }
    };
    core.runtime.spawn(pod.tenant, drive).detach();
    Ok(Dialled { tunnel, peer })
}

/// How a tunnel fell silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// A PING was not answered: the peer is dead.
    NoPong,
    /// Both ends have said goodbye, and the peer has not closed its side since.
    Lingering,
}

impl Silent {
    pub(crate) fn tell(self, peer: SocketAddr) {
        match self {
            Self::NoPong => {
                tracing::warn!(%peer, "tunnel dropped: no answer to HTTP/2 PING, is the peer's node alive?")
            }
            Self::Lingering => tracing::debug!(%peer, "tunnel dropped: ended, but not closed by the peer"),
        }
    }
}

/// Sends a PING every so often, and resolves when the tunnel has fallen silent.
pub(crate) async fn keepalive<R: Runtime, N: PodNetwork<R>>(core: &Core<R, N>, pinger: Option<Pinger>) -> Silent {
    let Config { ping_interval, ping_timeout, .. } = core.config;
    if let Some(mut pinger) = pinger {
        loop {
            core.runtime.sleep(ping_interval).await;
            match within(&core.runtime, ping_timeout, pinger.ping()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break,
                Err(_) => return Silent::NoPong,
            }
        }
    }
    // The tunnel is ending; what is left is the peer's turn, for as long as a PING would have had.
    core.runtime.sleep(ping_timeout).await;
    Silent::Lingering
}
