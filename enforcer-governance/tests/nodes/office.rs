//! A governance service in a few lines: signs what it is told to.

use enforcer_bundle::{Kind, Parts};
use enforcer_governance::envelope::Envelope;
use enforcer_governance::keys::SigningKey;
use enforcer_governance::statement::{
    Audience, Delta, Freshness, Head, Revocation, Snapshot, Statement as _, Target,
};
use enforcer_governance::trust::TrustRoot;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

const ISSUER: &str = "iga.example.com";

/// Signs with these keys.
#[derive(Clone)]
pub struct Office {
    pub keys: Vec<SigningKey>,
}

/// One workload with entitlements of these ids to one credential.
pub fn parts(ids: &[impl AsRef<str>]) -> Parts {
    let mut parts = Parts::default();
    let mut add = |kind, id: &str, item: serde_json::Value| {
        let items = parts.items.entry(kind).or_default();
        items.insert(id.to_owned(), item.into());
    };
    let sources = json!([{"file": "/etc/key"}]);
    add(
        Kind::Credentials,
        "key",
        json!({"id": "key", "sources": sources}),
    );
    let program = json!({"executable": {"path": "/bin/app"}});
    add(
        Kind::Workloads,
        "app",
        json!({"id": "app", "match": program}),
    );
    for (number, id) in ids.iter().enumerate() {
        let id = id.as_ref();
        // No more than four for the same workload and credential.
        let workload = format!("app{}", number / 4);
        let program = json!({"executable": {"path": format!("/bin/{workload}")}});
        add(
            Kind::Workloads,
            &workload,
            json!({"id": workload, "match": program}),
        );
        add(
            Kind::Entitlements,
            id,
            json!({"id": id, "workload": if number < 4 { "app" } else { &workload }, "credential": "key", "destinations": "none"}),
        );
    }
    parts
}

/// So many seconds after noon.
pub fn at(seconds: i64) -> Timestamp {
    let noon: Timestamp = "2026-11-22T12:00:00Z".parse().expect("a moment");
    noon + SignedDuration::from_secs(seconds)
}

impl Office {
    /// With the key of this number.
    pub fn new(key: u8) -> Self {
        let keys = vec![SigningKey::from_seed([key; 32])];
        Self { keys }
    }

    /// And another one.
    pub fn and(mut self, key: u8) -> Self {
        self.keys.push(SigningKey::from_seed([key; 32]));
        self
    }

    pub fn root(&self) -> TrustRoot {
        let mut root = TrustRoot::of_one_key(ISSUER, self.keys[0].public());
        let keys: Vec<_> = self.keys.iter().map(SigningKey::public).collect();
        for signers in [
            &mut root.root,
            &mut root.bundle,
            &mut root.revocation,
            &mut root.freshness,
        ] {
            signers.keys.clone_from(&keys);
        }
        root
    }

    fn head(version: u64, includes: u64, revoked: &[Target], parts: &Parts) -> Head {
        Head {
            issuer: ISSUER.to_owned(),
            version,
            audience: Audience::default(),
            issued_at: at(-60),
            expires_at: None,
            includes_revocations: includes,
            revoked: revoked.to_vec(),
            digest: parts.digest(),
        }
    }

    fn signed(&self, head: Head, parts: Parts) -> Envelope {
        let entitlements = parts.entitlement_digests();
        let snapshot = Snapshot {
            head,
            entitlements,
            parts,
        };
        snapshot.sign(&self.keys)
    }

    pub fn sign_parts(&self, version: u64, parts: Parts) -> Envelope {
        self.signed(Self::head(version, 0, &[], &parts), parts)
    }

    pub fn snapshot(&self, version: u64, ids: &[&str]) -> Envelope {
        self.sign_parts(version, parts(ids))
    }

    /// One that includes revocations.
    pub fn including(
        &self,
        version: u64,
        includes: u64,
        revoked: &[Target],
        ids: &[impl AsRef<str>],
    ) -> Envelope {
        let parts = parts(ids);
        self.signed(Self::head(version, includes, revoked, &parts), parts)
    }

    pub fn unsigned_delta(&self, version: u64, from: &[&str], to: &[&str]) -> Delta {
        Self::delta_of(version, 0, &parts(from), &parts(to))
    }

    fn delta_of(version: u64, includes: u64, from: &Parts, to: &Parts) -> Delta {
        Delta {
            head: Self::head(version, includes, &[], to),
            base: from.digest(),
            change: from.change_to(to),
        }
    }

    pub fn delta(&self, version: u64, from: &[&str], to: &[&str]) -> Envelope {
        self.unsigned_delta(version, from, to).sign(&self.keys)
    }

    pub fn delta_including(
        &self,
        version: u64,
        includes: u64,
        from: &[impl AsRef<str>],
        to: &[impl AsRef<str>],
    ) -> Envelope {
        Self::delta_of(version, includes, &parts(from), &parts(to)).sign(&self.keys)
    }

    pub fn revocation(&self, sequence: u64, targets: &[Target]) -> Envelope {
        Revocation {
            issuer: ISSUER.to_owned(),
            sequence,
            issued_at: at(0),
            targets: targets.to_vec(),
            reason: "a test".to_owned(),
            ticket: None,
        }
        .sign(&self.keys)
    }

    /// As of so many seconds after noon, good until so many.
    pub fn freshness(&self, version: u64, sequence: u64, as_of: i64, until: i64) -> Envelope {
        Freshness {
            issuer: ISSUER.to_owned(),
            version,
            revocation_sequence: sequence,
            as_of: at(as_of),
            valid_until: at(until),
        }
        .sign(&self.keys)
    }
}
