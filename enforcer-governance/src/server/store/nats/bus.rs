//! The connection to NATS: what is asked and published is tried again while its servers are dying.

use std::time::Duration;

use async_nats::Client;
use async_nats::header::{
    HeaderMap, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID as MESSAGE_ID,
};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, StorageType, Stream,
};
use async_nats::jetstream::{Context, ContextBuilder, kv, message::StreamMessage};
use bytes::Bytes;
use tokio::time::Instant;

use super::Location;
use crate::server::Error;

/// How long one answer is waited for.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long something is tried for. Where a leader dies, NATS waits 4 to 9 s before it elects another,
/// and again where nobody has got enough votes; until then nobody answers for its stream.
const TRIED_FOR: Duration = Duration::from_secs(30);
/// Between two times that something is tried.
pub const BETWEEN: Duration = Duration::from_secs(1);
/// Most bytes in one message; JetStream's own limit is 1 MiB by default.
pub const PIECE: usize = 512 * 1024;

/// The header of a message that takes the place of those before it on its subject.
pub const ROLLUP: &str = "Nats-Rollup";

/// The connection.
pub struct Bus {
    url: String,
    replicas: usize,
    context: Context,
}

/// What came of something that was to follow a message.
#[derive(PartialEq)]
pub enum Published {
    Done,
    /// Another one followed it.
    Late,
}

impl Bus {
    /// # Errors
    /// If NATS cannot be reached.
    pub async fn connect(location: &Location) -> Result<Self, Error> {
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
        Ok(Self {
            url: location.url.clone(),
            replicas: location.replicas,
            context,
        })
    }

    pub fn client(&self) -> Client {
        self.context.client()
    }

    pub fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::Nats {
            url: self.url.clone(),
            reason: error.to_string(),
        }
    }

    /// A stream, made if it is missing: of all messages, or of the last one on each subject.
    pub async fn stream(
        &self,
        name: &str,
        subjects: &str,
        last_only: bool,
    ) -> Result<Stream, Error> {
        let config = Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            max_messages_per_subject: if last_only { 1 } else { -1 },
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: self.replicas,
            allow_rollup: true,
            deny_delete: true,
            duplicate_window: Duration::from_secs(120),
            ..Config::default()
        };
        // A cluster that has just been started has no leader to make streams yet.
        let made = tried(|| self.context.get_or_create_stream(config.clone()));
        made.await.map_err(|error| self.failed(error))
    }

    /// A bucket, made if it is missing.
    pub async fn bucket(&self, name: &str) -> Result<kv::Store, Error> {
        // JetStream before 2.10 does not answer what making a bucket as such asks.
        self.stream(&format!("KV_{name}"), &format!("$KV.{name}.>"), true)
            .await?;
        let found = tried(|| self.context.get_key_value(name));
        found.await.map_err(|error| self.failed(error))
    }

    /// Publishes `payload` after the message of this sequence, 0 for none, or wherever if `None`.
    ///
    /// What is tried again has the same id, so that JetStream knows it.
    pub async fn publish(
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
        let failed = |error| self.failed(format!("{subject}: {error}, tried for {TRIED_FOR:?}"));
        published.await.map_err(failed)?
    }

    /// The last message of a subject; the first from `from` on, if that is given. `None` if there is none.
    pub async fn read(
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
        let failed = |error| self.failed(format!("{subject}: {error}, tried for {TRIED_FOR:?}"));
        read.await.map_err(failed)
    }

    /// The last message of a bucket's key.
    pub async fn entry(
        &self,
        bucket: &kv::Store,
        key: &str,
    ) -> Result<Option<StreamMessage>, Error> {
        let subject = format!("{}{key}", bucket.prefix);
        let message = self.read(&bucket.stream, &subject, None).await?;
        Ok(message.filter(|message| message.headers.get("KV-Operation").is_none()))
    }

    pub async fn put_entry(
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

    /// Publishes in the place of all that is on the subject; once, so that it is done now or not at all.
    pub async fn replace(&self, subject: String) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(ROLLUP, "sub");
        let sent = self
            .context
            .publish_with_headers(subject, headers, Bytes::new())
            .await;
        let sent = sent.map_err(|error| self.failed(error))?;
        sent.await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

/// Does something again until it does not fail, or has failed for too long.
pub async fn tried<T, E, F>(act: impl Fn() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + TRIED_FOR;
    loop {
        match act().await {
            Err(_) if Instant::now() < end => tokio::time::sleep(BETWEEN).await,
            done => return done,
        }
    }
}
