//! Whatever a delta changes of a real bundle: it leads to a consistent bundle that has it, or is refused for what is in it.

#![no_main]

use std::sync::LazyLock;

use enforcer_bundle::{Change, Kind, Labels, Parts};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::held::{Changed, Held, Refusal};
use enforcer_governance::keys::SigningKey;
use enforcer_governance::statement::{Audience, Delta, Head, Snapshot, Statement};
use enforcer_governance::trust::TrustRoot;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_seed([1; 32]));
static BASE: LazyLock<Parts> = LazyLock::new(|| {
    let parts = json!({
        "settings": {"defaults": {"mode": "enforce"}},
        "items": {
            "credentials": {"key": {"id": "key", "sources": [{"file": "/etc/key"}]}},
            "workloads": {"app": {"id": "app", "match": {"executable": {"path": "/bin/app"}}}},
            "entitlements": {
                "E1": {"id": "E1", "workload": "app", "credential": "key", "destinations": "none"},
                "E2": {"id": "E2", "workload": "app", "credential": "key", "destinations": [{"cidr": "10.0.0.0/8", "ports": [443]}]},
            },
        },
    });
    serde_json::from_value(parts).expect("parts")
});
static HELD: LazyLock<Held> = LazyLock::new(|| {
    let root = TrustRoot::of_one_key("fuzz", KEY.public());
    let held = Held::new(root, Labels::new()).expect("sound");
    let snapshot = Snapshot {
        head: head(1, &BASE),
        entitlements: BASE.entitlement_digests(),
        parts: BASE.clone(),
    };
    take(&held, &sign(&snapshot)).expect("good").0
});

fn head(version: u64, parts: &Parts) -> Head {
    Head {
        issuer: "fuzz".to_owned(),
        version,
        audience: Audience::default(),
        issued_at: Timestamp::UNIX_EPOCH,
        expires_at: None,
        includes_revocations: 0,
        revoked: Vec::new(),
        digest: parts.digest(),
    }
}

fn sign(statement: &impl Statement) -> Envelope {
    statement.sign(std::slice::from_ref(&*KEY))
}

fn take(held: &Held, envelope: &Envelope) -> Result<(Held, Changed), Refusal> {
    held.take(envelope, Timestamp::UNIX_EPOCH)
}

/// What is changed of one part: a field is another, or there is none.
type Edit<'a> = (u8, u8, Option<(&'a str, &'a str)>);

const IDS: [&str; 5] = ["key", "app", "E1", "E2", "new"];

fn change(edits: &[Edit<'_>]) -> Change {
    let mut change = Change::default();
    for (kind, id, field) in edits {
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        let id = IDS[usize::from(*id) % IDS.len()];
        let Some((name, value)) = field else {
            change.remove.entry(kind).or_default().push(id.to_owned());
            continue;
        };
        let known = BASE.items.get(&kind).and_then(|items| items.get(id));
        let mut item = known.map_or_else(|| json!({"id": id}), |it| it.value());
        let text = || Value::String((*value).to_owned());
        item[*name] = serde_json::from_str(value).unwrap_or_else(|_| text());
        change
            .upsert
            .entry(kind)
            .or_default()
            .insert(id.to_owned(), item.into());
    }
    change
}

fuzz_target!(|input: (Vec<Edit<'_>>, &str)| {
    let (edits, text) = input;
    let change = serde_json::from_str(text).unwrap_or_else(|_| change(&edits));
    let after = BASE.changed(&change);
    assert_eq!(
        BASE.changed(&BASE.change_to(&after)).digest(),
        after.digest()
    );
    let delta = Delta {
        head: head(2, &after),
        base: BASE.digest(),
        change,
    };
    let delta = sign(&delta);
    match take(&HELD, &delta) {
        Ok((held, changed)) => {
            assert_eq!(changed, Changed::Bundle);
            assert_eq!(held.summary().bundle_digest, after.digest().to_string());
            let bundle = held.bundle().expect("in force");
            let ids = bundle.entitlements.iter().map(|it| &it.id);
            assert!(ids.eq(after.of_kind(Kind::Entitlements).map(|(id, _)| id)));
        }
        Err(Refusal::Mistakes(_) | Refusal::Id(_)) => {}
        Err(other) => panic!("{other}"),
    }
});
