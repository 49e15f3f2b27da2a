//! Records what passes a router's interfaces, by a raw packet socket, and sorts it into TCP streams. No reassembly
//! beyond arrival order: enough to say which bytes crossed the wire, not to repair a lossy one.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// Payload kept; a capture that grows beyond fails instead of lying by omission. This is also its worst-case memory.
const PAYLOAD_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A packet with segmentation offload is up to 64 KiB and its headers.
const PACKET_BYTES_MAX: usize = 128 * 1024;
const KERNEL_BUFFER_BYTES: usize = 32 * 1024 * 1024;
const ETH_P_IP: u16 = 0x0800;
const ETHERNET_HEADER: usize = 14;
const IPPROTO_TCP: u8 = 6;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Sender.
    pub from: SocketAddrV4,
    /// Receiver.
    pub to: SocketAddrV4,
}

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    recording: JoinHandle<Result<Recording>>,
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    flows: BTreeMap<Flow, Vec<u8>>,
    bytes: usize,
}

impl Capture {
    /// Starts to record the IPv4 packets that arrive at any interface of `router`. What is forwarded arrives once, so
    /// it is recorded once.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn start(router: &Namespace) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
        let socket = router
            .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))
            .with_context(|| format!("packet socket in {} (needs CAP_NET_RAW)", router.name()))?;
        // The polite call is capped by net.core.rmem_max; as root the forced one is not.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), KERNEL_BUFFER_BYTES)
            .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(socket.as_fd(), KERNEL_BUFFER_BYTES))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let recording = thread::Builder::new().name("capture".into()).spawn(move || record(socket, &stopping))?;
        Ok(Self { stop, recording })
    }

    /// Ends the capture after the packets that have arrived by now.
    ///
    /// # Errors
    /// When it grew beyond its limit or the socket failed.
    pub fn stop(self) -> Result<Recording> {
        self.stop.store(true, Ordering::Release);
        self.recording.join().map_err(|_| anyhow!("the capturing thread panicked"))?
    }
}

impl Recording {
    /// Every direction seen, with its payload in order of arrival.
    pub fn flows(&self) -> impl Iterator<Item = (&Flow, &[u8])> {
        self.flows.iter().map(|(flow, bytes)| (flow, bytes.as_slice()))
    }

    /// Directions to or from a port.
    pub fn flows_of_port(&self, port: u16) -> impl Iterator<Item = (&Flow, &[u8])> {
        self.flows().filter(move |(flow, _)| flow.from.port() == port || flow.to.port() == port)
    }

    /// Whether `needle` crossed the wire in the clear in any direction.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.flows.values().any(|bytes| contains(bytes, needle))
    }

    /// Bytes of payload in all directions.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.bytes
    }

    fn add(&mut self, packet: &[u8]) -> Result<()> {
        let Some((flow, payload)) = tcp_payload(packet) else { return Ok(()) };
        self.bytes += payload.len();
        ensure!(self.bytes <= PAYLOAD_BYTES_MAX, "the capture grew beyond {PAYLOAD_BYTES_MAX} bytes");
        self.flows.entry(flow).or_default().extend_from_slice(payload);
        Ok(())
    }
}

/// Content types of the TLS records in one direction, as far as whole records were captured; none when it doesn't begin
/// as TLS.
#[must_use]
pub fn tls_record_types(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut types = Vec::new();
    let mut rest = bytes;
    while let [content, 0x03, 0x01..=0x04, high, low, after @ ..] = rest {
        if !(20..=23).contains(content) {
            return None;
        }
        types.push(*content);
        let Some(next) = after.get(usize::from(u16::from_be_bytes([*high, *low]))..) else { return Some(types) };
        rest = next;
    }
    (rest.len() < 5 && !types.is_empty()).then_some(types)
}

/// `bytes` as a hex dump with text beside it, sixteen to a line.
#[must_use]
pub fn hex_dump(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).map(|chunk| {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            chunk.iter().map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' }).collect();
        format!("{:<47}  {text}", hex.join(" "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn record(mut socket: Socket, stop: &AtomicBool) -> Result<Recording> {
    let mut recording = Recording::default();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        // Read before the packets are: what arrived before the stop is still taken.
        let stopping = stop.load(Ordering::Acquire);
        match socket.read(&mut buffer) {
            Ok(length) => recording.add(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stopping {
                    return Ok(recording);
                }
            }
            Err(error) => return Err(error).context("read the packet socket"),
        }
    }
}

/// Direction and payload of an Ethernet frame that holds TCP over IPv4.
fn tcp_payload(frame: &[u8]) -> Option<(Flow, &[u8])> {
    let packet = frame.get(ETHERNET_HEADER..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    // A segmentation-offloaded packet of more than 64 KiB has a total length of zero.
    let packet = if total == 0 { packet } else { packet.get(..total)? };
    if packet.get(9) != Some(&IPPROTO_TCP) {
        return None;
    }
    let address =
        |at: usize| -> Option<Ipv4Addr> { Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)) };
    let (from, to) = (address(12)?, address(16)?);
    let segment = packet.get(header..)?;
    let port = |at: usize| -> Option<u16> { Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?])) };
    let data = usize::from(segment.get(12)? >> 4) * 4;
    let flow = Flow { from: SocketAddrV4::new(from, port(0)?), to: SocketAddrV4::new(to, port(2)?) };
    Some((flow, segment.get(data..)?))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // First byte first: a plain window scan of megabytes takes seconds without optimisation.
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&byte| byte == first) {
        from += at + 1;
        if haystack[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::serve::{Server, echo};

    #[test]
    fn a_plain_connection_is_recorded_byte_for_byte() {
        let namespace = Namespace::create("loop").unwrap();
        let server = Server::start(&namespace, 0, echo).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let capture = Capture::start(&namespace).unwrap();
        let mut client = namespace.run(|| TcpStream::connect(address)).unwrap();
        client.write_all(b"seen on the wire").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
        let recording = capture.stop().unwrap();
        assert!(recording.contains(b"seen on the wire") && !recording.contains(b"never sent"));
        assert_eq!((recording.flows_of_port(server.port()).count(), recording.payload_bytes()), (2, 32));
    }

    #[test]
    fn tls_records_are_told_from_other_bytes() {
        let rows: [(&[u8], Option<&[u8]>); 5] = [
            (&[22, 3, 1, 0, 1, 9, 23, 3, 3, 0, 2, 1, 2], Some(&[22, 23])),
            (&[22, 3, 1, 0, 1, 9, 23, 3, 3, 0, 9, 1], Some(&[22, 23])),
            (&[23, 3, 3, 0, 1, 7, b'G', b'E', b'T', b' ', b'/'], None),
            (b"GET / HTTP/1.1", None),
            (b"", None),
        ];
        for (bytes, expected) in rows {
            assert_eq!(tls_record_types(bytes).as_deref(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_dump_shows_hex_and_text() {
        assert_eq!(hex_dump(b"\x17\x03hi"), format!("{:<47}  ..hi", "17 03 68 69"));
    }
}
