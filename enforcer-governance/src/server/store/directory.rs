//! Everything in files of one directory, for one server.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use enforcer_bundle::Digest;
use serde_json::Value;
use tokio::sync::watch;

use super::archive::Archive;
use super::{Head, Log, Revision, Store, Table};
use crate::contract::EvidenceBatch;
use crate::envelope::Envelope;
use crate::files;
use crate::server::Error;
use crate::server::json::{read_json, write_json};
use crate::statement::Revocation;

/// The directory.
pub struct Directory {
    path: PathBuf,
    content: Mutex<Content>,
    archive: Archive,
    /// Nobody else writes here.
    changes: watch::Sender<u64>,
    _lock: File,
}

struct Content {
    head: Option<Head>,
    revision: Revision,
    revocations: Vec<(u64, Envelope)>,
    tables: HashMap<Table, BTreeMap<String, Value>>,
}

impl Directory {
    /// # Errors
    /// If another server uses the directory, or what is in it cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let blobs = path.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs))?;
        let lock = path.join("lock");
        let held = File::create(&lock).map_err(Error::io(&lock))?;
        if held.try_lock().is_err() {
            return Err(Error::Refused(format!(
                "another server uses {}; stop it, or give --state another directory",
                path.display()
            )));
        }
        let head: Option<Head> = read_json(&path.join("head.json"))?;
        let mut revocations = Vec::new();
        let lines = path.join("revocations.jsonl");
        let bytes = files::read(&lines).map_err(Error::io(&lines))?;
        for line in bytes.unwrap_or_default().split(|byte| *byte == b'\n') {
            // A line that was not written whole was not committed.
            if let Ok(envelope) = serde_json::from_slice::<Envelope>(line) {
                let revocation: Revocation = serde_json::from_slice(&envelope.payload)
                    .map_err(|error| Error::content(&lines, &error))?;
                revocations.push((revocation.sequence, envelope));
            }
        }
        let mut tables = HashMap::new();
        for table in Table::ALL {
            let values = read_json(&table_file(path, table))?;
            tables.insert(table, values.unwrap_or_default());
        }
        Ok(Self {
            path: path.to_owned(),
            content: Mutex::new(Content {
                revision: u64::from(head.is_some()),
                head,
                revocations,
                tables,
            }),
            archive: Archive::new(path.join("evidence")),
            changes: watch::Sender::new(0),
            _lock: held,
        })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(&digest.0)
    }

    /// Changes a table, on disk first.
    fn change<T>(
        &self,
        table: Table,
        change: impl FnOnce(&mut BTreeMap<String, Value>) -> T,
    ) -> Result<T, Error> {
        let mut content = self.content();
        let mut values = content.tables.get(&table).cloned().unwrap_or_default();
        let result = change(&mut values);
        write_json(&table_file(&self.path, table), &values)?;
        content.tables.insert(table, values);
        Ok(result)
    }
}

fn table_file(directory: &Path, table: Table) -> PathBuf {
    directory.join(format!("{}.json", table.name()))
}

#[tonic::async_trait]
impl Store for Directory {
    async fn head(&self) -> Result<Option<(Head, Revision)>, Error> {
        let content = self.content();
        let head = content.head.clone();
        Ok(head.map(|head| (head, content.revision)))
    }

    async fn replace_head(&self, head: &Head, expected: Revision) -> Result<bool, Error> {
        let mut content = self.content();
        if content.revision != expected {
            return Ok(false);
        }
        write_json(&self.path.join("head.json"), head)?;
        content.head = Some(head.clone());
        content.revision += 1;
        Ok(true)
    }

    async fn keep(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of_bytes(bytes);
        let path = self.blob_file(&digest);
        files::replace(&path, bytes).map_err(Error::io(&path))?;
        Ok(digest)
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_file(digest);
        fs::read(&path).map_err(Error::io(&path))
    }

    async fn forget(&self, digest: &Digest) {
        // If it stays, it is only that.
        let _ = fs::remove_file(self.blob_file(digest));
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Envelope>, Error> {
        let content = self.content();
        let known = content.revocations.partition_point(|(it, _)| *it <= after);
        let new = content.revocations[known..].iter();
        Ok(new.map(|(_, envelope)| envelope.clone()).collect())
    }

    async fn revoke(&self, number: u64, envelope: &Envelope) -> Result<bool, Error> {
        let mut content = self.content();
        if content
            .revocations
            .last()
            .is_some_and(|(last, _)| *last >= number)
        {
            return Ok(false);
        }
        let path = self.path.join("revocations.jsonl");
        let line = serde_json::to_string(envelope).map_err(io::Error::from);
        line.and_then(|line| files::append(&path, &line))
            .map_err(Error::io(&path))?;
        content.revocations.push((number, envelope.clone()));
        Ok(true)
    }

    async fn confirm(&self) -> Result<(), Error> {
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn note(&self, log: Log, line: &Value) -> Result<(), Error> {
        let path = self.path.join(format!("{}.jsonl", log.name()));
        files::append(&path, &line.to_string()).map_err(Error::io(&path))
    }

    async fn put(&self, table: Table, values: BTreeMap<String, Value>) -> Result<(), Error> {
        self.change(table, |all| all.extend(values))
    }

    async fn get(&self, table: Table, name: &str) -> Result<Option<Value>, Error> {
        let content = self.content();
        let values = content.tables.get(&table);
        Ok(values.and_then(|values| values.get(name).cloned()))
    }

    async fn take(&self, table: Table, name: &str) -> Result<Option<Value>, Error> {
        self.change(table, |all| all.remove(name))
    }

    async fn all(&self, table: Table) -> Result<BTreeMap<String, Value>, Error> {
        let content = self.content();
        Ok(content.tables.get(&table).cloned().unwrap_or_default())
    }

    async fn evidence(&self, node: &str, batch: &EvidenceBatch) -> Result<u64, Error> {
        self.archive.store(node, batch).await
    }
}
