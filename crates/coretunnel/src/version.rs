//! What was built, in the form of the reference's build line.

/// The variable that says which mesh this deployment belongs to.
pub(crate) const ISTIO_VERSION: &str = "ISTIO_META_ISTIO_VERSION";

/// The line that `version` prints and that every start logs.
pub(crate) fn line(istio_version: &str) -> String {
    format!(
        "version.BuildInfo{{Version:\"{}\", GitRevision:\"{}\", RustVersion:\"{}\", BuildProfile:\"{}\", \
         BuildStatus:\"{}\", IstioVersion:\"{istio_version}\", CryptoProvider:\"aws-lc\"}}",
        env!("CARGO_PKG_VERSION"),
        option_env!("CORETUNNEL_GIT_REVISION").unwrap_or("unknown"),
        env!("CARGO_PKG_RUST_VERSION"),
        if cfg!(debug_assertions) { "debug" } else { "release" },
        option_env!("CORETUNNEL_BUILD_STATUS").unwrap_or("unknown"),
    )
}

/// The same for people, in a few words.
pub(crate) fn brief() -> String {
    let revision = option_env!("CORETUNNEL_GIT_REVISION").unwrap_or("of an unknown revision");
    let profile = if cfg!(debug_assertions) { ", debug" } else { "" };
    format!("coretunnel {} ({revision}{profile})", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_line_has_the_parts_of_the_reference_in_its_order() {
        let line = line("1.30.2");
        let inside =
            line.strip_prefix("version.BuildInfo{").and_then(|line| line.strip_suffix('}')).expect("the frame");
        let parts: Vec<(&str, &str)> =
            inside.split(", ").map(|part| part.split_once(':').expect("a name and a value")).collect();
        let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
        let expected =
            ["Version", "GitRevision", "RustVersion", "BuildProfile", "BuildStatus", "IstioVersion", "CryptoProvider"];
        assert_eq!(names, expected);
        assert!(
            parts.iter().all(|(_, value)| value.len() > 2 && value.starts_with('"') && value.ends_with('"')),
            "{line}"
        );
        assert_eq!(parts[5].1, "\"1.30.2\"");
    }
}
