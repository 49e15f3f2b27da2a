//! Connecting a socket that was made, and perhaps bound, elsewhere.

use std::{future::Future, io, net::SocketAddr, os::fd::OwnedFd, pin::pin, rc::Rc, time::Duration};

use futures_util::future::{Either, select};
use socket2::SockRef;

use super::stream::{StreamParts, TcpStream};
use crate::engine::operation::Operation;

/// Connects `socket` to `target`, unless `expired` resolves first.
pub(crate) async fn connect(
    parts: StreamParts,
    socket: OwnedFd,
    target: SocketAddr,
    timeout: Duration,
    expired: impl Future<Output = ()>,
) -> io::Result<TcpStream> {
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    let socket = Rc::new(socket);
    let operation = Operation::Connect { socket: socket.clone(), target: Box::new(target.into()) };
    let connected = parts.start(operation)?;
    // The timeout is the core's own timer rather than a linked one in the ring: it costs no request, and cancelling is
    // what dropping the operation does anyway.
    match select(connected, pin!(expired)).await {
        Either::Left((completion, _)) => completion.outcome?,
        Either::Right(((), _abandoned)) => {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {target} within {timeout:?}")));
        }
    };
    Ok(TcpStream::new(parts, socket))
}
