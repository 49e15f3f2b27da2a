//! What was built, in the form of the reference's build line.

/// The line that `version` prints and that every start logs.
pub(crate) fn line() -> String {
    format!(
        "version.BuildInfo{{Version:\"{}\", GitRevision:\"{}\", RustVersion:\"{}\", BuildProfile:\"{}\", BuildStatus:\"{}\", IstioVersion:\"{}\", CryptoProvider:\"aws-lc\"}}",
        env!("CARGO_PKG_VERSION"),
        option_env!("CORETUNNEL_GIT_REVISION").unwrap_or("unknown"),
        env!("CARGO_PKG_RUST_VERSION"),
        if cfg!(debug_assertions) { "debug" } else { "release" },
        option_env!("CORETUNNEL_BUILD_STATUS").unwrap_or("unknown"),
        istio_version(),
    )
}

/// The Istio version the deployment says it belongs to.
pub(crate) fn istio_version() -> String {
    std::env::var("ISTIO_META_ISTIO_VERSION").unwrap_or_else(|_| "unknown".to_owned())
}
