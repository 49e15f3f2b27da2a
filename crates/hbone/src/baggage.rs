//! The `baggage` header: what one end says about its workload, for the other end's telemetry. Never for a decision:
//! the peer writes it as it likes.

use std::fmt;

use mesh_state::workload::{Workload, WorkloadType};

/// A workload as its own node describes it. An empty part is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baggage {
    /// The cluster it runs in.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// What kind of thing made it; says under which key [`Self::workload_name`] travels.
    pub workload_type: WorkloadType,
    /// The name of the deployment, job or pod.
    pub workload_name: String,
    /// The canonical service name.
    pub service_name: String,
    /// The canonical revision.
    pub revision: String,
    /// The cloud region.
    pub region: String,
    /// The cloud zone.
    pub zone: String,
}

impl Default for Baggage {
    /// A workload of which nothing is known.
    fn default() -> Self {
        Self {
            cluster: String::new(),
            namespace: String::new(),
            workload_type: WorkloadType::Deployment,
            workload_name: String::new(),
            service_name: String::new(),
            revision: String::new(),
            region: String::new(),
            zone: String::new(),
        }
    }
}

impl Baggage {
    /// Describes a workload of this node.
    pub fn of_workload(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster_id.to_string(),
            namespace: workload.namespace.to_string(),
            workload_type: workload.workload_type,
            workload_name: workload.workload_name.to_string(),
            service_name: workload.canonical_name.to_string(),
            revision: workload.canonical_revision.to_string(),
            region: workload.place.locality.region.to_string(),
            zone: workload.place.locality.zone.to_string(),
        }
    }

    /// Reads one header value. A value that isn't visible ASCII says nothing; unknown keys are somebody else's.
    pub fn parse(value: &str) -> Self {
        Self::parse_all([value])
    }

    /// Reads all `baggage` headers of a message; a later value for the same key wins.
    pub fn parse_all<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut baggage = Self::default();
        for value in values {
            if value.bytes().all(is_header_byte) {
                baggage.read(value);
            }
        }
        baggage
    }

    fn read(&mut self, value: &str) {
        for member in value.split(',') {
            let mut pieces = member.split('=');
            let (Some(key), Some(text)) = (pieces.next(), pieces.next()) else {
                continue;
            };
            let slot = match key {
                "k8s.cluster.name" => &mut self.cluster,
                "k8s.namespace.name" => &mut self.namespace,
                "service.name" => &mut self.service_name,
                "service.version" => &mut self.revision,
                "cloud.region" => &mut self.region,
                "cloud.availability_zone" => &mut self.zone,
                _ => {
                    let Some(workload_type) = type_of_key(key) else {
                        continue;
                    };
                    self.workload_type = workload_type;
                    &mut self.workload_name
                }
            };
            text.clone_into(slot);
        }
    }
}

/// In the order of the reference, empty parts left out. A part that can't be written without changing the meaning of
/// its neighbours (there is no escaping in this header) is left out too.
impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (type_key(self.workload_type), &self.workload_name),
            ("service.name", &self.service_name),
            ("service.version", &self.revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut separator = "";
        for (key, text) in members {
            if text.is_empty() || !text.bytes().all(is_value_byte) {
                continue;
            }
            write!(f, "{separator}{key}={text}")?;
            separator = ",";
        }
        Ok(())
    }
}

fn type_key(workload_type: WorkloadType) -> &'static str {
    match workload_type {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    }
}

fn type_of_key(key: &str) -> Option<WorkloadType> {
    [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job]
        .into_iter()
        .find(|workload_type| type_key(*workload_type) == key)
}

fn is_header_byte(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

fn is_value_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b',' && byte != b'='
}

#[cfg(test)]
mod tests {
    use mesh_state::identity::Identity;
    use mesh_state::workload::{Locality, Place};
    use proptest::prelude::*;

    use super::*;

    fn full() -> Baggage {
        Baggage {
            cluster: "c1".into(),
            namespace: "shop".into(),
            workload_type: WorkloadType::CronJob,
            workload_name: "cart".into(),
            service_name: "cart-app".into(),
            revision: "v2".into(),
            region: "r".into(),
            zone: "z".into(),
        }
    }

    #[test]
    fn every_part_is_written_in_the_order_of_the_reference() {
        assert_eq!(
            full().to_string(),
            "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.cronjob.name=cart,service.name=cart-app,\
             service.version=v2,cloud.region=r,cloud.availability_zone=z"
        );
    }

    #[test]
    fn a_workload_is_described_by_its_owner_and_its_canonical_names() {
        let identity = Identity::new("cluster.local", "shop", "cart").expect("an identity");
        let mut workload = Workload::new("uid".into(), "shop", "cart-7f-x", identity);
        workload.workload_type = WorkloadType::CronJob;
        workload.workload_name = "cart".into();
        workload.canonical_name = "cart-app".into();
        workload.canonical_revision = "v2".into();
        workload.cluster_id = "c1".into();
        let locality = Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }.into();
        workload.place = Place { node: "".into(), locality }.into();
        assert_eq!(Baggage::of_workload(&workload), full());
    }

    #[test]
    fn empty_parts_are_left_out() {
        let baggage = Baggage { cluster: String::new(), revision: String::new(), zone: String::new(), ..full() };
        assert_eq!(
            baggage.to_string(),
            "k8s.namespace.name=shop,k8s.cronjob.name=cart,service.name=cart-app,cloud.region=r"
        );
        assert_eq!(Baggage::default().to_string(), "");
    }

    #[test]
    fn a_value_cannot_forge_another_key() {
        let baggage = Baggage { cluster: "c,k8s.namespace.name=kube-system".into(), ..full() };
        let read = Baggage::parse(&baggage.to_string());
        assert_eq!(read.namespace, "shop");
        assert_eq!(read.cluster, "");
    }

    #[test]
    fn reading_follows_the_reference() {
        type Set = fn(&mut Baggage);
        let rows: [(&str, Set); 8] = [
            ("", |_| {}),
            ("k8s.namespace.name=shop", |b| b.namespace = "shop".into()),
            ("k8s.pod.name=p,k8s.job.name=j", |b| {
                b.workload_type = WorkloadType::Job;
                b.workload_name = "j".into();
            }),
            ("service.name=a=b=c", |b| b.service_name = "a".into()),
            ("service.name=", |_| {}),
            ("userid=alice, ,=,==,service.version=v1", |b| b.revision = "v1".into()),
            ("service.name", |_| {}),
            ("service.name=\u{e9}", |_| {}),
        ];
        for (text, set) in rows {
            let mut expected = Baggage::default();
            set(&mut expected);
            assert_eq!(Baggage::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn several_headers_are_read_as_one() {
        let read = Baggage::parse_all(["k8s.namespace.name=a", "service.name=s\u{7f}", "k8s.namespace.name=b"]);
        assert_eq!(read, Baggage { namespace: "b".into(), ..Baggage::default() });
    }

    proptest! {
        #[test]
        fn what_is_written_is_a_header_and_is_read_back(
            parts in proptest::collection::vec("[ -~\u{e9}]{0,12}", 7),
        ) {
            let keep = |text: &String| if text.bytes().all(is_value_byte) { text.clone() } else { String::new() };
            let [cluster, namespace, workload_name, service_name, revision, region, zone] =
                <[String; 7]>::try_from(parts).expect("seven were asked for");
            let given = Baggage {
                cluster, namespace, workload_type: WorkloadType::Pod, workload_name, service_name, revision, region, zone,
            };
            let kept = Baggage {
                cluster: keep(&given.cluster),
                namespace: keep(&given.namespace),
                workload_type: if keep(&given.workload_name).is_empty() { WorkloadType::Deployment } else { WorkloadType::Pod },
                workload_name: keep(&given.workload_name),
                service_name: keep(&given.service_name),
                revision: keep(&given.revision),
                region: keep(&given.region),
                zone: keep(&given.zone),
            };
            let text = given.to_string();
            prop_assert!(http::HeaderValue::from_str(&text).is_ok());
            prop_assert_eq!(Baggage::parse(&text), kept);
        }

        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
            let _ = Baggage::parse(&text);
        }
    }
}
