//! Certificates from a CA over gRPC: one call for one identity. Which, when and how many at once is the rotation's.

use std::{
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hbone::credential::{Credential, CredentialError};
use http::uri::PathAndQuery;
use mesh_state::identity::Identity;
use prost::Message;
use tokio::{sync::Mutex, time::timeout};
use tonic::{Extensions, Request, client::Grpc};

use super::csr;
use crate::{
    grpc::{ConnectError, Connection, Raw, Server},
    proto::{
        certificate::{CREATE_CERTIFICATE_PATH, CertificateRequest, CertificateResponse, IMPERSONATED_IDENTITY},
        well_known::Struct,
    },
    token::TokenError,
};

/// How long a call may take, the connection not counted. The CA signs in milliseconds.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer: a chain and roots, each of at most 1 MiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, for whoever waited for it.
    #[error(transparent)]
    Connect(Rc<ConnectError>),
    /// No token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No key or no request.
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The CA refused.
    #[error(
        "the CA {server} refused: {message} ({code:?}); is this proxy's account trusted to ask for its node's pods?"
    )]
    Refused {
        /// Who.
        server: String,
        /// The gRPC code.
        code: tonic::Code,
        /// In its words.
        message: String,
    },
    /// The CA is silent.
    #[error("the CA {server} did not answer within {CALL_WITHIN:?}")]
    Silent {
        /// Who.
        server: String,
    },
    /// It answered something else.
    #[error("the CA's answer is no certificate: {0}")]
    Answer(String),
    /// What it issued cannot be used.
    #[error("the certificate that the CA issued cannot be used: {0}")]
    Unusable(#[from] CredentialError),
}

/// What a CA issued, in PEM, with the key it is for.
#[derive(Clone)]
pub struct Issued {
    /// The leaf and its intermediates.
    pub chain: String,
    /// The key.
    pub key: String,
    /// Whom its peers' certificates may come from.
    pub roots: String,
}

impl Issued {
    /// Reads a CA's answer to a request with this key for `identity`.
    ///
    /// # Errors
    /// [`ClientError::Answer`] when it is none, [`ClientError::Unusable`] when it is not `identity`'s, not valid at `now`, or
    /// not whole.
    pub fn read(answer: Bytes, key: String, identity: &Identity, now: SystemTime) -> Result<Self, ClientError> {
        let answer = CertificateResponse::decode(answer).map_err(|error| ClientError::Answer(error.to_string()))?;
        let issued = Self::of_parts(answer.cert_chain, key)?;
        issued.credential_at(identity, &issued.roots, now)?;
        Ok(issued)
    }

    /// The parts of an answer: leaf, intermediates, and last the roots.
    fn of_parts(mut chain: Vec<String>, key: String) -> Result<Self, ClientError> {
        let count = chain.len();
        match chain.pop() {
            Some(roots) if count >= 2 => {
                let lines = chain.iter().flat_map(|pem| [pem.trim_end(), "\n"]);
                Ok(Self { chain: lines.collect(), key, roots })
            }
            _ => Err(ClientError::Answer(format!("it has {count} parts; a leaf and its roots are at least two"))),
        }
    }

    /// Made ready for handshakes, with `roots` in the place of its own.
    ///
    /// # Errors
    /// [`CredentialError`] when it is not `identity`'s, not valid now, or not whole.
    pub fn credential(&self, identity: &Identity, roots: &str) -> Result<Credential, CredentialError> {
        self.credential_at(identity, roots, SystemTime::now())
    }

    fn credential_at(&self, identity: &Identity, roots: &str, now: SystemTime) -> Result<Credential, CredentialError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Credential::from_pem(identity, &self.chain, &self.key, roots, now)
    }
}

/// The way to a CA. Clones share its connection.
#[derive(Clone)]
pub struct CaClient {
    server: Rc<Server>,
    lifetime: Duration,
    way: Rc<Mutex<Way>>,
}

/// The way to the server as far as it is known.
#[derive(Default)]
struct Way {
    held: Option<Held>,
    /// The last attempt to connect that failed, and when it did.
    failed: Option<(Instant, Rc<ConnectError>)>,
}

/// A connection, and the roots that it was made by.
struct Held {
    connection: Connection,
    roots: String,
}

impl CaClient {
    /// To `server`, which is asked for certificates of this lifetime. Connects with the first call.
    pub fn new(server: Server, lifetime: Duration) -> Self {
        Self { server: Rc::new(server), lifetime, way: Rc::default() }
    }

    /// A certificate for `identity`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn issue(&self, identity: &Identity) -> Result<Issued, ClientError> {
        let csr::Request { pem, key_pem } = csr::request(identity)?;
        let message = CertificateRequest {
            csr: pem,
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct::of_texts([(IMPERSONATED_IDENTITY, identity.as_str())])),
        };
        let connection = self.connection().await?;
        let metadata = self.server.metadata()?;
        let named = || self.server.address.to_string();
        let mut grpc =
            Grpc::with_origin(connection, self.server.address.origin()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let call = async {
            grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            let request = Request::from_parts(metadata, Extensions::new(), Bytes::from(message.encode_to_vec()));
            grpc.unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE_PATH), Raw).await
        };
        let Ok(answered) = timeout(CALL_WITHIN, call).await else {
            // Whatever became of its connection: the next call tries another.
            self.way.lock().await.held = None;
            return Err(ClientError::Silent { server: named() });
        };
        let answer = answered.map_err(|status| ClientError::Refused {
            server: named(),
            code: status.code(),
            message: status.message().to_owned(),
        })?;
        // Now, while the request is known: an answer for somebody else is refused before anybody uses it.
        Issued::read(answer.into_inner(), key_pem, identity, SystemTime::now())
    }

    /// The connection there is, unless it has ended or other roots are configured now, by which another can be made. An attempt that fails has failed for all
    /// who waited for it: each by itself would make the last one wait for as many attempts.
    async fn connection(&self) -> Result<Connection, ClientError> {
        let began = Instant::now();
        let mut way = self.way.lock().await;
        let Way { held, failed } = &mut *way;
        if let Some((at, error)) = failed
            && *at >= began
        {
            return Err(ClientError::Connect(error.clone()));
        }
        let roots = self.server.roots.text();
        if let Some(Held { connection, roots: made_by }) = held
            && connection.is_open()
            // Roots that cannot be read now are no reason to leave a good connection.
            && roots.as_ref().map_or(true, |roots| roots == made_by)
        {
            return Ok(connection.clone());
        }
        let opened = async { Ok((Connection::open(&self.server).await?, roots.map_err(ConnectError::Roots)?)) };
        match (opened.await, held) {
            (Ok((connection, roots)), held) => {
                *held = Some(Held { connection: connection.clone(), roots });
                Ok(connection)
            }
            // Roots that are half written, or ahead of the CA. The next call tries again.
            (Err(error), Some(Held { connection, .. })) if connection.is_open() => {
                tracing::warn!(%error, "no connection to the CA by its new roots; keeping the one there is");
                Ok(connection.clone())
            }
            (Err(error), _) => {
                let error: Rc<ConnectError> = Rc::new(error);
                *failed = Some((Instant::now(), error.clone()));
                Err(ClientError::Connect(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_leaf_its_intermediates_and_last_the_roots() {
        let answer =
            |parts: &[&str]| Issued::of_parts(parts.iter().map(|&part| part.to_owned()).collect(), "key".into());
        let Ok(whole) = answer(&["leaf", "one\n", "other", "roots"]) else { panic!("four parts") };
        assert_eq!((&*whole.chain, &*whole.roots), ("leaf\none\nother\n", "roots"));
        for short in [&[][..], &["leaf"]] {
            let error = answer(short).err().expect("too short").to_string();
            assert!(error.contains("at least two"), "{error}");
        }
    }
}
