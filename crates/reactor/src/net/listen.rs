//! A listening socket whose accept under way outlives the futures that wait for it.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;

use super::{
    socket::canonical,
    stream::{StreamParts, TcpStream},
};
use crate::{
    Listener,
    engine::{
        Op,
        descriptor::Descriptor,
        operation::{Brought, Operation},
    },
};

/// The real [`Listener`].
pub struct TcpListener {
    parts: Rc<StreamParts>,
    socket: Rc<Descriptor>,
    accepting: RefCell<Option<Op>>,
}

impl TcpListener {
    /// Adopts a socket that is bound and listening.
    pub(crate) fn adopt(parts: Rc<StreamParts>, socket: OwnedFd) -> io::Result<Self> {
        // Connections inherit it: one call here instead of one per connection.
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        let socket = parts.engine.adopt(socket)?;
        Ok(Self { parts, socket, accepting: RefCell::new(None) })
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        loop {
            let mut accepting = self.accepting.borrow_mut();
            let op = match &mut *accepting {
                Some(op) => op,
                none => none.insert(self.parts.start(Operation::Accept { socket: self.socket.clone() })?),
            };
            let completion = ready!(Pin::new(op).poll(context));
            *accepting = None;
            return Poll::Ready(match completion.outcome {
                Ok(Brought::Connection(connection)) => {
                    Ok(TcpStream::new(self.parts.clone(), Rc::new(Descriptor::new(connection))))
                }
                Ok(brought) => unreachable!("an accept brought {brought:?}"),
                // This one connection broke while it waited; accept(2) says to go on with the next.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => Err(error),
            });
        }
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn accept(&self) -> impl Future<Output = io::Result<TcpStream>> {
        poll_fn(|context| self.poll_accept(context))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        canonical(&SockRef::from(&*self.socket).local_addr()?)
    }
}
