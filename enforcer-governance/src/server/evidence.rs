//! Evidence from the nodes: stored once, receipted when it is in the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::contract::evidence_server::Evidence;
use crate::contract::{EvidenceBatch, EvidenceReceipt};
use crate::time::span_to_wire;

/// How long a node waits before it sends again what could not be stored.
const LATER: Duration = Duration::from_secs(10);

/// The service.
pub struct Collector(pub Arc<Shared>);

/// Whether it is lines of JSON under an epoch's name, with numbers.
#[allow(clippy::result_large_err)]
pub fn check(batch: &EvidenceBatch) -> Result<(), Status> {
    let epoch = &batch.epoch;
    if epoch.len() != 32 || !epoch.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Status::invalid_argument(
            "expected an epoch of 32 hexadecimal digits",
        ));
    }
    if batch
        .first
        .checked_add(batch.records.len() as u64)
        .is_none()
    {
        return Err(Status::invalid_argument(format!(
            "got {} records from number {} on, and there are no such numbers",
            batch.records.len(),
            batch.first
        )));
    }
    let is_line = |record: &Vec<u8>| {
        !record.contains(&b'\n') && serde_json::from_slice::<serde::de::IgnoredAny>(record).is_ok()
    };
    if !batch.records.iter().all(is_line) {
        return Err(Status::invalid_argument(
            "expected records of JSON, each on one line",
        ));
    }
    Ok(())
}

impl Collector {
    async fn receipt(&self, node: &str, batch: &EvidenceBatch) -> Result<EvidenceReceipt, Status> {
        check(batch)?;
        let mut receipt = EvidenceReceipt {
            epoch: batch.epoch.clone(),
            ..EvidenceReceipt::default()
        };
        match self.0.store.evidence(node, batch).await {
            Ok(stored) => {
                receipt.stored = stored;
                self.0
                    .registry
                    .note(node, |node| node.evidence_stored = stored);
            }
            Err(error) => {
                tracing::error!(node, "evidence cannot be stored: {}", error.chain());
                receipt.retry_after = Some(span_to_wire(LATER));
            }
        }
        Ok(receipt)
    }
}

#[tonic::async_trait]
impl Evidence for Collector {
    type ReportStream = ReceiverStream<Result<EvidenceReceipt, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<EvidenceBatch>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let node = super::node_of(&request)?;
        let mut batches = request.into_inner();
        let (receipts, stream) = mpsc::channel(4);
        let collector = Self(self.0.clone());
        tokio::spawn(async move {
            let mut closing = collector.0.closing.subscribe();
            loop {
                let batch = tokio::select! {
                    batch = batches.message() => batch,
                    _ = closing.changed() => break,
                };
                let Ok(Some(batch)) = batch else { break };
                let receipt = collector.receipt(&node, &batch).await;
                let failed = receipt.is_err();
                if receipts.send(receipt).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_has_a_number() {
        let records_from = |first| EvidenceBatch {
            epoch: "0".repeat(32),
            first,
            records: vec![b"{}".to_vec(); 2],
        };
        check(&records_from(u64::MAX - 2)).expect("they have");
        let refused = check(&records_from(u64::MAX - 1)).expect_err("the last has none");
        assert!(refused.message().contains("no such numbers"), "{refused}");
    }
}
