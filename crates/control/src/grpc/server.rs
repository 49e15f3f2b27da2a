//! Where a server of the control plane is, and what it is told with each call.

use std::{fmt, str::FromStr};

use http::Uri;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

use super::Roots;
use crate::token::{Token, TokenError};

/// A server of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// Whom its certificate must come from.
    pub roots: Roots,
    /// Another name that its certificate may be for.
    pub alternative_name: Option<String>,
    /// What proves this proxy to it.
    pub token: Token,
    /// The cluster that the token is of.
    pub cluster: String,
    /// Told with each call.
    pub headers: Vec<Header>,
}

impl Server {
    /// One that is proved by `roots`, without a token.
    pub fn new(address: Address, roots: Roots) -> Self {
        let cluster = "Kubernetes".to_owned();
        Self { address, roots, alternative_name: None, token: Token::None, cluster, headers: Vec::new() }
    }

    /// The metadata of a call, with the token as it is now.
    pub(crate) fn metadata(&self) -> Result<MetadataMap, TokenError> {
        let mut metadata = MetadataMap::new();
        if let Some(token) = self.token.read()? {
            let bearer = MetadataValue::from_str(&format!("Bearer {token}"));
            metadata.insert("authorization", bearer.expect("a token has graphic signs only"));
            if let Ok(cluster) = self.cluster.parse() {
                metadata.insert("clusterid", cluster);
            }
        }
        for Header { name, value } in &self.headers {
            metadata.insert(name.clone(), value.clone());
        }
        Ok(metadata)
    }
}

/// Where a server is: `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, IPv6 without brackets.
    host: String,
    port: u16,
    origin: Uri,
}

/// Why a text is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No URI.
    #[error("it is no URI: {0}")]
    Uri(String),
    /// A scheme without TLS.
    #[error("its scheme is {0}, and tokens and certificates go over TLS only: use https")]
    Scheme(String),
    /// No host.
    #[error("it names no host")]
    Host,
    /// More than a host and a port.
    #[error("there is more than a host and a port in it")]
    More,
}

impl Address {
    /// The name or IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 443 where none was given.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `https://HOST:PORT`.
    pub(crate) fn origin(&self) -> Uri {
        self.origin.clone()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads `https://HOST:PORT`; without a scheme, https is meant.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| AddressError::Uri(error.to_string()))?;
        if uri.scheme_str() != Some("https") {
            return Err(AddressError::Scheme(uri.scheme_str().unwrap_or("missing").to_owned()));
        }
        let authority = uri.authority().ok_or(AddressError::Host)?;
        if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(AddressError::More);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(AddressError::Host);
        }
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => {
                port.parse().map_err(|_| AddressError::Uri(format!("{port:?} is no port")))?
            }
            _ => 443,
        };
        Ok(Self { host, port, origin: uri })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Something that is told with each call.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    name: MetadataKey<Ascii>,
    value: MetadataValue<Ascii>,
}

/// Why a name and a value are no header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The name.
    #[error("{0:?} is no name of a header")]
    Name(String),
    /// The value.
    #[error("the value of {0} is no text that a header can carry")]
    Value(String),
}

impl Header {
    /// A header of text.
    ///
    /// # Errors
    /// [`HeaderError`] when one of them cannot be sent.
    pub fn new(name: &str, value: &str) -> Result<Self, HeaderError> {
        let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes());
        let key = key.map_err(|_| HeaderError::Name(name.to_owned()))?;
        Ok(Self { name: key, value: value.parse().map_err(|_| HeaderError::Value(name.to_owned()))? })
    }
}

/// Without the value, which may be a secret.
impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ..", self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_with_https_or_without() {
        for (text, host, port, display) in [
            (
                "https://istiod.istio-system.svc:15012",
                "istiod.istio-system.svc",
                15012,
                "istiod.istio-system.svc:15012",
            ),
            ("localhost:15012", "localhost", 15012, "localhost:15012"),
            ("https://10.0.0.1:1/", "10.0.0.1", 1, "10.0.0.1:1"),
            ("https://[fd00::1]:2", "fd00::1", 2, "[fd00::1]:2"),
            ("[fd00::1]", "fd00::1", 443, "[fd00::1]:443"),
            ("istiod", "istiod", 443, "istiod:443"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!((address.host(), address.port(), &*address.to_string()), (host, port, display), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, complaint) in [
            ("http://istiod:15010", "use https"),
            ("unix:///run/x", "no URI"),
            ("https://", "no URI"),
            ("https://:15012", "names no host"),
            ("https://istiod:99999", "no port"),
            ("https://istiod:x", "no"),
            ("https://me@istiod:1", "more than"),
            ("https://istiod:1/path", "more than"),
            ("https://istiod:1?x", "more than"),
            ("a b", "no URI"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn a_call_carries_the_token_with_its_cluster_and_the_headers() {
        let mut server = Server::new("localhost:1".parse().expect("good"), Roots::System);
        server.headers = vec![Header::new("X-Extra", "1").expect("good")];
        let told = |server: &Server| {
            let headers = server.metadata().expect("readable").into_headers();
            let pairs = headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("text")));
            let mut pairs: Vec<String> = pairs.collect();
            pairs.sort();
            pairs
        };
        assert_eq!(told(&server), ["x-extra=1"], "no cluster without a token");
        assert_eq!(format!("{:?}", server.headers), "[x-extra: ..]", "a value may be a secret");
        server.token = Token::Given("t".into());
        server.cluster = "west".into();
        assert_eq!(told(&server), ["authorization=Bearer t", "clusterid=west", "x-extra=1"]);
        for (name, value) in [("a b", "1"), ("", "1"), ("x", "a\nb"), ("x-bin", "1")] {
            assert!(Header::new(name, value).is_err(), "{name} {value:?}");
        }
    }
}
