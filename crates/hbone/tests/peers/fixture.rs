//! A certificate authority for tests, and a way to run what is `!Send` on tokio.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hbone::credential::{Credential, CredentialError};
use hbone::h2::client::{self, Tunnel};
use hbone::h2::server::{Incoming, Server};
use hbone::request::ConnectRequest;
use hbone::{H2Config, ReceiveHalf, SendHalf, StreamError, TunnelError};
use mesh_state::identity::Identity;
use mesh_state::name::Authority;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::task::{JoinHandle, spawn_local};

pub(crate) const ALICE: &str = "spiffe://cluster.local/ns/shop/sa/alice";
pub(crate) const BOB: &str = "spiffe://cluster.local/ns/shop/sa/bob";
pub(crate) const MALLORY: &str = "spiffe://other.mesh/ns/shop/sa/mallory";

pub(crate) fn identity(text: &str) -> Identity {
    Identity::parse(text).expect("a test's identity")
}

pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// What a leaf shall say.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) uris: Vec<&'static str>,
    pub(crate) years: (i32, i32),
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Leaf {
    pub(crate) fn of(uri: &'static str) -> Self {
        Self {
            uris: vec![uri],
            years: (2020, 2090),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::OrganizationName, "test mesh");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a root");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A CA below this one, and its own certificate.
    pub(crate) fn intermediate(&self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::OrganizationName, "test intermediate");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("an intermediate");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> Issued {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(leaf.years.0, 1, 1);
        params.not_after = date_time_ymd(leaf.years.1, 1, 1);
        params.extended_key_usages = leaf.usages.clone();
        params.subject_alt_names =
            leaf.uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf");
        Issued { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// A list of certificates by their serials, which should have been replaced a while ago.
    pub(crate) fn list(&self, revoked: &[SerialNumber]) -> CertificateRevocationList {
        let one = |serial: &SerialNumber| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2021, 2, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list")
    }

    /// A credential for the leaf's first name, made in a year in which the leaf is valid.
    pub(crate) fn credential(&self, leaf: &Leaf) -> Credential {
        let issued = self.issue(leaf);
        let made_unix_s = u64::try_from(date_time_ymd(leaf.years.0, 2, 1).unix_timestamp()).expect("after 1970");
        let identity = identity(leaf.uris[0]);
        Credential::from_pem(&identity, &issued.chain, &issued.key, &self.pem, made_unix_s).expect("a credential")
    }

    pub(crate) fn try_credential(&self, wanted: &str, issued: &Issued) -> Result<Credential, CredentialError> {
        Credential::from_pem(&identity(wanted), &issued.chain, &issued.key, &self.pem, now_unix_s())
    }
}

/// Runs a test that isn't `Send`, on a clock that moves only when nothing else can: a hang is a failure at once.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let within = std::time::Duration::from_secs(3600);
    local.block_on(&runtime, async { tokio::time::timeout(within, test).await }).expect("the test hangs");
}

/// Some bytes that aren't all the same, and whose order shows.
pub(crate) fn pattern(bytes: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut made = Vec::with_capacity(bytes + 8);
    while made.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        made.extend_from_slice(&state.to_be_bytes());
    }
    made.truncate(bytes);
    made.into()
}

/// Sends all of `bytes`, in pieces as capacity comes.
pub(crate) async fn send(half: &mut SendHalf<Bytes>, mut bytes: Bytes) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = half.capacity(bytes.len().min(256 << 10)).await?;
        half.deliver(bytes.split_to(room))?;
    }
    Ok(())
}

/// Receives to the end; an error comes with what came before it.
pub(crate) async fn receive(half: &mut ReceiveHalf) -> Result<Vec<u8>, (usize, StreamError)> {
    let mut all = Vec::new();
    loop {
        match half.receive().await {
            Ok(Some(bytes)) => {
                all.extend_from_slice(&bytes);
                half.grant(bytes.len());
            }
            Ok(None) => return Ok(all),
            Err(error) => return Err((all.len(), error)),
        }
    }
}

pub(crate) fn request(authority: &str) -> ConnectRequest {
    ConnectRequest {
        authority: Authority::parse(authority).expect("a test's authority"),
        baggage: None,
        forwarded: None,
        traceparent: None,
    }
}

/// A tunnel to a server whose every request goes to `handle`. The driver and the server run as tasks of their own.
pub(crate) struct Peers {
    pub(crate) tunnel: Tunnel<Bytes>,
    pub(crate) driver: JoinHandle<Result<(), TunnelError>>,
    pub(crate) server: JoinHandle<Result<(), TunnelError>>,
}

pub(crate) async fn peers<F, Fut>(handle: F) -> Peers
where
    F: Fn(Incoming<Bytes>) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let (near, far) = duplex(256 << 10);
    peers_over(near, far, &H2Config::default(), handle).await
}

pub(crate) async fn peers_over<Io, F, Fut>(near: Io, far: Io, config: &H2Config, handle: F) -> Peers
where
    Io: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Fn(Incoming<Bytes>) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let (client, server) = tokio::join!(client::handshake(near, config), Server::handshake(far, config));
    let (tunnel, driver) = client.expect("client handshake");
    let server = server.expect("server handshake");
    Peers { tunnel, driver: spawn_local(driver), server: spawn_local(serve(server, handle)) }
}

/// Accepts until the tunnel is over.
pub(crate) async fn serve<Io, F, Fut>(mut server: Server<Io, Bytes>, handle: F) -> Result<(), TunnelError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Incoming<Bytes>) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    while let Some(incoming) = server.accept().await {
        spawn_local(handle(incoming?));
    }
    Ok(())
}

/// Answers 200 and sends back what comes.
pub(crate) async fn echo(incoming: Incoming<Bytes>) {
    let (mut send_half, mut receive_half) = incoming.accept(None).expect("the client waits").split();
    while let Ok(Some(bytes)) = receive_half.receive().await {
        let count = bytes.len();
        if send(&mut send_half, bytes).await.is_err() {
            return;
        }
        receive_half.grant(count);
    }
    let _ = send_half.finish();
}

/// A pipe that counts what is read from it.
pub(crate) struct Counted {
    io: DuplexStream,
    read: Rc<Cell<usize>>,
}

impl Counted {
    pub(crate) fn new(io: DuplexStream, read: &Rc<Cell<usize>>) -> Self {
        Self { io, read: read.clone() }
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, room);
        self.read.set(self.read.get() + room.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
