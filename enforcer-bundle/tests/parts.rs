//! Bundles taken apart, changed, and put together again.

use std::fs;

use enforcer_bundle::{Bundle, Kind, OnStale, Parts, load, load_parts};
use proptest::prelude::*;
use serde_json::{Value, json};

const SAMPLE: &str = include_str!("bundles/good/sample.yaml");

fn parts(text: &str) -> (Bundle, Parts) {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("bundle.yaml");
    fs::write(&file, text).expect("written");
    load_parts(&file).expect("good")
}

fn metadata() -> Value {
    json!({"issuer": "iga.example.com", "version": 1})
}

/// What a bundle means, whoever issued it and however it was written.
fn meaning(mut bundle: Bundle) -> Bundle {
    bundle.metadata = parts(ONE).0.metadata;
    bundle.digest = String::new();
    bundle
}

const ONE: &str = "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {issuer: i, version: 1}\n";

#[test]
fn parts_make_the_same_bundle() {
    let (bundle, parts) = parts(SAMPLE);
    let again = parts.bundle("parts", &metadata()).expect("good");
    let mut expected = meaning(bundle);
    expected.credentials.sort_by(|a, b| a.id.cmp(&b.id));
    expected.workloads.sort_by(|a, b| a.id.cmp(&b.id));
    expected.entitlements.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(meaning(again), expected);
}

#[test]
fn lists_of_several_documents_come_together() {
    let directory = tempfile::tempdir().expect("directory");
    let write = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).expect("written");
    };
    write(
        "1.yaml",
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {issuer: i, version: 1}\nbaseline: {destinations: [{cidr: 10.0.0.1/32}]}\n",
    );
    write(
        "2.yaml",
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nbaseline: {destinations: [{cidr: 10.0.0.2/32}]}\ntrusted: [{match: {executable: {path: /bin/a}}}]\n",
    );
    let (bundle, parts) = load_parts(directory.path()).expect("good");
    let again = parts.bundle("parts", &metadata()).expect("good");
    assert_eq!(bundle.baseline.len(), 2);
    assert_eq!(meaning(again), meaning(bundle));
}

const FLEET: &str = "apiVersion: enforcer.dev/v1
kind: Bundle
metadata: {issuer: i, version: 1}
defaults: {onStale: monitor}
credentials:
  - {id: everywhere, sources: [{file: /etc/a}]}
  - {id: far, sources: [{file: /etc/b}], nodes: {zone: far}}
workloads:
  - {id: app, match: {executable: {path: /bin/app}}}
  - {id: backup, match: {executable: {path: /bin/backup}}, nodes: {role: db, zone: near}}
entitlements:
  - {id: E1, workload: app, credential: everywhere, destinations: none, onStale: deny}
  - {id: E2, workload: backup, credential: everywhere, destinations: none}
  - {id: E3, workload: app, credential: far, destinations: none}
  - {id: E4, workload: app, credential: everywhere, destinations: none, nodes: {zone: far}}
  - {id: E5, workload: app, credential: everywhere, destinations: none, activation: break-glass}
";

#[test]
fn a_node_gets_what_concerns_it() {
    let (bundle, parts) = parts(FLEET);
    assert_eq!(bundle.defaults.on_stale, OnStale::Monitor);
    assert_eq!(bundle.entitlements[0].on_stale, Some(OnStale::Deny));
    for (labels, credentials, workloads, entitlements) in [
        (vec![], "everywhere", "app", "E1"),
        (vec![("zone", "far")], "everywhere far", "app", "E1 E3 E4"),
        (vec![("zone", "near")], "everywhere", "app", "E1"),
        (
            vec![("zone", "near"), ("role", "db"), ("more", "x")],
            "everywhere",
            "app backup",
            "E1 E2",
        ),
    ] {
        let labels = labels
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        let mut kept = bundle.clone();
        kept.keep_for(&labels.collect());
        let mut some = parts.clone();
        some.keep(&kept);
        let ids = |kind| {
            let ids: Vec<&str> = some.of_kind(kind).map(|(id, _)| id.as_str()).collect();
            ids.join(" ")
        };
        let got = Kind::ALL.map(ids);
        assert_eq!(got, [credentials, workloads, entitlements]);
        let again = some.bundle("parts", &metadata()).expect("whole");
        assert_eq!(meaning(again), meaning(kept));
    }
}

/// Parts of few ids and few values, so that two often have something in common.
fn some_parts() -> impl Strategy<Value = Parts> {
    let items = prop::collection::btree_map("[ab][cd]?", 0..3_u8, 0..4);
    (0..3_u8, prop::array::uniform3(items)).prop_map(|(setting, items)| {
        let mut parts = Parts::default();
        if setting > 0 {
            let defaults = json!({ "mode": setting });
            parts.settings.insert("defaults".to_owned(), defaults);
        }
        for (kind, items) in Kind::ALL.into_iter().zip(items) {
            let items = items.into_iter().map(|(id, value)| {
                let item = json!({"id": id, "value": value});
                (id, item.into())
            });
            let items: std::collections::BTreeMap<_, _> = items.collect();
            if !items.is_empty() {
                parts.items.insert(kind, items);
            }
        }
        parts
    })
}

proptest! {
    /// A change leads where it should, is nothing exactly if nothing differs, and the digest tells.
    #[test]
    fn invariant_changes_lead_there(old in some_parts(), new in some_parts()) {
        let change = old.change_to(&new);
        prop_assert_eq!(&old.changed(&change), &new);
        prop_assert_eq!(change.is_empty(), old == new);
        prop_assert_eq!(old.digest() == new.digest(), old == new);
        let text = serde_json::to_string(&change).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<enforcer_bundle::Change>(&text).expect("read"), change);
    }
}

#[test]
fn a_bundle_without_parts_can_be_read() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("bundle.yaml");
    fs::write(&file, ONE).expect("written");
    let bundle = load(&file).expect("good");
    assert_eq!(load_parts(&file).expect("good"), (bundle, Parts::default()));
}
