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

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::header::{
    HeaderMap, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID as MESSAGE_ID,
};
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
};
use async_nats::jetstream::{Context, ContextBuilder, kv, message::StreamMessage};
use bytes::Bytes;
use enforcer_bundle::Digest;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use super::seal::Seal;
use super::{Head, Log, Revision, Store, Table, new_of};
use crate::contract::EvidenceBatch;
use crate::envelope::Envelope;
use crate::server::Error;
use crate::statement::Revocation;

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

/// How long one answer is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How often something is tried: the streams' leaders may be dying.
const TRIES: u32 = 8;
const BETWEEN: Duration = Duration::from_secs(1);
/// Most bytes in one message; JetStream's own limit is 1 MiB by default.
const PIECE: usize = 512 * 1024;
/// Most bytes that a blob unpacks to.
const LARGEST: u64 = 1 << 30;

const ISSUED: &str = "enforcer.revocations.issued";
const ALIVE: &str = "enforcer.revocations.alive";
const BUNDLES: &str = "enforcer_bundles";
const NODES: &str = "enforcer_nodes";
/// The header of a message that takes the place of those before it on its subject.
const ROLLUP: &str = "Nats-Rollup";
/// The header of a batch of evidence: the number of its last record.
const LAST: &str = "Enforcer-Last";

/// The connection.
pub struct Nats {
    url: String,
    context: Context,
    bundles: kv::Store,
    nodes: kv::Store,
    revocations: Stream,
    evidence: Stream,
    seal: Seal,
    changes: Arc<watch::Sender<u64>>,
    issued: tokio::sync::Mutex<Issued>,
    epochs: Mutex<HashMap<String, Arc<Slot>>>,
}

/// The revocations that were read.
#[derive(Default)]
struct Issued {
    /// With their numbers.
    all: Vec<(u64, Envelope)>,
    /// The last message of them.
    last: u64,
}

/// The last message with evidence of an epoch, and the last record in it; both 0 if there is none.
type Slot = tokio::sync::Mutex<Option<(u64, u64)>>;

/// What came of something that was to follow a message.
#[derive(PartialEq)]
enum Published {
    Done,
    /// Another one followed it.
    Late,
}

impl Nats {
    /// Connects, and makes what is missing.
    ///
    /// # Errors
    /// If NATS cannot be reached, or has no JetStream with as many replicas.
    pub async fn open(location: &Location, seal: Seal) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Nats {
            url: location.url.clone(),
            reason: error.to_string(),
        };
        let mut options = async_nats::ConnectOptions::new()
            .name("enforcer governance")
            .connection_timeout(ANSWER_WITHIN)
            .request_timeout(Some(ANSWER_WITHIN))
            .ping_interval(Duration::from_secs(5))
            .reconnect_delay_callback(|_| Duration::from_millis(200));
        if let Some(path) = &location.credentials {
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            options = options.credentials(&text).map_err(|it| failed(&it))?;
        }
        if let Some(path) = &location.authority {
            options = options.add_root_certificates(path.clone());
        }
        let servers: Vec<&str> = location.url.split(',').collect();
        let client = options.connect(servers).await.map_err(|it| failed(&it))?;
        let context = ContextBuilder::new()
            .timeout(ANSWER_WITHIN)
            .ack_timeout(ANSWER_WITHIN)
            .build(client);
        // A cluster that has just been started has no leader to make streams yet.
        let stream = async |name: &str, subjects: String, last_only: bool| {
            let config = Config {
                name: name.to_owned(),
                subjects: vec![subjects],
                max_messages_per_subject: if last_only { 1 } else { -1 },
                discard: DiscardPolicy::New,
                storage: StorageType::File,
                num_replicas: location.replicas,
                allow_rollup: true,
                deny_delete: true,
                duplicate_window: Duration::from_secs(120),
                ..Config::default()
            };
            let made = tried(|| context.get_or_create_stream(config.clone()));
            made.await.map_err(|it| failed(&it))
        };
        let bucket = |name: &str| (format!("KV_{name}"), format!("$KV.{name}.>"));
        // JetStream before 2.10 does not answer what making a bucket as such asks.
        for name in [BUNDLES, NODES] {
            let (name, subjects) = bucket(name);
            stream(&name, subjects, true).await?;
        }
        let revocations = stream(
            "ENFORCER_REVOCATIONS",
            "enforcer.revocations.*".into(),
            false,
        )
        .await?;
        let evidence = stream("ENFORCER_EVIDENCE", "enforcer.evidence.>".into(), false).await?;
        stream("ENFORCER_LOGS", "enforcer.logs.>".into(), false).await?;
        let bucket = async |name| {
            let found = tried(|| context.get_key_value(name));
            found.await.map_err(|it| failed(&it))
        };
        let bundles = bucket(BUNDLES).await?;
        let nodes = bucket(NODES).await?;
        let nats = Self {
            url: location.url.clone(),
            bundles,
            nodes,
            revocations,
            evidence,
            context,
            seal,
            changes: Arc::new(watch::Sender::new(0)),
            issued: tokio::sync::Mutex::default(),
            epochs: Mutex::default(),
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
        let inbox = self.context.client();
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

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Nats {
            url: self.url.clone(),
            reason: error.to_string(),
        }
    }

    /// Publishes `payload` after the message of this sequence, 0 for none, or wherever if `None`.
    ///
    /// What is tried again has the same id, so that JetStream knows it.
    async fn publish(
        &self,
        subject: &str,
        mut headers: HeaderMap,
        payload: Vec<u8>,
        after: Option<u64>,
    ) -> Result<(Published, u64), Error> {
        if headers.get(MESSAGE_ID).is_none() {
            headers.insert(MESSAGE_ID, crate::random_hex().as_str());
        }
        if let Some(after) = after {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, after.to_string());
        }
        let payload = Bytes::from(payload);
        let published = tried(|| async {
            let sent = self
                .context
                .publish_with_headers(subject.to_owned(), headers.clone(), payload.clone())
                .await;
            let acknowledged = match sent {
                Ok(sent) => sent.await,
                Err(error) => Err(error),
            };
            match acknowledged {
                Ok(ack) => Ok(Ok((Published::Done, ack.sequence))),
                Err(error) => match error.kind() {
                    PublishErrorKind::WrongLastSequence => Ok(Ok((Published::Late, 0))),
                    PublishErrorKind::MaxPayloadExceeded => Ok(Err(self.failed(error))),
                    _ => Err(error),
                },
            }
        });
        let failed = |error| self.failed(format!("{subject}: {error}, {TRIES} times"));
        published.await.map_err(failed)?
    }

    /// The last message of a subject; the first from `from` on, if that is given. `None` if there is none.
    async fn read(
        &self,
        stream: &Stream,
        subject: &str,
        from: Option<u64>,
    ) -> Result<Option<StreamMessage>, Error> {
        let read = tried(|| async {
            let message = match from {
                Some(from) => stream.get_first_raw_message_by_subject(subject, from).await,
                None => stream.get_last_raw_message_by_subject(subject).await,
            };
            match message {
                Ok(message) => Ok(Some(message)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(error),
            }
        });
        let failed = |error| self.failed(format!("{subject}: {error}, {TRIES} times"));
        read.await.map_err(failed)
    }

    /// The last message of a bucket's key.
    async fn entry(&self, bucket: &kv::Store, key: &str) -> Result<Option<StreamMessage>, Error> {
        let subject = format!("{}{key}", bucket.prefix);
        let message = self.read(&bucket.stream, &subject, None).await?;
        Ok(message.filter(|message| message.headers.get("KV-Operation").is_none()))
    }

    async fn put_entry(
        &self,
        bucket: &kv::Store,
        key: &str,
        payload: Vec<u8>,
        after: Option<u64>,
    ) -> Result<(Published, u64), Error> {
        let subject = format!("{}{key}", bucket.prefix);
        self.publish(&subject, HeaderMap::new(), payload, after)
            .await
    }

    /// A table as one of NATS' servers has it, perhaps not the leader: nothing but what is shown or tidied comes of it.
    async fn listed(&self, table: Table) -> Result<BTreeMap<String, Value>, Error> {
        let stream = &self.nodes.stream;
        let config = push::OrderedConfig {
            deliver_subject: self.context.client().new_inbox(),
            filter_subject: format!("{}{}.>", self.nodes.prefix, table.name()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..push::OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| self.failed(error))?;
        let mut left = consumer.cached_info().num_pending;
        let messages = consumer.messages().await;
        let mut messages = messages.map_err(|error| self.failed(error))?;
        let mut all = BTreeMap::new();
        while left > 0 {
            let next = tokio::time::timeout(ANSWER_WITHIN, messages.next()).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(self.failed(error)),
                Ok(None) | Err(_) => return Err(self.failed("the list of a table breaks off")),
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

    /// Where the evidence of an epoch ends.
    async fn evidence_end(&self, subject: &str) -> Result<(u64, u64), Error> {
        let Some(message) = self.read(&self.evidence, subject, None).await? else {
            return Ok((0, 0));
        };
        let last = message
            .headers
            .get(LAST)
            .and_then(|it| it.as_str().parse().ok());
        let last = last.ok_or_else(|| {
            self.failed(format!(
                "{subject} ends with a message that no server has written: it has no {LAST}"
            ))
        })?;
        Ok((message.sequence, last))
    }
}

/// Does something again until it does not fail, or has failed too often.
async fn tried<T, E, F>(act: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for _ in 1..TRIES {
        if let Ok(done) = act().await {
            return Ok(done);
        }
        tokio::time::sleep(BETWEEN).await;
    }
    act().await
}

/// As a part of a subject or key, where a dot parts.
fn token(name: &str) -> String {
    name.replace('.', "~")
}

fn table_key(table: Table, name: &str) -> String {
    format!("{}.{}", table.name(), token(name))
}

fn packed(bytes: &[u8]) -> Result<Vec<u8>, std::io::Error> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[tonic::async_trait]
impl Store for Nats {
    async fn head(&self) -> Result<Option<(Head, Revision)>, Error> {
        let Some(message) = self.entry(&self.bundles, "head").await? else {
            return Ok(None);
        };
        let head = self.seal.open("head", &message.payload);
        let head = head.map_err(|reason| {
            self.failed(format!(
                "what it says is in force was not written by a server of this fleet ({reason}); its servers all need \
                 the same trust.json, ca.pem, ca.key and keys"
            ))
        })?;
        Ok(Some((head, message.sequence)))
    }

    async fn replace_head(&self, head: &Head, expected: Revision) -> Result<bool, Error> {
        let payload = self.seal.close("head", head);
        let (published, _) = self
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
        let digest = Digest::of_bytes(bytes);
        let packed = packed(bytes).map_err(|error| self.failed(error))?;
        let pieces = packed.chunks(PIECE);
        let count = pieces.len();
        for (number, piece) in pieces.enumerate() {
            let key = format!("blob.{digest}.{number}");
            self.put_entry(&self.bundles, &key, piece.to_vec(), None)
                .await?;
        }
        let key = format!("blob.{digest}");
        let count = count.to_string().into_bytes();
        self.put_entry(&self.bundles, &key, count, None).await?;
        Ok(digest)
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let missing = |key: &str| self.failed(format!("{BUNDLES} has no {key}, which is needed"));
        let key = format!("blob.{digest}");
        let count = self.entry(&self.bundles, &key).await?;
        let count = count.ok_or_else(|| missing(&key))?;
        let count: usize = std::str::from_utf8(&count.payload)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| missing(&key))?;
        let mut packed = Vec::new();
        for number in 0..count {
            let key = format!("blob.{digest}.{number}");
            let piece = self.entry(&self.bundles, &key).await?;
            packed.extend_from_slice(&piece.ok_or_else(|| missing(&key))?.payload);
        }
        let mut bytes = Vec::new();
        GzDecoder::new(packed.as_slice())
            .take(LARGEST)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(format!("{key}: {error}")))?;
        if Digest::of_bytes(&bytes) != *digest {
            return Err(self.failed(format!("{key} has another digest")));
        }
        Ok(bytes)
    }

    async fn forget(&self, digest: &Digest) {
        let subject = format!("$KV.{BUNDLES}.blob.{digest}");
        for subject in [format!("{subject}.*"), subject] {
            // If it stays, it is only that.
            let _ = self.bundles.stream.purge().filter(subject).await;
        }
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Envelope>, Error> {
        let mut issued = self.issued.lock().await;
        let next = |last: u64| self.read(&self.revocations, ISSUED, Some(last + 1));
        while let Some(message) = next(issued.last).await? {
            let refused = |reason: String| self.failed(format!("{ISSUED}: {reason}"));
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
        let payload = serde_json::to_vec(envelope).map_err(|error| self.failed(error))?;
        let (published, _) = self
            .publish(ISSUED, HeaderMap::new(), payload.clone(), Some(issued.last))
            .await?;
        if published == Published::Done {
            return Ok(true);
        }
        // It may be this one, if the answer got lost.
        let next = Some(issued.last + 1);
        let there = self.read(&self.revocations, ISSUED, next).await?;
        Ok(there.is_some_and(|message| message.payload == payload))
    }

    async fn confirm(&self) -> Result<(), Error> {
        // A leader that is none any more cannot commit, whatever it answers.
        let mut headers = HeaderMap::new();
        headers.insert(ROLLUP, "sub");
        for subject in [format!("{}alive", self.bundles.prefix), ALIVE.to_owned()] {
            let sent = self
                .context
                .publish_with_headers(subject, headers.clone(), Bytes::new())
                .await;
            let sent = sent.map_err(|error| self.failed(error))?;
            sent.await.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn note(&self, log: Log, line: &Value) -> Result<(), Error> {
        let subject = format!("enforcer.logs.{}", log.name());
        let payload = line.to_string().into_bytes();
        self.publish(&subject, HeaderMap::new(), payload, None)
            .await?;
        Ok(())
    }

    async fn put(&self, table: Table, values: BTreeMap<String, Value>) -> Result<(), Error> {
        for (name, value) in values {
            let key = table_key(table, &name);
            let payload = self.seal.close(&key, &value);
            self.put_entry(&self.nodes, &key, payload, None).await?;
        }
        Ok(())
    }

    async fn get(&self, table: Table, name: &str) -> Result<Option<Value>, Error> {
        let key = table_key(table, name);
        let Some(message) = self.entry(&self.nodes, &key).await? else {
            return Ok(None);
        };
        let value = self.seal.open(&key, &message.payload);
        let refused = |reason: String| self.failed(format!("{NODES}, {key}: {reason}"));
        value.map(Some).map_err(refused)
    }

    async fn take(&self, table: Table, name: &str) -> Result<Option<Value>, Error> {
        let key = table_key(table, name);
        let Some(message) = self.entry(&self.nodes, &key).await? else {
            return Ok(None);
        };
        let value = self.seal.open(&key, &message.payload);
        let value = value.map_err(|reason| self.failed(format!("{NODES}, {key}: {reason}")))?;
        // Of several who get here, one is not late. An answer that got lost is taken for being late: safe.
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        headers.insert(ROLLUP, "sub");
        let subject = format!("{}{key}", self.nodes.prefix);
        let (published, _) = self
            .publish(&subject, headers, Vec::new(), Some(message.sequence))
            .await?;
        Ok((published == Published::Done).then_some(value))
    }

    async fn all(&self, table: Table) -> Result<BTreeMap<String, Value>, Error> {
        tried(|| self.listed(table)).await
    }

    async fn evidence(&self, node: &str, batch: &EvidenceBatch) -> Result<u64, Error> {
        let subject = format!("enforcer.evidence.{}.{}", token(node), batch.epoch);
        let slot = {
            let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
            epochs.entry(subject.clone()).or_default().clone()
        };
        let mut slot = slot.lock().await;
        // If anything fails, nobody knows what is there: it is looked up anew.
        let (mut sequence, mut last) = match slot.take() {
            Some(end) => end,
            None => self.evidence_end(&subject).await?,
        };
        if last == 0 {
            // What is before was given to another store.
            last = batch.first.max(1) - 1;
        }
        let mut new = new_of(batch, last);
        while !new.is_empty() {
            let mut payload = Vec::new();
            let mut count = 0;
            for record in new {
                if count > 0 && payload.len() + record.len() >= PIECE {
                    break;
                }
                payload.extend_from_slice(record);
                payload.push(b'\n');
                count += 1;
            }
            let end = last + count as u64;
            let mut headers = HeaderMap::new();
            headers.insert(LAST, end.to_string());
            let id = format!("{node}:{}:{}-{end}", batch.epoch, last + 1);
            headers.insert(MESSAGE_ID, id.as_str());
            let (published, at) = self
                .publish(&subject, headers, payload, Some(sequence))
                .await?;
            if published == Published::Late {
                // Another server has taken some of it.
                return Ok(self.evidence_end(&subject).await?.1);
            }
            (sequence, last) = (at, end);
            new = &new[count..];
        }
        *slot = Some((sequence, last));
        Ok(last)
    }
}
