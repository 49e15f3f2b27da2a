//! Policies as bytes.

use crate::change::Change;
use crate::name::PolicyKey;
use crate::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use crate::warm::Refused;
use crate::warm::reader::Reader;
use crate::warm::writer::Writer;

const SCOPES: [PolicyScope; 3] = [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector];
const ACTIONS: [Action; 2] = [Action::Allow, Action::Deny];

pub(super) fn write<'s>(writer: &mut Writer<'s>, policy: &'s Policy) {
    // Taken apart in full, here and below, so that a field added to a type cannot be forgotten here.
    let Policy { key, namespace, scope, action, rules, dry_run } = policy;
    writer.text(key.as_str());
    writer.text(namespace);
    writer.byte(*scope as u8);
    writer.byte(*action as u8);
    writer.list(rules.len(), rules, |writer, Rule { clauses }| {
        writer.list(clauses.len(), clauses, |writer, Clause { matches }| {
            writer.list(matches.len(), matches, write_match);
        });
    });
    writer.flag(*dry_run);
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Change, Refused> {
    Ok(Change::Policy(Policy {
        key: PolicyKey(reader.text()?),
        namespace: reader.text()?,
        scope: reader.choice(&SCOPES)?,
        action: reader.choice(&ACTIONS)?,
        rules: reader.list(|reader| {
            let clauses = reader.list(|reader| Ok(Clause { matches: reader.list(read_match)? }))?;
            Ok(Rule { clauses })
        })?,
        dry_run: reader.flag()?,
    }))
}

fn write_match<'s>(writer: &mut Writer<'s>, condition: &'s Match) {
    let Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
        unreadable,
    } = condition;
    for texts in [namespaces, not_namespaces, principals, not_principals] {
        writer.list(texts.len(), texts, write_text_match);
    }
    for blocks in [source_ips, not_source_ips, destination_ips, not_destination_ips] {
        writer.list(blocks.len(), blocks, |writer, block| writer.block(*block));
    }
    for ports in [destination_ports, not_destination_ports] {
        writer.list(ports.len(), ports, |writer, port| writer.number(*port));
    }
    for accounts in [service_accounts, not_service_accounts] {
        writer.list(accounts.len(), accounts, |writer, ServiceAccountMatch { namespace, service_account }| {
            writer.text(namespace);
            writer.text(service_account);
        });
    }
    writer.list(unreadable.len(), unreadable, |writer, text| writer.text(text));
}

fn read_match(reader: &mut Reader<'_>) -> Result<Match, Refused> {
    let texts = |reader: &mut Reader<'_>| reader.list(read_text_match);
    let blocks = |reader: &mut Reader<'_>| reader.list(Reader::block);
    let ports = |reader: &mut Reader<'_>| reader.list(Reader::number);
    let accounts = |reader: &mut Reader<'_>| {
        reader.list(|reader| Ok(ServiceAccountMatch { namespace: reader.text()?, service_account: reader.text()? }))
    };
    // In the order in which they are written, which is that of the fields.
    Ok(Match {
        namespaces: texts(reader)?,
        not_namespaces: texts(reader)?,
        principals: texts(reader)?,
        not_principals: texts(reader)?,
        source_ips: blocks(reader)?,
        not_source_ips: blocks(reader)?,
        destination_ips: blocks(reader)?,
        not_destination_ips: blocks(reader)?,
        destination_ports: ports(reader)?,
        not_destination_ports: ports(reader)?,
        service_accounts: accounts(reader)?,
        not_service_accounts: accounts(reader)?,
        unreadable: reader.list(Reader::text)?,
    })
}

fn write_text_match<'s>(writer: &mut Writer<'s>, condition: &'s StringMatch) {
    let (kind, text) = match condition {
        StringMatch::Exact(text) => (0, text),
        StringMatch::Prefix(text) => (1, text),
        StringMatch::Suffix(text) => (2, text),
        StringMatch::Presence => return writer.byte(3),
    };
    writer.byte(kind);
    writer.text(text);
}

fn read_text_match(reader: &mut Reader<'_>) -> Result<StringMatch, Refused> {
    Ok(match reader.byte()? {
        0 => StringMatch::Exact(reader.text()?),
        1 => StringMatch::Prefix(reader.text()?),
        2 => StringMatch::Suffix(reader.text()?),
        3 => StringMatch::Presence,
        _ => return reader.malformed("there is no such kind of match"),
    })
}
