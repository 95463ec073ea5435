//! Evidence in a stream: a subject for each node and epoch, a message for each batch of lines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::header::{HeaderMap, NATS_MESSAGE_ID as MESSAGE_ID};
use async_nats::jetstream::stream::Stream;

use super::bus::{Bus, PIECE, Published};
use super::token;
use crate::contract::EvidenceBatch;
use crate::server::Error;
use crate::server::store::new_of;

/// The header of a batch: the number of its last record.
const LAST: &str = "Enforcer-Last";

/// The stream, and what is known of it.
pub struct Evidence {
    stream: Stream,
    epochs: Mutex<HashMap<String, Arc<Slot>>>,
}

/// The last message of an epoch, and the last record in it; both 0 if there is none.
type Slot = tokio::sync::Mutex<Option<(u64, u64)>>;

impl Evidence {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            epochs: Mutex::default(),
        }
    }

    /// Where the evidence of an epoch ends.
    async fn end(&self, bus: &Bus, subject: &str) -> Result<(u64, u64), Error> {
        let Some(message) = bus.read(&self.stream, subject, None).await? else {
            return Ok((0, 0));
        };
        let last = message
            .headers
            .get(LAST)
            .and_then(|it| it.as_str().parse().ok());
        let last = last.ok_or_else(|| {
            bus.failed(format!(
                "{subject} ends with a message that no server has written: it has no {LAST}"
            ))
        })?;
        Ok((message.sequence, last))
    }

    /// As [`Store::evidence`](super::super::Store::evidence).
    pub async fn store(&self, bus: &Bus, node: &str, batch: &EvidenceBatch) -> Result<u64, Error> {
        let subject = format!("enforcer.evidence.{}.{}", token(node), batch.epoch);
        let slot = {
            let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
            epochs.entry(subject.clone()).or_default().clone()
        };
        let mut slot = slot.lock().await;
        // If anything fails, nobody knows what is there: it is looked up anew.
        let (mut sequence, mut last) = match slot.take() {
            Some(end) => end,
            None => self.end(bus, &subject).await?,
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
            let (published, at) = bus
                .publish(&subject, headers, payload, Some(sequence))
                .await?;
            if published == Published::Late {
                // Another server has taken some of it.
                return Ok(self.end(bus, &subject).await?.1);
            }
            (sequence, last) = (at, end);
            new = &new[count..];
        }
        *slot = Some((sequence, last));
        Ok(last)
    }
}
