//! The bundle that most cases share, and what is on disk for it.

use std::fs;

use anyhow::{Context as _, Result};
use enforcer::bundle::Digest;

use crate::harness::{Bundle, FILES, PROGRAMS};

/// The copies of this program, each another executable.
pub const PROGRAM_NAMES: [&str; 6] = [
    "entitled", "other", "trusted", "personal", "hashed", "replaced",
];

/// The files that are there from the start.
pub const FILE_NAMES: [&str; 17] = [
    "key",
    "second-key",
    "lone-key",
    "unit-key",
    "group-key",
    "strict-key",
    "personal-key",
    "kill-key",
    "monitored-key",
    "jealous-key",
    "local-key",
    "bare-key",
    "paths/key",
    "globbed/first.key",
    "globbed/notes.txt",
    "deep/first/secret",
    "tree/leaf",
];

/// Where holders of most credentials may go.
pub const DESTINATIONS: &str =
    "destinations: [{cidr: 10.20.0.2, ports: [9000]}, {cidr: \"fd20::2\", ports: [9000]}]";

/// Each credential with the workload it is for and what its entitlement says besides; destinations if
/// nothing. In this order, so that entitlements can be told apart.
const ENTITLED: [(&str, &str, &str); 15] = [
    ("key", "app", DESTINATIONS),
    ("second-key", "app", DESTINATIONS),
    ("unit-key", "unit", DESTINATIONS),
    ("group-key", "group", DESTINATIONS),
    ("strict-key", "strict", DESTINATIONS),
    ("personal-key", "personal", DESTINATIONS),
    (
        "jealous-key",
        "app",
        "destinations: [{cidr: 10.20.0.66, ports: [9000]}]",
    ),
    (
        "local-key",
        "app",
        "destinations: [{cidr: 127.0.0.1, ports: [9100]}]",
    ),
    ("bare-key", "app", "destinations: none"),
    ("paths-key", "app", DESTINATIONS),
    ("globbed", "app", DESTINATIONS),
    ("deep", "app", DESTINATIONS),
    ("tree", "app", DESTINATIONS),
    (
        "metadata",
        "app",
        "destinations: [{cidr: 10.20.0.2, ports: [9000]}, {cidr: 10.20.0.80, ports: [80]}]",
    ),
    ("second-key", "replaced", DESTINATIONS),
];

/// SHA-256 of a file, in hex.
pub fn sha256(path: &str) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let Digest(digest) = Digest::of_bytes(&bytes);
    Ok(digest)
}

/// The bundle.
pub fn bundle() -> Result<Bundle> {
    // The program that all copies were made of.
    let digest = sha256("/proc/self/exe")?;
    let mut bundle = Bundle::default().front(format!(
        "defaults: {{mode: enforce, action: block, inbound: permit}}\n\
             trusted:\n  - match: {{executable: {{path: {PROGRAMS}/trusted}}}}\n\
             baseline:\n  destinations: [{{cidr: 10.20.0.53, ports: [9000]}}]\n"
    ));
    for name in [
        "key",
        "second-key",
        "lone-key",
        "unit-key",
        "group-key",
        "strict-key",
        "personal-key",
        "kill-key",
        "monitored-key",
        "local-key",
        "bare-key",
    ] {
        bundle = bundle.file(name, &format!("{FILES}/{name}"));
    }
    bundle = bundle
        .credential(&format!(
            "id: jealous-key, exclusive: true, sources: [{{file: {FILES}/jealous-key}}]"
        ))
        .file("paths-key", &format!("{FILES}/paths/key"))
        .file("globbed", &format!("{FILES}/globbed/*.key"))
        .file("deep", &format!("{FILES}/deep/**/secret"))
        .credential(&format!("id: tree, sources: [{{directory: {FILES}/tree}}]"))
        .credential("id: metadata, sources: [{endpoint: \"10.20.0.80:80\"}]")
        .workload("app", &format!("executable: {{path: {PROGRAMS}/entitled}}"))
        .workload("unit", "systemdUnit: app.service")
        .workload("group", "cgroup: /apps.slice/web.scope")
        .workload(
            "strict",
            &format!("systemdUnit: strict.service, executable: {{path: {PROGRAMS}/entitled}}"),
        )
        .workload(
            "personal",
            &format!("executable: {{path: {PROGRAMS}/personal}}, user: alice"),
        )
        .workload(
            "hashed",
            &format!("executable: {{path: {PROGRAMS}/hashed, sha256: {digest}}}"),
        )
        .workload(
            "replaced",
            &format!("executable: {{path: {PROGRAMS}/replaced}}"),
        );
    for (index, (credential, workload, rest)) in ENTITLED.iter().enumerate() {
        bundle = bundle.entitlement(&format!("E{index}"), workload, credential, rest);
    }
    Ok(bundle
        .entitlement("E-hashed", "hashed", "key", DESTINATIONS)
        .entitlement(
            "E-kill",
            "app",
            "kill-key",
            &format!("{DESTINATIONS}, action: kill"),
        )
        .entitlement(
            "E-monitored",
            "app",
            "monitored-key",
            &format!("{DESTINATIONS}, mode: monitor"),
        ))
}
