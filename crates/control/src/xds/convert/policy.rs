//! Policies. A condition that cannot be read does not vanish: it counts against the connection (decision 0004).

use std::sync::Arc;

use ipnet::IpNet;
use mesh_state::{
    change::Change,
    name::PolicyKey,
    policy::{self, Policy},
};

use super::{
    Refusal,
    address::{address, to_block},
};
use crate::proto::security as proto;

/// The change that an authorization is. Its key is the resource's name, by which workloads name it.
pub(super) fn change(name: &Arc<str>, from: proto::Authorization) -> Result<Change, Refusal> {
    let rule = |rule: proto::Rule| policy::Rule { clauses: rule.clauses.into_iter().map(clause).collect() };
    Ok(Change::Policy(Policy {
        key: PolicyKey(name.clone()),
        namespace: from.namespace.into(),
        scope: match from.scope {
            0 => policy::PolicyScope::Global,
            1 => policy::PolicyScope::Namespace,
            2 => policy::PolicyScope::WorkloadSelector,
            value => return Err(Refusal::Value { field: "scope", value }),
        },
        action: match from.action {
            0 => policy::Action::Allow,
            1 => policy::Action::Deny,
            value => return Err(Refusal::Value { field: "action", value }),
        },
        rules: from.rules.into_iter().map(rule).collect(),
        dry_run: from.dry_run,
    }))
}

fn clause(from: proto::Clause) -> policy::Clause {
    policy::Clause { matches: from.matches.into_iter().map(to_match).collect() }
}

fn to_match(from: proto::Match) -> policy::Match {
    let mut reader = Reader::default();
    let read = policy::Match {
        namespaces: reader.field("namespaces", from.namespaces, text),
        not_namespaces: reader.field("not_namespaces", from.not_namespaces, text),
        principals: reader.field("principals", from.principals, text),
        not_principals: reader.field("not_principals", from.not_principals, text),
        source_ips: reader.field("source_ips", from.source_ips, block),
        not_source_ips: reader.field("not_source_ips", from.not_source_ips, block),
        destination_ips: reader.field("destination_ips", from.destination_ips, block),
        not_destination_ips: reader.field("not_destination_ips", from.not_destination_ips, block),
        destination_ports: reader.field("destination_ports", from.destination_ports, port),
        not_destination_ports: reader.field("not_destination_ports", from.not_destination_ports, port),
        service_accounts: reader.field("service_accounts", from.service_accounts, account),
        not_service_accounts: reader.field("not_service_accounts", from.not_service_accounts, account),
        unreadable: Vec::new(),
    };
    policy::Match { unreadable: reader.unreadable, ..read }
}

/// Reads the fields of a match and keeps what cannot be read.
#[derive(Default)]
struct Reader {
    unreadable: Vec<Arc<str>>,
}

impl Reader {
    /// All values of a field, or none of them when one cannot be read: alternatives that are left would make a `not_`
    /// field weaker than its author wrote it.
    fn field<F, T>(&mut self, name: &str, from: Vec<F>, read: impl Fn(F) -> Result<T, String>) -> Vec<T> {
        match from.into_iter().map(read).collect() {
            Ok(values) => values,
            Err(cause) => {
                self.unreadable.push(format!("{name}: {cause}").into());
                Vec::new()
            }
        }
    }
}

fn text(from: proto::StringMatch) -> Result<policy::StringMatch, String> {
    match from.match_type {
        Some(proto::MatchType::Exact(text)) => Ok(policy::StringMatch::Exact(text.into())),
        Some(proto::MatchType::Prefix(text)) => Ok(policy::StringMatch::Prefix(text.into())),
        Some(proto::MatchType::Suffix(text)) => Ok(policy::StringMatch::Suffix(text.into())),
        Some(proto::MatchType::Presence(())) => Ok(policy::StringMatch::Presence),
        None => Err("a condition of no known kind".to_owned()),
    }
}

fn block(from: proto::Block) -> Result<IpNet, String> {
    let bytes = from.address.len();
    let address = address(&from.address).ok_or_else(|| format!("an address of {bytes} bytes"))?;
    to_block(address, from.length).ok_or_else(|| format!("a prefix of {} bits of {address}", from.length))
}

fn port(from: u32) -> Result<u16, String> {
    u16::try_from(from).map_err(|_| format!("port {from}"))
}

fn account(from: proto::ServiceAccountMatch) -> Result<policy::ServiceAccountMatch, String> {
    Ok(policy::ServiceAccountMatch { namespace: from.namespace.into(), service_account: from.service_account.into() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn of(one: proto::Match) -> policy::Match {
        let clauses = vec![proto::Clause { matches: vec![one] }];
        let from = proto::Authorization { rules: vec![proto::Rule { clauses }], ..Default::default() };
        match change(&"shop/p".into(), from) {
            Ok(Change::Policy(mut policy)) => policy.rules.remove(0).clauses.remove(0).matches.remove(0),
            other => panic!("no policy: {other:?}"),
        }
    }

    #[test]
    fn a_policy_is_kept_under_the_name_of_its_resource() {
        let from = proto::Authorization {
            name: "p".into(),
            namespace: "shop".into(),
            scope: 2,
            action: 1,
            rules: vec![],
            dry_run: true,
        };
        let Ok(Change::Policy(policy)) = change(&"shop/p".into(), from) else { panic!("a good policy") };
        assert_eq!((policy.key.as_str(), &*policy.namespace, policy.dry_run), ("shop/p", "shop", true));
        assert_eq!((policy.scope, policy.action), (policy::PolicyScope::WorkloadSelector, policy::Action::Deny));
    }

    #[test]
    fn an_unknown_scope_or_action_refuses_the_policy() {
        let name = "shop/p".into();
        let scope = proto::Authorization { scope: 3, ..Default::default() };
        assert_eq!(change(&name, scope), Err(Refusal::Value { field: "scope", value: 3 }));
        let action = proto::Authorization { action: 2, ..Default::default() };
        assert_eq!(change(&name, action), Err(Refusal::Value { field: "action", value: 2 }));
    }

    #[test]
    fn every_condition_that_can_be_read_is_there() {
        let text = |kind| proto::StringMatch { match_type: Some(kind) };
        let block = |length| proto::Block { address: Bytes::from_static(&[10, 1, 0, 0]), length };
        let account = proto::ServiceAccountMatch { namespace: "shop".into(), service_account: "web".into() };
        let read = of(proto::Match {
            namespaces: vec![text(proto::MatchType::Exact("a".into())), text(proto::MatchType::Prefix("b".into()))],
            not_principals: vec![text(proto::MatchType::Presence(())), text(proto::MatchType::Suffix("c".into()))],
            source_ips: vec![block(16)],
            not_destination_ips: vec![block(32)],
            destination_ports: vec![80],
            not_destination_ports: vec![65_535],
            service_accounts: vec![account],
            ..Default::default()
        });
        use policy::StringMatch::{Exact, Prefix, Presence, Suffix};
        assert_eq!(read.namespaces, [Exact("a".into()), Prefix("b".into())]);
        assert_eq!(read.not_principals, [Presence, Suffix("c".into())]);
        assert_eq!(read.source_ips, ["10.1.0.0/16".parse().expect("a block")]);
        assert_eq!(read.not_destination_ips, ["10.1.0.0/32".parse().expect("a block")]);
        assert_eq!((read.destination_ports, read.not_destination_ports), (vec![80], vec![65_535]));
        assert_eq!(&*read.service_accounts[0].service_account, "web");
        assert!(read.unreadable.is_empty());
    }

    #[test]
    fn a_condition_that_cannot_be_read_is_kept_as_unreadable_and_its_field_is_left_empty() {
        let exact = proto::StringMatch { match_type: Some(proto::MatchType::Exact("a".into())) };
        let block = |bytes: &'static [u8], length| proto::Block { address: Bytes::from_static(bytes), length };
        let rows = [
            (
                proto::Match { namespaces: vec![exact, proto::StringMatch { match_type: None }], ..Default::default() },
                "namespaces: a condition of no known kind",
            ),
            (
                proto::Match { source_ips: vec![block(&[1, 2], 8)], ..Default::default() },
                "source_ips: an address of 2 bytes",
            ),
            (
                proto::Match { not_source_ips: vec![block(&[1, 2, 3, 4], 40)], ..Default::default() },
                "not_source_ips: a prefix of 40 bits of 1.2.3.4",
            ),
            (
                proto::Match { destination_ports: vec![80, 65_616], ..Default::default() },
                "destination_ports: port 65616",
            ),
        ];
        for (from, unreadable) in rows {
            let read = of(from);
            assert_eq!(read.unreadable, [unreadable.into()]);
            assert_eq!(read, policy::Match { unreadable: read.unreadable.clone(), ..Default::default() });
        }
    }
}
