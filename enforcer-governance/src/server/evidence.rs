//! Evidence from the nodes: stored once, receipted when it is on disk.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::contract::evidence_server::Evidence;
use crate::contract::{EvidenceBatch, EvidenceReceipt};

/// Where evidence is kept: a file of lines for each node and epoch, named by the epoch and the number of its first
/// record: 1, unless the node gave what is before to another server.
pub struct Archive {
    directory: PathBuf,
    /// How many records of a node and epoch are stored.
    stored: Mutex<HashMap<(String, String), Arc<Slot>>>,
}

impl Archive {
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.join("evidence"),
            stored: Mutex::default(),
        }
    }

    /// The file of an epoch and the number of its first record; one that begins with `first` if there is none yet.
    fn file(&self, node: &str, epoch: &str, first: u64) -> io::Result<(PathBuf, u64)> {
        let directory = self.directory.join(node);
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.split_once('-'));
            if let Some((of, begins)) = name
                && of == epoch
                && let Ok(begins) = begins.parse()
            {
                return Ok((path, begins));
            }
        }
        Ok((directory.join(format!("{epoch}-{first}.jsonl")), first))
    }

    /// Stores what is new of a batch, and says up to where everything is stored.
    async fn store(&self, node: &str, batch: EvidenceBatch) -> Result<u64, Status> {
        let epoch = &batch.epoch;
        if epoch.len() != 32 || !epoch.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Status::invalid_argument(
                "expected an epoch of 32 hexadecimal digits",
            ));
        }
        let is_line = |record: &Vec<u8>| {
            !record.contains(&b'\n')
                && serde_json::from_slice::<serde::de::IgnoredAny>(record).is_ok()
        };
        if !batch.records.iter().all(is_line) {
            return Err(Status::invalid_argument(
                "expected records of JSON, each on one line",
            ));
        }
        let known = {
            let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            let known = stored.entry((node.to_owned(), epoch.clone()));
            known.or_default().clone()
        };
        let mut known = known.lock().await;
        let Stored { path, last } = match known.take() {
            Some(stored) => stored,
            None => {
                let directory = self.directory.join(node);
                let (path, first) = self
                    .file(node, epoch, batch.first.max(1))
                    .map_err(|error| failed(&directory, &error))?;
                let count = prepare(&path).map_err(|error| failed(&path, &error))?;
                let last = first - 1 + count;
                Stored { path, last }
            }
        };
        // A gap is asked for again, by a receipt that is behind.
        let there = (last + 1).saturating_sub(batch.first) as usize;
        let new = if batch.first > last + 1 {
            &[]
        } else {
            batch.records.get(there..).unwrap_or_default()
        };
        let written = tokio::task::block_in_place(|| append(&path, new));
        // If that failed, nobody knows how much of it is there: it is counted anew.
        written.map_err(|error| failed(&path, &error))?;
        let last = last + new.len() as u64;
        *known = Some(Stored { path, last });
        Ok(last)
    }
}

/// What there is of an epoch, once it has been looked at.
type Slot = tokio::sync::Mutex<Option<Stored>>;

/// What there is of an epoch.
struct Stored {
    path: PathBuf,
    last: u64,
}

fn failed(path: &Path, error: &io::Error) -> Status {
    tracing::error!(path = %path.display(), %error, "evidence cannot be stored");
    Status::unavailable("evidence cannot be stored; try again later")
}

/// Counts the records, and takes away what was not written whole.
fn prepare(path: &Path) -> io::Result<u64> {
    let bytes = crate::files::read(path)?.unwrap_or_default();
    let end = bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = end.map_or(0, |end| end + 1);
    let file = open(path)?;
    file.set_len(whole as u64)?;
    file.sync_all()?;
    for directory in path.ancestors().skip(1).take(2) {
        File::open(directory)?.sync_all()?;
    }
    Ok(bytes[..whole].iter().filter(|byte| **byte == b'\n').count() as u64)
}

fn append(path: &Path, records: &[Vec<u8>]) -> io::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend_from_slice(record);
        bytes.push(b'\n');
    }
    let mut file = open(path)?;
    file.write_all(&bytes)?;
    file.sync_data()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// The service.
pub struct Collector(pub Arc<Shared>);

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
        let shared = self.0.clone();
        tokio::spawn(async move {
            let mut closing = shared.closing.subscribe();
            loop {
                let batch = tokio::select! {
                    batch = batches.message() => batch,
                    _ = closing.changed() => break,
                };
                let Ok(Some(batch)) = batch else { break };
                let epoch = batch.epoch.clone();
                let receipt = shared.archive.store(&node, batch).await;
                if let Ok(stored) = &receipt {
                    let note = |node: &mut crate::contract::Node| node.evidence_stored = *stored;
                    shared.registry.note(&node, note);
                }
                let receipt = receipt.map(|stored| EvidenceReceipt {
                    epoch,
                    stored,
                    retry_after: None,
                });
                let failed = receipt.is_err();
                if receipts.send(receipt).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
