//! What a node keeps on disk: the next daemon holds the same, and nothing older.

use super::held::{in_force, labels, now, refused, take};
use super::office::Office;
use enforcer_governance::contract;
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::Held;
use enforcer_governance::state::State;
use enforcer_governance::statement::{Statement as _, Target};
use enforcer_governance::trust::TrustRoot;
use proptest::prelude::*;

/// A directory with a trust root, and what is kept.
struct Kept {
    directory: tempfile::TempDir,
}

impl Kept {
    fn new(office: &Office) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let root = serde_json::to_vec(&office.root()).expect("JSON");
        std::fs::write(directory.path().join("trust.json"), root).expect("written");
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self) -> (State, Held, Option<String>) {
        State::open(&self.path("state"), &self.path("trust.json"), labels()).expect("opened")
    }
}

/// Of who has only a trust root.
fn nothing() -> contract::Held {
    contract::Held {
        trust_root_version: 1,
        ..contract::Held::default()
    }
}

#[test]
fn the_next_daemon_holds_the_same() {
    let office = Office::new(1);
    let kept = Kept::new(&office);
    let (mut state, mut held, unused) = kept.open();
    assert_eq!((held.summary(), unused), (nothing(), None));
    for envelope in [
        office.snapshot(1, &["E1", "E2"]),
        office.delta(2, &["E1", "E2"], &["E1", "E3"]),
        office.revocation(1, &[Target::Entitlement("E3".to_owned())]),
        office.freshness(2, 1, 0, 300),
    ] {
        held = take(&held, &envelope);
        state.keep(&held).expect("kept");
        let (_, again, unused) = kept.open();
        assert_eq!(unused, None);
        assert_eq!(in_force(&again), in_force(&held));
        assert_eq!(again.numbers(), held.numbers());
        assert_eq!(again.fresh_until(), held.fresh_until());
    }
    // With another trust root all begins anew.
    let root = serde_json::to_vec(&Office::new(2).root()).expect("JSON");
    std::fs::write(kept.path("trust.json"), root).expect("written");
    let (_, held, unused) = kept.open();
    assert_eq!((held.summary(), unused), (nothing(), None));
}

#[test]
fn what_was_taken_before_the_keys_changed_is_held_again() {
    let [old, new] = [1, 2].map(Office::new);
    let kept = Kept::new(&old);
    let (mut state, held, _) = kept.open();
    let root = TrustRoot {
        version: 2,
        ..new.root()
    };
    let mut held = held;
    for envelope in [
        old.snapshot(1, &["E1", "E2"]),
        old.revocation(1, &[Target::Entitlement("E2".to_owned())]),
        root.sign(&[old.keys.clone(), new.keys.clone()].concat()),
        new.delta(2, &["E1", "E2"], &["E2", "E3"]),
    ] {
        held = take(&held, &envelope);
        state.keep(&held).expect("kept");
        let (_, again, unused) = kept.open();
        assert_eq!(unused, None);
        assert_eq!(in_force(&again), in_force(&held));
    }
    // The old keys sign nothing more.
    let (_, held, _) = kept.open();
    refused(&held, &old.snapshot(3, &["E1"]), "0 of the keys");
    refused(&held, &old.revocation(2, &[]), "0 of the keys");
}

#[test]
fn an_older_copy_is_not_used() {
    let office = Office::new(1);
    let kept = Kept::new(&office);
    let (mut state, held, _) = kept.open();
    let held = take(&held, &office.snapshot(1, &["E1"]));
    state.keep(&held).expect("kept");
    let old = std::fs::read(kept.path("state/bundle.json")).expect("there");
    let held = take(&held, &office.snapshot(2, &["E2"]));
    state.keep(&held).expect("kept");
    std::fs::write(kept.path("state/bundle.json"), old).expect("written");
    let (_, held, unused) = kept.open();
    assert!(held.bundle().is_none());
    let unused = unused.expect("told");
    assert!(
        unused.contains("version 1") && unused.contains("version 2"),
        "{unused}"
    );
    refused(
        &held,
        &office.snapshot(1, &["E1"]),
        "version 2 was in force",
    );
    take(&held, &office.snapshot(2, &["E2"]));
}

#[test]
fn an_older_trust_root_does_not_come_back() {
    let [old, new, stranger] = [1, 2, 3].map(Office::new);
    let kept = Kept::new(&old);
    let (mut state, held, _) = kept.open();
    let second = |office: &Office| {
        let root = TrustRoot {
            version: 2,
            ..office.root()
        };
        root.sign(&[old.keys.clone(), office.keys.clone()].concat())
    };
    let held = take(&held, &old.snapshot(1, &["E1"]));
    state.keep(&held).expect("kept");
    let seen = take(&held, &second(&new)).numbers();

    // The files of before, and who has the key that was good then.
    let (_, mut held, unused) = kept.open();
    assert_eq!(unused, None);
    held.has_seen(seen);
    assert!(held.bundle().is_none());
    for envelope in [
        old.snapshot(2, &["E1", "E2"]),
        old.revocation(1, &[]),
        old.freshness(1, 0, 0, 300),
    ] {
        refused(
            &held,
            &envelope,
            "not the trust root 2 that was in force here",
        );
    }
    // Such a key makes no other root of that version, neither on the wire nor in the files.
    refused(&held, &second(&stranger), "another content");
    let (mut state, forged, _) = kept.open();
    state
        .keep(&take(&forged, &second(&stranger)))
        .expect("kept");
    let (_, mut forged, unused) = kept.open();
    assert_eq!(unused, None);
    forged.has_seen(seen);
    assert!(forged.bundle().is_none());
    let bundle = stranger.snapshot(2, &["E1", "E2"]);
    refused(
        &forged,
        &bundle,
        "not the trust root 2 that was in force here",
    );
    // With the root that is missing it is all there again.
    let held = take(&held, &second(&new));
    assert_eq!(in_force(&held), [("E1".to_owned(), false)]);
    take(&held, &new.snapshot(2, &["E1", "E2"]));
}

#[test]
fn damaged_files_are_told_and_refuse_what_is_older() {
    let office = Office::new(1);
    for damage in [
        "",
        "{",
        "[{\"payloadType\":\"x\",\"payload\":\"\",\"signatures\":[]}]",
    ] {
        let kept = Kept::new(&office);
        let (mut state, held, _) = kept.open();
        state
            .keep(&take(&held, &office.snapshot(3, &["E1"])))
            .expect("kept");
        std::fs::write(kept.path("state/bundle.json"), damage).expect("written");
        let (_, held, unused) = kept.open();
        assert!(unused.is_some() && held.bundle().is_none(), "{damage:?}");
        refused(
            &held,
            &office.snapshot(2, &["E1"]),
            "version 3 was in force",
        );
    }
}

/// What an office may send.
#[derive(Clone, Debug)]
enum Step {
    Snapshot(Vec<u8>),
    Delta(Vec<u8>),
    Revoke(u8),
    Include,
    /// Something that was sent before.
    Replay(prop::sample::Index),
    Keep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ids = || prop::collection::btree_set(1..6_u8, 0..5).prop_map(|it| it.into_iter().collect());
    let step = prop_oneof![
        ids().prop_map(Step::Snapshot),
        ids().prop_map(Step::Delta),
        (1..6_u8).prop_map(Step::Revoke),
        Just(Step::Include),
        any::<prop::sample::Index>().prop_map(Step::Replay),
        Just(Step::Keep),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, and comes again: in force is the last version, without what was taken back since, and a restart
    /// changes nothing.
    #[test]
    fn invariant_the_last_word_counts(steps in steps()) {
        let office = Office::new(1);
        let kept = Kept::new(&office);
        let (mut state, mut held, _) = kept.open();
        let mut ids: Vec<u8> = Vec::new();
        let (mut version, mut sequence, mut included) = (0, 0, 0);
        let mut revoked: Vec<(u64, u8)> = Vec::new();
        let mut sent: Vec<Envelope> = Vec::new();
        for step in steps {
            let names = |ids: &[u8]| ids.iter().map(|id| format!("E{id}")).collect::<Vec<_>>();
            let envelope = match &step {
                Step::Snapshot(new) => {
                    version += 1;
                    ids.clone_from(new);
                    Some(office.including(version, included, &[], &names(new)))
                }
                Step::Delta(new) if version > 0 => {
                    version += 1;
                    let delta = office.delta_including(version, included, &names(&ids), &names(new));
                    ids.clone_from(new);
                    Some(delta)
                }
                Step::Include => {
                    version += 1;
                    included = sequence;
                    revoked.clear();
                    Some(office.including(version, included, &[], &names(&ids)))
                }
                Step::Revoke(id) => {
                    sequence += 1;
                    revoked.push((sequence, *id));
                    Some(office.revocation(sequence, &[Target::Entitlement(format!("E{id}"))]))
                }
                Step::Replay(index) if !sent.is_empty() => {
                    let old = index.get(&sent).clone();
                    let before = held.summary();
                    if let Ok((after, _)) = held.take(&old, now()) {
                        prop_assert_eq!(after.summary(), before);
                    }
                    None
                }
                Step::Keep => {
                    state.keep(&held).expect("kept");
                    let (_, again, unused) = kept.open();
                    prop_assert_eq!(unused, None);
                    held = again;
                    None
                }
                Step::Delta(_) | Step::Replay(_) => None,
            };
            if let Some(envelope) = envelope {
                held = match held.take(&envelope, now()) {
                    Ok((held, _)) => held,
                    Err(refusal) => return Err(TestCaseError::fail(refusal.to_string())),
                };
                sent.push(envelope);
            }
            if version > 0 {
                let expected: Vec<(String, bool)> = (ids.iter())
                    .map(|id| (format!("E{id}"), revoked.iter().any(|(_, it)| it == id)))
                    .collect();
                prop_assert_eq!(in_force(&held), expected);
            }
        }
    }
}
