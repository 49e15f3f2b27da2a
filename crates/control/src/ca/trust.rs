//! Whom the pods of this node believe: the roots that came with any of their certificates. While a root is replaced, the
//! first answer with the new one makes everybody trust it, before any leaf of theirs is signed by it; and the old one goes
//! when the last certificate that came with it has been renewed.

use std::collections::BTreeSet;

/// The roots of several answers as one PEM text, each once and in one order.
pub(crate) fn union<'a>(answers: impl Iterator<Item = &'a str>) -> String {
    let certificates: BTreeSet<&str> = answers.flat_map(certificates).collect();
    certificates.into_iter().flat_map(|certificate| [certificate, "\n"]).collect()
}

/// The certificates of a PEM text, from the first dash to the last.
pub(super) fn certificates(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    text.match_indices(BEGIN).filter_map(|(start, _)| {
        let end = text[start..].find(END)? + END.len();
        Some(&text[start..start + end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_root_is_there_once_whoever_brought_it() {
        let pem = |name: &str| format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----");
        let (old, new) = (pem("a"), pem("b"));
        let both = format!("{old}\n{new}\n");
        for answers in [vec![&*both], vec![&new, &old], vec![&both, &old, "# a comment\n", &new]] {
            assert_eq!(union(answers.into_iter()), both);
        }
        assert_eq!(union(["junk", "-----BEGIN CERTIFICATE-----\ncut"].into_iter()), "");
    }
}
