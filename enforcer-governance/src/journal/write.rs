//! The side that appends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;

use super::line::{Link, Read};
use super::read::{self, Reader};
use super::segment::{self, Segment};
use super::{HEAD, Head, KEY};
use crate::keys::{self, PublicKey, SigningKey};

/// What a journal may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of all files together: beyond, the oldest go.
    pub bytes: u64,
    /// How old a file may become after its last record.
    pub age: Duration,
    /// A cursor that must have had records before they go: what it has not had stays, and when there is no room beside
    /// that, nothing more is taken.
    pub keep_for: Option<&'static str>,
}

/// A file is followed by another one at this part of all.
const FILES: u64 = 32;
/// Or at this size,
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// or at this age.
const FILE_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why records are not in the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full, or fails.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its key is not there.
    #[error("no key for the checkpoints")]
    Key(#[from] keys::Error),
    /// Another process appends.
    #[error("another daemon writes the log in {}; give one of them another --state", .0.display())]
    Taken(PathBuf),
    /// The records it has must stay.
    #[error(
        "{} has its {limit} bytes, of which nothing may go before governance has it; let the node reach its server, or give it more",
        directory.display()
    )]
    Full {
        /// Of the journal.
        directory: PathBuf,
        /// How many bytes it may have.
        limit: u64,
    },
    /// Not JSON.
    #[error("a record cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// A journal that is written. What was appended counts once it is committed.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    limits: Limits,
    open: Option<Open>,
    /// Bytes of all files but the last, as last looked.
    older_bytes: u64,
    head: watch::Sender<Head>,
}

#[derive(Debug)]
struct Open {
    /// As long as it is open, nobody else appends.
    _lock: File,
    key: SigningKey,
    segment: Segment,
    file: File,
    began: SystemTime,
    /// What is on disk.
    bytes: u64,
    sequence: u64,
    hash: String,
    /// What was appended since.
    pending: Vec<u8>,
    pending_sequence: u64,
    pending_hash: String,
    /// The last checkpoint among it.
    checkpoint: Option<Vec<u8>>,
}

impl Journal {
    /// The journal in this directory, which is made if it is not there. It is opened when there is something to append:
    /// a disk that is full now may have room then.
    #[must_use]
    pub fn new(directory: &Path, limits: Limits) -> Self {
        Self {
            directory: directory.to_owned(),
            limits,
            open: None,
            older_bytes: 0,
            head: watch::Sender::default(),
        }
    }

    /// For those who read.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(&self.directory, self.head.subscribe())
    }

    /// How far it is written.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head.borrow().clone()
    }

    /// What its checkpoints are signed with, once it is open.
    #[must_use]
    pub fn key(&self) -> Option<PublicKey> {
        self.open.as_ref().map(|it| it.key.public())
    }

    /// Opens it, if it is not open yet.
    ///
    /// # Errors
    /// If the directory cannot be read or written.
    pub fn open(&mut self) -> Result<(), Error> {
        self.opened().map(drop)
    }

    fn opened(&mut self) -> Result<&mut Open, Error> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let directory = &self.directory;
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(directory)
                    .map_err(io_error(directory))?;
                let lock = lock(directory)?;
                let key = key(directory)?;
                let open = Open::last(directory, lock, key).map_err(io_error(directory))?;
                self.older_bytes = older_bytes(directory, &open.segment);
                self.head.send_replace(open.head());
                open
            }
        };
        Ok(self.open.insert(open))
    }

    /// Appends a record: an object without the fields that the journal adds. Its number.
    ///
    /// # Errors
    /// If the journal cannot be opened or is full; then it is as if nothing had been asked.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<u64, Error> {
        self.add(record, false)
    }

    /// Appends a record of the kind [`CHECKPOINT`](super::CHECKPOINT), and signs it.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn checkpoint<T: Serialize>(&mut self, record: &T) -> Result<u64, Error> {
        self.add(record, true)
    }

    fn add<T: Serialize>(&mut self, record: &T, signed: bool) -> Result<u64, Error> {
        let (older, limit) = (self.older_bytes, self.limits.bytes);
        let keeps = self.limits.keep_for.is_some();
        let open = self.opened()?;
        if keeps && older + open.bytes + open.pending.len() as u64 >= limit {
            return Err(Error::Full {
                directory: self.directory.clone(),
                limit,
            });
        }
        let link = Link {
            epoch: &open.segment.epoch,
            sequence: open.pending_sequence + 1,
            previous: &open.pending_hash,
        };
        let (line, hash) = link.line(record, signed.then_some(&open.key))?;
        open.pending.extend_from_slice(&line);
        open.pending_sequence += 1;
        open.pending_hash = hash;
        if signed {
            open.checkpoint = Some(line);
        }
        Ok(open.pending_sequence)
    }

    /// Puts on disk what was appended, and lets those who read have it: its lines.
    ///
    /// # Errors
    /// If that fails, nothing of it was appended, and its numbers are given again.
    pub fn commit(&mut self) -> Result<Vec<u8>, Error> {
        let Some(open) = &mut self.open else {
            return Ok(Vec::new());
        };
        if open.pending.is_empty() {
            return Ok(Vec::new());
        }
        let full = open.bytes >= FILE_BYTES.min(self.limits.bytes / FILES);
        let old = open.began.elapsed().is_ok_and(|age| age >= FILE_AGE);
        if open.bytes > 0 && (full || old) {
            open.next(&self.directory)
                .map_err(io_error(&self.directory))?;
            self.older_bytes = older_bytes(&self.directory, &open.segment);
        }
        let checkpoint = open.checkpoint.take();
        let lines = open.write().map_err(io_error(&open.segment.path))?;
        if let Some(line) = checkpoint
            && let Err(error) = fs::write(self.directory.join(HEAD), line)
        {
            tracing::warn!(%error, "the last checkpoint is not noted beside the log");
        }
        self.head.send_replace(open.head());
        Ok(lines)
    }

    /// The last record that has to go, to keep the limits. Tell of it first, with a record of the kind
    /// [`TRIMMED`](super::TRIMMED).
    #[must_use]
    pub fn excess(&self) -> Option<u64> {
        let open = self.open.as_ref()?;
        let kept_from = match self.limits.keep_for {
            Some(name) => read::acknowledged(&self.directory, name, &open.segment.epoch).ok()? + 1,
            None => u64::MAX,
        };
        let found = segment::of(&self.directory, &open.segment.epoch).ok()?;
        let mut total = self.older_bytes + open.bytes;
        let mut through = None;
        for pair in found.windows(2) {
            let (segment, next) = (&pair[0], &pair[1]);
            let is_old = fs::metadata(&segment.path)
                .and_then(|it| it.modified())
                .is_ok_and(|it| it.elapsed().is_ok_and(|age| age > self.limits.age));
            if next.first > kept_from || !(is_old || total > self.limits.bytes) {
                break;
            }
            total -= segment.bytes().unwrap_or(0).min(total);
            through = Some(next.first - 1);
        }
        through
    }

    /// Removes files that have nothing after record `through`, and those of older epochs when the limits want it.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn trim(&mut self, through: u64) -> Result<(), Error> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let found =
            segment::of(&self.directory, &open.segment.epoch).map_err(io_error(&self.directory))?;
        for pair in found.windows(2) {
            if pair[1].first <= through + 1 {
                fs::remove_file(&pair[0].path).map_err(io_error(&pair[0].path))?;
            }
        }
        self.older_bytes = older_bytes(&self.directory, &open.segment);
        Ok(())
    }

    /// Begins anew if somebody has taken the files away, and forgets epochs that ended longer ago than records are kept.
    pub fn look_after(&mut self) {
        let Some(open) = &self.open else {
            return;
        };
        let inode = |it: fs::Metadata| (it.dev(), it.ino());
        let there = fs::metadata(&open.segment.path).map(inode).ok();
        if there.is_none() || there != open.file.metadata().map(inode).ok() {
            self.open = None;
            return;
        }
        for segment in segment::all(&self.directory).unwrap_or_default() {
            let is_old = fs::metadata(&segment.path)
                .and_then(|it| it.modified())
                .is_ok_and(|it| it.elapsed().is_ok_and(|age| age > self.limits.age));
            if segment.epoch != open.segment.epoch && is_old {
                let _ = fs::remove_file(&segment.path);
            }
        }
    }
}

impl Open {
    /// Goes on after the last record that is there.
    fn last(directory: &Path, lock: File, key: SigningKey) -> io::Result<Self> {
        let all = segment::all(directory)?;
        let last_epoch = all.last().map(|it| it.epoch.clone());
        let mut torn = None;
        for segment in all.into_iter().rev() {
            if Some(&segment.epoch) != last_epoch.as_ref() {
                break;
            }
            let mut file = segment.open()?;
            let (line, whole) = segment::last_line(&mut file)?;
            let Some(line) = line else {
                // Made, and not written to before the last daemon died.
                torn = Some(segment);
                continue;
            };
            let Some(read) =
                Read::parse(&line).filter(|it| it.is_whole() && it.epoch == segment.epoch)
            else {
                tracing::error!(file = %segment.path.display(), "the end of the log is damaged: another epoch begins");
                break;
            };
            if let Some(empty) = torn {
                fs::remove_file(&empty.path)?;
            }
            // What was being written when the last daemon died.
            file.set_len(whole)?;
            let began = file
                .metadata()?
                .created()
                .unwrap_or_else(|_| SystemTime::now());
            return Ok(Self {
                _lock: lock,
                key,
                segment,
                file,
                began,
                bytes: whole,
                sequence: read.sequence,
                hash: read.hash.clone(),
                pending: Vec::new(),
                pending_sequence: read.sequence,
                pending_hash: read.hash,
                checkpoint: None,
            });
        }
        let segment = Segment::new(directory, &new_epoch(last_epoch.as_deref()), 1);
        Ok(Self {
            _lock: lock,
            key,
            file: segment.open()?,
            segment,
            began: SystemTime::now(),
            bytes: 0,
            sequence: 0,
            hash: String::new(),
            pending: Vec::new(),
            pending_sequence: 0,
            pending_hash: String::new(),
            checkpoint: None,
        })
    }

    fn head(&self) -> Head {
        Head {
            epoch: self.segment.epoch.clone(),
            sequence: self.sequence,
        }
    }

    /// Goes on in another file.
    fn next(&mut self, directory: &Path) -> io::Result<()> {
        let segment = Segment::new(directory, &self.segment.epoch, self.sequence + 1);
        self.file = segment.open()?;
        File::open(directory)?.sync_all()?;
        self.segment = segment;
        self.began = SystemTime::now();
        self.bytes = 0;
        Ok(())
    }

    fn write(&mut self) -> io::Result<Vec<u8>> {
        let lines = std::mem::take(&mut self.pending);
        let written = self
            .file
            .write_all(&lines)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // The disk is full, perhaps: no half of a batch stays.
            self.pending_sequence = self.sequence;
            self.pending_hash.clone_from(&self.hash);
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        self.sequence = self.pending_sequence;
        self.hash.clone_from(&self.pending_hash);
        Ok(lines)
    }
}

/// What checkpoints are signed with. What is no key, because the machine went down when it was made, is put aside: records
/// must go somewhere, and whoever verifies the older ones with the new key is told that it did not sign them.
fn key(directory: &Path) -> Result<SigningKey, Error> {
    let path = directory.join(KEY);
    match SigningKey::load_or_make(&path) {
        Err(error @ keys::Error::Format { .. }) => {
            let aside = path.with_extension("pem.bad");
            tracing::error!(
                "{error}; it is moved to {}, and what is new in the log is signed with a new one",
                aside.display()
            );
            fs::rename(&path, &aside).map_err(io_error(&path))?;
            Ok(SigningKey::load_or_make(&path)?)
        }
        done => Ok(done?),
    }
}

/// For the one who appends.
fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Taken(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(&path)(source)),
    }
}

fn older_bytes(directory: &Path, last: &Segment) -> u64 {
    let all = segment::all(directory).unwrap_or_default();
    let older = all.iter().filter(|it| *it != last);
    older.filter_map(|it| it.bytes().ok()).sum()
}

/// The time in ms and chance, in hex, so that later ones sort after earlier ones.
fn new_epoch(last: Option<&str>) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |it| it.as_millis() as u64);
    let last = last.and_then(|it| u64::from_str_radix(it.get(..12)?, 16).ok());
    let time = now.max(last.map_or(0, |it| it + 1));
    let chance = rand::random::<u128>() >> 48;
    format!("{time:012x}{chance:020x}")
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Io { path, source }
}
