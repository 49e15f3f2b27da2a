//! What goes out through a socket: bytes that came in through another one, or bytes that were made here.

use bytes::{Buf, Bytes};

use crate::Lease;

/// Bytes to send, owned, so that the kernel may read them whatever becomes of the sender.
#[derive(Debug)]
pub enum Chunk {
    /// Received bytes on their way through.
    Lease(Lease),
    /// Bytes of any other origin.
    Bytes(Bytes),
}

impl Chunk {
    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `n` bytes, without a copy.
    ///
    /// # Panics
    /// If there are fewer than `n`.
    #[must_use]
    pub fn split_to(&mut self, n: usize) -> Self {
        match self {
            Self::Lease(lease) => Self::Lease(lease.split_to(n)),
            Self::Bytes(bytes) => Self::Bytes(bytes.split_to(n)),
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Lease(lease) => lease.as_ref(),
            Self::Bytes(bytes) => bytes.as_ref(),
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.as_ref()
    }

    fn advance(&mut self, n: usize) {
        match self {
            Self::Lease(lease) => lease.advance(n),
            Self::Bytes(bytes) => bytes.advance(n),
        }
    }
}

impl From<Lease> for Chunk {
    fn from(lease: Lease) -> Self {
        Self::Lease(lease)
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeaseLimits, LeasePool};

    #[test]
    fn both_origins_split_and_advance_alike() {
        let pool = LeasePool::new(LeaseLimits::default());
        for mut chunk in [Chunk::from(Lease::copy_from(&pool, b"one two")), Chunk::from(Bytes::from_static(b"one two"))]
        {
            let row = format!("{chunk:?}");
            let front = chunk.split_to(3);
            assert_eq!(front.as_ref(), b"one", "{row}");
            chunk.advance(1);
            assert_eq!((chunk.chunk(), chunk.remaining()), (b"two".as_slice(), 3), "{row}");
        }
    }
}
