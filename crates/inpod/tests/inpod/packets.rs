//! ZDS packets byte by byte, written from the wire contract and not with the crate's own encoder.

pub(crate) const HELLO: &[u8] = &[0x08, 0x01];
pub(crate) const ACK: &[u8] = &[0x0A, 0x00];
pub(crate) const SNAPSHOT: &[u8] = &[0x1A, 0x00];

pub(crate) fn add(uid: &str) -> Vec<u8> {
    let info = [field(0x0A, b"web"), field(0x12, b"shop"), field(0x1A, b"sa")].concat();
    field(0x0A, &[field(0x0A, uid.as_bytes()), field(0x12, &info)].concat())
}

pub(crate) fn add_without_info(uid: &str) -> Vec<u8> {
    field(0x0A, &field(0x0A, uid.as_bytes()))
}

pub(crate) fn del(uid: &str) -> Vec<u8> {
    field(0x12, &field(0x12, uid.as_bytes()))
}

pub(crate) fn keep(uid: &str) -> Vec<u8> {
    field(0x2A, &field(0x0A, uid.as_bytes()))
}

/// The text of a nack; `None` for an ack. Panics on anything else.
pub(crate) fn nack_text(packet: &[u8]) -> Option<String> {
    assert!(packet.len() < 1024, "{} bytes are more than the agent can read", packet.len());
    let ack = inner(0x0A, packet);
    (!ack.is_empty()).then(|| String::from_utf8(inner(0x0A, ack).to_vec()).expect("UTF-8"))
}

fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![tag];
    let mut length = content.len();
    while length >= 0x80 {
        field.push(u8::try_from(length & 0x7F).expect("seven bits") | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length).expect("seven bits"));
    field.extend_from_slice(content);
    field
}

fn inner(tag: u8, packet: &[u8]) -> &[u8] {
    assert_eq!(packet[0], tag, "{packet:x?}");
    let (length, content) = match packet[1] {
        low if low < 0x80 => (usize::from(low), &packet[2..]),
        low => (usize::from(low & 0x7F) | usize::from(packet[2]) << 7, &packet[3..]),
    };
    assert_eq!(content.len(), length, "nothing follows");
    content
}
