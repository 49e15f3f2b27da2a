//! A hand-made HBONE client: rustls and its own few HTTP/2 frames, so that it can send what a well-behaved library
//! refuses to. Not for speed, and it shares no code with `hbone`, so that the two check each other.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::certificate::{Leaf, provider};
use crate::namespace::Namespace;
use crate::serve::SOCKET_PATIENCE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The default maximum; this client never raises it, so a longer frame is an error of the peer.
const FRAME_BYTES_MAX: usize = 16_384;
/// Bytes of a reply's body kept.
const BODY_BYTES_MAX: usize = 1024 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 connection to an HBONE port.
pub struct Peer {
    tls: StreamOwned<ClientConnection, TcpStream>,
    next_stream: u32,
}

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Answered; the body is what came up to the end of the stream.
    Status(u16, Vec<u8>),
    /// The stream was reset, with this code, before any status.
    Reset(u32),
    /// The whole connection was ended by the peer, with this code.
    GoAway(u32),
}

impl Peer {
    /// Connects from inside `namespace`, presents `leaf` (nothing, if none) and greets. Takes whatever certificate the
    /// server shows.
    ///
    /// # Errors
    /// When the server refuses the certificate: in TLS 1.3 that comes with the first read.
    pub fn connect(namespace: &Namespace, target: SocketAddr, leaf: Option<&Leaf>) -> Result<Self> {
        let socket = namespace
            .run(|| TcpStream::connect_timeout(&target, SOCKET_PATIENCE))
            .with_context(|| format!("connect from {} to {target}", namespace.name()))?;
        socket.set_read_timeout(Some(SOCKET_PATIENCE))?;
        socket.set_write_timeout(Some(SOCKET_PATIENCE))?;
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer { provider }));
        let mut config = match leaf {
            Some(leaf) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified()?))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        let connection = ClientConnection::new(Arc::new(config), ServerName::IpAddress(target.ip().into()))?;
        let mut peer = Self { tls: StreamOwned::new(connection, socket), next_stream: 1 };
        peer.tls.write_all(PREFACE)?;
        // HEADER_TABLE_SIZE 0: the server may then not use HPACK's dynamic table, which this client doesn't have.
        peer.send(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0])?;
        peer.tls.flush()?;
        let (kind, ..) = peer.receive().context("the server's first frame")?;
        ensure!(kind == SETTINGS, "the server's first frame has type {kind}, not SETTINGS");
        peer.send(SETTINGS, ACK, 0, &[])?;
        Ok(peer)
    }

    /// A CONNECT to `authority` that sends `payload` and its end, and reads to the other end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn tunnel(&mut self, authority: &str, payload: &[u8]) -> Result<Reply> {
        self.request(&[(":method", "CONNECT"), (":authority", authority)], payload)
    }

    /// A request of any header fields, well formed or not.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn request(&mut self, fields: &[(&str, &str)], payload: &[u8]) -> Result<Reply> {
        ensure!(payload.len() <= FRAME_BYTES_MAX, "this client sends one DATA frame only");
        let stream = self.next_stream;
        self.next_stream += 2;
        self.send(HEADERS, END_HEADERS, stream, &header_block(fields))?;
        self.send(DATA, END_STREAM, stream, payload)?;
        self.tls.flush()?;
        let mut status = None;
        let mut body = Vec::new();
        loop {
            let (kind, flags, on, content) = self.receive()?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[])?,
                PING if flags & ACK == 0 => self.send(PING, ACK, 0, &content)?,
                GOAWAY => return Ok(Reply::GoAway(code(&content, 4))),
                RST_STREAM if on == stream => {
                    // After a whole answer a server may say that it wants no more of the request: not a failure.
                    return Ok(match status {
                        Some(status) if code(&content, 0) == 0 => Reply::Status(status, body),
                        _ => Reply::Reset(code(&content, 0)),
                    });
                }
                HEADERS if on == stream => {
                    ensure!(flags & END_HEADERS != 0, "the server split its headers, which this client can't read");
                    status = Some(status_of(&content)?);
                }
                DATA if on == stream => body.extend_from_slice(&content),
                _ => {}
            }
            ensure!(body.len() <= BODY_BYTES_MAX, "a reply of more than {BODY_BYTES_MAX} bytes");
            if matches!(kind, HEADERS | DATA) && on == stream && flags & END_STREAM != 0 {
                return Ok(Reply::Status(status.context("a body without a status")?, body));
            }
        }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len()).expect("frames of this client are short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(content);
        self.tls.write_all(&frame)
    }

    fn receive(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        let mut header = [0; 9];
        self.tls.read_exact(&mut header)?;
        let [high, middle, low, kind, flags, stream @ ..] = header;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
        let mut content = vec![0; length];
        self.tls.read_exact(&mut content)?;
        Ok((kind, flags, u32::from_be_bytes(stream) & 0x7fff_ffff, content))
    }
}

/// Fields as HPACK literals without indexing, without Huffman codes.
fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(
                u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a test's header fields are short"),
            );
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The status in a header block, which begins with it.
fn status_of(block: &[u8]) -> Result<u16> {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // A change of the table's size may come first: 001xxxxx.
    let block = &block[block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count()..];
    match block {
        [first @ 0x88..=0x8e, ..] => Ok(STATIC[usize::from(first - 0x88)]),
        // A literal whose name is entry 8 of the static table, with incremental indexing, without, or never.
        [0x48 | 0x08 | 0x18, length, rest @ ..] => {
            let text = rest.get(..usize::from(length & 0x7f)).context("a header block cut short")?;
            let digits =
                if length & 0x80 == 0 { String::from_utf8_lossy(text).into_owned() } else { huffman_digits(text)? };
            digits.parse().with_context(|| format!("no status: {digits:?}"))
        }
        _ => bail!("a header block that does not begin with a status: {block:02x?}"),
    }
}

/// HPACK's Huffman code, as far as decimal digits go.
fn huffman_digits(bytes: &[u8]) -> Result<String> {
    let mut digits = String::new();
    let (mut code, mut length) = (0_u32, 0);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        code = code << 1 | u32::from(bit);
        length += 1;
        let digit = match (length, code) {
            (5, 0..=2) => code,
            (6, 0b01_1001..=0b01_1111) => code - 0b01_1001 + 3,
            (7.., _) if code != (1 << length) - 1 => bail!("not a digit in {bytes:02x?}"),
            _ => continue,
        };
        digits.push(char::from_digit(digit, 10).expect("below ten"));
        (code, length) = (0, 0);
    }
    Ok(digits)
}

fn code(content: &[u8], at: usize) -> u32 {
    content.get(at..at + 4).map_or(u32::MAX, |bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")))
}

/// Whom the server claims to be is not this client's question.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_coding_a_server_may_choose() {
        let rows: [(&[u8], u16); 6] = [
            (&[0x88], 200),
            (&[0x8c, 0x00], 400),
            (&[0x20, 0x8e], 500),
            (&[0x48, 0x03, b'4', b'0', b'1'], 401),
            // 4 = 011010, 0 = 00000, 1 = 00001: 01101000 00000001.
            (&[0x48, 0x82, 0b0110_1000, 0b0000_0001], 401),
            // 5 = 011011, 0 = 00000, 3 = 011001, padded with ones.
            (&[0x08, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111], 503),
        ];
        for (block, status) in rows {
            assert_eq!(status_of(block).unwrap(), status, "{block:02x?}");
        }
        assert!(status_of(&[0x40]).is_err() && status_of(&[]).is_err());
    }

    #[test]
    fn fields_are_written_as_plain_literals() {
        assert_eq!(header_block(&[("a", "bc")]), [0, 1, b'a', 2, b'b', b'c']);
    }
}
