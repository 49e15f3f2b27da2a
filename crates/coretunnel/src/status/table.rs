//! The page as people read it.

use std::fmt::Write as _;

use super::{Page, Past, spoken};

/// A line for each part, then one for each core.
pub(crate) fn table(page: &Page) -> String {
    let Page { version, pending, xds, ca, zds, generation, cores } = page;
    let mut out = String::new();
    let mut row = |name: &str, text: String| writeln!(out, "{name:<6}{text}").expect("a string takes everything");
    row("", version.clone());
    let names: Vec<_> = pending.iter().map(String::as_str).collect();
    row("ready", if names.is_empty() { "yes".to_owned() } else { format!("no, pending: {}", names.join(", ")) });
    row(
        "xDS",
        format!(
            "{}{}{}",
            xds.source,
            match xds.connected {
                None => String::new(),
                Some(true) => format!(", connected, {} addresses, {} policies", xds.addresses, xds.policies),
                Some(false) => format!(
                    ", not connected{}; {} addresses, {} policies kept",
                    because(xds.last_lost.as_ref()),
                    xds.addresses,
                    xds.policies
                ),
            },
            match xds.refused {
                0 => String::new(),
                refused => format!("; {refused} refused, the last{}", because(xds.last_refused.as_ref())),
            }
        ),
    );
    let failed = match ca.failed {
        0 => String::new(),
        failed => format!(", {failed} failed, the last{}", because(ca.last_failed.as_ref())),
    };
    row("CA", format!("{}, {} issued{failed}", ca.issuer, ca.issued));
    let connected = if zds.connected { "connected" } else { "not connected" };
    row("ZDS", format!("{}, {connected}, {} pods, {} pending", zds.socket, zds.pods, zds.pods_pending));
    for pod in &zds.pending {
        row("", format!("pending: {}: {}", printable(&pod.uid), printable(&pod.why)));
    }
    row("mesh", format!("generation {generation}"));
    row("", String::new());
    writeln!(out, "{:<6}{:>12}{:>10}{:>8}{:>14}", "core", "generation", "age", "pods", "connections")
        .expect("a string takes everything");
    for core in cores {
        match &core.standing {
            None => writeln!(out, "{:<6}does not answer", core.core),
            Some(core_is) => writeln!(
                out,
                "{:<6}{:>12}{:>10}{:>8}{:>14}",
                core.core,
                core_is.generation,
                spoken(core_is.generation_age_s),
                core_is.pods,
                core_is.connections
            ),
        }
        .expect("a string takes everything");
    }
    out
}

fn because(past: Option<&Past>) -> String {
    past.map_or_else(String::new, |past| format!(" ({} ago: {})", spoken(past.ago_s), printable(&past.why)))
}

/// Peers have a say in it, and a terminal obeys control characters.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use crate::status::{Ca, Core, Pending, Standing, Xds, Zds};

    use super::*;

    #[test]
    fn every_part_has_a_line_and_trouble_is_told_on_one() {
        let trouble = |why: &str| Some(Past { why: why.to_owned(), ago_s: 65.0 });
        let page = Page {
            version: "coretunnel 1".into(),
            pending: ["core 1".to_owned(), "state manager".to_owned()].into(),
            xds: Xds {
                source: "https://istiod:15012".into(),
                connected: Some(false),
                addresses: 5,
                policies: 6,
                last_lost: trouble("refused\n\u{1b}[2J"),
                refused: 2,
                last_refused: trouble("shop/deny: scope: 7 is unknown"),
            },
            ca: Ca { issuer: "embedded".into(), issued: 2, failed: 1, last_failed: trouble("denied") },
            zds: Zds {
                socket: "@agent".into(),
                connected: true,
                pods: 3,
                pods_pending: 1,
                pending: vec![Pending { uid: "uid-7".into(), why: "port 15008 is taken".into() }],
            },
            generation: 9,
            cores: vec![
                Core {
                    core: 0,
                    standing: Some(Standing { generation: 9, generation_age_s: 3.2, pods: 3, connections: 12 }),
                },
                Core { core: 1, standing: None },
            ],
        };
        let expected = "      coretunnel 1
ready no, pending: core 1, state manager
xDS   https://istiod:15012, not connected (1m5s ago: refused  [2J); 5 addresses, 6 policies kept; \
        2 refused, the last (1m5s ago: shop/deny: scope: 7 is unknown)
CA    embedded, 2 issued, 1 failed, the last (1m5s ago: denied)
ZDS   @agent, connected, 3 pods, 1 pending
      pending: uid-7: port 15008 is taken
mesh  generation 9
      
core    generation       age    pods   connections
0                9        3s       3            12
1     does not answer
";
        assert_eq!(table(&page), expected);
    }
}
