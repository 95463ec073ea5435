//! Every record has a valid shape in each of them, by what their makers have published (`tests/data`), and examples
//! that can be read: `golden`, written anew with `UPDATE_GOLDEN=1`.

mod cef;
mod cloudevents;
mod ecs;
mod falco;
mod ocsf;

use std::fs;
use std::path::{Path, PathBuf};

use enforcer::shape::{Shape, convert};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Whether a line is what its shape wants.
fn check(shape: Shape, record: &Value, line: &str) -> Result<(), String> {
    if line.contains('\n') {
        return Err("it is more than one line".to_owned());
    }
    if shape == Shape::Cef {
        return cef::check(line);
    }
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    match shape {
        Shape::Native => (value == *record)
            .then_some(())
            .ok_or_else(|| "not the record".to_owned()),
        Shape::Ocsf => ocsf::check(&value),
        Shape::Ecs => ecs::check(&value),
        Shape::CloudEvents => cloudevents::check(&value, record),
        Shape::Falco => falco::check(&value),
        Shape::Cef => unreachable!("above"),
    }
}

const SHAPES: [Shape; 6] = [
    Shape::Native,
    Shape::Ocsf,
    Shape::Ecs,
    Shape::CloudEvents,
    Shape::Falco,
    Shape::Cef,
];

fn check_all(record: &Value) -> Result<(), String> {
    for shape in SHAPES {
        let line = shape.line(record);
        check(shape, record, &line)
            .map_err(|error| format!("{shape:?}: {error}\n{record}\n{line}"))?;
    }
    Ok(())
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes/golden")
}

fn records() -> Vec<(String, Value)> {
    let text = fs::read_to_string(golden().join("records.jsonl")).expect("records");
    let parse = |line: &str| -> (String, Value) {
        let record: Value = serde_json::from_str(line).expect(line);
        let of = |name: &str| record[name].as_str().map(str::to_owned);
        let name = [of("kind"), of("reason"), of("verdict"), of("gate")];
        (
            name.into_iter().flatten().collect::<Vec<_>>().join("-"),
            record,
        )
    };
    text.lines().map(parse).collect()
}

#[test]
fn the_examples_are_valid_in_every_shape() {
    let records = records();
    assert!(records.len() >= 10);
    for (name, record) in records {
        check_all(&record).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_examples_are_as_they_were() {
    let log = fs::read(golden().join("records.jsonl")).expect("records");
    for shape in &SHAPES[1..] {
        let mut lines = Vec::new();
        convert(log.as_slice(), *shape, &mut lines).expect("converted");
        // One version does not differ from the next in all its examples.
        let text = String::from_utf8(lines).expect("text");
        let mut text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let mut name = "events.cef";
        if *shape != Shape::Cef {
            name = match shape {
                Shape::Ocsf => "ocsf.json",
                Shape::Ecs => "ecs.json",
                Shape::CloudEvents => "cloudevents.json",
                _ => "falco.json",
            };
            let values: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            text = serde_json::to_string_pretty(&values).expect("JSON") + "\n";
        }
        let path = golden().join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).expect("written");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            text == expected,
            "{name} differs; look at what `UPDATE_GOLDEN=1 cargo test -p enforcer --test shapes` makes of it"
        );
    }
}

#[test]
fn a_line_that_is_no_record_is_named() {
    let log = b"{\"kind\":\"stopped\"}\n\n{\"kind\":\n";
    let mut lines = Vec::new();
    let error = convert(log.as_slice(), Shape::Ecs, &mut lines).expect_err("half a record");
    assert!(error.to_string().contains("line 3"), "{error}");
    assert_eq!(lines.iter().filter(|it| **it == b'\n').count(), 1);
}

/// Anything that JSON can say.
fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[|=\\\\\n\r\t :/a-z]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,6}", inner, 0..4)
                .prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// Paths to everything in a record.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut below = |name: String, value: &Value| {
        let path = format!("{at}/{name}");
        found.push(path.clone());
        paths(value, &path, found);
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| below(name.clone(), value)),
        Value::Array(list) => (0..).zip(list).for_each(|(index, value): (usize, _)| {
            below(index.to_string(), value);
        }),
        _ => {}
    }
}

/// One of the examples, with something in it replaced or the kind of another.
fn damaged() -> impl Strategy<Value = Value> {
    let records: Vec<Value> = records().into_iter().map(|(_, record)| record).collect();
    let kinds: Vec<Value> = records.iter().map(|it| it["kind"].clone()).collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), junk()), 0..6);
    (
        prop::sample::select(records),
        prop::option::of(prop::sample::select(kinds)),
        changes,
    )
        .prop_map(|(mut record, kind, changes)| {
            if let Some(kind) = kind {
                record["kind"] = kind;
            }
            for (index, value) in changes {
                let mut all = Vec::new();
                paths(&record, "", &mut all);
                if let Some(place) = all.get(index.index(all.len().max(1)))
                    && let Some(place) = record.pointer_mut(place)
                {
                    *place = value;
                }
            }
            record
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_a_record_has_its_shapes_are_valid(record in damaged()) {
        check_all(&record).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn whatever_is_no_record_has_valid_shapes_too(record in junk()) {
        check_all(&record).map_err(TestCaseError::fail)?;
    }
}

/// The checks themselves find something.
#[test]
fn what_is_not_valid_is_found() {
    let (_, record) = records().remove(0);
    let broken = |shape: Shape, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&shape.line(&record)).expect("JSON");
        change(&mut value);
        check(shape, &record, &value.to_string()).expect_err("it is broken")
    };
    let remove = |name: &'static str| {
        move |value: &mut Value| {
            value.as_object_mut().expect("object").remove(name);
        }
    };
    for name in ["metadata", "device", "severity_id", "file", "time"] {
        assert!(broken(Shape::Ocsf, &remove(name)).contains(name));
    }
    let error = broken(Shape::Ocsf, &|it| it["metadata"]["product"] = json!({}));
    assert!(error.contains("metadata.product"), "{error}");
    let error = broken(Shape::Ocsf, &|it| it["invented"] = json!(1));
    assert!(error.contains("invented"), "{error}");
    let error = broken(Shape::Ocsf, &|it| it["type_uid"] = json!(100_199));
    assert!(error.contains("type_uid"), "{error}");
    let error = broken(Shape::Ecs, &|it| it["event"]["category"] = json!(["crime"]));
    assert!(error.contains("crime"), "{error}");
    let error = broken(Shape::Ecs, &|it| it["process"]["pid"] = json!("one"));
    assert!(error.contains("process.pid"), "{error}");
    assert!(broken(Shape::CloudEvents, &remove("source")).contains("source"));
    assert!(broken(Shape::Falco, &remove("rule")).contains("rule"));
    let line = Shape::Cef.line(&record);
    check(Shape::Cef, &record, &line.replacen("CEF:0|", "CEF:0", 1)).expect_err("a bar less");
}
