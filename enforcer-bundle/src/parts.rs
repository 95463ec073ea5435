//! A bundle taken apart, as it travels: settings, and credentials, workloads and entitlements by their ids.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::document::Node;
use super::item::Item;
use super::mistake::Mistakes;
use super::model::Bundle;

const API_VERSION: &str = "enforcer.dev/v1";
const BUNDLE: &str = "Bundle";

/// What has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A [`Credential`](super::Credential).
    Credentials,
    /// A [`Workload`](super::Workload).
    Workloads,
    /// An [`Entitlement`](super::Entitlement).
    Entitlements,
}

impl Kind {
    /// Every kind, in the order of a document.
    pub const ALL: [Self; 3] = [Self::Credentials, Self::Workloads, Self::Entitlements];

    /// The name of the list in a document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Workloads => "workloads",
            Self::Entitlements => "entitlements",
        }
    }
}

/// The parts of a bundle, each as it is written, in JSON. What they mean is only known once they are a [`Bundle`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// The fields of the document that are no lists of what has an id: `defaults`, `trusted`, `baseline` and so on.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// By kind, by id. Each has its `id` as a field too.
    #[serde(default)]
    pub items: BTreeMap<Kind, BTreeMap<String, Item>>,
}

/// From one set of parts to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// All settings, if one of them is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Map<String, Value>>,
    /// What is new or another, by kind, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upsert: BTreeMap<Kind, BTreeMap<String, Item>>,
    /// The ids of what is no more, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub remove: BTreeMap<Kind, Vec<String>>,
}

impl Change {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settings.is_none() && self.upsert.is_empty() && self.remove.is_empty()
    }
}

/// SHA-256 of something in canonical form (RFC 8785), in lower-case hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Digest(pub String);

impl Digest {
    /// Of any JSON value.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        // A JSON value always has a canonical form.
        let canonical = serde_json_canonicalizer::to_vec(value).unwrap_or_default();
        Self::of_bytes(&canonical)
    }

    /// Of bytes as they are.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::of_hash(Sha256::new_with_prefix(bytes))
    }

    /// Of what was hashed.
    pub(super) fn of_hash(hash: Sha256) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let halves = |byte: u8| [byte >> 4, byte & 15].map(|it| char::from(DIGITS[it as usize]));
        Self(hash.finalize().into_iter().flat_map(halves).collect())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Parts {
    /// Of the documents of a consistent bundle.
    pub(super) fn of(roots: &[Node<'_>]) -> Self {
        let mut parts = Self::default();
        for root in roots {
            let Value::Object(document) = Value::from(root) else {
                continue;
            };
            for (name, value) in document {
                parts.add(&name, value);
            }
        }
        parts
    }

    /// Adds a field of a document.
    fn add(&mut self, name: &str, value: Value) {
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) {
            let items = self.items.entry(kind).or_default();
            for item in value.as_array().into_iter().flatten() {
                let id = item["id"].as_str().unwrap_or_default();
                items.insert(id.to_owned(), Item::from(item));
            }
            return;
        }
        if ["apiVersion", "kind", "metadata"].contains(&name) {
            return;
        }
        match (self.settings.get_mut(name), value) {
            (Some(Value::Array(all)), Value::Array(more)) => all.extend(more),
            // Only lists, and `baseline` with its own, may stand in several documents.
            (Some(Value::Object(all)), Value::Object(more)) => {
                for (name, value) in more {
                    match (all.get_mut(&name), value) {
                        (Some(Value::Array(all)), Value::Array(more)) => all.extend(more),
                        (_, value) => {
                            all.insert(name, value);
                        }
                    }
                }
            }
            (_, value) => {
                self.settings.insert(name.to_owned(), value);
            }
        }
    }

    /// Of one kind, by id.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&String, &Item)> {
        self.items.get(&kind).into_iter().flatten()
    }

    /// Leaves out what `bundle`, made of these parts, does not have any more.
    pub fn keep(&mut self, bundle: &Bundle) {
        let ids = |kind| -> Vec<&str> {
            match kind {
                Kind::Credentials => bundle.credentials.iter().map(|it| it.id.as_str()).collect(),
                Kind::Workloads => bundle.workloads.iter().map(|it| it.id.as_str()).collect(),
                Kind::Entitlements => bundle
                    .entitlements
                    .iter()
                    .map(|it| it.id.as_str())
                    .collect(),
            }
        };
        for (kind, items) in &mut self.items {
            let ids: std::collections::HashSet<&str> = ids(*kind).into_iter().collect();
            items.retain(|id, _| ids.contains(id.as_str()));
        }
        self.items.retain(|_, items| !items.is_empty());
    }

    /// The digest of each entitlement, by id.
    #[must_use]
    pub fn entitlement_digests(&self) -> BTreeMap<String, Digest> {
        let all = self.of_kind(Kind::Entitlements);
        all.map(|(id, item)| (id.clone(), item.digest())).collect()
    }

    /// The digest of all parts: of the digests of each.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut all = Map::new();
        all.insert(
            "settings".to_owned(),
            json!(Digest::of(&json!(self.settings))),
        );
        for kind in Kind::ALL {
            let digests: Map<String, Value> = (self.of_kind(kind))
                .map(|(id, item)| (id.clone(), Value::String(item.digest().0)))
                .collect();
            all.insert(kind.name().to_owned(), Value::Object(digests));
        }
        Digest::of(&Value::Object(all))
    }

    /// What has to change to become `new`.
    #[must_use]
    pub fn change_to(&self, new: &Self) -> Change {
        let mut change = Change {
            settings: (self.settings != new.settings).then(|| new.settings.clone()),
            ..Change::default()
        };
        for kind in Kind::ALL {
            let old = |id: &String| self.items.get(&kind).and_then(|items| items.get(id));
            let upsert: BTreeMap<String, Item> = (new.of_kind(kind))
                .filter(|(id, item)| old(id) != Some(item))
                .map(|(id, item)| (id.clone(), item.clone()))
                .collect();
            let stays = |id: &String| new.items.get(&kind).is_some_and(|it| it.contains_key(id));
            let remove: Vec<String> = (self.of_kind(kind))
                .map(|(id, _)| id)
                .filter(|id| !stays(id))
                .cloned()
                .collect();
            if !upsert.is_empty() {
                change.upsert.insert(kind, upsert);
            }
            if !remove.is_empty() {
                change.remove.insert(kind, remove);
            }
        }
        change
    }

    /// These parts, changed.
    #[must_use]
    pub fn changed(&self, change: &Change) -> Self {
        let mut parts = self.clone();
        if let Some(settings) = &change.settings {
            parts.settings.clone_from(settings);
        }
        for (kind, upsert) in &change.upsert {
            let items = parts.items.entry(*kind).or_default();
            items.extend(upsert.clone());
        }
        for (kind, remove) in &change.remove {
            for id in remove {
                if let Some(items) = parts.items.get_mut(kind) {
                    items.remove(id);
                }
            }
        }
        parts.items.retain(|_, items| !items.is_empty());
        parts
    }

    /// The whole document.
    #[must_use]
    pub fn document(&self, metadata: &Value) -> Value {
        let mut document = self.beginning(metadata);
        for kind in Kind::ALL {
            let items = self.of_kind(kind).map(|(_, item)| item.value());
            document.insert(kind.name().to_owned(), items.collect());
        }
        Value::Object(document)
    }

    /// A document with all but the items.
    fn beginning(&self, metadata: &Value) -> Map<String, Value> {
        let mut document = self.settings.clone();
        document.insert("apiVersion".to_owned(), json!(API_VERSION));
        document.insert("kind".to_owned(), json!(BUNDLE));
        document.insert("metadata".to_owned(), metadata.clone());
        document
    }

    /// The same in several texts: one without items, and one of the items of each kind.
    fn texts(&self, metadata: &Value) -> impl Iterator<Item = String> {
        let first = Value::Object(self.beginning(metadata)).to_string();
        let items = Kind::ALL.into_iter().map(|kind| {
            let name = kind.name();
            let mut text =
                format!(r#"{{"apiVersion":"{API_VERSION}","kind":"{BUNDLE}","{name}":["#);
            for (at, (_, item)) in self.of_kind(kind).enumerate() {
                if at > 0 {
                    text.push(',');
                }
                text.push_str(item.text());
            }
            text.push_str("]}");
            text
        });
        std::iter::once(first).chain(items)
    }

    /// The bundle they make. `name` serves to name it in mistakes.
    ///
    /// # Errors
    /// All [`Mistakes`] found.
    pub fn bundle(&self, name: &str, metadata: &Value) -> Result<Bundle, Mistakes> {
        super::load::of_json(Path::new(name), self.texts(metadata))
    }
}
