//! A node that verifies and acknowledges as real ones do, and has neither kernel nor disk.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use enforcer_governance::{
    contract::{
        Acknowledgement, EvidenceBatch, Hello, NodeMessage, evidence_client::EvidenceClient,
        governance_client::GovernanceClient, node_message, server_message,
    },
    envelope::Envelope,
    held::{Held, Numbers},
};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// What a node has, and since when.
pub type Has = (Numbers, Instant);

/// What came of messages. Each real node verifies on processors of its own; here those that have the same and get the
/// same share what came of it, so that the processors are left to the servers.
#[derive(Default)]
pub struct Verified(Mutex<Vec<Step>>);

struct Step {
    before: Arc<Held>,
    message: Envelope,
    after: Arc<Held>,
}

impl Verified {
    fn take(&self, held: &Arc<Held>, message: Envelope) -> Result<Arc<Held>> {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |it: &&Step| Arc::ptr_eq(&it.before, held) && it.message == message;
        if let Some(step) = steps.iter().find(same) {
            return Ok(step.after.clone());
        }
        let (after, _) = held.take(&message, Timestamp::now())?;
        let after = Arc::new(after);
        steps.push(Step {
            before: held.clone(),
            message,
            after: after.clone(),
        });
        Ok(after)
    }
}

/// What all nodes have in common.
#[derive(Clone, Default)]
pub struct Common {
    pub verified: Arc<Verified>,
    /// How many connections have ended in the middle of something.
    pub lost: Arc<AtomicUsize>,
}

/// A node.
pub struct Node {
    pub name: String,
    /// The servers, in the order in which it turns to them.
    pub endpoints: Vec<Endpoint>,
    pub held: Arc<Held>,
    pub common: Common,
    pub has: watch::Sender<Option<Has>>,
    /// How many records of evidence there are to report.
    pub records: watch::Receiver<u64>,
    /// How many of them are receipted.
    pub stored: watch::Sender<u64>,
}

impl Node {
    /// Follows one server or another for ever.
    pub async fn run(mut self, gate: Arc<Semaphore>) {
        loop {
            let asked = match self.follow(&gate).await {
                Ok(asked) => asked,
                Err(_) => {
                    self.common.lost.fetch_add(1, Ordering::Relaxed);
                    Duration::from_secs(1)
                }
            };
            self.endpoints.rotate_left(1);
            tokio::time::sleep(asked.mul_f64(rand::random())).await;
        }
    }

    /// Until the server asks to come back later.
    async fn follow(&mut self, gate: &Semaphore) -> Result<Duration> {
        let channel = {
            let _turn = gate.acquire().await?;
            self.endpoints[0].connect().await?
        };
        let evidence = report(channel.clone(), self.records.clone(), self.stored.clone());
        tokio::select! {
            ended = self.sync(channel) => ended,
            ended = evidence => bail!("evidence: {:?}", ended.err()),
        }
    }

    async fn sync(&mut self, channel: Channel) -> Result<Duration> {
        let (outbound, requests) = mpsc::channel(4);
        let hello = Hello {
            node: self.name.clone(),
            held: Some(self.held.summary()),
            ..Hello::default()
        };
        let message = Some(node_message::Message::Hello(hello));
        outbound.send(NodeMessage { message }).await?;
        let mut service = GovernanceClient::new(channel).max_decoding_message_size(usize::MAX);
        let stream = service.sync(ReceiverStream::new(requests)).await?;
        let mut inbound = stream.into_inner();
        while let Some(heard) = inbound.message().await? {
            use server_message::Message;
            if let Some(asked) = heard.retry_after {
                return Ok(Duration::try_from(asked).unwrap_or_default());
            }
            let Some(
                Message::TrustRoot(envelope)
                | Message::Snapshot(envelope)
                | Message::Delta(envelope)
                | Message::Revocation(envelope)
                | Message::Freshness(envelope),
            ) = heard.message
            else {
                bail!("an empty message");
            };
            let envelope: Envelope = envelope.into();
            self.held = self.common.verified.take(&self.held, envelope)?;
            self.has
                .send_replace(Some((self.held.numbers(), Instant::now())));
            let acknowledgement = Acknowledgement {
                nonce: heard.nonce,
                held: Some(self.held.summary()),
                active_at: None,
            };
            let message = Some(node_message::Message::Acknowledgement(acknowledgement));
            outbound.send(NodeMessage { message }).await?;
        }
        bail!("the server has closed the stream")
    }
}

/// The epoch of every node's evidence.
pub const EPOCH: &str = "00000000000000000000000000000001";

/// Reports what there is, and what comes to it: numbers.
async fn report(
    channel: Channel,
    mut records: watch::Receiver<u64>,
    stored: watch::Sender<u64>,
) -> Result<()> {
    let (outbound, batches) = mpsc::channel(1);
    let first = *stored.borrow() + 1;
    // Nothing is said before there is something to say.
    records.wait_for(|count| *count >= first).await?;
    let mut service = EvidenceClient::new(channel);
    let receipts = service.report(ReceiverStream::new(batches)).await?;
    let mut receipts = receipts.into_inner();
    loop {
        let first = *stored.borrow() + 1;
        let last = *records.wait_for(|count| *count >= first).await?;
        let batch = EvidenceBatch {
            epoch: EPOCH.to_owned(),
            first,
            records: (first..=last)
                .map(|it| it.to_string().into_bytes())
                .collect(),
        };
        outbound.send(batch).await?;
        let Some(receipt) = receipts.message().await? else {
            bail!("the server has closed the stream");
        };
        if let Some(asked) = receipt.retry_after {
            tokio::time::sleep(Duration::try_from(asked).unwrap_or_default()).await;
        } else {
            stored.send_replace(receipt.stored);
        }
    }
}
