//! What governance says, and signs.

use std::collections::BTreeMap;

use enforcer_bundle::{Change, Digest, Labels, Parts};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::keys::SigningKey;
use crate::trust::{Role, TrustRoot};

/// For which nodes: each label must have this value, or not be there where this says `null`. A server names all the
/// labels that any part of its bundle depends on, so that a node is in exactly one audience of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Audience(pub BTreeMap<String, Option<String>>);

impl Audience {
    /// Whether a node with these labels is meant.
    #[must_use]
    pub fn includes(&self, labels: &Labels) -> bool {
        let mut conditions = self.0.iter();
        conditions.all(|(name, value)| labels.get(name) == value.as_ref())
    }

    /// The audience a node is in, where these labels matter.
    #[must_use]
    pub fn of<'a>(labels: &Labels, names: impl IntoIterator<Item = &'a String>) -> Self {
        let names = names.into_iter();
        Self(
            names
                .map(|name| (name.clone(), labels.get(name).cloned()))
                .collect(),
        )
    }
}

/// What a revocation takes back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// One entitlement.
    Entitlement(String),
    /// All entitlements to a credential.
    Credential(String),
    /// All entitlements of a workload.
    Workload(String),
}

/// Which version of a bundle, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// The governance service.
    pub issuer: String,
    /// Higher than that of every bundle before it.
    pub version: u64,
    /// For whom.
    pub audience: Audience,
    /// When.
    pub issued_at: Timestamp,
    /// From when on the bundle's `onExpiry` rules; also, from then on no node takes it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The last revocation that this version knows of. Those up to here count as `revoked` says, and no longer by
    /// themselves.
    pub includes_revocations: u64,
    /// What of the parts is taken back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<Target>,
    /// Of the parts, once they are put together.
    pub digest: Digest,
}

/// A whole bundle.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// Which version.
    pub head: Head,
    /// Every entitlement in it, with the digest of its part: the parts must be these and no others.
    pub entitlements: BTreeMap<String, Digest>,
    /// What it consists of.
    pub parts: Parts,
}

/// From one version of a bundle to a later one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delta {
    /// Which version it leads to.
    pub head: Head,
    /// The digest of the parts it starts from.
    pub base: Digest,
    /// What changes.
    pub change: Change,
}

/// Something is taken back, at once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocation {
    /// The governance service.
    pub issuer: String,
    /// One more than that of the revocation before it.
    pub sequence: u64,
    /// When.
    pub issued_at: Timestamp,
    /// What.
    pub targets: Vec<Target>,
    /// Why.
    pub reason: String,
    /// Where that is written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Nothing is newer than this.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Freshness {
    /// The governance service.
    pub issuer: String,
    /// The last version of the bundle.
    pub version: u64,
    /// The last revocation.
    pub revocation_sequence: u64,
    /// When that was so.
    pub as_of: Timestamp,
    /// Until when a node may go on believing it; then each entitlement's `onStale` rules.
    pub valid_until: Timestamp,
}

/// What can be signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// The media type, which is signed too.
    const TYPE: &'static str;
    /// Whose signatures count.
    const ROLE: Role;

    /// The statement in an envelope.
    fn sign(&self, keys: &[SigningKey]) -> Envelope {
        // These are plain structures of strings and numbers, which always have a JSON form.
        let payload = serde_json::to_vec(self).unwrap_or_default();
        Envelope::sign(Self::TYPE, payload, keys)
    }
}

impl Statement for Snapshot {
    const TYPE: &'static str = "application/vnd.enforcer.snapshot.v1+json";
    const ROLE: Role = Role::Bundle;
}

impl Statement for Delta {
    const TYPE: &'static str = "application/vnd.enforcer.delta.v1+json";
    const ROLE: Role = Role::Bundle;
}

impl Statement for Revocation {
    const TYPE: &'static str = "application/vnd.enforcer.revocation.v1+json";
    const ROLE: Role = Role::Revocation;
}

impl Statement for Freshness {
    const TYPE: &'static str = "application/vnd.enforcer.freshness.v1+json";
    const ROLE: Role = Role::Freshness;
}

impl Statement for TrustRoot {
    const TYPE: &'static str = "application/vnd.enforcer.trust-root.v1+json";
    const ROLE: Role = Role::Root;
}
