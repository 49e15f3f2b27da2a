//! Where the control plane is, how it proves itself, and what it is told: ztunnel's variables, read as ztunnel reads them.
//!
//! Departures: outside Kubernetes nothing is taken for granted, so a daemon that was told of no control plane has none;
//! and what looks like a path is one, even before the file is there, so that a late mount is waited for instead of being
//! taken for a token or a certificate itself.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use control::{
    ControlPlane,
    grpc::{Address, Header, Roots, Server},
    proto::well_known::{Kind, List, Struct, Value},
    token::Token,
    xds::proxy::Proxy,
};

use super::{
    Ignored,
    sources::{Flag, Origin, Reader},
    values::{TRUTH, truth},
};
use crate::cli::Flags;

/// Where Kubernetes has istiod.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
const ADDRESS: &str = "https and a host, such as https://istiod.istio-system.svc:15012";

/// Names of the variables of one of the two servers.
struct Names {
    address: &'static str,
    roots: &'static str,
    alternative_name: &'static str,
    headers: &'static str,
}

const XDS: Names = Names {
    address: "XDS_ADDRESS",
    roots: "XDS_ROOT_CA",
    alternative_name: "ALT_XDS_HOSTNAME",
    headers: "XDS_HEADER_",
};
const CA: Names =
    Names { address: "CA_ADDRESS", roots: "CA_ROOT_CA", alternative_name: "ALT_CA_HOSTNAME", headers: "CA_HEADER_" };

/// The control plane, unless the mesh is described here; `described` says where.
pub(super) fn control_plane(
    read: &mut Reader<'_>,
    flags: &Flags,
    node: Option<&str>,
    cluster: &str,
    described: Option<&str>,
) -> Option<ControlPlane> {
    let flag = Some(("--xds-address", &flags.xds_address));
    let given = read.setting(flag, &[XDS.address], ADDRESS, address);
    let on_demand = read.variable("XDS_ON_DEMAND", TRUTH, truth).unwrap_or(false);
    if let Some(described) = described {
        if let Some(given) = given {
            let value = given.to_string();
            let origin = match flags.xds_address {
                Some(_) => Origin::Flag { name: "--xds-address", value },
                None => Origin::Variable { name: XDS.address.to_owned(), value },
            };
            read.complain(origin, format!("the mesh is described by {described} as well"), "one of the two");
        }
        return None;
    }
    let address = given.or_else(|| by_default(read, &XDS))?;
    let server = server(read, &XDS, address, cluster);
    let proxy = Proxy {
        address: read.text(None, &["INSTANCE_IP"]).unwrap_or_else(|| "1.1.1.1".to_owned()),
        pod: read.text(None, &["POD_NAME"]).unwrap_or_default(),
        namespace: read.text(None, &["POD_NAMESPACE"]).unwrap_or_default(),
        node: node.unwrap_or_default().to_owned(),
        metadata: metadata(read),
    };
    Some(ControlPlane { server, proxy, on_demand })
}

/// Whoever issues certificates outside this daemon: what `--ca` or `CA_ADDRESS` says, else the control plane's own where
/// there is one, unless `--ca embedded` says that nobody does.
pub(super) fn ca(
    read: &mut Reader<'_>,
    flags: &Flags,
    cluster: &str,
    control_plane: Option<&ControlPlane>,
) -> Option<Server> {
    let flag: Flag<'_> = ("--ca", &flags.ca);
    let accepted = "embedded, or https and a host, such as https://istiod.istio-system.svc:15012";
    let asked = read.setting(Some(flag), &[CA.address], accepted, |text| match text {
        "embedded" => Ok(None),
        _ => address(text).map(Some),
    });
    let address = match asked {
        Some(asked) => asked?,
        None => {
            let plane = control_plane?;
            by_default(read, &CA).unwrap_or_else(|| plane.server.address.clone())
        }
    };
    Some(server(read, &CA, address, cluster))
}

fn server(read: &mut Reader<'_>, names: &Names, address: Address, cluster: &str) -> Server {
    Server {
        address,
        roots: roots(read.text(None, &[names.roots])),
        alternative_name: read.text(None, &[names.alternative_name]),
        token: token(read.text(None, &["AUTH_TOKEN"]), read.in_kubernetes()),
        cluster: cluster.to_owned(),
        headers: headers(read, names.headers),
    }
}

/// istiod in Kubernetes, unless the variable is there and empty, which says that there is none.
fn by_default(read: &Reader<'_>, names: &Names) -> Option<Address> {
    let wanted = read.in_kubernetes() && !read.is_empty(names.address);
    wanted.then(|| ISTIOD.parse().expect("a good address"))
}

fn address(text: &str) -> Result<Address, String> {
    text.parse::<Address>().map_err(|error| error.to_string())
}

fn roots(given: Option<String>) -> Roots {
    match given {
        None => Roots::File(PathBuf::from(ROOT_FILE)),
        Some(text) if text == "SYSTEM" => Roots::System,
        Some(text) if text.contains("-----BEGIN") => Roots::Given(text),
        Some(text) => Roots::File(PathBuf::from(text)),
    }
}

fn token(given: Option<String>, in_kubernetes: bool) -> Token {
    match given {
        Some(text) if text.contains('/') || Path::new(&text).exists() => Token::File(PathBuf::from(text)),
        Some(text) => Token::Given(text),
        None if in_kubernetes || Path::new(TOKEN_FILE).exists() => Token::File(PathBuf::from(TOKEN_FILE)),
        None => Token::None,
    }
}

fn headers(read: &mut Reader<'_>, prefix: &'static str) -> Vec<Header> {
    let mut headers = Vec::new();
    for (variable, value) in read.beginning_with(prefix) {
        match Header::new(&variable[prefix.len()..], &value) {
            Ok(header) => headers.push(header),
            Err(error) => {
                let origin = Origin::Variable { name: variable, value: format!("<{} bytes>", value.len()) };
                read.complain(origin, error.to_string(), "a name and a value that a gRPC header can have");
            }
        }
    }
    headers
}

/// What `ISTIO_META_` and `ISTIO_METAJSON_` say of this proxy.
fn metadata(read: &mut Reader<'_>) -> BTreeMap<String, Value> {
    const TEXT: &str = "ISTIO_META_";
    const JSON: &str = "ISTIO_METAJSON_";
    let texts = read.beginning_with(TEXT).into_iter();
    let mut metadata: BTreeMap<String, Value> =
        texts.map(|(variable, text)| (variable[TEXT.len()..].to_owned(), Value::text(&text))).collect();
    for (variable, text) in read.beginning_with(JSON) {
        match serde_json::from_str(&text) {
            Ok(value) => drop(metadata.insert(variable[JSON.len()..].to_owned(), to_value(value))),
            // As the reference: it is for people and for selectors of the control plane, and no reason not to start.
            Err(_) => read.ignore(Ignored { variable, why: "it is no JSON" }),
        }
    }
    metadata
}

fn to_value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::Null(0),
        serde_json::Value::Bool(truth) => Kind::Truth(truth),
        serde_json::Value::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::Text(text),
        serde_json::Value::Array(values) => Kind::List(List { values: values.into_iter().map(to_value).collect() }),
        serde_json::Value::Object(members) => {
            let fields = members.into_iter().map(|(name, value)| (name, to_value(value))).collect();
            Kind::Object(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn plane<const N: usize>(variables: [(&str, &str); N]) -> (Option<ControlPlane>, Option<Server>, Vec<String>) {
        let environment = Environment::from(variables);
        let mut read = Reader::new(&environment);
        let flags = Flags::default();
        let plane = control_plane(&mut read, &flags, Some("node-a"), "west", None);
        let ca = ca(&mut read, &flags, "west", plane.as_ref());
        (plane, ca, read.errors().iter().map(ToString::to_string).collect())
    }

    fn addresses<const N: usize>(variables: [(&str, &str); N]) -> (Option<String>, Option<String>) {
        let (plane, ca, errors) = plane(variables);
        assert_eq!(errors, [""; 0]);
        (plane.map(|plane| plane.server.address.to_string()), ca.map(|ca| ca.address.to_string()))
    }

    #[test]
    fn in_kubernetes_it_is_istiod_and_outside_nobody_unless_it_is_said() {
        const K8S: (&str, &str) = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        let istiod = || Some("istiod.istio-system.svc:15012".to_owned());
        let other = || Some("other:1".to_owned());
        assert_eq!(addresses([]), (None, None));
        assert_eq!(addresses([K8S]), (istiod(), istiod()));
        assert_eq!(addresses([K8S, ("XDS_ADDRESS", "")]), (None, None));
        assert_eq!(addresses([("XDS_ADDRESS", "https://other:1")]), (other(), other()));
        assert_eq!(addresses([K8S, ("XDS_ADDRESS", "other:1")]), (other(), istiod()));
        assert_eq!(addresses([("CA_ADDRESS", "other:1")]), (None, other()));
        assert_eq!(addresses([K8S, ("CA_ADDRESS", "embedded")]), (istiod(), None));
    }

    #[test]
    fn what_the_control_plane_is_told_is_what_ztunnel_tells() {
        let (plane, _, errors) = plane([
            ("XDS_ADDRESS", "istiod:1"),
            ("XDS_ON_DEMAND", "true"),
            ("POD_NAME", "zt"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.0.0.9"),
            ("ISTIO_META_CLUSTER_ID", "west"),
            ("ISTIO_METAJSON_LABELS", "{\"app\": [\"zt\", 1, true, null]}"),
            ("ISTIO_METAJSON_BROKEN", "{"),
            ("XDS_HEADER_X-Tenant", "blue"),
            ("ALT_XDS_HOSTNAME", "istiod.local"),
            ("AUTH_TOKEN", "abc"),
            ("XDS_ROOT_CA", "SYSTEM"),
        ]);
        assert_eq!(errors, [""; 0]);
        let plane = plane.expect("it was said");
        assert!(plane.on_demand);
        let Proxy { address, pod, namespace, node, metadata } = plane.proxy;
        assert_eq!([&*address, &pod, &namespace, &node], ["10.0.0.9", "zt", "istio-system", "node-a"]);
        let names: Vec<&str> = metadata.keys().map(String::as_str).collect();
        assert_eq!(names, ["CLUSTER_ID", "LABELS"]);
        let Some(Kind::Object(labels)) = &metadata["LABELS"].kind else { panic!("an object") };
        let Some(Kind::List(list)) = &labels.fields["app"].kind else { panic!("a list") };
        let kinds = [Kind::Text("zt".into()), Kind::Number(1.0), Kind::Truth(true), Kind::Null(0)];
        assert_eq!(list.values, kinds.map(|kind| Value { kind: Some(kind) }));
        let Server { roots, alternative_name, token, cluster, headers, .. } = plane.server;
        assert_eq!((roots, token), (Roots::System, Token::Given("abc".into())));
        assert_eq!((alternative_name.as_deref(), &*cluster), (Some("istiod.local"), "west"));
        assert_eq!(headers, [Header::new("x-tenant", "blue").expect("good")]);
    }

    #[test]
    fn roots_and_tokens_are_files_or_what_they_look_like() {
        assert_eq!(roots(None), Roots::File(ROOT_FILE.into()));
        assert_eq!(roots(Some("/late/root.pem".into())), Roots::File("/late/root.pem".into()));
        let pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned();
        assert_eq!(roots(Some(pem.clone())), Roots::Given(pem));
        assert_eq!(token(None, false), Token::None);
        assert_eq!(token(None, true), Token::File(TOKEN_FILE.into()));
        assert_eq!(token(Some("/late/token".into()), true), Token::File("/late/token".into()));
        assert_eq!(token(Some("eyJhbGciOi".into()), true), Token::Given("eyJhbGciOi".into()));
    }

    #[test]
    fn what_cannot_be_sent_or_reached_is_an_error_that_names_its_variable() {
        for (variables, complaint) in [
            ([("XDS_ADDRESS", "http://istiod:15010")], "XDS_ADDRESS=http://istiod:15010 (its scheme is http"),
            ([("CA_ADDRESS", "https://")], "CA_ADDRESS=https:// ("),
            ([("XDS_ON_DEMAND", "perhaps")], "XDS_ON_DEMAND=perhaps (neither"),
        ] {
            let errors = plane(variables).2;
            assert!(errors.len() == 1 && errors[0].contains(complaint), "{errors:?}");
        }
        let errors = plane([("XDS_ADDRESS", "istiod:1"), ("XDS_HEADER_a b", "1")]).2;
        assert!(errors.len() == 1 && errors[0].contains("XDS_HEADER_a b=<1 bytes>"), "{errors:?}");
    }
}
