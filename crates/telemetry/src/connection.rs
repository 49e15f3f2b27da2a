//! The metrics of captured connections: istio's TCP families with their labels, counted as the bytes flow.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use metrics::{Counter, Gauge, Key, Label, Recorder, SharedString};

use crate::recorder::{CoreRecorder, METADATA};

/// What a label says that nobody knows.
const UNKNOWN: &str = "unknown";

/// Which end of the connection reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

/// How the connection is secured between the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// Plain TCP.
    Unknown,
    /// HBONE.
    MutualTls,
}

/// What went wrong, as istio's dashboards know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Nothing.
    None,
    /// Policy denied it, early or late.
    Deny,
    /// It could not be connected, or broke.
    Connect,
    /// TLS could not be set up.
    TlsFailure,
    /// HTTP/2 could not be set up.
    H2HandshakeFailure,
    /// The HBONE port did not answer.
    NetworkPolicy,
    /// A certificate or identity was not the expected one, or missing.
    IdentityError,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl ResponseFlag {
    fn text(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// One end of a connection, as labels. Empty and absent parts say `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Party {
    /// The owner's name (deployment, job ...).
    pub workload: Option<Arc<str>>,
    /// The canonical service name.
    pub canonical_service: Option<Arc<str>>,
    /// The canonical revision; also the version.
    pub canonical_revision: Option<Arc<str>>,
    /// The namespace.
    pub namespace: Option<Arc<str>>,
    /// The SPIFFE identity.
    pub principal: Option<Arc<str>>,
    /// The app label.
    pub app: Option<Arc<str>>,
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The cloud region.
    pub region: Option<Arc<str>>,
    /// The cloud zone.
    pub zone: Option<Arc<str>>,
}

/// The labels of one connection, but for its response flag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionLabels {
    /// Who reports.
    pub reporter: Reporter,
    /// The client; `None` when nothing at all is known of it.
    pub source: Option<Party>,
    /// The server; `None` when nothing at all is known of it.
    pub destination: Option<Party>,
    /// The service's hostname, namespace and name, when one was addressed.
    pub service: Option<[Arc<str>; 3]>,
    /// How it is secured.
    pub security: SecurityPolicy,
}

impl ConnectionLabels {
    /// The labels in the order of the reference.
    fn with(&self, flag: ResponseFlag) -> Vec<Label> {
        fn known(part: Option<&Arc<str>>) -> SharedString {
            match part {
                Some(part) if !part.is_empty() => SharedString::from_shared(part.clone()),
                _ => SharedString::const_str(UNKNOWN),
            }
        }
        let nobody = Party::default();
        let source = self.source.as_ref().unwrap_or(&nobody);
        let destination = self.destination.as_ref().unwrap_or(&nobody);
        let service = |part: usize| known(self.service.as_ref().map(|service| &service[part]));
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        let security = match self.security {
            SecurityPolicy::Unknown => UNKNOWN,
            SecurityPolicy::MutualTls => "mutual_tls",
        };
        let mut labels = vec![
            Label::from_static_parts("reporter", reporter),
            Label::new("source_workload", known(source.workload.as_ref())),
            Label::new("source_canonical_service", known(source.canonical_service.as_ref())),
            Label::new("source_canonical_revision", known(source.canonical_revision.as_ref())),
            Label::new("source_workload_namespace", known(source.namespace.as_ref())),
            Label::new("source_principal", known(source.principal.as_ref())),
            Label::new("source_app", known(source.app.as_ref())),
            Label::new("source_version", known(source.canonical_revision.as_ref())),
            Label::new("source_cluster", known(source.cluster.as_ref())),
            Label::new("destination_service", service(0)),
            Label::new("destination_service_namespace", service(1)),
            Label::new("destination_service_name", service(2)),
            Label::new("destination_workload", known(destination.workload.as_ref())),
            Label::new("destination_canonical_service", known(destination.canonical_service.as_ref())),
            Label::new("destination_canonical_revision", known(destination.canonical_revision.as_ref())),
            Label::new("destination_workload_namespace", known(destination.namespace.as_ref())),
            Label::new("destination_principal", known(destination.principal.as_ref())),
            Label::new("destination_app", known(destination.app.as_ref())),
            Label::new("destination_version", known(destination.canonical_revision.as_ref())),
            Label::new("destination_cluster", known(destination.cluster.as_ref())),
            Label::from_static_parts("request_protocol", "tcp"),
            Label::from_static_parts("response_flags", flag.text()),
            Label::from_static_parts("connection_security_policy", security),
        ];
        if self.source.is_some() || self.destination.is_some() {
            labels.extend([
                Label::new("source_region", known(source.region.as_ref())),
                Label::new("source_zone", known(source.zone.as_ref())),
                Label::new("destination_region", known(destination.region.as_ref())),
                Label::new("destination_zone", known(destination.zone.as_ref())),
            ]);
        }
        labels
    }
}

/// Label sets remembered with their counters, per core. Beyond that all are forgotten and looked up anew; worst case
/// about 1 KiB each, 4 MiB per core.
const REMEMBERED_MAX: usize = 4_096;

/// The families, and what they say of themselves.
const OPENED: &str = "istio_tcp_connections_opened";
const CLOSED: &str = "istio_tcp_connections_closed";
const FAILED: &str = "istio_tcp_connections_failed";
const RECEIVED: &str = "istio_tcp_received_bytes";
const SENT: &str = "istio_tcp_sent_bytes";
const SOCKETS: &str = "istio_tcp_sockets_open";
const REVOKED: &str = "istio_crl_policy_rejections";
const HELP: [(&str, &str); 5] = [
    (OPENED, "TCP connections opened"),
    (CLOSED, "TCP connections closed, for whatever reason"),
    (FAILED, "TCP connections that ended with an error; the response flag says which kind"),
    (RECEIVED, "Bytes of TCP payload from client to server, counted as they flow"),
    (SENT, "Bytes of TCP payload from server to client, counted as they flow"),
];

/// The connection metrics of one core.
pub struct ConnectionMetrics {
    recorder: CoreRecorder,
    remembered: RefCell<HashMap<ConnectionLabels, Rc<Flow>>>,
    sockets: [Gauge; 2],
    revoked: [Counter; 2],
}

/// What every connection with the same labels counts in.
struct Flow {
    opened: Counter,
    closed: Counter,
    received: Counter,
    sent: Counter,
    /// `closed` and `failed` of the response flags seen so far.
    failures: RefCell<Vec<(ResponseFlag, [Counter; 2])>>,
}

impl ConnectionMetrics {
    /// Counts in the cells of `recorder`.
    pub fn new(recorder: CoreRecorder) -> Self {
        for (family, text) in HELP {
            recorder.describe_counter(family.into(), None, text.into());
        }
        recorder.describe_gauge(SOCKETS.into(), None, "Captured TCP sockets open now".into());
        let sockets = ["source", "destination"].map(|reporter| {
            let labels = vec![Label::from_static_parts("reporter", reporter)];
            recorder.register_gauge(&Key::from_parts(SOCKETS, labels), &METADATA)
        });
        let help = "Handshakes refused and tunnels closed because the peer's certificate is revoked";
        recorder.describe_counter(REVOKED.into(), None, help.into());
        let revoked = ["source", "destination"].map(|reporter| {
            let labels = vec![Label::from_static_parts("reporter", reporter)];
            recorder.register_counter(&Key::from_parts(REVOKED, labels), &METADATA)
        });
        Self { recorder, remembered: RefCell::default(), sockets, revoked }
    }

    /// The cells themselves, for what else the core counts.
    pub fn recorder(&self) -> &CoreRecorder {
        &self.recorder
    }

    /// A socket was accepted; dropping the guard says that it is gone.
    pub fn socket(&self, reporter: Reporter) -> OpenSocket {
        let gauge = self.sockets[usize::from(reporter == Reporter::Destination)].clone();
        gauge.increment(1.0);
        OpenSocket(gauge)
    }

    /// A handshake was refused, or a live tunnel closed, because the peer is revoked.
    pub fn revoked(&self, reporter: Reporter) {
        self.revoked[usize::from(reporter == Reporter::Destination)].increment(1);
    }

    /// A connection was decided. It counts as opened now, and as closed when the handle is closed or dropped.
    pub fn open(self: &Rc<Self>, labels: ConnectionLabels) -> OpenConnection {
        self.recorder.catch_up();
        let flow = self.flow(&labels);
        flow.opened.increment(1);
        OpenConnection { metrics: self.clone(), labels, flow, closed: Cell::new(false) }
    }

    fn flow(&self, labels: &ConnectionLabels) -> Rc<Flow> {
        if let Some(flow) = self.remembered.borrow().get(labels) {
            return flow.clone();
        }
        let [opened, closed, received, sent] =
            self.counters([OPENED, CLOSED, RECEIVED, SENT], labels, ResponseFlag::None);
        let flow = Rc::new(Flow { opened, closed, received, sent, failures: RefCell::default() });
        let mut remembered = self.remembered.borrow_mut();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(labels.clone(), flow.clone());
        flow
    }

    fn counters<const N: usize>(
        &self,
        families: [&'static str; N],
        labels: &ConnectionLabels,
        flag: ResponseFlag,
    ) -> [Counter; N] {
        let labels = labels.with(flag);
        families.map(|family| self.recorder.register_counter(&Key::from_parts(family, labels.clone()), &METADATA))
    }
}

/// An accepted socket in the gauge `istio_tcp_sockets_open`.
pub struct OpenSocket(Gauge);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The counters of one live connection.
pub struct OpenConnection {
    metrics: Rc<ConnectionMetrics>,
    labels: ConnectionLabels,
    flow: Rc<Flow>,
    closed: Cell<bool>,
}

impl OpenConnection {
    /// So many bytes went from the client to the server.
    pub fn received(&self, bytes: usize) {
        self.flow.received.increment(bytes as u64);
    }

    /// So many bytes went from the server to the client.
    pub fn sent(&self, bytes: usize) {
        self.flow.sent.increment(bytes as u64);
    }

    /// It is over. Only the first call counts.
    pub fn close(&self, flag: ResponseFlag) {
        if self.closed.replace(true) {
            return;
        }
        if flag == ResponseFlag::None {
            return self.flow.closed.increment(1);
        }
        let mut failures = self.flow.failures.borrow_mut();
        let known = failures.iter().position(|(known, _)| *known == flag).unwrap_or_else(|| {
            failures.push((flag, self.metrics.counters([CLOSED, FAILED], &self.labels, flag)));
            failures.len() - 1
        });
        for counter in &failures[known].1 {
            counter.increment(1);
        }
    }
}

impl Drop for OpenConnection {
    /// A connection that ends without a result was cut by a drain: closed, not failed.
    fn drop(&mut self) {
        self.close(ResponseFlag::None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::recorders;

    fn labels() -> ConnectionLabels {
        ConnectionLabels {
            reporter: Reporter::Source,
            source: Some(Party { workload: Some("web".into()), namespace: Some("".into()), ..Party::default() }),
            destination: None,
            service: Some(["shop.retail.svc".into(), "retail".into(), "shop".into()]),
            security: SecurityPolicy::MutualTls,
        }
    }

    #[test]
    fn labels_stand_in_the_order_of_the_reference_and_the_unknown_is_said() {
        let labels = labels().with(ResponseFlag::Deny);
        let names: Vec<&str> = labels.iter().map(Label::key).collect();
        assert_eq!(
            names.join(" "),
            "reporter source_workload source_canonical_service source_canonical_revision source_workload_namespace \
             source_principal source_app source_version source_cluster destination_service \
             destination_service_namespace destination_service_name destination_workload \
             destination_canonical_service destination_canonical_revision destination_workload_namespace \
             destination_principal destination_app destination_version destination_cluster request_protocol \
             response_flags connection_security_policy source_region source_zone destination_region destination_zone"
        );
        let value = |name| labels.iter().find(|label| label.key() == name).expect("present").value();
        for (name, expected) in [
            ("source_workload", "web"),
            ("source_workload_namespace", "unknown"),
            ("destination_workload", "unknown"),
            ("destination_service_name", "shop"),
            ("response_flags", "DENY"),
            ("connection_security_policy", "mutual_tls"),
        ] {
            assert_eq!(value(name), expected, "{name}");
        }
    }

    #[test]
    fn localities_are_said_only_when_an_end_is_known() {
        let nobody = ConnectionLabels { source: None, ..labels() };
        assert_eq!(nobody.with(ResponseFlag::None).len(), 23);
    }

    #[test]
    fn what_is_opened_is_closed_once_and_failed_only_with_a_flag() {
        let (mut cores, mut page) = recorders(1);
        let metrics = Rc::new(ConnectionMetrics::new(cores.remove(0)));
        let good = metrics.open(labels());
        good.received(3);
        good.sent(5);
        good.close(ResponseFlag::None);
        good.close(ResponseFlag::Deny);
        drop(good);
        for flag in [ResponseFlag::Connect, ResponseFlag::Deny, ResponseFlag::Connect] {
            metrics.open(labels()).close(flag);
        }
        drop(metrics.open(labels()));
        let text = page.render(&[]);
        let sum = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(&format!("{name}_total{{")));
            lines.map(|line| line.rsplit(' ').next().expect("a value").parse::<u64>().expect("a number")).sum()
        };
        assert_eq!(sum("istio_tcp_connections_opened"), 5);
        assert_eq!(sum("istio_tcp_connections_closed"), 5);
        assert_eq!(sum("istio_tcp_connections_failed"), 3);
        let with = |family: &str, flag: &str| {
            let line = text.lines().find(|line| line.starts_with(family) && line.contains(&format!("\"{flag}\"")));
            line.expect(flag).rsplit(' ').next().expect("a value").to_owned()
        };
        for (flag, closed) in [("-", "2"), ("CONNECT", "2"), ("DENY", "1")] {
            assert_eq!(with("istio_tcp_connections_closed", flag), closed, "{flag}");
        }
        assert_eq!(with("istio_tcp_connections_failed", "CONNECT"), "2");
        assert_eq!((sum("istio_tcp_received_bytes"), sum("istio_tcp_sent_bytes")), (3, 5));
    }

    #[test]
    fn each_flag_says_what_dashboards_know() {
        for (flag, text) in [
            (ResponseFlag::None, "-"),
            (ResponseFlag::Deny, "DENY"),
            (ResponseFlag::Connect, "CONNECT"),
            (ResponseFlag::TlsFailure, "TLS_FAILURE"),
            (ResponseFlag::H2HandshakeFailure, "H2_HANDSHAKE_FAILURE"),
            (ResponseFlag::NetworkPolicy, "NETWORK_POLICY"),
            (ResponseFlag::IdentityError, "IDENTITY_ERROR"),
            (ResponseFlag::CertRevoked, "CERT_REVOKED"),
        ] {
            assert_eq!(flag.text(), text);
        }
    }

    #[test]
    fn forgotten_label_sets_go_on_counting_where_they_were() {
        let (mut cores, mut page) = recorders(1);
        let metrics = Rc::new(ConnectionMetrics::new(cores.remove(0)));
        let first = metrics.open(labels());
        for number in 0..REMEMBERED_MAX {
            let name: Arc<str> = format!("client-{number}").into();
            let source = Some(Party { workload: Some(name), ..Party::default() });
            drop(metrics.open(ConnectionLabels { source, ..labels() }));
        }
        assert!(metrics.remembered.borrow().len() < REMEMBERED_MAX);
        first.received(1);
        metrics.open(labels()).received(1);
        let text = page.render(&[]);
        let line = text.lines().find(|line| line.starts_with(RECEIVED) && line.contains("source_workload=\"web\""));
        assert!(line.is_some_and(|line| line.ends_with(" 2")), "{line:?}");
    }

    #[test]
    fn open_sockets_are_counted_while_they_are() {
        let (mut cores, mut page) = recorders(1);
        let metrics = ConnectionMetrics::new(cores.remove(0));
        let socket = metrics.socket(Reporter::Destination);
        assert!(page.render(&[]).contains("istio_tcp_sockets_open{reporter=\"destination\"} 1\n"));
        drop(socket);
        assert!(page.render(&[]).contains("istio_tcp_sockets_open{reporter=\"destination\"} 0\n"));
    }
}
