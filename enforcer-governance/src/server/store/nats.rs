//! Everything in NATS JetStream, for several servers: any of them serves any node, and any may die.
//!
//! | where | what |
//! |---|---|
//! | bucket `enforcer_bundles` | `head`, and the blobs it refers to, packed and in pieces |
//! | bucket `enforcer_nodes` | the tables |
//! | stream `ENFORCER_REVOCATIONS` | `enforcer.revocations.issued` |
//! | stream `ENFORCER_EVIDENCE` | `enforcer.evidence.NODE.EPOCH`: a batch of lines a message |
//! | stream `ENFORCER_LOGS` | `enforcer.logs.audit`, `enforcer.logs.findings` |
//!
//! The message before it on a subject is named with everything that must not be written twice: JetStream refuses what
//! does not follow it. What is read is asked of the stream's leader, never of a copy.

mod blobs;
mod bus;
mod evidence;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::kv;
use async_nats::jetstream::stream::Stream;
use enforcer_bundle::Digest;
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio_stream::StreamExt as _;

use super::seal::Seal;
use super::{Head, Log, Revision, Store, Table};
use crate::contract::EvidenceBatch;
use crate::envelope::Envelope;
use crate::server::Error;
use crate::statement::Revocation;
use bus::{ANSWER_WITHIN, BETWEEN, Bus, Published, ROLLUP, tried};
use evidence::Evidence;

/// Where JetStream is.
#[derive(Clone, Debug)]
pub struct Location {
    /// `nats://HOST:PORT`, several with commas between; `tls://` for TLS.
    pub url: String,
    /// A file with the credentials that NATS wants.
    pub credentials: Option<PathBuf>,
    /// A file with the authority of NATS' certificates.
    pub authority: Option<PathBuf>,
    /// On how many NATS servers each stream is.
    pub replicas: usize,
}

const ISSUED: &str = "enforcer.revocations.issued";
const ALIVE: &str = "enforcer.revocations.alive";
const BUNDLES: &str = "enforcer_bundles";
const NODES: &str = "enforcer_nodes";

/// The store.
pub struct Nats {
    bus: Bus,
    bundles: kv::Store,
    nodes: kv::Store,
    revocations: Stream,
    evidence: Evidence,
    seal: Seal,
    changes: Arc<watch::Sender<u64>>,
    issued: Mutex<Issued>,
}

/// The revocations that were read.
#[derive(Default)]
struct Issued {
    /// With their numbers.
    all: Vec<(u64, Envelope)>,
    /// The last message of them.
    last: u64,
}

impl Nats {
    /// Connects, and makes what is missing.
    ///
    /// # Errors
    /// If NATS cannot be reached, or has no JetStream with as many replicas.
    pub async fn open(location: &Location, seal: Seal) -> Result<Self, Error> {
        let bus = Bus::connect(location).await?;
        let bundles = bus.bucket(BUNDLES).await?;
        let nodes = bus.bucket(NODES).await?;
        let revocations = bus
            .stream("ENFORCER_REVOCATIONS", "enforcer.revocations.*", false)
            .await?;
        let evidence = bus
            .stream("ENFORCER_EVIDENCE", "enforcer.evidence.>", false)
            .await?;
        bus.stream("ENFORCER_LOGS", "enforcer.logs.>", false)
            .await?;
        let nats = Self {
            bus,
            bundles,
            nodes,
            revocations,
            evidence: Evidence::new(evidence),
            seal,
            changes: Arc::new(watch::Sender::new(0)),
            issued: Mutex::default(),
        };
        nats.listen();
        Ok(nats)
    }

    /// Tells of changes as long as anybody wants to know.
    fn listen(&self) {
        let (bundles, changes) = (self.bundles.clone(), self.changes.clone());
        tokio::spawn(async move {
            loop {
                if let Ok(mut heads) = bundles.watch("head").await {
                    changes.send_modify(|count| *count += 1);
                    while let Some(Ok(_)) = heads.next().await {
                        changes.send_modify(|count| *count += 1);
                    }
                }
                tokio::time::sleep(BETWEEN).await;
            }
        });
        let (stream, changes) = (self.revocations.clone(), self.changes.clone());
        let inbox = self.bus.client();
        tokio::spawn(async move {
            loop {
                let config = push::OrderedConfig {
                    deliver_subject: inbox.new_inbox(),
                    filter_subject: ISSUED.to_owned(),
                    deliver_policy: DeliverPolicy::New,
                    ..push::OrderedConfig::default()
                };
                if let Ok(consumer) = stream.create_consumer(config).await
                    && let Ok(mut issued) = consumer.messages().await
                {
                    changes.send_modify(|count| *count += 1);
                    while let Some(Ok(_)) = issued.next().await {
                        changes.send_modify(|count| *count += 1);
                    }
                }
                tokio::time::sleep(BETWEEN).await;
            }
        });
    }

    /// A table as one of NATS' servers has it, perhaps not the leader: nothing but what is shown or tidied comes of it.
    async fn listed(&self, table: Table) -> Result<BTreeMap<String, Value>, Error> {
        let stream = &self.nodes.stream;
        let config = push::OrderedConfig {
            deliver_subject: self.bus.client().new_inbox(),
            filter_subject: format!("{}{}.>", self.nodes.prefix, table.name()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..push::OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| self.bus.failed(error))?;
        let mut left = consumer.cached_info().num_pending;
        let messages = consumer.messages().await;
        let mut messages = messages.map_err(|error| self.bus.failed(error))?;
        let mut all = BTreeMap::new();
        while left > 0 {
            let next = tokio::time::timeout(ANSWER_WITHIN, messages.next()).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(self.bus.failed(error)),
                Ok(None) | Err(_) => return Err(self.bus.failed("the list of a table breaks off")),
            };
            left -= 1;
            let key = message.subject.strip_prefix(&self.nodes.prefix);
            let Some((key, name)) = key.and_then(|key| Some((key, key.split_once('.')?.1))) else {
                continue;
            };
            // What is not believed is not listed.
            if let Ok(value) = self.seal.open(key, &message.payload) {
                all.insert(name.replace('~', "."), value);
            }
        }
        Ok(all)
    }
}

/// As a part of a subject or key, where a dot parts.
fn token(name: &str) -> String {
    name.replace('.', "~")
}

fn table_key(table: Table, name: &str) -> String {
    format!("{}.{}", table.name(), token(name))
}

#[tonic::async_trait]
impl Store for Nats {
    async fn head(&self) -> Result<Option<(Head, Revision)>, Error> {
        let Some(message) = self.bus.entry(&self.bundles, "head").await? else {
            return Ok(None);
        };
        let head = self.seal.open("head", &message.payload);
        let head = head.map_err(|reason| {
            self.bus.failed(format!(
                "what it says is in force was not written by a server of this fleet ({reason}); its servers all need \
                 the same trust.json, ca.pem, ca.key and keys"
            ))
        })?;
        Ok(Some((head, message.sequence)))
    }

    async fn replace_head(&self, head: &Head, expected: Revision) -> Result<bool, Error> {
        let payload = self.seal.close("head", head);
        let (published, _) = self
            .bus
            .put_entry(&self.bundles, "head", payload, Some(expected))
            .await?;
        if published == Published::Done {
            return Ok(true);
        }
        // It may be this one, if the answer got lost.
        let now = self.head().await?;
        Ok(now.is_some_and(|(now, _)| now.change == head.change))
    }

    async fn keep(&self, bytes: &[u8]) -> Result<Digest, Error> {
        blobs::keep(&self.bus, &self.bundles, bytes).await
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        blobs::read(&self.bus, &self.bundles, digest).await
    }

    async fn forget(&self, digest: &Digest) {
        blobs::forget(&self.bundles, digest).await;
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Envelope>, Error> {
        let mut issued = self.issued.lock().await;
        let next = |last: u64| self.bus.read(&self.revocations, ISSUED, Some(last + 1));
        while let Some(message) = next(issued.last).await? {
            let refused = |reason: String| self.bus.failed(format!("{ISSUED}: {reason}"));
            let envelope: Envelope = serde_json::from_slice(&message.payload)
                .map_err(|error| refused(error.to_string()))?;
            self.seal.verify(&envelope).map_err(refused)?;
            let revocation: Revocation = serde_json::from_slice(&envelope.payload)
                .map_err(|error| refused(error.to_string()))?;
            issued.all.push((revocation.sequence, envelope));
            issued.last = message.sequence;
        }
        let known = issued.all.partition_point(|(number, _)| *number <= after);
        let new = issued.all[known..].iter();
        Ok(new.map(|(_, envelope)| envelope.clone()).collect())
    }

    async fn revoke(&self, number: u64, envelope: &Envelope) -> Result<bool, Error> {
        let issued = self.issued.lock().await;
        if issued.all.last().is_some_and(|(last, _)| *last >= number) {
            return Ok(false);
        }
        let payload = serde_json::to_vec(envelope).map_err(|error| self.bus.failed(error))?;
        let (published, _) = self
            .bus
            .publish(ISSUED, HeaderMap::new(), payload.clone(), Some(issued.last))
            .await?;
        if published == Published::Done {
            return Ok(true);
        }
        // It may be this one, if the answer got lost.
        let next = Some(issued.last + 1);
        let there = self.bus.read(&self.revocations, ISSUED, next).await?;
        Ok(there.is_some_and(|message| message.payload == payload))
    }

    async fn confirm(&self) -> Result<(), Error> {
        // A leader that is none any more cannot commit, whatever it answers.
        let alive = format!("{}alive", self.bundles.prefix);
        self.bus.replace(alive).await?;
        self.bus.replace(ALIVE.to_owned()).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn note(&self, log: Log, line: &Value) -> Result<(), Error> {
        let subject = format!("enforcer.logs.{}", log.name());
        let payload = line.to_string().into_bytes();
        self.bus
            .publish(&subject, HeaderMap::new(), payload, None)
            .await?;
        Ok(())
    }

    async fn put(&self, table: Table, values: BTreeMap<String, Value>) -> Result<(), Error> {
        for (name, value) in values {
            let key = table_key(table, &name);
            let payload = self.seal.close(&key, &value);
            self.bus.put_entry(&self.nodes, &key, payload, None).await?;
        }
        Ok(())
    }

    async fn get(&self, table: Table, name: &str) -> Result<Option<Value>, Error> {
        let key = table_key(table, name);
        let Some(message) = self.bus.entry(&self.nodes, &key).await? else {
            return Ok(None);
        };
        let value = self.seal.open(&key, &message.payload);
        let refused = |reason: String| self.bus.failed(format!("{NODES}, {key}: {reason}"));
        value.map(Some).map_err(refused)
    }

    async fn take(&self, table: Table, name: &str) -> Result<Option<Value>, Error> {
        let key = table_key(table, name);
        let Some(message) = self.bus.entry(&self.nodes, &key).await? else {
            return Ok(None);
        };
        let value = self.seal.open(&key, &message.payload);
        let value = value.map_err(|reason| self.bus.failed(format!("{NODES}, {key}: {reason}")))?;
        // Of several who get here, one is not late. An answer that got lost is taken for being late: safe.
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        headers.insert(ROLLUP, "sub");
        let subject = format!("{}{key}", self.nodes.prefix);
        let (published, _) = self
            .bus
            .publish(&subject, headers, Vec::new(), Some(message.sequence))
            .await?;
        Ok((published == Published::Done).then_some(value))
    }

    async fn all(&self, table: Table) -> Result<BTreeMap<String, Value>, Error> {
        tried(|| self.listed(table)).await
    }

    async fn evidence(&self, node: &str, batch: &EvidenceBatch) -> Result<u64, Error> {
        self.evidence.store(&self.bus, node, batch).await
    }
}
