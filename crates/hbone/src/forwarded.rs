//! The `forwarded` header of a CONNECT: the client's own address and the service it asked for. The receiving side uses
//! only `host=`, and that for telemetry; where a connection comes from is what the TLS peer and its address say.

use std::fmt;
use std::net::SocketAddr;

/// What this end writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The connection's client.
    pub for_: SocketAddr,
    /// The service's hostname, when the destination was a known service.
    pub host: Option<String>,
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.for_)?;
        match &self.host {
            Some(host) if is_plain(host) => write!(f, ";host={host}"),
            Some(_) | None => Ok(()),
        }
    }
}

/// Reads the service a peer says its client asked for.
pub fn host(value: &str) -> Option<&str> {
    if !value.is_ascii() {
        return None;
    }
    let host = value.split(';').find_map(|part| part.trim().strip_prefix("host="))?;
    let host = host.strip_prefix('"').unwrap_or(host);
    let host = host.strip_suffix('"').unwrap_or(host);
    (!host.is_empty()).then_some(host)
}

/// Whether a host can be written without quotes and without starting another parameter.
fn is_plain(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b';' | b',' | b'"' | b'='))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_families_are_written_as_the_reference_does() {
        let rows = [
            ("10.0.0.1:4000", None, r#"for="10.0.0.1:4000""#),
            (
                "10.0.0.1:4000",
                Some("cart.shop.svc.cluster.local"),
                r#"for="10.0.0.1:4000";host=cart.shop.svc.cluster.local"#,
            ),
            ("[fd00::1]:4000", Some("cart"), r#"for="[fd00::1]:4000";host=cart"#),
            ("[fd00::1]:4000", Some("a;for=evil"), r#"for="[fd00::1]:4000""#),
            ("[fd00::1]:4000", Some(""), r#"for="[fd00::1]:4000""#),
        ];
        for (address, host, expected) in rows {
            let forwarded =
                Forwarded { for_: address.parse().expect("a row's address"), host: host.map(str::to_owned) };
            assert_eq!(forwarded.to_string(), expected);
        }
    }

    #[test]
    fn the_host_is_read_as_the_reference_does() {
        let rows = [
            ("", None),
            ("for=\"1.2.3.4:5\"", None),
            ("for=\"1.2.3.4:5\";host=cart.shop", Some("cart.shop")),
            ("host=\"cart.shop\"; proto=https", Some("cart.shop")),
            ("proto=http;  host=a ;host=b", Some("a")),
            ("host=", None),
            ("host=\"\"", None),
            ("host=\"", None),
            ("Host=cart", None),
            ("host=caf\u{e9}", None),
        ];
        for (text, expected) in rows {
            assert_eq!(host(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_host_is_read_back(name in "[a-z0-9.-]{1,80}") {
            let text = Forwarded { for_: ([10, 0, 0, 1], 4000).into(), host: Some(name.clone()) }.to_string();
            prop_assert_eq!(host(&text), Some(name.as_str()));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
            let _ = host(&text);
        }
    }
}
