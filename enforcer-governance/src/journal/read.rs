//! The side that reads: any number of cursors, each at its own pace.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::Head;
use super::segment;
use crate::files;

/// Where the positions of named cursors are kept.
const CURSORS: &str = "cursors";

/// A journal, for those who read it while it is written.
#[derive(Clone, Debug)]
pub struct Reader {
    directory: PathBuf,
    head: watch::Receiver<Head>,
}

/// A place in a journal, from which on it is read. It follows from file to file, and into the next epoch.
#[derive(Debug)]
pub struct Cursor {
    reader: Reader,
    name: Option<String>,
    epoch: String,
    /// The record that is read next.
    next: u64,
    at: Option<At>,
}

/// Where that is.
#[derive(Debug)]
struct At {
    path: PathBuf,
    offset: u64,
}

/// Some records, as they are in the journal.
#[derive(Debug, Default)]
pub struct Batch {
    /// Of all of them.
    pub epoch: String,
    /// The number of the first of them.
    pub first: u64,
    /// A line each, without its end.
    pub lines: Vec<Vec<u8>>,
    /// How many before the first should have been read and were no longer there.
    pub missed: u64,
}

impl Batch {
    /// The number of the last one; the one before the first if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        (self.first + self.lines.len() as u64).saturating_sub(1)
    }
}

impl Reader {
    pub(super) fn new(directory: &Path, head: watch::Receiver<Head>) -> Self {
        Self {
            directory: directory.to_owned(),
            head,
        }
    }

    /// How far the journal is written.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head.borrow().clone()
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The number of the oldest record of this epoch that is there; the next one's if there is none.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn oldest(&self) -> io::Result<u64> {
        let head = self.head();
        let found = segment::of(&self.directory, &head.epoch)?;
        Ok(found.first().map_or(head.sequence + 1, |it| it.first))
    }

    /// From record `next` of this epoch on, or from the first after it that is still there.
    #[must_use]
    pub fn from(&self, next: u64) -> Cursor {
        Cursor {
            reader: self.clone(),
            name: None,
            epoch: self.head().epoch,
            next: next.max(1),
            at: None,
        }
    }

    /// From the first record on that was not acknowledged by a cursor of this name, whichever process had it; a new name
    /// begins with the oldest record.
    ///
    /// # Errors
    /// If its position cannot be read.
    pub fn named(&self, name: &str) -> io::Result<Cursor> {
        let (epoch, last) = position(&self.directory, name)?.unwrap_or_default();
        Ok(Cursor {
            reader: self.clone(),
            name: Some(name.to_owned()),
            epoch,
            next: last + 1,
            at: None,
        })
    }
}

impl Cursor {
    /// The epoch it is in; empty before there is one.
    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The last record before it, which is what was acknowledged of a named one that has not read yet.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// How many records there are to be read.
    #[must_use]
    pub fn behind(&self) -> u64 {
        let head = self.reader.head.borrow();
        if head.epoch == self.epoch {
            (head.sequence + 1).saturating_sub(self.next)
        } else {
            head.sequence
        }
    }

    /// Goes back, or on, to this record.
    pub fn seek(&mut self, next: u64) {
        self.next = next.max(1);
        self.at = None;
    }

    /// Returns once there is something to read; never, if nobody writes any more.
    pub async fn wait(&mut self) {
        let (epoch, next) = (self.epoch.clone(), self.next);
        let there = |head: &Head| {
            if head.epoch == epoch {
                head.sequence >= next
            } else {
                head.sequence > 0
            }
        };
        if self.reader.head.wait_for(there).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The next records, at most so many and about so many bytes; none if there is nothing new.
    ///
    /// # Errors
    /// If they cannot be read; the next attempt begins at the same record.
    pub fn read(&mut self, records: usize, bytes: usize) -> io::Result<Batch> {
        let head = self.reader.head();
        if head.epoch != self.epoch {
            self.epoch.clone_from(&head.epoch);
            self.seek(1);
        } else if self.next > head.sequence + 1 {
            // An older copy of the journal was put in its place.
            self.seek(head.sequence + 1);
        }
        let mut batch = Batch {
            epoch: self.epoch.clone(),
            first: self.next,
            ..Batch::default()
        };
        let mut size = 0;
        while self.next <= head.sequence && batch.lines.len() < records && size < bytes {
            let Some(At { path, offset }) = self.find(&mut batch)? else {
                break;
            };
            let mut file = BufReader::new(File::open(&path)?);
            file.seek(SeekFrom::Start(offset))?;
            let mut offset = offset;
            let mut ended = false;
            while self.next <= head.sequence && batch.lines.len() < records && size < bytes {
                let mut line = Vec::new();
                offset += file.read_until(b'\n', &mut line)? as u64;
                if line.pop() != Some(b'\n') {
                    ended = true;
                    break;
                }
                size += line.len();
                batch.lines.push(line);
                self.next += 1;
            }
            self.at = (!ended).then_some(At { path, offset });
        }
        Ok(batch)
    }

    /// Where the next record is; goes on to the first that is there if it is gone.
    fn find(&mut self, batch: &mut Batch) -> io::Result<Option<At>> {
        if let Some(at) = self.at.take()
            && at.path.exists()
        {
            return Ok(Some(at));
        }
        let found = segment::of(&self.reader.directory, &self.epoch)?;
        let after = found.partition_point(|it| it.first <= self.next);
        let Some(segment) = found.get(after.saturating_sub(1)) else {
            return Ok(None);
        };
        if segment.first > self.next {
            if !batch.lines.is_empty() {
                // A batch has no gap within.
                return Ok(None);
            }
            batch.missed = segment.first - self.next;
            batch.first = segment.first;
            self.next = segment.first;
        }
        let mut file = BufReader::new(File::open(&segment.path)?);
        let mut offset = 0;
        for _ in segment.first..self.next {
            let skipped = file.skip_until(b'\n')?;
            if skipped == 0 {
                return Ok(None);
            }
            offset += skipped as u64;
        }
        let path = segment.path.clone();
        Ok(Some(At { path, offset }))
    }

    /// Notes for a named cursor that everything up to this record is where it should be: the next process with a cursor
    /// of this name goes on after it.
    ///
    /// # Errors
    /// If that cannot be noted.
    pub fn acknowledge(&self, through: u64) -> io::Result<()> {
        let Some(name) = &self.name else {
            return Ok(());
        };
        let directory = self.reader.directory.join(CURSORS);
        std::fs::create_dir_all(&directory)?;
        let text = format!("{} {through}\n", self.epoch);
        files::replace(&directory.join(name), text.as_bytes())
    }
}

/// The epoch, and the last record in it that a cursor of this name has acknowledged.
fn position(directory: &Path, name: &str) -> io::Result<Option<(String, u64)>> {
    let text = files::read(&directory.join(CURSORS).join(name))?;
    let text = text.and_then(|text| String::from_utf8(text).ok());
    Ok(text.and_then(|text| {
        let (epoch, last) = text.trim().split_once(' ')?;
        Some((epoch.to_owned(), last.parse().ok()?))
    }))
}

/// The last record of `epoch` that a cursor of this name has acknowledged; 0 if none.
pub(super) fn acknowledged(directory: &Path, name: &str, epoch: &str) -> io::Result<u64> {
    let position = position(directory, name)?.filter(|(of, _)| of == epoch);
    Ok(position.map_or(0, |(_, last)| last))
}
