//! Evidence in files: one of lines for each node and epoch, named by the epoch and the number of its first record,
//! which is 1 unless the node gave what is before to another server.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::new_of;
use crate::contract::EvidenceBatch;
use crate::server::Error;

/// The files.
pub struct Archive {
    directory: PathBuf,
    /// How many records of a node and epoch are stored.
    stored: Mutex<HashMap<(String, String), Arc<Slot>>>,
}

/// What there is of an epoch, once it has been looked at.
type Slot = tokio::sync::Mutex<Option<Stored>>;

/// What there is of an epoch.
struct Stored {
    path: PathBuf,
    last: u64,
}

impl Archive {
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
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

    /// As [`Store::evidence`](super::Store::evidence).
    pub async fn store(&self, node: &str, batch: &EvidenceBatch) -> Result<u64, Error> {
        let known = {
            let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            let known = stored.entry((node.to_owned(), batch.epoch.clone()));
            known.or_default().clone()
        };
        let mut known = known.lock().await;
        let Stored { path, last } = match known.take() {
            Some(stored) => stored,
            None => {
                let (path, first) = self
                    .file(node, &batch.epoch, batch.first.max(1))
                    .map_err(Error::io(&self.directory.join(node)))?;
                let count = prepare(&path).map_err(Error::io(&path))?;
                let last = first - 1 + count;
                Stored { path, last }
            }
        };
        let new = new_of(batch, last);
        let written = tokio::task::block_in_place(|| append(&path, new));
        // If that failed, nobody knows how much of it is there: it is counted anew.
        written.map_err(Error::io(&path))?;
        let last = last + new.len() as u64;
        *known = Some(Stored { path, last });
        Ok(last)
    }
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
