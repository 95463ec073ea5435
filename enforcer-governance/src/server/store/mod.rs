//! Where the servers of a fleet keep what they have in common: a directory for one server, NATS JetStream for several.
//!
//! What changes enforcement changes by two acts only, and each succeeds for one server at a time: the head is replaced
//! by one that follows it, and a revocation takes the next number. All else hangs on these.

mod archive;
mod directory;
mod nats;
mod seal;

use std::collections::{BTreeMap, BTreeSet};

use enforcer_bundle::{Digest, Parts};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::Error;
use super::issued::Record;
use crate::contract::EvidenceBatch;
use crate::envelope::Envelope;
use crate::statement::Target;
pub use directory::Directory;
pub use nats::{Location, Nats};
pub use seal::Seal;

/// What is in force, by reference to blobs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// Of the trust root that everything is signed under.
    pub trust: Digest,
    /// The documents that versions are made of; none if versions come signed.
    pub documents: Option<Reference>,
    /// The versions kept, oldest first; the last is in force.
    pub versions: Vec<Reference>,
    /// What is granted for a time, by entitlement.
    pub grants: BTreeMap<String, Granted>,
    /// What was taken back by the revocations up to `revoked_as_of`, and not restored.
    pub revoked: BTreeSet<Target>,
    /// The number of a revocation.
    pub revoked_as_of: u64,
    /// Different each time: a server whose answer got lost finds out by it whether it was the one.
    pub change: String,
}

impl Head {
    /// The version in force; 0 for none.
    pub fn version(&self) -> u64 {
        self.versions.last().map_or(0, |last| last.version)
    }
}

/// A version of something, in a blob.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    pub version: u64,
    pub blob: Digest,
}

/// An entitlement that was granted for a time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Granted {
    pub entitlement: String,
    pub from: Timestamp,
    pub until: Timestamp,
    pub by: String,
    pub reason: String,
    pub ticket: Option<String>,
    pub break_glass: bool,
}

/// A version, as it is kept.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Version {
    /// Made here, to be signed for each audience.
    Made(Record),
    /// Signed elsewhere.
    Signed(Envelope),
}

/// Documents, as they are kept.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    pub metadata: Value,
    pub parts: Parts,
}

/// Tells two heads apart: the one that is replaced must have this one.
pub type Revision = u64;

/// Lists of lines that are only added to.
#[derive(Clone, Copy, Debug)]
pub enum Log {
    /// Who did what.
    Audit,
    /// What has to be reviewed.
    Findings,
}

impl Log {
    const fn name(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Findings => "findings",
        }
    }
}

/// Values by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Join tokens that were given out, by digest.
    Tokens,
    /// The labels of nodes that enrolled.
    Labels,
    /// What was last known of each node.
    Seen,
    /// The security events that have come, by the digest of their ids, with when they were issued.
    Signals,
}

impl Table {
    const ALL: [Self; 4] = [Self::Tokens, Self::Labels, Self::Seen, Self::Signals];

    const fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Labels => "labels",
            Self::Seen => "seen",
            Self::Signals => "signals",
        }
    }
}

/// What several servers can have in common. What a method has written is on disk when it returns.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// What is in force; `None` before anything is.
    async fn head(&self) -> Result<Option<(Head, Revision)>, Error>;

    /// Puts a head in the place of the one of this revision, 0 for none. `false` if there is another by now.
    async fn replace_head(&self, head: &Head, expected: Revision) -> Result<bool, Error>;

    /// Keeps bytes, to be found by their digest.
    async fn keep(&self, bytes: &[u8]) -> Result<Digest, Error>;

    /// The bytes of this digest.
    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, Error>;

    /// Bytes that nothing refers to any more.
    async fn forget(&self, digest: &Digest);

    /// The revocations with numbers above `after`, in order.
    async fn revocations(&self, after: u64) -> Result<Vec<Envelope>, Error>;

    /// Commits a revocation under its number. `false` if another has it by now.
    async fn revoke(&self, number: u64, envelope: &Envelope) -> Result<bool, Error>;

    /// What is read after this has returned is as new as anything that was committed when it was called.
    ///
    /// # Errors
    /// If that is not certain.
    async fn confirm(&self) -> Result<(), Error>;

    /// Tells when another server may have committed something.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Adds a line.
    async fn note(&self, log: Log, line: &Value) -> Result<(), Error>;

    /// Puts values into a table.
    async fn put(&self, table: Table, values: BTreeMap<String, Value>) -> Result<(), Error>;

    /// A value of a table.
    async fn get(&self, table: Table, name: &str) -> Result<Option<Value>, Error>;

    /// A value of a table, which is gone then. Of several who ask, one gets it.
    async fn take(&self, table: Table, name: &str) -> Result<Option<Value>, Error>;

    /// All of a table.
    async fn all(&self, table: Table) -> Result<BTreeMap<String, Value>, Error>;

    /// Stores what is new of a batch, and says up to where everything of its epoch is stored.
    async fn evidence(&self, node: &str, batch: &EvidenceBatch) -> Result<u64, Error>;
}

/// What of a batch comes right after the record of this number.
pub fn new_of(batch: &EvidenceBatch, last: u64) -> &[Vec<u8>] {
    // A gap is asked for again, by a receipt that is behind.
    let there = match (last + 1).checked_sub(batch.first) {
        Some(there) => usize::try_from(there).unwrap_or(usize::MAX),
        None => return &[],
    };
    batch.records.get(there..).unwrap_or_default()
}
