//! What the store has, as a server knows it.

use std::collections::BTreeSet;
use std::sync::Arc;

use enforcer_bundle::{Bundle, Parts};
use jiff::Timestamp;
use serde_json::json;

use super::Error;
use super::issued::Issued;
use super::store::{Head, Reference, Revision};
use crate::contract;
use crate::envelope::Envelope;
use crate::statement::{Revocation, Target};

/// What is committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub version: u64,
    pub sequence: u64,
    pub at: Timestamp,
}

/// The documents that versions are made of.
pub struct Source {
    pub reference: Reference,
    pub bundle: Bundle,
    pub parts: Parts,
}

/// What the store has, as this server knows it.
#[derive(Clone, Default)]
pub struct Content {
    pub head: Head,
    pub revision: Revision,
    pub documents: Option<Arc<Source>>,
    /// Those of the head. The last is in force.
    pub versions: Vec<(Reference, Arc<Issued>)>,
    pub revocations: Arc<Vec<Taken>>,
    pub freshness: Option<Stated>,
}

/// That nothing is newer.
#[derive(Clone)]
pub struct Stated {
    pub at: Timestamp,
    /// Than this version and revocation.
    pub than: (u64, u64),
    pub envelope: contract::Envelope,
}

/// A revocation.
#[derive(Clone)]
pub struct Taken {
    pub number: u64,
    pub targets: Vec<Target>,
    pub envelope: contract::Envelope,
}

impl Content {
    /// The version in force.
    pub fn last(&self) -> Option<&Issued> {
        self.versions.last().map(|(_, issued)| &**issued)
    }

    /// Up to which revocation the version in force says what is taken back.
    pub fn included(&self) -> u64 {
        self.last().map_or(0, |it| it.record.includes_revocations)
    }

    pub fn last_revocation(&self) -> u64 {
        self.revocations.last().map_or(0, |taken| taken.number)
    }

    pub fn committed(&self) -> Committed {
        Committed {
            version: self.last().map_or(0, |it| it.record.version),
            sequence: self.last_revocation().max(self.included()),
            at: Timestamp::now(),
        }
    }

    /// Notes a revocation that is committed.
    pub fn take(&mut self, envelope: Envelope) -> Result<(), Error> {
        let revocation: Revocation = serde_json::from_slice(&envelope.payload)
            .map_err(|error| Error::Refused(format!("a revocation in the store: {error}")))?;
        if revocation.sequence > self.last_revocation() {
            Arc::make_mut(&mut self.revocations).push(Taken {
                number: revocation.sequence,
                targets: revocation.targets,
                envelope: envelope.into(),
            });
        }
        Ok(())
    }

    /// All that is taken back, and by which revocation.
    pub fn revoked(&self) -> (BTreeSet<Target>, u64) {
        let mut revoked = self.head.revoked.clone();
        let since = self.revocations.iter();
        for taken in since.filter(|it| it.number > self.head.revoked_as_of) {
            revoked.extend(taken.targets.iter().cloned());
        }
        (revoked, self.last_revocation().max(self.head.revoked_as_of))
    }

    /// Whether there is such a thing.
    pub fn check(&self, target: &Target) -> Result<(), Error> {
        let issued = self.last().map(Issued::bundle);
        let documents = self.documents.as_deref().map(|it| &it.bundle);
        let mut bundles = issued.into_iter().chain(documents);
        let known = bundles.any(|bundle| match target {
            Target::Entitlement(id) => bundle.entitlements.iter().any(|it| it.id == *id),
            Target::Credential(id) => bundle.credentials.iter().any(|it| it.id == *id),
            Target::Workload(id) => bundle.workloads.iter().any(|it| it.id == *id),
        });
        if known {
            return Ok(());
        }
        let target = json!(target);
        Err(Error::Refused(format!(
            "there is no such thing as {target}"
        )))
    }
}
