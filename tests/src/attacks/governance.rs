//! Between the node and its governance.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Attack, attack,
    expected::CAUGHT,
    stage::{Goal, READ, Stage, standard_bundle},
};
use crate::{
    cases::{entitled, other, standard::DESTINATIONS},
    harness::{
        Bundle,
        daemon::status,
        governance::{Governance, connected},
        wait_for,
    },
};

pub const ATTACKS: &[Attack] = &[
    attack(
        "D21",
        "governance_spoofed",
        "another governance server, with the TLS authority of the real one",
        CAUGHT,
        spoofed,
    ),
    attack(
        "D22",
        "governance_silent",
        "a governance server that is kept from telling of a revocation",
        CAUGHT,
        silent,
    ),
];

/// The daemon, following a server with this bundle.
fn follow(s: &mut Stage<'_>, bundle: &Bundle, freshness: &str) -> Result<Governance> {
    s.scene.off()?;
    let governance = Governance::start(bundle, freshness)?;
    s.scene.start(|| governance.daemon())?;
    connected(true)?;
    Ok(governance)
}

fn spoofed(s: &mut Stage<'_>) -> Result<()> {
    let mut governance = follow(s, &standard_bundle()?, "5m")?;
    s.twin(&entitled(), Goal::Read, &[READ])?;
    governance.kill()?;
    // It has everything of the real one but the key that signs.
    let server = governance.path("server");
    for name in ["governance.key", "trust.json", "head.json", "blobs"] {
        let path = server.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let generous = standard_bundle()?
        .workload("stranger", "executable: {path: /opt/t/other}")
        .entitlement("E-stranger", "stranger", "key", DESTINATIONS);
    governance.issue(&generous)?;
    governance.serve()?;
    wait_for("that it is refused", || {
        let now = status().ok()?;
        now["governance"]["refused"]
            .as_str()?
            .contains("of the keys")
            .then_some(())
    })?;
    s.attack(&other(), Goal::Read, &[READ])?;
    s.twin(&entitled(), Goal::Read, &[READ])?;
    s.scene.off()
}

fn silent(s: &mut Stage<'_>) -> Result<()> {
    let bundle = Bundle::default()
        .file("key", "/srv/t/key")
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement(
            "E-key",
            "app",
            "key",
            &format!("{DESTINATIONS}, onStale: deny"),
        );
    let mut governance = follow(s, &bundle, "5s")?;
    s.twin(&entitled(), Goal::Read, &[READ])?;
    // While it is heard of, that goes on past the first statement's end.
    thread::sleep(Duration::from_secs(6));
    s.twin(&entitled(), Goal::Read, &[READ])?;
    governance.kill()?;
    thread::sleep(Duration::from_secs(6));
    s.attack(&entitled(), Goal::Read, &[READ])?;
    governance.serve()?;
    wait_for("that it is heard of", || {
        let outcome = entitled().run([READ]).ok()?;
        (outcome.last().ok()?.errno == 0).then_some(())
    })?;
    s.twin(&entitled(), Goal::Read, &[READ])?;
    s.scene.off()
}
