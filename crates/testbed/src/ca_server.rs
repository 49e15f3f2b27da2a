//! A certificate authority as a control plane serves it: signs requests by whoever has the token, for the identity that
//! both the request and its metadata name. Scriptable: refusals, silence, other people's certificates, new roots. Behind
//! [`crate::control_plane`].

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use control::proto::certificate::{CertificateRequest, CertificateResponse, IMPERSONATED_IDENTITY};
use control::proto::well_known::Kind;
use hyper::body::Incoming;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

use crate::codec::Prost;

/// A CA. Clones are the same one.
#[derive(Clone)]
pub struct CaServer {
    state: Arc<Mutex<State>>,
    /// Calls may be answered while there is room in it.
    gate: Arc<Semaphore>,
    events: watch::Sender<u64>,
}

struct State {
    root: Root,
    /// Roots that clients are told, beside the one that signs.
    other_roots: Vec<String>,
    lifetime: Duration,
    token: Option<String>,
    script: VecDeque<Act>,
    asked: Vec<Asked>,
    /// The serials of what was issued, by identity.
    issued: Vec<(String, SerialNumber)>,
    in_flight: usize,
    in_flight_max: usize,
}

/// A root and its key.
#[derive(Clone)]
pub struct Root {
    pem: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

/// What happens to a call, instead of what should.
#[derive(Clone, Debug)]
pub enum Act {
    /// It is refused.
    Refuse(Status),
    /// It gets somebody else's certificate.
    Name(String),
    /// It gets a certificate without roots.
    NoRoots,
    /// It gets one for a key that is not its own.
    OtherKey,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Asked {
    /// For whom.
    pub identity: String,
    /// How long the certificate should be valid, in seconds.
    pub lifetime_s: i64,
    /// `authorization`.
    pub authorization: Option<String>,
    /// `clusterid`.
    pub cluster: Option<String>,
}

impl Root {
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Arc::new(Issuer::new(params, key)) })
    }
}

impl Root {
    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

impl CaServer {
    /// One that signs with `root`.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let state = State {
            root,
            other_roots: Vec::new(),
            lifetime: Duration::from_secs(86_400),
            token: None,
            script: VecDeque::new(),
            asked: Vec::new(),
            issued: Vec::new(),
            in_flight: 0,
            in_flight_max: 0,
        };
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2));
        Self { state: Arc::new(Mutex::new(state)), gate, events: watch::Sender::new(0) }
    }

    /// Tells clients of `root` as well, which signs nothing yet.
    pub fn announce(&self, root: &Root) {
        self.lock().other_roots.push(root.pem.clone());
    }

    /// Signs with `root` from now on, and tells clients of the roots so far as well.
    pub fn rotate(&self, root: Root) {
        let mut state = self.lock();
        state.other_roots.retain(|other| *other != root.pem);
        let old = std::mem::replace(&mut state.root, root);
        state.other_roots.push(old.pem);
    }

    /// Tells clients of the root that signs only.
    pub fn forget_old_roots(&self) {
        self.lock().other_roots.clear();
    }

    /// Grants no more than this.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.lock().lifetime = lifetime;
    }

    /// Refuses whoever does not have this token.
    pub fn require_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// What happens to the next calls.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.lock().script.extend(acts);
    }

    /// Answers no call until [`CaServer::go_on`].
    pub fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Answers all calls again.
    pub fn go_on(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Calls so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// A revocation list, in PEM, of all that was issued so far to these identities. By its own word it should have been
    /// replaced long ago, which clients do not mind.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn revocation_list(&self, identities: &[&str]) -> Result<String> {
        let state = self.lock();
        let is_named = |identity: &String| identities.contains(&identity.as_str());
        let of_named = state.issued.iter().filter(|(identity, _)| is_named(identity));
        let past = time::OffsetDateTime::now_utc() - Duration::from_secs(3600);
        let params = CertificateRevocationListParams {
            this_update: past - Duration::from_secs(3600),
            next_update: past,
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: of_named
                .map(|(_, serial_number)| RevokedCertParams {
                    serial_number: serial_number.clone(),
                    revocation_time: past,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&state.root.issuer)?.pem()?)
    }

    /// Calls that are not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// The most calls that ever were.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        self.lock().in_flight_max
    }

    /// Waits until something holds of this server. For tests on a runtime; the caller bounds it in time.
    ///
    /// # Panics
    /// Never: the server is this one.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut events = self.events.subscribe();
        while !holds(self) {
            events.changed().await.expect("the sender is in self");
        }
    }

    pub(crate) async fn serve(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        Grpc::new(Prost::default()).unary(Serve(self.clone()), request).await
    }

    async fn create(&self, request: Request<CertificateRequest>) -> Result<Response<CertificateResponse>, Status> {
        let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (authorization, cluster) = (header("authorization"), header("clusterid"));
        let request = request.get_ref();
        let metadata = request.metadata.as_ref();
        let identity =
            match metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY)).map(|value| &value.kind) {
                Some(Some(Kind::Text(identity))) => identity.clone(),
                _ => return Err(Status::invalid_argument("no identity to impersonate")),
            };
        {
            let mut state = self.lock();
            let (lifetime_s, identity) = (request.validity_duration, identity.clone());
            state.asked.push(Asked { identity, lifetime_s, authorization: authorization.clone(), cluster });
            state.in_flight += 1;
            state.in_flight_max = state.in_flight_max.max(state.in_flight);
        }
        self.happened();
        // A caller that goes away drops this future, and is in flight no more.
        let _in_flight = InFlight(self.clone());
        let _passed = self.gate.acquire().await.map_err(|error| Status::internal(error.to_string()))?;
        let mut state = self.lock();
        if let Some(token) = &state.token
            && authorization != Some(format!("Bearer {token}"))
        {
            return Err(Status::unauthenticated("this is not the token"));
        }
        let act = state.script.pop_front();
        if let Some(Act::Refuse(status)) = act {
            return Err(status);
        }
        state
            .sign(request, &identity, act.as_ref())
            .map(Response::new)
            .map_err(|error| Status::invalid_argument(format!("{error:#}")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn happened(&self) {
        self.events.send_modify(|events| *events += 1);
    }
}

impl State {
    fn sign(&mut self, request: &CertificateRequest, identity: &str, act: Option<&Act>) -> Result<CertificateResponse> {
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr)?;
        let name = |name: &str| Ok::<_, anyhow::Error>(SanType::URI(Ia5String::try_from(name)?));
        anyhow::ensure!(csr.params.subject_alt_names == [name(identity)?], "the request is not for {identity}");
        let asked = Duration::from_secs(u64::try_from(request.validity_duration)?);
        let now = time::OffsetDateTime::now_utc();
        csr.params.not_before = now - Duration::from_secs(120);
        csr.params.not_after = now + asked.min(self.lifetime);
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if let Some(Act::Name(other)) = act {
            csr.params.subject_alt_names = vec![name(other)?];
        }
        let serial = SerialNumber::from(self.issued.len() as u64 + 1);
        csr.params.serial_number = Some(serial.clone());
        self.issued.push((identity.to_owned(), serial));
        let leaf = match act {
            Some(Act::OtherKey) => csr.params.signed_by(&KeyPair::generate()?, &self.root.issuer)?,
            _ => csr.signed_by(&self.root.issuer)?,
        };
        let roots: String = [&self.root.pem].into_iter().chain(&self.other_roots).cloned().collect();
        let mut cert_chain = vec![leaf.pem()];
        if !matches!(act, Some(Act::NoRoots)) {
            cert_chain.push(roots);
        }
        Ok(CertificateResponse { cert_chain })
    }
}

struct InFlight(CaServer);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
        self.0.happened();
    }
}

struct Serve(CaServer);

impl UnaryService<CertificateRequest> for Serve {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move { server.create(request).await })
    }
}
