//! The harness of the engine's figures works: every figure is there. What the figures are is not judged here. That the relays pass
//! all bytes is: a sink that counts fewer than were sent, or an exchange that is not answered, fails the run.

use std::process::Command;

use serde_json::Value;

/// Negative control: taken by hand, a name added here that the run does not print fails it; so does a relay that drops a byte.
#[test]
fn a_quick_run_prints_every_figure_as_a_finite_number() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-engine")).arg("--quick").output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let plain = "pp1 pp16 pp64 pp256 crr16 bulk1 bulk16 idle_kib accounts_cost share_1_3 share_256_1 idle_cpu_pct";
    for name in plain.split(' ') {
        assert!(figures[name].as_f64().is_some_and(f64::is_finite), "{name} in {figures}");
    }
    let victims = ["victim_p99_bulk", "victim_p99_churn", "victim_p99_burst"];
    for name in victims {
        for way in ["ours", "control", "one_tenant"] {
            assert!(
                figures[name][way].as_f64().is_some_and(|us| us > 0.0 && us.is_finite()),
                "{name} {way} in {figures}"
            );
        }
    }
    assert_eq!(figures.as_object().unwrap().len(), plain.split(' ').count() + victims.len(), "{figures}");
}
