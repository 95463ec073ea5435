//! A version of the bundle, and what of it each node gets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use enforcer_bundle::{Bundle, Digest, Labels, Mistakes, Parts};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Error;
use super::store::Version;
use crate::contract;
use crate::envelope::Envelope;
use crate::keys::SigningKey;
use crate::statement::{Audience, Delta, Head, Snapshot, Statement as _, Target};

/// What is kept of a version.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    pub issuer: String,
    pub version: u64,
    pub issued_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub includes_revocations: u64,
    pub revoked: Vec<Target>,
    pub parts: Arc<Parts>,
}

/// A version of the bundle for all nodes.
pub struct Issued {
    pub record: Record,
    pub digest: Digest,
    bundle: Bundle,
    /// The labels that matter.
    names: Vec<String>,
    editions: Mutex<HashMap<Audience, Arc<Edition>>>,
    /// It came signed, for one audience, and is handed on as it is.
    signed: Option<Envelope>,
}

/// What one audience gets of a version.
pub struct Edition {
    head: Head,
    parts: Arc<Parts>,
    snapshot: OnceLock<contract::Envelope>,
    deltas: Mutex<HashMap<Digest, contract::Envelope>>,
}

impl Issued {
    /// # Errors
    /// If the parts make no bundle.
    pub fn new(record: Record) -> Result<Self, Mistakes> {
        let metadata = json!({"issuer": record.issuer, "version": record.version});
        let bundle = record.parts.bundle("the issued bundle", &metadata)?;
        let names = bundle.label_names().into_iter().cloned().collect();
        Ok(Self {
            digest: record.parts.digest(),
            record,
            bundle,
            names,
            editions: Mutex::default(),
            signed: None,
        })
    }

    /// One that was signed elsewhere.
    ///
    /// # Errors
    /// If the parts make no bundle.
    pub fn signed(snapshot: Snapshot, envelope: Envelope) -> Result<Self, Mistakes> {
        let Snapshot { head, parts, .. } = snapshot;
        let mut issued = Self::new(Record {
            issuer: head.issuer,
            version: head.version,
            issued_at: head.issued_at,
            expires_at: head.expires_at,
            includes_revocations: head.includes_revocations,
            revoked: head.revoked,
            parts: Arc::new(parts),
        })?;
        issued.signed = Some(envelope);
        Ok(issued)
    }

    /// One that was kept.
    ///
    /// # Errors
    /// If it is no bundle.
    pub fn kept(version: Version) -> Result<Self, Error> {
        match version {
            Version::Made(record) => Ok(Self::new(record)?),
            Version::Signed(envelope) => {
                let snapshot = serde_json::from_slice(&envelope.payload)
                    .map_err(|error| Error::Refused(format!("a signed version: {error}")))?;
                Ok(Self::signed(snapshot, envelope)?)
            }
        }
    }

    /// To be kept.
    pub fn keep(&self) -> Version {
        match &self.signed {
            Some(envelope) => Version::Signed(envelope.clone()),
            None => Version::Made(self.record.clone()),
        }
    }

    /// Whether it came signed.
    pub fn is_signed(&self) -> bool {
        self.signed.is_some()
    }

    /// All of it.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What a node with these labels gets.
    pub fn edition(&self, labels: &Labels) -> Arc<Edition> {
        let audience = Audience::of(labels, &self.names);
        let mut editions = self.editions.lock().unwrap_or_else(PoisonError::into_inner);
        let edition = editions.entry(audience).or_insert_with_key(|audience| {
            let present = (audience.0.iter())
                .filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
            let mut bundle = self.bundle.clone();
            bundle.keep_for(&present.collect());
            let mut parts = (*self.record.parts).clone();
            parts.keep(&bundle);
            Arc::new(self.make(audience.clone(), parts))
        });
        edition.clone()
    }

    fn make(&self, audience: Audience, parts: Parts) -> Edition {
        let record = &self.record;
        let edition = Edition {
            head: Head {
                issuer: record.issuer.clone(),
                version: record.version,
                audience,
                issued_at: record.issued_at,
                expires_at: record.expires_at,
                includes_revocations: record.includes_revocations,
                revoked: record.revoked.clone(),
                digest: parts.digest(),
            },
            parts: Arc::new(parts),
            snapshot: OnceLock::new(),
            deltas: Mutex::default(),
        };
        if let Some(envelope) = &self.signed {
            let _ = edition.snapshot.set(envelope.clone().into());
        }
        edition
    }
}

impl Edition {
    pub fn digest(&self) -> &Digest {
        &self.head.digest
    }

    /// All of it.
    pub fn snapshot(&self, keys: &[SigningKey]) -> contract::Envelope {
        let make = || {
            let snapshot = Snapshot {
                head: self.head.clone(),
                entitlements: self.parts.entitlement_digests(),
                parts: (*self.parts).clone(),
            };
            snapshot.sign(keys).into()
        };
        self.snapshot.get_or_init(make).clone()
    }

    /// What leads here from an earlier edition.
    pub fn delta(&self, base: &Self, keys: &[SigningKey]) -> contract::Envelope {
        let mut deltas = self.deltas.lock().unwrap_or_else(PoisonError::into_inner);
        let delta = deltas.entry(base.head.digest.clone()).or_insert_with(|| {
            let delta = Delta {
                head: self.head.clone(),
                base: base.head.digest.clone(),
                change: base.parts.change_to(&self.parts),
            };
            delta.sign(keys).into()
        });
        delta.clone()
    }
}
