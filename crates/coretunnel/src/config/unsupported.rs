//! ztunnel's variables that this daemon cannot follow. Where going on without one would be less safe than its author
//! meant, or would leave the mesh empty, it is an error; else it is told at the start and has no effect. None is ignored
//! silently.

use super::environment::{Environment, Given};

/// A variable that was set and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub(crate) variable: String,
    pub(crate) why: &'static str,
}

/// A variable that must not be ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) variable: &'static str,
    pub(super) value: String,
    pub(super) why: &'static str,
    pub(super) accepted: &'static str,
}

/// Looks for all of them.
pub(super) fn look(environment: &Environment) -> (Vec<Refused>, Vec<Ignored>) {
    let refused = REFUSED.iter().filter_map(|row| {
        let value = unless(environment, row.variable, row.fine)?;
        Some(Refused { variable: row.variable, value, why: row.why, accepted: row.accepted })
    });
    let named = IGNORED
        .iter()
        .filter(|row| unless(environment, row.variable, row.fine).is_some())
        .map(|row| Ignored { variable: row.variable.to_owned(), why: row.why });
    (refused.collect(), named.collect())
}

/// The variable's value if it is set to anything but what asks for nothing.
fn unless(environment: &Environment, variable: &str, fine: &[&str]) -> Option<String> {
    let value = match environment.value(variable)? {
        Given::Text(value) | Given::NotText(value) => value,
    };
    let asks_for_nothing = fine.iter().any(|fine| value.trim().eq_ignore_ascii_case(fine));
    (!asks_for_nothing).then_some(value)
}

struct Refusal {
    variable: &'static str,
    /// Values that ask for nothing.
    fine: &'static [&'static str],
    why: &'static str,
    accepted: &'static str,
}

struct Row {
    variable: &'static str,
    fine: &'static [&'static str],
    why: &'static str,
}

const OFF: &[&str] = &["false", "0"];
const ON: &[&str] = &["true", "1"];
/// Set at all is something asked for.
const NOTHING: &[&str] = &[];

const DNS: &str = "belongs to the DNS proxy, which is not there yet";

const REFUSED: &[Refusal] = &[
    Refusal {
        variable: "FAKE_CA",
        fine: OFF,
        why: "the well-known key of ztunnel's fake CA is not built in",
        accepted: "false, with --ca embedded",
    },
    Refusal {
        variable: "PROXY_MODE",
        fine: &["shared"],
        why: "one daemon serves all pods of its node, and never one alone",
        accepted: "shared",
    },
    Refusal { variable: "ENABLE_PROXY", fine: ON, why: "there is nothing else to run", accepted: "true" },
    Refusal {
        variable: "COMPLIANCE_POLICY",
        fine: NOTHING,
        why: "no compliance policy is enforced yet",
        accepted: "empty",
    },
];

const IGNORED: &[Row] = &[
    Row { variable: "PROXY_CONFIG", fine: NOTHING, why: "is not read: give what it says by XDS_ADDRESS and --cores" },
    Row { variable: "ISTIO_META_DNS_CAPTURE", fine: OFF, why: DNS },
    Row { variable: "ISTIO_META_DNS_PROXY_ADDR", fine: NOTHING, why: DNS },
    Row { variable: "PREFERED_SERVICE_NAMESPACE", fine: NOTHING, why: DNS },
    Row { variable: "CLUSTER_DOMAIN", fine: &["cluster.local"], why: DNS },
    Row { variable: "PROXY_WORKLOAD_INFO", fine: NOTHING, why: "is for PROXY_MODE=dedicated only" },
    Row { variable: "UNSTABLE_ENABLE_SOCKS5", fine: OFF, why: "there is no SOCKS5 listener yet" },
    Row { variable: "TLS12_ENABLED", fine: OFF, why: "only TLS 1.3 is spoken: peers that cannot are refused" },
    Row {
        variable: "AUTHZ_POLICY_INFO_LOGGING",
        fine: OFF,
        why: "policy decisions are in the access log, with the policy's name",
    },
    Row {
        variable: "SERVICE_ACCOUNT",
        fine: NOTHING,
        why: "is for the proxy's own HBONE listener, which is not there yet: metrics are reached in plain HTTP only",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_variable_is_told_when_it_asks_for_something_and_not_when_it_does_not() {
        let rows = REFUSED.iter().map(|row| (row.variable, row.fine, true));
        for (variable, fine, refused) in rows.chain(IGNORED.iter().map(|row| (row.variable, row.fine, false))) {
            let found = look(&Environment::from([(variable, "something")]));
            assert_eq!((found.0.len(), found.1.len()), (usize::from(refused), usize::from(!refused)), "{variable}");
            for fine in fine.iter().copied().chain([""]) {
                assert_eq!(look(&Environment::from([(variable, fine)])), (vec![], vec![]), "{variable}={fine}");
            }
        }
    }

    #[test]
    fn no_variable_is_in_two_rows() {
        let mut names: Vec<&str> = REFUSED.iter().map(|row| row.variable).collect();
        names.extend(IGNORED.iter().map(|row| row.variable));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
