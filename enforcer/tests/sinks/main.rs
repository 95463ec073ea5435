//! Sinks at work: a real log, real receivers, and an hour of simulated time.

mod nats;
mod otlp;
mod patience;
mod programs;
mod syslog;
mod tls;
mod webhook;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use enforcer::shape::Key;
use enforcer::sink::{Sink, Sinks};
use enforcer_governance::journal::{Journal, Limits, Reader};
use serde_json::{Value, json};

/// A log of its own.
struct Log {
    _directory: tempfile::TempDir,
    journal: Journal,
    next: u64,
}

impl Log {
    fn new() -> Self {
        Self::with_room(u64::MAX)
    }

    fn with_room(bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let limits = Limits {
            bytes,
            age: Duration::MAX,
            keep_for: None,
        };
        let journal = Journal::new(directory.path(), limits);
        Self {
            _directory: directory,
            journal,
            next: 1,
        }
    }

    /// So many more records, every tenth of which is allowed.
    fn write(&mut self, count: u64) {
        for number in self.next..self.next + count {
            let verdict = if number % 10 == 0 { "allow" } else { "deny" };
            let record = json!({
                "time": "2026-11-26T09:14:03.120417233Z", "node": "n1", "boot": "b", "kind": "read", "verdict": verdict,
                "reason": "wrong-workload", "action": {"requested": "block", "taken": "block"},
                "mode": {"requested": "enforce", "effective": "enforce"}, "credential": "key", "file": "/etc/key",
                "process": {"pid": number, "exe": "/usr/bin/cat", "args": ["cat", "/etc/key"]},
            });
            self.journal.append(&record).expect("appended");
        }
        self.journal.commit().expect("on disk");
        self.next += count;
    }

    fn reader(&self) -> Reader {
        self.journal.reader()
    }

    /// What a receiver should have in the end: the keys of all records.
    fn keys(&self) -> Vec<String> {
        let epoch = self.journal.head().epoch;
        let key = |sequence| Key {
            node: "n1".to_owned(),
            epoch: epoch.clone(),
            sequence,
        };
        (1..self.next).map(|it| key(it).to_string()).collect()
    }

    /// Sinks that run.
    fn sinks(&self, asked: &[&str]) -> Sinks {
        let asked: Vec<Sink> = asked.iter().map(|it| it.parse().expect(it)).collect();
        Sinks::start(&asked, &self.reader()).expect("started")
    }
}

/// The key of a record in its native shape.
fn key(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().expect(name);
    format!("{}/{}/{}", text("node"), text("epoch"), record["sequence"])
}

/// Waits for something that must come.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{what}: not within a minute"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The records of a file of lines; the last one may be half written.
fn records_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole
        .lines()
        .map(|line| serde_json::from_str(line).expect(line));
    lines.collect()
}

#[test]
fn a_file_has_every_record_also_when_the_disk_was_full_and_it_was_moved_away() {
    let mut log = Log::new();
    log.write(250);
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("out.jsonl");
    std::os::unix::fs::symlink("/dev/full", &path).expect("a full disk");
    let url = format!("file={}", url::Url::from_file_path(&path).expect("a path"));
    let full = log.sinks(&[url.as_str()]);
    until("the disk is full", || full.health()[0].failures > 1);
    assert!(
        full.health()[0]
            .error
            .as_ref()
            .is_some_and(|it| it.contains("No space left"))
    );
    // Room again.
    fs::remove_file(&path).expect("removed");
    until("written", || full.health()[0].delivered == 250);
    let moved = directory.path().join("out.jsonl.1");
    fs::rename(&path, &moved).expect("moved");
    log.write(50);
    until("written", || full.health()[0].delivered == 300);
    full.stop(Duration::from_secs(5));
    let keys: Vec<String> = [moved, path]
        .iter()
        .flat_map(|it| records_in(it))
        .map(|it| key(&it))
        .collect();
    assert_eq!(keys, log.keys());
}

#[test]
fn a_sink_that_stands_still_holds_up_no_other_and_only_denials_are_wanted() {
    let mut log = Log::new();
    log.write(100);
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("out.jsonl");
    let file = format!("file=file://{}#only=denials&batch=7", path.display());
    // Accepts connections, and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stuck = format!("stuck=http://{}/", deaf.local_addr().expect("address"));
    let sinks = log.sinks(&[stuck.as_str(), file.as_str()]);
    until("written", || sinks.health()[1].delivered == 90);
    assert_eq!(sinks.health()[0].delivered, 0);
    until("none is left", || sinks.health()[1].behind == 0);
    let records = records_in(&path);
    assert!(records.iter().all(|it| it["verdict"] == "deny"));
    assert_eq!(records.len(), 90);
}
