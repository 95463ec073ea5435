//! What a node takes from governance, and everything that it refuses: nothing here has a wire.

use std::sync::Arc;

use super::office::{Office, parts};
use enforcer_bundle::{Bundle, Change, Kind, Labels};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::{Changed, Held, MAX_DELTAS, MAX_PAYLOAD, Numbers};
use enforcer_governance::statement::{Delta, Snapshot, Statement as _, Target};
use enforcer_governance::trust::{Signers, TrustRoot};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

pub fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().expect("a moment")
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

pub fn labels() -> Labels {
    Labels::from([("zone".to_owned(), "near".to_owned())])
}

/// A node that trusts the office, and has its first bundle.
fn node(office: &Office) -> Held {
    let held = Held::new(office.root(), labels()).expect("sound");
    take(&held, &office.snapshot(1, &["E1", "E2"]))
}

pub fn take(held: &Held, envelope: &Envelope) -> Held {
    match held.take(envelope, now()) {
        Ok((held, _)) => held,
        Err(refusal) => panic!("{refusal}"),
    }
}

/// What is refused, in words.
#[track_caller]
pub fn refused(held: &Held, envelope: &Envelope, words: &str) {
    match held.take(envelope, now()) {
        Ok((_, changed)) => panic!("it was taken: {changed:?}"),
        Err(refusal) => {
            let text = refusal.to_string();
            assert!(text.contains(words), "{text:?} does not say {words:?}");
        }
    }
}

/// The entitlements in force: id, and whether revoked.
pub fn in_force(held: &Held) -> Vec<(String, bool)> {
    let bundle: Option<Arc<Bundle>> = held.bundle();
    let all = bundle.expect("a bundle").entitlements.clone();
    all.into_iter().map(|it| (it.id, it.revoked)).collect()
}

fn good(ids: &[&str]) -> Vec<(String, bool)> {
    ids.iter().map(|id| ((*id).to_owned(), false)).collect()
}

/// The payload of a snapshot, changed before it is signed.
fn tampered(office: &Office, change: impl Fn(&mut Value)) -> Envelope {
    let envelope = office.snapshot(2, &["E1", "E3"]);
    let mut payload: Value = serde_json::from_slice(&envelope.payload).expect("JSON");
    change(&mut payload);
    Envelope::sign(
        Snapshot::TYPE,
        payload.to_string().into_bytes(),
        &office.keys,
    )
}

#[test]
fn a_snapshot_and_its_delta_are_taken() {
    let office = Office::new(1);
    let held = node(&office);
    assert_eq!(in_force(&held), good(&["E1", "E2"]));
    let delta = office.delta(2, &["E1", "E2"], &["E1", "E3"]);
    let (held, changed) = held.take(&delta, now()).expect("taken");
    assert_eq!(changed, Changed::Bundle);
    assert_eq!(in_force(&held), good(&["E1", "E3"]));
    assert_eq!(held.numbers().version, 2);
    // Once more is nothing.
    let (_, changed) = held.take(&delta, now()).expect("taken");
    assert_eq!(changed, Changed::Nothing);
}

#[test]
fn forged_and_altered_ones_are_refused() {
    let (office, stranger) = (Office::new(1), Office::new(9));
    let held = node(&office);
    refused(
        &held,
        &stranger.snapshot(2, &["E3"]),
        "0 of the keys for `bundle`",
    );
    let mut altered = office.snapshot(2, &["E3"]);
    altered.payload = String::from_utf8(altered.payload.to_vec())
        .expect("JSON")
        .replace("E3", "E4")
        .into();
    refused(&held, &altered, "0 of the keys");
    let mut cut = office.snapshot(2, &["E3"]);
    cut.payload.truncate(100);
    refused(&held, &cut, "0 of the keys");
    let mut retyped = office.revocation(1, &[]);
    retyped.payload_type = Snapshot::TYPE.to_owned();
    refused(&held, &retyped, "0 of the keys");
    let mut unsigned = office.snapshot(2, &["E3"]);
    unsigned.signatures.clear();
    refused(&held, &unsigned, "0 of the keys");
    let text = Envelope::sign("text/plain", b"hello".to_vec(), &office.keys);
    refused(&held, &text, "\"text/plain\"");
}

#[test]
fn each_role_has_its_own_keys() {
    let [bundles, others] = [Office::new(1), Office::new(2)];
    let mut root = bundles.root();
    root.revocation = others.root().revocation;
    let held = Held::new(root, labels()).expect("sound");
    let held = take(&held, &bundles.snapshot(1, &["E1"]));
    refused(&held, &bundles.revocation(1, &[]), "for `revocation`");
    refused(&held, &others.snapshot(2, &["E1"]), "for `bundle`");
    take(&held, &others.revocation(1, &[]));
}

#[test]
fn too_few_signatures_are_refused() {
    let office = Office::new(1).and(2).and(3);
    let mut root = office.root();
    root.bundle.threshold = 2;
    let held = Held::new(root, labels()).expect("sound");
    let one = Office::new(2).snapshot(1, &["E1"]);
    refused(
        &held,
        &one,
        "1 of the keys for `bundle` have signed, expected 2",
    );
    let twice = Office::new(2).and(2).snapshot(1, &["E1"]);
    refused(&held, &twice, "1 of the keys");
    let with_stranger = Office::new(2).and(9).snapshot(1, &["E1"]);
    refused(&held, &with_stranger, "1 of the keys");
    take(&held, &Office::new(3).and(1).snapshot(1, &["E1"]));
}

#[test]
fn older_ones_do_not_come_back() {
    let office = Office::new(1);
    let held = node(&office);
    let held = take(&held, &office.snapshot(5, &["E1"]));
    refused(
        &held,
        &office.snapshot(4, &["E1", "E2"]),
        "version 4, and version 5 was in force",
    );
    refused(&held, &office.snapshot(5, &["E2"]), "another content");
    let mut forgotten = Held::new(office.root(), labels()).expect("sound");
    forgotten.has_seen(Numbers {
        version: 5,
        ..Numbers::default()
    });
    refused(
        &forgotten,
        &office.snapshot(4, &["E1"]),
        "version 5 was in force",
    );
    take(&forgotten, &office.snapshot(5, &["E1"]));
}

#[test]
fn others_bundles_are_refused() {
    let office = Office::new(1);
    let held = node(&office);
    let far = tampered(&office, |it| {
        it["head"]["audience"] = json!({"zone": "far"})
    });
    refused(&held, &far, "{\"zone\":\"far\"}");
    let without = tampered(&office, |it| it["head"]["audience"] = json!({"zone": null}));
    refused(&held, &without, "audience");
    let more = tampered(&office, |it| it["head"]["audience"] = json!({"role": "db"}));
    refused(&held, &more, "audience");
    let near = tampered(&office, |it| {
        it["head"]["audience"] = json!({"zone": "near", "role": null});
    });
    take(&held, &near);
    let foreign = tampered(&office, |it| it["head"]["issuer"] = json!("elsewhere"));
    refused(&held, &foreign, "issued by \"elsewhere\"");
}

#[test]
fn expired_ones_are_refused_and_stay() {
    let office = Office::new(1);
    let held = node(&office);
    let ending = |at: Timestamp| tampered(&office, |it| it["head"]["expiresAt"] = json!(at));
    refused(&held, &ending(later(0)), "it expired at");
    let held = take(&held, &ending(later(1)));
    // What is in force ends by itself, in the kernel.
    assert!(held.bundle().is_some());

    let mut root = office.root();
    root.expires_at = Some(later(0));
    let held = Held::new(root, labels()).expect("sound");
    refused(
        &held,
        &office.snapshot(1, &["E1"]),
        "the trust root expired",
    );
}

#[test]
fn what_a_relay_leaves_out_shows() {
    let office = Office::new(1);
    let held = node(&office);
    // Nobody can leave anything out of what is signed; this is a server that does, or adds.
    let listed = tampered(&office, |it| {
        it["entitlements"]["E9"] = json!("0".repeat(64));
    });
    refused(&held, &listed, "\"E9\" is listed and not there");
    let unlisted = tampered(&office, |it| {
        it["entitlements"]
            .as_object_mut()
            .expect("a list")
            .remove("E3");
    });
    refused(&held, &unlisted, "\"E3\" is listed and not there");
    let another = tampered(&office, |it| {
        it["parts"]["items"]["credentials"]["key"]["owner"] = json!("x");
    });
    refused(&held, &another, "have the digest");
    let misfiled = tampered(&office, |it| {
        it["parts"]["items"]["workloads"]["app"]["id"] = json!("other");
    });
    refused(&held, &misfiled, "\"app\" has another id");
}

#[test]
fn unknown_fields_and_fields_twice_are_refused() {
    let office = Office::new(1);
    let held = node(&office);
    for path in ["/head", "", "/parts"] {
        let more = tampered(&office, |it| {
            it.pointer_mut(path).expect("there")["more"] = json!(1);
        });
        refused(&held, &more, "unknown field `more`");
    }
    let in_bundle = office.sign_parts(2, {
        let mut parts = parts(&["E1"]);
        parts.settings.insert("more".to_owned(), json!(1));
        parts
    });
    refused(&held, &in_bundle, "unknown field \"more\"");
    let twice = office.snapshot(2, &["E1"]);
    let text = String::from_utf8(twice.payload.to_vec()).expect("JSON");
    let text = text.replacen("\"head\":", "\"head\":null,\"head\":", 1);
    let twice = Envelope::sign(Snapshot::TYPE, text.into_bytes(), &office.keys);
    refused(&held, &twice, "cannot be read");
}

#[test]
fn bundles_with_mistakes_are_refused() {
    let office = Office::new(1);
    let held = node(&office);
    let mut dangling = parts(&["E1"]);
    dangling.items.remove(&Kind::Workloads);
    refused(
        &held,
        &office.sign_parts(2, dangling),
        "entitlements[0].workload",
    );
}

#[test]
fn a_delta_needs_what_it_starts_from() {
    let office = Office::new(1);
    let held = node(&office);
    let other = office.delta(3, &["E1"], &["E1", "E3"]);
    refused(&held, &other, "a snapshot is needed");
    let fresh = Held::new(office.root(), labels()).expect("sound");
    refused(&fresh, &other, "what is in force is nothing");
    let wrong = Delta {
        change: Change::default(),
        ..office.unsigned_delta(3, &["E1", "E2"], &["E1", "E3"])
    };
    refused(&held, &wrong.sign(&office.keys), "have the digest");
}

#[test]
fn deltas_are_not_stacked_for_ever() {
    let office = Office::new(1);
    let mut held = node(&office);
    let sets: [&[&str]; 2] = [&["E1", "E2"], &["E1"]];
    let mut version = 1;
    for _ in 0..MAX_DELTAS {
        version += 1;
        let [from, to] = [version % 2, (version + 1) % 2].map(|it| sets[it as usize]);
        held = take(&held, &office.delta(version, from, to));
    }
    let more = office.delta(version + 1, &["E1", "E2"], &["E1"]);
    refused(&held, &more, "a snapshot is needed");
    assert!(held.take(&more, now()).is_err_and(|it| it.wants_snapshot()));
    let held = take(&held, &office.snapshot(version + 1, &["E1"]));
    take(&held, &office.delta(version + 2, &["E1"], &["E1", "E2"]));
}

#[test]
fn a_huge_payload_is_not_looked_at() {
    let office = Office::new(1);
    let huge = Envelope {
        payload: vec![b' '; MAX_PAYLOAD + 1].into(),
        ..office.snapshot(2, &["E1"])
    };
    refused(&node(&office), &huge, "expected at most");
}

#[test]
fn revocations_beat_the_bundle_until_one_includes_them() {
    let office = Office::new(1);
    let held = node(&office);
    let entitlement = |id: &str| Target::Entitlement(id.to_owned());
    let held = take(&held, &office.revocation(1, &[entitlement("E1")]));
    let revoked = |one, two| vec![("E1".to_owned(), one), ("E2".to_owned(), two)];
    assert_eq!(in_force(&held), revoked(true, false));
    // A bundle that does not know of it changes nothing.
    let held = take(&held, &office.snapshot(2, &["E1", "E2"]));
    assert_eq!(in_force(&held), revoked(true, false));
    let held = take(
        &held,
        &office.revocation(2, &[Target::Credential("key".to_owned())]),
    );
    assert_eq!(in_force(&held), revoked(true, true));
    let included = office.including(3, 1, &[], &["E1", "E2"]);
    let still = take(&held, &included);
    assert_eq!(in_force(&still), revoked(true, true));
    let held = take(
        &still,
        &office.including(4, 2, &[entitlement("E2")], &["E1", "E2"]),
    );
    assert_eq!(in_force(&held), revoked(false, true));
    // And what has been included is not forgotten.
    refused(
        &held,
        &office.including(5, 1, &[], &["E1"]),
        "includes revocations up to 1",
    );
    let held = take(
        &held,
        &office.revocation(3, &[Target::Workload("app".to_owned())]),
    );
    assert_eq!(in_force(&held), revoked(true, true));
}

#[test]
fn no_revocation_can_be_left_out() {
    let office = Office::new(1);
    let held = node(&office);
    refused(&held, &office.revocation(2, &[]), "the next one is 1");
    let held = take(&held, &office.revocation(1, &[]));
    let (_, changed) = held.take(&office.revocation(1, &[]), now()).expect("known");
    assert_eq!(changed, Changed::Nothing);
    // Kept back and then denied to exist.
    refused(
        &held,
        &office.freshness(1, 2, 0, 300),
        "about version 1 and revocation 2",
    );
    refused(&held, &office.freshness(2, 1, 0, 300), "about version 2");
    let held = take(&held, &office.freshness(1, 1, 0, 300));
    assert_eq!(held.fresh_until(), later(300));
}

#[test]
fn freshness_only_moves_on() {
    let office = Office::new(1);
    let held = node(&office);
    assert_eq!(held.fresh_until(), Timestamp::UNIX_EPOCH);
    let held = take(&held, &office.freshness(1, 0, 10, 300));
    let (held, changed) = held
        .take(&office.freshness(1, 0, 5, 900), now())
        .expect("known");
    assert_eq!(
        (changed, held.fresh_until()),
        (Changed::Nothing, later(300))
    );
    refused(&held, &office.freshness(1, 0, -100, 0), "it expired at");
}

#[test]
fn a_new_root_is_signed_by_the_old_one_and_by_itself() {
    let [old, new, stranger] = [1, 2, 3].map(Office::new);
    let held = node(&old);
    let mut root = TrustRoot {
        version: 2,
        ..new.root()
    };
    let by_both = |root: &TrustRoot| root.sign(&[old.keys.clone(), new.keys.clone()].concat());
    refused(&held, &root.sign(&old.keys), "0 of the keys for `root`");
    refused(&held, &root.sign(&new.keys), "0 of the keys for `root`");
    refused(
        &held,
        &root.sign(&stranger.keys),
        "0 of the keys for `root`",
    );
    root.version = 3;
    refused(&held, &by_both(&root), "trust root 3, expected 2");
    root.version = 2;
    root.bundle = Signers {
        threshold: 0,
        keys: Vec::new(),
    };
    refused(&held, &by_both(&root), "asks for 0 signatures");
    root.bundle = new.root().bundle;
    let held = take(&held, &by_both(&root));
    assert_eq!(held.summary().trust_root_version, 2);
    refused(&held, &old.snapshot(2, &["E1"]), "0 of the keys");
    let held = take(&held, &new.snapshot(2, &["E1"]));
    let (_, changed) = held.take(&by_both(&root), now()).expect("known");
    assert_eq!(changed, Changed::Nothing);
}

#[test]
fn a_revocation_that_was_lost_is_waited_for() {
    let office = Office::new(1);
    let mut held = Held::new(office.root(), labels()).expect("sound");
    held.has_seen(Numbers {
        version: 1,
        sequence: 1,
        ..Numbers::default()
    });
    let held = take(&held, &office.snapshot(1, &["E1"]));
    // It would come back to life here.
    assert!(held.bundle().is_none());
    let revocation = office.revocation(1, &[Target::Entitlement("E1".to_owned())]);
    let held = take(&held, &revocation);
    assert_eq!(in_force(&held), [("E1".to_owned(), true)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No change of a signed envelope is taken.
    #[test]
    fn invariant_no_alteration_is_taken(place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let office = Office::new(1);
        let held = node(&office);
        let good = office.delta(2, &["E1", "E2"], &["E1", "E3"]);
        let text = serde_json::to_string(&good).expect("JSON");
        let mut bytes = text.into_bytes();
        let index = place.index(bytes.len());
        bytes[index] ^= 1 << bit;
        if let Ok(envelope) = serde_json::from_slice::<Envelope>(&bytes)
            && let Ok((taken, _)) = held.take(&envelope, now())
        {
            // Only what nothing depends on may differ: the hint of a signature.
            prop_assert_eq!(&envelope.payload, &good.payload);
            prop_assert_eq!(in_force(&taken), good_ids());
        }
    }

    /// Nor are random bytes, signed or not.
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..5_usize) {
        let office = Office::new(1);
        let held = node(&office);
        let kinds = ["snapshot", "delta", "revocation", "freshness", "trust-root"];
        let kind = format!("application/vnd.enforcer.{}.v1+json", kinds[kind]);
        let envelope = Envelope::sign(&kind, bytes, &office.keys);
        prop_assert!(held.take(&envelope, now()).is_err());
    }
}

fn good_ids() -> Vec<(String, bool)> {
    good(&["E1", "E3"])
}
