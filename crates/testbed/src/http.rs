//! As much HTTP/1.1 as the mesh tests need: one GET a connection, and a server that closes first. Not a general client.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;
use crate::serve::SOCKET_PATIENCE;

/// The longest answer read: a page of metrics of a large test is some 100 KiB.
const RESPONSE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

/// One GET from inside `namespace`.
///
/// # Errors
/// When nothing listens, the answer is no HTTP, or the connection breaks before its end.
pub fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> Result<Response> {
    let stream = namespace
        .run(|| TcpStream::connect_timeout(&address, SOCKET_PATIENCE))
        .with_context(|| format!("connect to {address} from {}", namespace.name()))?;
    get_on(&stream, &address.to_string(), path)
        .with_context(|| format!("GET {path} at {address} from {}", namespace.name()))
}

/// One GET on a connection that is open already; reads to its end.
///
/// # Errors
/// When the answer is no HTTP, or the connection breaks before its end.
pub fn get_on(mut stream: &TcpStream, host: &str, path: &str) -> Result<Response> {
    stream.set_read_timeout(Some(SOCKET_PATIENCE))?;
    stream.set_write_timeout(Some(SOCKET_PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer but {:?}", brief(&text)))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no status in {:?}", brief(head)))?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    ensure!(!chunked, "a chunked answer to a request that closes: this client reads none");
    Ok(Response { status, body: body.to_owned() })
}

/// A server that answers each GET with `name` and the path, then closes.
pub fn site(name: &str) -> impl Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static {
    let name = name.to_owned();
    move |mut stream, peer| {
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            let length = stream.read(&mut buffer)?;
            if length == 0 || request.len() > REQUEST_BYTES_MAX {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
            request.extend_from_slice(&buffer[..length]);
        }
        let head = String::from_utf8_lossy(&request);
        let path = head.split(' ').nth(1).unwrap_or("?");
        let body = format!("{name} served {path} to {}\n", peer.ip());
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

fn brief(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Server;

    #[test]
    fn client_and_site_understand_each_other() {
        let namespace = Namespace::create("site").unwrap();
        let server = Server::start(&namespace, 0, site("shop")).unwrap();
        let answer = get(&namespace, SocketAddr::from(([127, 0, 0, 1], server.port())), "/cart").unwrap();
        assert_eq!(answer, Response { status: 200, body: "shop served /cart to 127.0.0.1\n".into() });
    }
}
