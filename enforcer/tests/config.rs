//! `enforcer config view`, as people and programs call it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn enforcer(directory: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .args(words)
        .env_clear()
        .env("ENFORCER_CONFIG", directory.join("enforcer.yaml"))
        .env("ENFORCER_HOLDERS", "not a setting of the environment")
        .env("ENFORCER_TIER", "fanotify")
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn settings_with_their_origins() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path();
    let main = directory.join("enforcer.yaml");
    fs::write(&main, "tier: lsm\nholders: 4096\n").expect("written");
    let drop_ins = directory.join("enforcer.d");
    fs::create_dir(&drop_ins).expect("made");
    fs::write(drop_ins.join("labels.yaml"), "labels:\n  zone: eu-1\n").expect("written");

    let words = ["config", "view", "--show-origin", "-o", "json", "--node=n1"];
    let output = enforcer(directory, &words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let directory = directory.display();
    for (name, value, origin) in [
        (
            "tier",
            json!("fanotify"),
            "environment ENFORCER_TIER".to_owned(),
        ),
        (
            "holders",
            json!("4096"),
            format!("{directory}/enforcer.yaml:2"),
        ),
        (
            "labels",
            json!(["zone=eu-1"]),
            format!("{directory}/enforcer.d/labels.yaml:1"),
        ),
        ("node", json!("n1"), "flag --node".to_owned()),
        (
            "socket",
            json!("/run/enforcer/enforcer.sock"),
            "built-in".to_owned(),
        ),
        ("governance", json!([]), "built-in".to_owned()),
        ("eventLog", Value::Null, "built-in".to_owned()),
    ] {
        assert_eq!(
            all[name],
            json!({"value": value, "origin": origin}),
            "{name}"
        );
    }

    let output = enforcer(place.path(), &["config", "view", "--show-origin"]);
    let shown = text(&output.stdout);
    let line = shown
        .lines()
        .find(|line| line.starts_with("holders"))
        .expect("a line");
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        fields,
        ["holders", "4096", &format!("{directory}/enforcer.yaml:2")]
    );
}

#[test]
fn a_mistake_is_told_with_its_line_and_nothing_starts() {
    let place = tempfile::tempdir().expect("a directory");
    fs::write(place.path().join("enforcer.yaml"), "tier: lsm\nteir: lsm\n").expect("written");
    for words in [&["config", "view"][..], &["run"]] {
        let output = enforcer(place.path(), words);
        assert_eq!(output.status.code(), Some(3), "{words:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("enforcer.yaml:2:1: teir: unknown setting; did you mean `tier`?"),
            "{said}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn who_stops_reading_ends_it_quietly() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .args(["config", "view"])
        .stdout(writer)
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(141), "{}", output.status);
    assert_eq!(text(&output.stderr), "");
}
