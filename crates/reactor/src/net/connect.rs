//! Connecting a socket that was made, and perhaps bound, elsewhere.

use std::{future::Future, io, net::SocketAddr, os::fd::OwnedFd, pin::pin, rc::Rc, time::Duration};

use futures_util::future::{Either, select};
use socket2::SockRef;

use super::stream::{StreamParts, TcpStream};
use crate::engine::operation::{Operation, Readiness};

/// Connects `socket` to `target`, unless `expired` resolves first.
pub(crate) async fn connect(
    parts: Rc<StreamParts>,
    socket: OwnedFd,
    target: SocketAddr,
    timeout: Duration,
    expired: impl Future<Output = ()>,
) -> io::Result<TcpStream> {
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    let socket = parts.engine.adopt(socket)?;
    let mut expired = pin!(expired);
    let mut wait = Operation::Connect { socket: socket.clone(), target: Box::new(target.into()) };
    loop {
        let is_last = matches!(wait, Operation::Poll { .. });
        // The timeout is the core's own timer rather than a linked one in the ring: it costs no request, and cancelling is
        // what dropping the operation does anyway.
        match select(parts.start(wait)?, expired.as_mut()).await {
            Either::Left((completion, _)) => completion.outcome?,
            Either::Right(((), _abandoned)) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer from {target} within {timeout:?}"),
                ));
            }
        };
        // io_uring says success of a connect that goes on when a router's "unreachable" comes while the kernel still holds the
        // socket (seen with Linux 6.18): TCP only notes that and tries again, and the ring finds an event without an error.
        match SockRef::from(&*socket).peer_addr() {
            Ok(_) => return Ok(TcpStream::new(parts, socket)),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => return Err(error),
        }
        if let Some(error) = SockRef::from(&*socket).take_error()? {
            return Err(error);
        }
        if is_last {
            return Err(io::ErrorKind::NotConnected.into());
        }
        wait = Operation::Poll { socket: socket.clone(), ready: Readiness::Writable };
    }
}
