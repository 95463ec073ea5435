use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::keys::SigningKey;

const LIMITS: Limits = Limits {
    bytes: u64::MAX,
    age: Duration::MAX,
    keep_for: None,
};

fn record(number: u64) -> Value {
    json!({"kind": "read", "number": number, "fill": "x".repeat(1000)})
}

fn fill(journal: &mut Journal, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let got = journal.append(&record(number)).expect("appended");
        assert_eq!(got, number);
        if number % 10 == 0 {
            journal.commit().expect("on disk");
        }
    }
    journal.commit().expect("on disk");
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let all = segment::all(directory).expect("listed");
    all.into_iter().map(|it| it.path).collect()
}

fn read(cursor: &mut Cursor, records: usize) -> (u64, usize) {
    let batch = cursor.read(records, usize::MAX).expect("read");
    for (number, line) in (batch.first..).zip(&batch.lines) {
        let line: Value = serde_json::from_slice(line).expect("JSON");
        assert_eq!(
            (&line["sequence"], &line["number"]),
            (&number.into(), &number.into())
        );
    }
    (batch.first, batch.lines.len())
}

fn faults(directory: &Path) -> Vec<String> {
    let key = SigningKey::load(&directory.join(KEY))
        .expect("a key")
        .public();
    let report = verify(directory, &key).expect("read");
    report.faults.into_iter().map(|it| it.what).collect()
}

#[test]
fn cursors_read_at_their_own_pace_from_file_to_file() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        bytes: 32 * 64 * 1024,
        ..LIMITS
    };
    let mut journal = Journal::new(directory.path(), limits);
    let reader = journal.reader();
    fill(&mut journal, 1..=500);
    assert!(files(directory.path()).len() > 5);
    let (mut first, mut second) = (reader.from(1), reader.from(450));
    assert_eq!(read(&mut first, 7), (1, 7));
    assert_eq!(read(&mut first, 10_000), (8, 493));
    assert_eq!(read(&mut second, 10_000), (450, 51));
    // What is not committed is not there.
    journal.append(&record(501)).expect("appended");
    assert_eq!(read(&mut first, 10_000), (501, 0));
    journal.commit().expect("on disk");
    assert_eq!((first.behind(), second.behind()), (1, 1));
    assert_eq!(read(&mut first, 10_000), (501, 1));
    assert_eq!(faults(directory.path()), [""; 0]);
}

#[test]
fn the_next_process_goes_on_after_half_a_line() {
    let directory = tempfile::tempdir().expect("directory");
    let mut journal = Journal::new(directory.path(), LIMITS);
    fill(&mut journal, 1..=3);
    let epoch = journal.head().epoch;
    let named = journal.reader().named("sink").expect("new");
    named.acknowledge(0).expect("noted");
    let mut named = journal.reader().named("sink").expect("known");
    read(&mut named, 2);
    named.acknowledge(2).expect("noted");
    drop(journal);
    let file = files(directory.path()).remove(0);
    let mut text = fs::read_to_string(&file).expect("read");
    text.push_str("{\"kind\":\"re");
    fs::write(&file, text).expect("written");

    let mut journal = Journal::new(directory.path(), LIMITS);
    fill(&mut journal, 4..=5);
    assert_eq!(journal.head().epoch, epoch);
    let mut named = journal.reader().named("sink").expect("known");
    assert_eq!(read(&mut named, 100), (3, 3));
    assert_eq!(faults(directory.path()), [""; 0]);
}

#[test]
fn another_epoch_begins_when_the_journal_is_lost() {
    let directory = tempfile::tempdir().expect("directory");
    let mut journal = Journal::new(directory.path(), LIMITS);
    fill(&mut journal, 1..=3);
    let before = journal.head().epoch;
    let mut cursor = journal.reader().from(1);
    read(&mut cursor, 100);
    // Taken away under it.
    for file in files(directory.path()) {
        fs::remove_file(file).expect("removed");
    }
    journal.look_after();
    fill(&mut journal, 1..=2);
    assert!(journal.head().epoch > before);
    assert_eq!(read(&mut cursor, 100), (1, 2));
    // The end is no record.
    drop(journal);
    let file = files(directory.path()).remove(0);
    let text = fs::read_to_string(&file).expect("read");
    fs::write(&file, text.replace("\"number\":2", "\"number\":7")).expect("written");
    let mut journal = Journal::new(directory.path(), LIMITS);
    fill(&mut journal, 1..=1);
    assert_eq!(files(directory.path()).len(), 2);
}

#[test]
fn the_oldest_go_and_that_is_told() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        bytes: 200_000,
        keep_for: Some("governance"),
        ..LIMITS
    };
    let mut journal = Journal::new(directory.path(), limits);
    let full = (1..1000).find(|number| {
        let got = journal.append(&record(*number));
        journal.commit().expect("on disk");
        got.is_err()
    });
    let full = full.expect("full at last");
    let mut late = journal.reader().from(1);
    assert_eq!(journal.excess(), None);
    let cursor = journal.reader().named("governance").expect("new");
    let mut moved = journal.reader().from(1);
    let batch = moved.read(1, 1).expect("read");
    assert_eq!(batch.epoch, journal.head().epoch);
    let mut cursor = cursor;
    read(&mut cursor, 100);
    cursor.acknowledge(100).expect("noted");
    let through = journal.excess().expect("may go now");
    journal.trim(through).expect("gone");
    assert!(through <= 100);
    // Nothing tells of it yet.
    assert_eq!(faults(directory.path()).len(), 1);
    let told = json!({"kind": TRIMMED, "through": through});
    assert_eq!(journal.append(&told).expect("room again"), full);
    journal.commit().expect("on disk");
    assert_eq!(faults(directory.path()), [""; 0]);
    let batch = late.read(1, usize::MAX).expect("read");
    assert_eq!((batch.first, batch.missed), (through + 1, through));
}

#[test]
fn whatever_is_changed_is_found() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        bytes: 32 * 4000,
        ..LIMITS
    };
    let mut journal = Journal::new(directory.path(), limits);
    fill(&mut journal, 1..=20);
    journal
        .checkpoint(&json!({"kind": CHECKPOINT}))
        .expect("signed");
    journal.commit().expect("on disk");
    fill(&mut journal, 22..=30);
    journal.append(&record(31)).expect("appended");
    journal
        .checkpoint(&json!({"kind": CHECKPOINT}))
        .expect("signed");
    journal.commit().expect("on disk");
    assert_eq!(faults(directory.path()), [""; 0]);
    let all = files(directory.path());
    assert!(all.len() > 2, "{all:?}");

    let changed = |file: &Path, change: &dyn Fn(Vec<&str>) -> Vec<String>| {
        let before = fs::read_to_string(file).expect("read");
        let lines = change(before.lines().collect());
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(file, text).expect("written");
        let found = faults(directory.path());
        fs::write(file, before).expect("restored");
        found.join("; ")
    };
    let own = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    // An edit, with and without the hash.
    let found = changed(&all[0], &|lines| {
        let mut lines = own(lines);
        lines[4] = lines[4].replace("\"number\":5", "\"number\":6");
        lines
    });
    assert!(found.contains("record 5 was edited"), "{found}");
    let forged = |lines: Vec<&str>, from: usize| {
        let mut lines = own(lines);
        let mut previous = None;
        for (index, line) in lines.iter_mut().enumerate().skip(from) {
            let mut fields: Value = serde_json::from_str(line).expect("JSON");
            let fields = fields.as_object_mut().expect("an object");
            fields.remove("hash");
            if index == from {
                fields.insert("number".to_owned(), 1_000_000.into());
            }
            if let Some(previous) = previous.take() {
                fields.insert("previous".to_owned(), Value::String(previous));
            }
            let bytes = serde_json_canonicalizer::to_vec(fields).expect("canonical");
            let hash = enforcer_bundle::Digest::of_bytes(&bytes).0;
            fields.insert("hash".to_owned(), hash.clone().into());
            *line = Value::Object(fields.clone()).to_string();
            previous = Some(hash);
        }
        lines
    };
    let found = changed(&all[0], &|lines| forged(lines, 4));
    assert!(found.contains("does not follow the one before"), "{found}");
    // The whole rest made up, checkpoints and all but the key.
    let last = all.last().expect("a file");
    let found = changed(last, &|lines| forged(lines, 0));
    assert!(found.contains("is not signed with the key"), "{found}");
    // Cuts: within, at the end, at the beginning, a whole file.
    let found = changed(&all[0], &|mut lines| {
        lines.drain(2..4);
        own(lines)
    });
    assert!(found.contains("records 3 to 4 were cut out"), "{found}");
    let found = changed(last, &|mut lines| {
        lines.pop();
        own(lines)
    });
    assert!(found.contains("the end was cut"), "{found}");
    let found = changed(&all[0], &|mut lines| {
        lines.remove(0);
        own(lines)
    });
    assert!(found.contains("its name says 1"), "{found}");
    for (file, expected) in [
        (&all[0], "no record tells"),
        (&all[1], "were cut out"),
        (last, "the end was cut"),
    ] {
        let aside = file.with_extension("aside");
        fs::rename(file, &aside).expect("moved");
        let found = faults(directory.path()).join("; ");
        fs::rename(&aside, file).expect("moved back");
        assert!(found.contains(expected), "{found}");
    }
    // Another order.
    let found = changed(&all[0], &|mut lines| {
        lines.swap(3, 5);
        own(lines)
    });
    assert!(found.contains("the order is another"), "{found}");
    assert_eq!(faults(directory.path()), [""; 0]);
}
