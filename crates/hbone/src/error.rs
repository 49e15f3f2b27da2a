//! What can go wrong with a handshake, a tunnel and a stream of it. What a credential or the pool refuses is said
//! beside them. Response flags and status codes are chosen by the caller.

use std::fmt;
use std::io;

use mesh_state::identity::Identity;
use thiserror::Error;

/// A TLS handshake that did not yield a peer with an acceptable identity.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The transport failed before the handshake was over.
    #[error("tls handshake error: connection lost: {0} (a peer that refuses our certificate may close like this)")]
    Io(#[source] io::Error),
    /// The two ends don't speak the same protocol, or the peer refused us.
    #[error("tls handshake error: {problem}")]
    Handshake {
        /// What happened and the likely cause.
        problem: String,
    },
    /// The peer speaks TLS but not HTTP/2 in it.
    #[error("tls handshake error: the peer did not agree on ALPN h2, so it is no HBONE endpoint")]
    Alpn,
    /// The server is somebody else than the route said.
    #[error(
        "identity verification error: peer did not present the expected SAN ({}), got {}",
        Names(expected),
        Names(got)
    )]
    Identity {
        /// Whom the route allows; nobody when empty.
        expected: Vec<Identity>,
        /// Who it is.
        got: Vec<Identity>,
    },
    /// The client belongs to another mesh.
    #[error(
        "identity verification error: peer did not present the expected trustdomain ({expected}), got {}",
        Names(got)
    )]
    TrustDomain {
        /// Our own trust domain.
        expected: String,
        /// Who it is.
        got: Vec<Identity>,
    },
    /// The peer's certificate is not acceptable, whoever it names.
    #[error("peer certificate error: {0}")]
    Certificate(CertificateProblem),
}

/// Why a peer's certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateProblem {
    /// None was sent.
    #[error("the peer sent none; a mesh peer always does, so this may be plain TLS from outside the mesh")]
    Missing,
    /// The bytes are no certificate.
    #[error("it is not a readable X.509 certificate: {0}")]
    Unreadable(String),
    /// Its time is over.
    #[error("it expired {seconds_ago} s ago; the peer did not renew it, or a clock is wrong")]
    Expired {
        /// For how long.
        seconds_ago: u64,
    },
    /// Its time is yet to come.
    #[error("it is valid only in {seconds_ahead} s; the clocks of the two nodes or of the CA disagree")]
    NotValidYet {
        /// For how long it isn't.
        seconds_ahead: u64,
    },
    /// No chain leads to our roots.
    #[error("no trusted root issued it; the two ends use different CAs, or a root rotation is not complete")]
    UnknownIssuer,
    /// It is not for TLS in this role.
    #[error("it may not be used for this side of TLS: {0}")]
    WrongPurpose(String),
    /// A list of its issuer names it.
    #[error(
        "certificate {at} of its chain (0 is the leaf), serial {serial}, is revoked: a list of its issuer names it"
    )]
    Revoked {
        /// Which of the chain.
        at: usize,
        /// In hexadecimal.
        serial: String,
    },
    /// A list names it, and whether that is its issuer's cannot be told.
    #[error(
        "a revocation list names certificate {at} of its chain (0 is the leaf) and cannot be verified ({problem}): is it signed by the CA of this name, and may that sign lists?"
    )]
    RevocationUnsure {
        /// Which of the chain.
        at: usize,
        /// What the verifier says.
        problem: String,
    },
    /// It does not name a workload.
    #[error("it has no SPIFFE identity; the CA that issued it is not a mesh CA")]
    NoSpiffe,
    /// Anything else the verifier objects to.
    #[error("{0}")]
    Other(String),
}

/// A tunnel that can't be used, or not any more. Cloned to each of its streams.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TunnelError {
    /// The transport ended without TLS's goodbye: the peer was killed, or somebody cut the connection.
    #[error("tunnel was cut: the connection ended without close_notify (peer killed, or a middlebox dropped it)")]
    Cut,
    /// The transport failed.
    #[error("tunnel lost: {message}")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// In the transport's own words.
        message: String,
    },
    /// The peer asked us to go and accepts no more streams; nothing is wrong.
    #[error("tunnel is being drained by the peer (GOAWAY)")]
    GoingAway,
    /// The peer ended the tunnel for a reason it names.
    #[error("tunnel ended by the peer: {code} {detail}")]
    EndedByPeer {
        /// The reason.
        code: ResetCode,
        /// The peer's debug text.
        detail: String,
    },
    /// The peer broke HTTP/2 or one of its limits, and we ended the tunnel.
    #[error("tunnel ended, the peer broke HTTP/2: {code}")]
    Protocol {
        /// What it did.
        code: ResetCode,
    },
    /// The tunnel is over and says no more about it.
    #[error("tunnel is closed")]
    Closed,
}

/// A CONNECT that got no stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The other end answered, and not with 200.
    #[error("http status: {0}: {hint}", hint = status_hint(*.0))]
    Status(u16),
    /// The other end reset the stream instead of answering.
    #[error("CONNECT was reset: {0}")]
    Reset(ResetCode),
    /// The tunnel broke before the answer came; whether the request had any effect is not known.
    #[error("CONNECT got no answer: {0}")]
    Tunnel(TunnelError),
    /// The request never left, since the tunnel was already closing: another tunnel may be tried.
    #[error("CONNECT was not sent: {0}")]
    NotSent(TunnelError),
    /// The request can't be written as HTTP/2.
    #[error("CONNECT cannot be written: {0}")]
    Request(String),
}

/// A stream that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// One side aborted it.
    #[error("stream was reset: {0}")]
    Reset(ResetCode),
    /// The tunnel below it broke.
    #[error("{0}")]
    Tunnel(TunnelError),
}

/// A reason in RST_STREAM or GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetCode(pub u32);

impl ResetCode {
    /// Nothing is wrong; the rest is not needed.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke HTTP/2.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The stream was not processed at all.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is no longer wanted: policy, drain, or a client that went.
    pub const CANCEL: Self = Self(8);
    /// The TCP connection behind the stream broke (RFC 9113, 8.5).
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer causes too much load.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl From<::h2::Reason> for ResetCode {
    fn from(reason: ::h2::Reason) -> Self {
        Self(reason.into())
    }
}

impl From<ResetCode> for ::h2::Reason {
    fn from(code: ResetCode) -> Self {
        code.0.into()
    }
}

impl fmt::Display for ResetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM (the peer's stream limit, or it is draining)",
            Self::CANCEL => "CANCEL (closed by policy or drain, or its client went)",
            Self::CONNECT_ERROR => "CONNECT_ERROR (the TCP connection behind it broke)",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM (a limit against abuse was reached)",
            Self(code) => return write!(f, "HTTP/2 error {code}"),
        })
    }
}

impl TunnelError {
    pub(crate) fn of(error: &::h2::Error) -> Self {
        if let Some(io) = error.get_io() {
            return match io.kind() {
                io::ErrorKind::UnexpectedEof => Self::Cut,
                kind => Self::Io { kind, message: io.to_string() },
            };
        }
        let Some(reason) = error.reason() else {
            return Self::Closed;
        };
        let code = ResetCode::from(reason);
        match (error.is_remote(), code) {
            (true, ResetCode::NO_ERROR) => Self::GoingAway,
            (true, _) => Self::EndedByPeer { code, detail: error.to_string() },
            (false, ResetCode::NO_ERROR) => Self::Closed,
            (false, _) => Self::Protocol { code },
        }
    }
}

impl StreamError {
    /// The code of a reset; `None` when the tunnel itself broke.
    pub fn reset_code(&self) -> Option<ResetCode> {
        match self {
            Self::Reset(code) => Some(*code),
            Self::Tunnel(_) => None,
        }
    }

    pub(crate) fn of(error: &::h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset(reason.into()),
            _ => Self::Tunnel(TunnelError::of(error)),
        }
    }
}

struct Names<'a>(&'a [Identity]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, identity) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            write!(f, "{separator}{identity}")?;
        }
        Ok(())
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        400 => "the other end found the request malformed, or the address is not one of its pods'",
        401 => "a policy at the other end does not allow it",
        503 => "the other end could not reach the application, or does not know the workload",
        _ => "not an HBONE answer",
    }
}
