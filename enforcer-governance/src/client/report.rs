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
use crate::spool::Reader;

/// Of one batch.
const RECORDS: usize = 1000;
const BYTES: usize = 1024 * 1024;
/// A receipt comes by then, or the stream is given up.
const RECEIPT_WITHIN: Duration = Duration::from_secs(30);

/// Reports for ever; tries again when that fails.
pub(super) async fn run(
    reader: Option<Reader>,
    channel: Channel,
    link: watch::Sender<Link>,
) -> Infallible {
    let Some(mut reader) = reader else {
        return std::future::pending().await;
    };
    let mut backoff = Pace::default().backoff();
    loop {
        let reason = match report(&mut reader, channel.clone(), &link).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        tracing::debug!(reason, "evidence stays here for now");
        tokio::time::sleep(backoff.next(None)).await;
    }
}

async fn report(
    reader: &mut Reader,
    channel: Channel,
    link: &watch::Sender<Link>,
) -> Result<Infallible, String> {
    let failed = |error: std::io::Error| format!("the evidence on disk cannot be read: {error}");
    let mut stored = reader.stored().map_err(failed)?;
    // Nothing is said before there is something to say.
    reader.wait_past(stored).await;
    let (outbound, batches) = mpsc::channel(1);
    let mut service = EvidenceClient::new(channel);
    let receipts = service.report(ReceiverStream::new(batches)).await;
    let mut receipts = receipts.map_err(|status| words(&status))?.into_inner();
    loop {
        reader.wait_past(stored).await;
        let (first, records) = reader.read(stored + 1, RECORDS, BYTES).map_err(failed)?;
        let batch = EvidenceBatch {
            epoch: reader.epoch().to_owned(),
            first,
            records,
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
        if receipt.epoch != reader.epoch() {
            return Err("the receipt is for another epoch".to_owned());
        }
        if receipt.stored <= stored {
            return Err(format!(
                "the server has {} of what was receipted up to {stored}",
                receipt.stored
            ));
        }
        reader.trim(receipt.stored).map_err(failed)?;
        stored = receipt.stored;
        link.send_modify(|link| link.evidence_stored = stored);
    }
}
