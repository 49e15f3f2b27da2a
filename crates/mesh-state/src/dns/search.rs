//! The hostnames that a name asked for may stand for, in the order in which they are tried (behaviour §10.3).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A hostname that a name may stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) hostname: String,
    /// The name without the search domain that a client's resolver had appended, if it was taken for one.
    pub(super) stripped: Option<String>,
}

/// The longest name DNS has, and the longest of its labels, in bytes.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// The name in the form hostnames have here: lower case, no dot at its end. `None` when it cannot be a hostname.
pub(super) fn lower_case(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| (1..=LABEL_BYTES_MAX).contains(&label.len());
    (name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)).then(|| name.to_ascii_lowercase())
}

/// The hostnames in order, each once.
pub(super) fn candidates(name: &str, namespace: &str, cluster_domain: &str) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut add = |hostname: String, stripped: Option<&str>| {
        if candidates.iter().all(|held| held.hostname != hostname) {
            candidates.push(Candidate { hostname, stripped: stripped.map(ToOwned::to_owned) });
        }
    };
    add(name.to_owned(), None);
    for completed in completions(name, namespace, cluster_domain) {
        add(completed, None);
    }
    // The search domains of a pod, as Kubernetes writes them into its resolv.conf.
    for domain in
        [format!("{namespace}.svc.{cluster_domain}"), format!("svc.{cluster_domain}"), cluster_domain.to_owned()]
    {
        let Some(stripped) = name.strip_suffix(&*domain).and_then(|rest| rest.strip_suffix('.')) else {
            continue;
        };
        add(stripped.to_owned(), Some(stripped));
        for completed in completions(stripped, namespace, cluster_domain) {
            add(completed, Some(stripped));
        }
    }
    candidates
}

/// What Kubernetes' names are short for: `NAME`, `NAME.NAMESPACE`, `NAME.NAMESPACE.svc`, and with a pod's before a headless
/// service's.
fn completions(name: &str, namespace: &str, cluster_domain: &str) -> Vec<String> {
    let labels = name.split('.').count();
    let ends_in_svc = name.rsplit('.').next() == Some("svc");
    let mut completions = Vec::new();
    if matches!(labels, 3 | 4) && ends_in_svc {
        completions.push(format!("{name}.{cluster_domain}"));
    }
    if matches!(labels, 2 | 3) {
        completions.push(format!("{name}.svc.{cluster_domain}"));
    }
    if matches!(labels, 1 | 2) {
        completions.push(format!("{name}.{namespace}.svc.{cluster_domain}"));
    }
    completions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_tried_as_it_is_then_completed_then_without_each_search_domain() {
        let rows: &[(&str, &[&str])] = &[
            ("shop", &["shop", "shop.web.svc.mesh.test"]),
            ("shop.retail", &["shop.retail", "shop.retail.svc.mesh.test", "shop.retail.web.svc.mesh.test"]),
            ("shop.retail.svc", &["shop.retail.svc", "shop.retail.svc.mesh.test", "shop.retail.svc.svc.mesh.test"]),
            ("db-0.db.retail", &["db-0.db.retail", "db-0.db.retail.svc.mesh.test"]),
            ("db-0.db.retail.svc", &["db-0.db.retail.svc", "db-0.db.retail.svc.mesh.test"]),
            ("a.b.c.d", &["a.b.c.d"]),
            ("a.b.c.d.svc", &["a.b.c.d.svc"]),
            // The domain itself is no name with something before it.
            ("mesh.test", &["mesh.test", "mesh.test.svc.mesh.test", "mesh.test.web.svc.mesh.test"]),
            // Not at the border of a label.
            ("x.othermesh.test", &["x.othermesh.test", "x.othermesh.test.svc.mesh.test"]),
            (
                "api.example.com.web.svc.mesh.test",
                &[
                    "api.example.com.web.svc.mesh.test",
                    "api.example.com <api.example.com>",
                    "api.example.com.svc.mesh.test <api.example.com>",
                    "api.example.com.web <api.example.com.web>",
                    "api.example.com.web.svc <api.example.com.web.svc>",
                ],
            ),
            (
                "shop.web.svc.mesh.test",
                &[
                    "shop.web.svc.mesh.test",
                    "shop <shop>",
                    "shop.web <shop.web>",
                    "shop.web.web.svc.mesh.test <shop.web>",
                    "shop.web.svc <shop.web.svc>",
                    "shop.web.svc.svc.mesh.test <shop.web.svc>",
                ],
            ),
        ];
        for (name, expected) in rows {
            let tried: Vec<String> = candidates(name, "web", "mesh.test")
                .into_iter()
                .map(|Candidate { hostname, stripped }| match stripped {
                    Some(stripped) => format!("{hostname} <{stripped}>"),
                    None => hostname,
                })
                .collect();
            assert_eq!(tried, *expected, "{name}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_a_hostname_is_none() {
        let label = "a".repeat(LABEL_BYTES_MAX);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), NAME_BYTES_MAX);
        for (name, lowered) in [
            ("Shop.Retail.", Some("shop.retail")),
            ("*.example.com", Some("*.example.com")),
            (&longest, Some(&*longest)),
            ("", None),
            (".", None),
            ("shop..retail", None),
            (".shop", None),
            (&format!("{longest}a"), None),
            (&format!("{label}a.com"), None),
        ] {
            assert_eq!(lower_case(name).as_deref(), lowered, "{name}");
        }
    }
}
