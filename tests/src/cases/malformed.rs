//! Bundles with mistakes: each told where, and none of them applied.

use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other};
use crate::harness::{A_MOMENT, Allowed, Refused, daemon, write};

cases![
    malformed_bundles_are_told,
    malformed_bundles_change_nothing,
    older_version_is_refused
];

const PATH: &str = "/tmp/malformed.yaml";
const HEAD: &str =
    "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {issuer: tests, version: 900000}\n";
const CREDENTIAL: &str = "credentials: [{id: key, sources: [{file: /srv/t/key}]}]\n";
const WORKLOAD: &str = "workloads: [{id: app, match: {executable: {path: /opt/t/other}}}]\n";

/// A mistake, and what is said of it.
const MISTAKES: [(&str, &str); 20] = [
    ("colour: blue\n", "unknown field \"colour\""),
    (
        "credentials: [{id: a, sources: [{file: /a}], ownr: me}]\n",
        "did you mean `owner`?",
    ),
    (
        "credentials: [{id: a, sources: [{file: /a}]}, {id: a, sources: [{file: /b}]}]\n",
        "already used",
    ),
    ("credentials: [{id: a, sources: []}]\n", "empty list"),
    (
        "credentials: [{id: a, sources: [{file: relative/path}]}]\n",
        "absolute",
    ),
    (
        "credentials: [{id: a, sources: [{endpoint: \"metadata:80\"}]}]\n",
        "expected an address and a port",
    ),
    (
        "credentials: [{id: a, sources: [{file: /a}]}, {id: b, sources: [{file: /a}]}]\n",
        "already a source",
    ),
    (
        "credentials: [{id: enforcer-canary-x, sources: [{file: /a}]}]\n",
        "enforcer-",
    ),
    ("workloads: [{id: a, match: {}}]\n", "nothing is selected"),
    (
        "workloads: [{id: a, match: {user: alice}}]\n",
        "a user alone is no identity",
    ),
    (
        "workloads: [{id: a, match: {systemdUnit: kubelet}}]\n",
        "full name of a unit",
    ),
    (
        "workloads: [{id: a, match: {cgroup: relative}}]\n",
        "absolute path",
    ),
    (
        "workloads: [{id: a, match: {executable: {path: /a, sha256: 12}}}]\n",
        "sha256",
    ),
    (
        "baseline: {destinations: [{cidr: 10.1.2.3/8}]}\n",
        "bits set beyond its prefix",
    ),
    (
        "baseline: {destinations: [{cidr: 10.0.0.1, ports: [0]}]}\n",
        "port from 1 to 65535",
    ),
    (
        "baseline: {destinations: [{cidr: 10.0.0.1, ports: [90-80]}]}\n",
        "upside down",
    ),
    ("defaults: {mode: enforced}\n", "did you mean `enforce`?"),
    (
        "entitlements: [{id: E, workload: a, credential: b, schedule: weekdays}]\n",
        "not supported by this version yet",
    ),
    (
        "entitlements: [{id: E, workload: nobody, credential: nothing, destinations: none}]\n",
        "no workload with the id \"nobody\"",
    ),
    ("workloads: [{id: a\n", "not valid YAML"),
];

/// The mistake in a bundle that would, without it, entitle somebody to what nobody is entitled to.
fn text(mistake: &str) -> String {
    let mut text = HEAD.to_owned();
    for (name, section) in [("credentials", CREDENTIAL), ("workloads", WORKLOAD)] {
        if !mistake.starts_with(name) {
            text.push_str(section);
        }
    }
    text.push_str(mistake);
    text
}

/// Starts with `path:line:column: `.
fn has_place(line: &str) -> bool {
    let Some(rest) = line
        .strip_prefix(PATH)
        .and_then(|rest| rest.strip_prefix(':'))
    else {
        return false;
    };
    let mut parts = rest.splitn(3, ':');
    let mut number = || parts.next().is_some_and(|part| part.parse::<u32>().is_ok());
    number() && number()
}

fn malformed_bundles_are_told(_: &mut Scene) -> Result<()> {
    for (mistake, message) in MISTAKES {
        fs::write(PATH, text(mistake))?;
        let output = daemon::enforcer(&["check", PATH])?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(
            output.status.code() == Some(3),
            "`check` of {mistake:?} ended with {}, expected status 3; it said {said}",
            output.status
        );
        let told = said
            .lines()
            .any(|line| has_place(line) && line.contains(message));
        ensure!(
            told,
            "no line with a place and {message:?} for {mistake:?} in {said}"
        );
    }
    fs::write(PATH, text(""))?;
    let output = daemon::enforcer(&["check", PATH])?;
    ensure!(
        output.status.success(),
        "without a mistake it ended with {}",
        output.status
    );
    Ok(())
}

/// The bundle in force is still this one.
fn unchanged(scene: &mut Scene, version: u64) -> Result<()> {
    let now = daemon::version_in_force()?;
    ensure!(
        now == version,
        "version {now} is in force, expected {version}"
    );
    scene.check(&entitled(), &[("read /srv/t/key", Allowed)])?;
    scene.check(&other(), &[("read /srv/t/key", Refused(""))])?;
    Ok(())
}

fn malformed_bundles_change_nothing(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let version = daemon::version_in_force()?;
    for (mistake, _) in MISTAKES {
        scene.daemon()?.give(&text(mistake))?;
        thread::sleep(A_MOMENT * 2);
        let now = daemon::version_in_force()?;
        ensure!(
            now == version,
            "version {now} is in force after {mistake:?}, expected {version}"
        );
    }
    unchanged(scene, version).context("after all of them")?;
    // No bundle at all is one more mistake.
    fs::remove_file(daemon::BUNDLE)?;
    thread::sleep(A_MOMENT * 2);
    unchanged(scene, version).context("after the bundle was deleted")?;
    scene.standard()?;
    Ok(())
}

fn older_version_is_refused(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let version = daemon::version_in_force()?;
    let older = HEAD.replace("900000", "1");
    write("/tmp/older.yaml", &older)?;
    scene.daemon()?.give(&older)?;
    thread::sleep(A_MOMENT * 3);
    let result = unchanged(scene, version);
    // Whatever became of it, the next case starts from a good one.
    scene.off()?;
    result
}
