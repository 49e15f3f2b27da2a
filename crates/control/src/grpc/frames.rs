//! Messages out of a stream of bytes: each is preceded by a flag and its length. Pure. Each message has a memory of its
//! own, exactly as long as it is, which goes with it; a buffer that is kept for the next one would stay as large as the
//! largest push for as long as the stream lives.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The flag, which says whether the message is compressed, and the length.
const HEAD_BYTES: usize = 5;

/// Why bytes are no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Its flag says so.
    #[error("a compressed message, which nobody asked for")]
    Compressed,
    /// By the length in front of it.
    #[error("a message of {bytes} bytes, which is more than the {bytes_max} that are taken")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// Bytes that have come, and the message that they begin.
#[derive(Debug)]
pub struct Frames {
    /// Not yet taken in; the connection's window bounds it.
    came: VecDeque<Bytes>,
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Of the length that the head says.
    message: Option<(BytesMut, usize)>,
    bytes_max: usize,
}

impl Frames {
    /// Of messages of at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { came: VecDeque::new(), head: [0; HEAD_BYTES], head_bytes: 0, message: None, bytes_max }
    }

    /// Bytes have come.
    pub fn push(&mut self, bytes: Bytes) {
        self.came.push_back(bytes);
    }

    /// Whether a message has begun and is not whole.
    pub fn is_inside(&self) -> bool {
        self.head_bytes > 0 || self.message.is_some()
    }

    /// The next whole message.
    ///
    /// # Errors
    /// [`FrameError`]; what follows is no message then.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some((message, bytes)) = &mut self.message
                && message.len() == *bytes
            {
                let message = std::mem::take(message).freeze();
                self.message = None;
                return Ok(Some(message));
            }
            let Some(bytes) = self.came.front_mut() else { return Ok(None) };
            if bytes.is_empty() {
                self.came.pop_front();
            } else if let Some((message, length)) = &mut self.message {
                let rest = *length - message.len();
                message.put(bytes.split_to(rest.min(bytes.len())));
            } else {
                self.head[self.head_bytes] = bytes.get_u8();
                self.head_bytes += 1;
                if self.head_bytes == HEAD_BYTES {
                    self.begin()?;
                }
            }
        }
    }

    fn begin(&mut self) -> Result<(), FrameError> {
        let [compressed, length @ ..] = self.head;
        let bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if compressed != 0 {
            return Err(FrameError::Compressed);
        }
        if bytes > self.bytes_max {
            return Err(FrameError::TooLong { bytes, bytes_max: self.bytes_max });
        }
        self.head_bytes = 0;
        self.message = Some((BytesMut::with_capacity(bytes), bytes));
        Ok(())
    }
}

/// A message as it is sent.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a request is a few MiB at most");
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + message.len());
    bytes.put_u8(0);
    bytes.put_u32(length);
    bytes.put_slice(message);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    #[test]
    fn messages_are_the_same_however_their_bytes_come() {
        for seed in 0..500 {
            let mut rng = Rng::with_seed(seed);
            let messages: Vec<Vec<u8>> =
                (0..rng.usize(0..6)).map(|_| (0..rng.usize(0..40)).map(|_| rng.u8(..)).collect()).collect();
            let mut bytes: Bytes = messages.iter().flat_map(|message| framed(message)).collect();
            let (mut frames, mut read) = (Frames::new(40), Vec::new());
            while !bytes.is_empty() {
                frames.push(bytes.split_to(rng.usize(0..=bytes.len().min(9))));
                while let Some(message) = frames.next_message().expect("good bytes") {
                    read.push(message.to_vec());
                }
            }
            assert_eq!(read, messages, "seed {seed}");
            assert!(!frames.is_inside(), "seed {seed}");
        }
    }

    #[test]
    fn what_is_cut_short_is_known_to_be() {
        let whole = framed(b"message");
        for cut in 0..whole.len() {
            let mut frames = Frames::new(100);
            frames.push(whole.slice(..cut));
            assert_eq!(frames.next_message(), Ok(None));
            assert_eq!(frames.is_inside(), cut > 0, "{cut}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_takes_no_memory_and_compression_is_refused() {
        for (bytes, error) in [
            (&b"\0\xff\xff\xff\xff"[..], FrameError::TooLong { bytes: 0xffff_ffff, bytes_max: 7 }),
            (b"\0\0\0\0\x08", FrameError::TooLong { bytes: 8, bytes_max: 7 }),
            (b"\x01\0\0\0\x01x", FrameError::Compressed),
        ] {
            let mut frames = Frames::new(7);
            frames.push(Bytes::from_static(bytes));
            assert_eq!(frames.next_message(), Err(error));
        }
    }
}
