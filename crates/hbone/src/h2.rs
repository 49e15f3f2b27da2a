//! CONNECT streams over HTTP/2, on the `h2` crate. Both ends, and what they share: the limits. Which stream may exist
//! is decided elsewhere; here it is opened, moved and ended.
//!
//! The caller polls the client's [`client::Driver`] or the server's [`server::Server::accept`] for as long as it wants
//! the tunnel to live: nothing moves otherwise.

pub mod client;
mod leaving;
mod line;
pub mod ping;
pub mod server;
pub mod stream;

use bytes::Buf;

/// Limits and settings of a tunnel. The defaults are the wire contract's.
#[derive(Clone, Debug)]
pub struct H2Config {
    /// Bytes a peer may send on one stream before we have passed them on. Worst case per stream: this much.
    pub stream_window: u32,
    /// Bytes a peer may send on all streams of a tunnel before we have passed them on. Worst case per tunnel: this
    /// much. Four times the stream's, on purpose: equal windows can deadlock applications that read their connections
    /// in an order.
    pub connection_window: u32,
    /// The largest frame we take. Worst case per tunnel: one frame being assembled.
    pub frame_size: u32,
    /// Streams a client may have open in one of our tunnels.
    pub streams_max: u32,
    /// Bytes of headers we take in an answer.
    pub header_list_client: u32,
    /// Bytes of headers we take in a request.
    pub header_list_server: u32,
    /// Bytes queued for sending per stream, as the client. Worst case per stream: this much of the caller's buffers.
    pub send_buffer_client: usize,
    /// The same, as the server.
    pub send_buffer_server: usize,
    /// What the bookkeeping of small frames that wait to be read may cost, at 256 bytes less its payload for each, before
    /// the tunnel is ended for it. Worst case per tunnel: this much, beside the window. 32 MiB lets a stalled reader's
    /// whole stream window arrive in frames of 32 bytes; h2's own 8 MiB would cut a tunnel, with all its streams, when
    /// one application pauses under 40,000 small messages.
    pub small_frames: usize,
    /// Streams that were reset and are remembered for their stragglers. Worst case per tunnel: this many, 0.5 KiB each.
    pub reset_streams_max: usize,
    /// Bytes read, and bytes written, in one poll before others get their turn; the read that reaches it may be one of
    /// 64 KiB more. In TLS these take some 30 us each way.
    pub turn_bytes: usize,
}

impl Default for H2Config {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            frame_size: 1 << 20,
            streams_max: 200,
            header_list_client: 16 << 10,
            header_list_server: 64 << 10,
            send_buffer_client: 4 << 20,
            send_buffer_server: 400 << 10,
            small_frames: 32 << 20,
            reset_streams_max: 200,
            turn_bytes: 128 << 10,
        }
    }
}

/// The caller's chunk as h2 sees it. h2 ends a stream with a data frame, which needs a chunk even when there is nothing
/// left to send.
#[derive(Debug)]
pub(crate) enum Payload<B> {
    Chunk(B),
    End(#[expect(dead_code, reason = "what counts is when it is dropped")] leaving::EndMark),
}

impl<B: Buf> Buf for Payload<B> {
    fn remaining(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.remaining(),
            Self::End(_) => 0,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Chunk(chunk) => chunk.chunk(),
            Self::End(_) => &[],
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.chunks_vectored(slices),
            Self::End(_) => 0,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Chunk(chunk) => chunk.advance(count),
            Self::End(_) => assert_eq!(count, 0, "there is nothing to advance over"),
        }
    }
}
