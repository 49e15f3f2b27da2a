//! That the bench goes through all its parts and ends with the figures it promises; what they are on a small mesh means
//! nothing.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_bench_ends_with_one_object_of_all_its_figures() {
    let plot = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-config-smoke.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_bench-config"))
        .args(["--quick", "--plot"])
        .arg(&plot)
        .output()
        .expect("cargo has built it");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    let last: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    let figures = last.as_object().expect("an object");
    let expected = [
        "churn_500_cpu_pct",
        "csr_peak_over_mean",
        "failed",
        "gap_ms_100k",
        "gap_ms_10k",
        "gap_ms_1k",
        "gap_ms_1m",
        "peak_ratio_100k",
        "slope_bytes_per_pair",
    ];
    assert_eq!(figures.keys().collect::<Vec<_>>(), expected);
    assert!(figures.values().all(Value::is_number), "{last}");
    assert_eq!(figures["failed"], 0, "{stderr}");
    assert!(std::fs::read_to_string(&plot).is_ok_and(|picture| picture.starts_with("<svg")));
}

/// The daemon itself stands in for ztunnel: by the environment alone, with the one argument that ztunnel is started with.
#[test]
fn another_proxy_is_measured_beside_ours() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (plot, peer) = (directory.join("bench-config-beside.svg"), directory.join("a-peer"));
    let daemon = std::path::Path::new(env!("CARGO_BIN_EXE_bench-config")).with_file_name("coretunnel");
    let script = format!("#!/bin/sh\n[ \"$*\" = proxy ] || exit 9\nexec {} run --cores 1\n", daemon.display());
    std::fs::write(&peer, script).expect("written");
    std::fs::set_permissions(&peer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-config"));
    let output = command.args(["--quick", "--only", "slope", "--plot"]).arg(&plot).arg("--beside").arg(&peer).output();
    let output = output.expect("cargo has built it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let figures: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert!(figures["beside_slope_bytes_per_pair"].is_number() && figures["gap_ms_1k"].is_null(), "{figures}");
    assert!(std::fs::read_to_string(&plot).is_ok_and(|picture| picture.contains("#e80")));
}
