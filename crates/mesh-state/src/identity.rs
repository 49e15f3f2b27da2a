//! A workload's SPIFFE identity, `spiffe://TD/ns/NS/sa/SA`. Parsed once where it enters; not the certificate that proves it.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use thiserror::Error;

/// Who a workload is. Cheap to clone: one reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    text: Arc<str>,
    // Where the parts start. A text is at most `TEXT_BYTES_MAX` long, so u16 holds every offset.
    namespace_at: u16,
    service_account_at: u16,
}

/// The longest identity accepted, in bytes: what the SPIFFE specification asks every implementation to support, and no more.
pub const TEXT_BYTES_MAX: usize = 2048;

const SCHEME: &str = "spiffe://";
const NAMESPACE_MARK: &str = "/ns/";
const SERVICE_ACCOUNT_MARK: &str = "/sa/";

impl Identity {
    /// Reads `spiffe://TD/ns/NS/sa/SA`: exactly these five parts, none empty, in the characters SPIFFE allows.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(IdentityError::Length { bytes: text.len() });
        }
        let Some(path) = text.strip_prefix(SCHEME) else {
            return Err(IdentityError::Scheme { text: text.into() });
        };
        let mut parts = path.split('/');
        let parts: [Option<&str>; 6] = core::array::from_fn(|_| parts.next());
        let [Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None] = parts else {
            return Err(IdentityError::Shape { text: text.into() });
        };
        Self::new(trust_domain, namespace, service_account)
    }

    /// The identity of a service account of a namespace in a trust domain.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        for (part, value) in
            [(Part::TrustDomain, trust_domain), (Part::Namespace, namespace), (Part::ServiceAccount, service_account)]
        {
            if !is_segment(value) {
                return Err(IdentityError::Part { part, value: value.into() });
            }
        }
        let text = [SCHEME, trust_domain, NAMESPACE_MARK, namespace, SERVICE_ACCOUNT_MARK, service_account].concat();
        if text.len() > TEXT_BYTES_MAX {
            return Err(IdentityError::Length { bytes: text.len() });
        }
        let offset = |at: usize| u16::try_from(at).expect("at most TEXT_BYTES_MAX, checked above");
        let namespace_at = SCHEME.len() + trust_domain.len() + NAMESPACE_MARK.len();
        let service_account_at = namespace_at + namespace.len() + SERVICE_ACCOUNT_MARK.len();
        Ok(Self {
            text: text.into(),
            namespace_at: offset(namespace_at),
            service_account_at: offset(service_account_at),
        })
    }

    /// `TD` of `spiffe://TD/ns/NS/sa/SA`.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.namespace_at) - NAMESPACE_MARK.len()]
    }

    /// `NS` of `spiffe://TD/ns/NS/sa/SA`.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.namespace_at)..usize::from(self.service_account_at) - SERVICE_ACCOUNT_MARK.len()]
    }

    /// `SA` of `spiffe://TD/ns/NS/sa/SA`.
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.service_account_at)..]
    }

    /// The whole `spiffe://TD/ns/NS/sa/SA`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text, to be replaced by an equal one that others hold, too.
    pub(crate) fn text_mut(&mut self) -> &mut Arc<str> {
        &mut self.text
    }

    /// The identity without its scheme, `TD/ns/NS/sa/SA`: what policies call a principal.
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is no identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Another scheme, or none.
    #[error("identity {text:?} does not start with spiffe://")]
    Scheme {
        /// What was given.
        text: String,
    },
    /// Not the five parts.
    #[error("identity {text:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Shape {
        /// What was given.
        text: String,
    },
    /// A part is empty or has characters SPIFFE does not allow.
    #[error("{part} {value:?} of an identity must be one or more of the characters a-z A-Z 0-9 . - _, and not . or ..")]
    Part {
        /// Which part.
        part: Part,
        /// What was given.
        value: String,
    },
    /// Longer than [`TEXT_BYTES_MAX`].
    #[error("an identity of {bytes} bytes is longer than the {TEXT_BYTES_MAX} that SPIFFE allows")]
    Length {
        /// How long it is.
        bytes: usize,
    },
}

/// A part of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The trust domain.
    TrustDomain,
    /// The namespace.
    Namespace,
    /// The service account.
    ServiceAccount,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::TrustDomain => "trust domain",
            Part::Namespace => "namespace",
            Part::ServiceAccount => "service account",
        })
    }
}

// Narrower than the reference, which takes anything between the slashes: identities are compared, logged and matched by
// prefix and suffix, so an empty part, a space or a quote in one can only do harm. Kubernetes names all fit.
fn is_segment(value: &str) -> bool {
    !value.is_empty()
        && value != "."
        && value != ".."
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use std::{format, string::ToString};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_has_exactly_the_five_parts() {
        let rows: &[(&str, &str)] = &[
            ("", "does not start with spiffe://"),
            ("https://cluster.local/ns/retail/sa/shop", "does not start with spiffe://"),
            ("SPIFFE://cluster.local/ns/retail/sa/shop", "does not start with spiffe://"),
            ("spiffe://", "is not of the form"),
            ("spiffe://cluster.local", "is not of the form"),
            ("spiffe://cluster.local/ns/retail", "is not of the form"),
            ("spiffe://cluster.local/ns/retail/sa", "is not of the form"),
            ("spiffe://cluster.local/ns/retail/sa/shop/", "is not of the form"),
            ("spiffe://cluster.local/ns/retail/sa/shop/more", "is not of the form"),
            ("spiffe://cluster.local/sa/retail/ns/shop", "is not of the form"),
            ("spiffe://cluster.local/NS/retail/sa/shop", "is not of the form"),
            ("spiffe:///ns/retail/sa/shop", "trust domain \"\""),
            ("spiffe://cluster.local/ns//sa/shop", "namespace \"\""),
            ("spiffe://cluster.local/ns/retail/sa/", "service account \"\""),
            ("spiffe://cluster.local/ns/../sa/shop", "namespace \"..\""),
            ("spiffe://cluster.local/ns/retail/sa/a b", "service account \"a b\""),
            ("spiffe://cluster.local/ns/retail/sa/\u{e9}", "service account"),
            ("spiffe://user@cluster.local/ns/retail/sa/shop", "trust domain"),
            ("spiffe://cluster.local:443/ns/retail/sa/shop", "trust domain"),
            ("spiffe://cluster.local/ns/retail/sa/shop?x=1", "service account"),
        ];
        for (text, complaint) in rows {
            let error = Identity::parse(text).expect_err(text).to_string();
            assert!(error.contains(complaint), "{text:?}: {error}");
        }
        let long = format!("spiffe://cluster.local/ns/retail/sa/{}", "a".repeat(TEXT_BYTES_MAX));
        assert_eq!(Identity::parse(&long), Err(IdentityError::Length { bytes: long.len() }));
        assert!(matches!(Identity::new("td", "ns", &long[36..]), Err(IdentityError::Length { .. })));
    }

    #[test]
    fn the_parts_of_an_identity_are_what_was_between_the_slashes() {
        let identity = Identity::parse("spiffe://cluster.local/ns/retail/sa/shop").unwrap();
        assert_eq!(identity.trust_domain(), "cluster.local");
        assert_eq!(identity.namespace(), "retail");
        assert_eq!(identity.service_account(), "shop");
        assert_eq!(identity.principal(), "cluster.local/ns/retail/sa/shop");
        assert_eq!(identity.as_str(), "spiffe://cluster.local/ns/retail/sa/shop");
        assert_eq!(identity, Identity::new("cluster.local", "retail", "shop").unwrap());
    }

    #[test]
    fn parts_named_like_the_marks_do_not_confuse_the_parser() {
        let identity = Identity::parse("spiffe://ns/ns/sa/sa/ns").unwrap();
        assert_eq!((identity.trust_domain(), identity.namespace(), identity.service_account()), ("ns", "sa", "ns"));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".*") {
            let _ = Identity::parse(&text);
        }

        #[test]
        fn what_nearly_is_an_identity_parses_to_itself_or_is_refused(
            text in "spiffe://[a-z./]{0,8}/ns/[a-zA-Z._/ -]{0,8}/sa/[a-z0-9._/-]{0,8}"
        ) {
            if let Ok(identity) = Identity::parse(&text) {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn every_identity_of_valid_parts_parses_back(
            trust_domain in "[a-z0-9-]{1,12}(\\.[a-z0-9]{1,9})?", namespace in "[a-z0-9-]{1,20}", account in "[a-z0-9_-]{1,20}"
        ) {
            let identity = Identity::new(&trust_domain, &namespace, &account).unwrap();
            prop_assert_eq!(identity.trust_domain(), &trust_domain);
            prop_assert_eq!(identity.namespace(), &namespace);
            prop_assert_eq!(identity.service_account(), &account);
            prop_assert_eq!(Identity::parse(identity.as_str()), Ok(identity));
        }
    }
}
