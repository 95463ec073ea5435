//! Containers of runc that come and go, with the secrets and the programs of the host mounted.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::work::{ABROAD, HOME, KEY_INSIDE};
use crate::harness::{ALICE, Actor, FILES, Outcome, PROGRAMS, check};

const PLACE: &str = "/srv/soak-containers";
/// Where the secrets are in a container.
const INSIDE: &str = "/secret";

/// One that may use the key, and its twin that may not.
pub struct Containers;

impl Containers {
    /// Writes down what is in them.
    pub fn prepare() -> Result<Self> {
        for directory in ["proc", "dev", INSIDE, PROGRAMS] {
            fs::create_dir_all(format!("{PLACE}/root/{directory}"))?;
        }
        describe("entitled", &[KEY_INSIDE, HOME, ABROAD])?;
        describe("other", &[KEY_INSIDE])?;
        Ok(Self)
    }

    /// Runs a container of this program, as it was described.
    fn run(&self, program: &str) -> Result<Outcome> {
        // In a guest the root is the initramfs, which cannot be exchanged.
        let words = format!(
            "--root {PLACE}/state run --no-pivot --bundle {PLACE}/{program} soak-{program}"
        );
        Actor::new("runc")
            .run([words])
            .context("containers are started by runc, which `cargo xtask soak` brings along")
    }

    /// One of each. Returns how many uses were allowed and refused.
    pub fn both(&self) -> Result<(u64, u64)> {
        for (program, expected) in [
            ("entitled", &[0, 0, libc::EPERM][..]),
            ("other", &[libc::EPERM]),
        ] {
            let outcome = self.run(program)?;
            let errors: Vec<i32> = outcome.steps.iter().map(|step| step.errno).collect();
            ensure!(
                errors == expected,
                "a container of `{program}`: {}, and it ended with {}",
                check::summary(&outcome),
                outcome.status
            );
        }
        Ok((2, 2))
    }
}

fn describe(program: &str, steps: &[&str]) -> Result<()> {
    let directory = format!("{PLACE}/{program}");
    fs::create_dir_all(&directory)?;
    let program = format!("{PROGRAMS}/{program}");
    let words = steps.iter().flat_map(|step| step.split(' '));
    let args: Vec<&str> = std::iter::once(program.as_str()).chain(words).collect();
    let bind = |from: &str, to: &str| json!({"source": from, "destination": to, "type": "bind", "options": ["bind", "ro"]});
    // Not one of the network: what it sends goes the way of all others.
    let namespaces = ["mount", "pid", "ipc", "uts"].map(|kind| json!({"type": kind}));
    let description = json!({
        "ociVersion": "1.0.2",
        "root": {"path": format!("{PLACE}/root")},
        "process": {"args": args, "cwd": "/", "user": {"uid": ALICE, "gid": ALICE}},
        "mounts": [
            {"source": "proc", "destination": "/proc", "type": "proc"},
            {"source": "tmpfs", "destination": "/dev", "type": "tmpfs"},
            bind(FILES, INSIDE),
            bind(PROGRAMS, PROGRAMS),
        ],
        "linux": {"namespaces": namespaces},
    });
    fs::write(format!("{directory}/config.json"), description.to_string())
        .with_context(|| format!("cannot describe a container in {directory}"))
}
