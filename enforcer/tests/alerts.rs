//! The alert rules, as Prometheus' own tool reads and evaluates them.

#[allow(dead_code, reason = "the other tests of programs need more of it")]
#[path = "sinks/programs.rs"]
mod programs;

use std::path::Path;
use std::process::Command;

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus");
    for words in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts.test.yaml"],
    ] {
        let output = Command::new(programs::find("promtool"))
            .args(words)
            .current_dir(&directory)
            .output()
            .expect("promtool starts");
        assert!(
            output.status.success(),
            "promtool {words:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
