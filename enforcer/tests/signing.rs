//! `enforcer bundle`: keys, signatures and differences, as people and pipelines use them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

const BUNDLE: &str = "apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {issuer: iga.example.com, version: 7}
credentials: [{id: key, sources: [{file: /etc/key}]}]
workloads: [{id: app, match: {executable: {path: /bin/app}}}]
entitlements:
  - {id: E1, workload: app, credential: key, destinations: none}
";

/// A directory with two keys, and a trust root that wants both for bundles.
struct Desk {
    directory: tempfile::TempDir,
}

fn enforcer(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .args(words)
        .output()
        .expect("run")
}

/// What it printed, if it ended with this code.
#[track_caller]
fn says(words: &[&str], code: i32) -> String {
    let output = enforcer(words);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("text");
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    said
}

impl Desk {
    fn new() -> Self {
        let desk = Self {
            directory: tempfile::tempdir().expect("directory"),
        };
        desk.write("bundle.yaml", BUNDLE);
        let [one, two] = ["one", "two"].map(|name| {
            let public = says(&["bundle", "keygen", &desk.path(name)], 0);
            public.trim().to_owned()
        });
        let signers = |threshold: u64| json!({"threshold": threshold, "keys": [one, two]});
        let root = json!({
            "version": 1,
            "issuer": "iga.example.com",
            "root": signers(1),
            "bundle": signers(2),
            "revocation": signers(1),
            "freshness": signers(1),
        });
        desk.write("trust.json", &root.to_string());
        desk
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn verify(&self, name: &str, code: i32) -> String {
        let (file, trust) = (self.path(name), self.path("trust.json"));
        says(&["bundle", "verify", &file, "--trust", &trust], code)
    }
}

#[test]
fn two_people_sign_one_after_the_other() {
    let desk = Desk::new();
    let (bundle, one, two) = (desk.path("bundle.yaml"), desk.path("one"), desk.path("two"));
    let once = says(&["bundle", "sign", &bundle, "--key", &one], 0);
    desk.write("once.dsse.json", &once);
    let refused = desk.verify("once.dsse.json", 3);
    assert!(
        refused.contains("1 of the keys for `bundle` have signed, expected 2"),
        "{refused}"
    );

    let path = desk.path("once.dsse.json");
    let twice = says(&["bundle", "sign", &path, "--key", &two], 0);
    desk.write("twice.dsse.json", &twice);
    let good = desk.verify("twice.dsse.json", 0);
    assert!(good.contains("version 7"), "{good}");

    let mut changed: Value = serde_json::from_str(&twice).expect("JSON");
    changed["payloadType"] = json!("text/plain");
    desk.write("changed.dsse.json", &changed.to_string());
    desk.verify("changed.dsse.json", 3);
}

#[test]
fn keys_are_for_their_owner_and_not_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let desk = Desk::new();
    let path = desk.path("one");
    let mode = std::fs::metadata(&path)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read(&path).expect("there");
    let refused = says(&["bundle", "keygen", &path], 1);
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(std::fs::read(&path).expect("there"), text);
    let bundle = desk.path("bundle.yaml");
    let refused = says(&["bundle", "sign", &bundle, "--key", &bundle], 1);
    assert!(refused.contains("not an ed25519 private key"), "{refused}");
}

#[test]
fn what_is_only_for_some_nodes_is_not_signed_for_all() {
    let desk = Desk::new();
    let text = BUNDLE.replace("/bin/app}}}", "/bin/app}}, nodes: {zone: far}}");
    let path = desk.write("some.yaml", &text);
    let words = [
        "bundle",
        "sign",
        &path.display().to_string(),
        "--key",
        &desk.path("one"),
    ];
    let refused = says(&words, 1);
    assert!(refused.contains("\"zone\""), "{refused}");
}

#[test]
fn differences_are_told_line_by_line() {
    let desk = Desk::new();
    let bundle = desk.path("bundle.yaml");
    let diff = |new: &Path, code| {
        says(
            &["bundle", "diff", &bundle, &new.display().to_string()],
            code,
        )
    };
    let signed = says(&["bundle", "sign", &bundle, "--key", &desk.path("one")], 0);
    let same = desk.write("same.dsse.json", &signed);
    assert_eq!(diff(&same, 0), "");
    let text = BUNDLE
        .replace("/etc/key", "/etc/other")
        .replace("id: E1", "id: E2")
        .replace("credentials:", "defaults: {mode: monitor}\ncredentials:");
    let other = desk.write("other.yaml", &text);
    assert_eq!(
        diff(&other, 3),
        "~ settings\n~ credential key\n- entitlement E1\n+ entitlement E2\n"
    );
}
