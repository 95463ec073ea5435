//! Evidence to governance.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::Link;
use super::connection::words;
use super::pace::Pace;
use crate::contract::EvidenceBatch;
use crate::contract::evidence_client::EvidenceClient;
use crate::journal::{Cursor, Reader};
use crate::time::span_from_wire;

/// Of one batch.
const RECORDS: usize = 1000;
const BYTES: usize = 1024 * 1024;
/// A receipt comes by then, or the stream is given up.
const RECEIPT_WITHIN: Duration = Duration::from_secs(30);
/// However long the server asks to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The cursor's name: what governance has not had is kept.
pub const CURSOR: &str = "governance";

/// Reports for ever; tries again when that fails.
pub(super) async fn run(
    reader: Option<Reader>,
    channel: Channel,
    link: watch::Sender<Link>,
) -> Infallible {
    let Some(reader) = reader else {
        return std::future::pending().await;
    };
    let mut backoff = Pace::default().backoff();
    loop {
        let reason = match report(&reader, channel.clone(), &link).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        tracing::debug!(reason, "evidence stays here for now");
        tokio::time::sleep(backoff.next(None)).await;
    }
}

async fn report(
    reader: &Reader,
    channel: Channel,
    link: &watch::Sender<Link>,
) -> Result<Infallible, String> {
    let failed = |error: std::io::Error| format!("the evidence on disk cannot be read: {error}");
    let mut cursor: Cursor = reader.named(CURSOR).map_err(failed)?;
    // Nothing is said before there is something to say.
    cursor.wait().await;
    let (outbound, batches) = mpsc::channel(1);
    let mut service = EvidenceClient::new(channel);
    let receipts = service.report(ReceiverStream::new(batches)).await;
    let mut receipts = receipts.map_err(|status| words(&status))?.into_inner();
    loop {
        cursor.wait().await;
        let records = cursor.read(RECORDS, BYTES).map_err(failed)?;
        let (epoch, before, last) = (records.epoch.clone(), records.first - 1, records.last());
        if records.missed > 0 {
            tracing::error!(
                count = records.missed,
                "records were gone before governance had them"
            );
        }
        let batch = EvidenceBatch {
            epoch: records.epoch,
            first: records.first,
            records: records.lines,
        };
        if outbound.send(batch).await.is_err() {
            return Err("the server does not listen any more".to_owned());
        }
        let receipt = tokio::time::timeout(RECEIPT_WITHIN, receipts.message()).await;
        let receipt = match receipt {
            Ok(Ok(Some(receipt))) => receipt,
            Ok(Ok(None)) => return Err("the server has closed the stream".to_owned()),
            Ok(Err(status)) => return Err(words(&status)),
            Err(_) => return Err("there is no receipt".to_owned()),
        };
        if receipt.epoch != epoch {
            return Err("the receipt is for another epoch".to_owned());
        }
        if let Some(span) = &receipt.retry_after {
            tokio::time::sleep(span_from_wire(span).min(LONGEST_WAIT)).await;
        } else if receipt.stored <= before {
            return Err(format!(
                "the server has {} of what was receipted up to {before}",
                receipt.stored
            ));
        }
        let stored = receipt.stored.clamp(before, last);
        if stored > before {
            cursor.acknowledge(stored).map_err(failed)?;
            link.send_modify(|link| link.evidence_stored = stored);
        }
        cursor.seek(stored + 1);
    }
}
