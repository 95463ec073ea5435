//! Evidence on disk, until governance has it.
//!
//! Records are lines, numbered from 1 within an epoch without a gap, in files named by the number of their first. One
//! side appends ([`Spool`]), the other reads what is whole and takes away what is stored elsewhere ([`Reader`]); they
//! share nothing but the files and how far they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::files;

/// A file is followed by another one at this size.
const SEGMENT_BYTES: u64 = 1024 * 1024;
/// How often it is looked whether there is room again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The side that appends.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    epoch: String,
    file: File,
    /// Bytes of the file.
    bytes: u64,
    /// Bytes of all files, as last looked.
    total: u64,
    most: u64,
    looked: Instant,
    next: u64,
    dropped: u64,
    /// Something is not on disk yet.
    dirty: bool,
    written: watch::Sender<u64>,
}

/// The side that reads.
#[derive(Clone, Debug)]
pub struct Reader {
    directory: PathBuf,
    epoch: String,
    written: watch::Receiver<u64>,
}

fn segment(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.jsonl"))
}

/// The files with the numbers of their first records, in order.
fn segments(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let first = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(first), Some("jsonl")) = (first, path.extension().and_then(|it| it.to_str())) {
            found.push((first, path));
        }
    }
    found.sort();
    Ok(found)
}

impl Spool {
    /// Opens the directory, which is made if it is not there. Once all files together have `most` bytes, no more is
    /// taken until some of it is stored elsewhere.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn open(directory: &Path, most: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let name = directory.join("epoch");
        let epoch = match files::read(&name)? {
            Some(epoch) => String::from_utf8_lossy(&epoch).into_owned(),
            None => {
                let epoch = format!("{:032x}", rand::random::<u128>());
                files::replace(&name, epoch.as_bytes())?;
                epoch
            }
        };
        let found = segments(directory)?;
        let mut total = 0;
        for (_, path) in &found {
            total += fs::metadata(path)?.len();
        }
        let (first, path) = match found.into_iter().next_back() {
            Some(last) => last,
            None => {
                let first = stored(directory)? + 1;
                (first, segment(directory, first))
            }
        };
        let mut file = open(&path)?;
        let (lines, whole) = whole_lines(&mut file)?;
        // What was being written when the last daemon died.
        file.set_len(whole)?;
        let next = first + lines;
        Ok(Self {
            directory: directory.to_owned(),
            epoch,
            file,
            bytes: whole,
            total,
            most,
            looked: Instant::now(),
            next,
            dropped: 0,
            dirty: false,
            written: watch::Sender::new(next - 1),
        })
    }

    /// The other side.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader {
            directory: self.directory.clone(),
            epoch: self.epoch.clone(),
            written: self.written.subscribe(),
        }
    }

    /// Appends a record, which is one line without its end. `false` if there is no room for it.
    ///
    /// # Errors
    /// If it cannot be written; then nothing of it is.
    pub fn append(&mut self, record: &str) -> io::Result<bool> {
        if self.total >= self.most && self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            self.total = 0;
            for (_, path) in segments(&self.directory)? {
                self.total += fs::metadata(path)?.len();
            }
        }
        if self.total >= self.most {
            self.dropped += 1;
            return Ok(false);
        }
        if self.bytes >= SEGMENT_BYTES {
            self.file.sync_data()?;
            self.file = open(&segment(&self.directory, self.next))?;
            self.bytes = 0;
        }
        if let Err(error) = self.file.write_all(format!("{record}\n").as_bytes()) {
            // The disk is full, perhaps: no half of a line stays.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        let bytes = record.len() as u64 + 1;
        self.bytes += bytes;
        self.total += bytes;
        self.dirty = true;
        self.written.send_replace(self.next);
        self.next += 1;
        Ok(true)
    }

    /// The number of the last record; 0 if there is none.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.next - 1
    }

    /// How many records found no room since this was last asked.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Has what was appended put on disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// How many whole lines there are, and where the last of them ends.
fn whole_lines(file: &mut File) -> io::Result<(u64, u64)> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    Ok((lines as u64, whole.map_or(0, |end| end as u64 + 1)))
}

/// The last record that governance has.
fn stored(directory: &Path) -> io::Result<u64> {
    let text = files::read(&directory.join("stored"))?;
    let number = text.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok());
    Ok(number.unwrap_or(0))
}

impl Reader {
    /// Changes when records that were not yet stored are lost.
    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// The last record that governance has, as far as it has said.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn stored(&self) -> io::Result<u64> {
        stored(&self.directory)
    }

    /// Returns once there is a record after this one.
    pub async fn wait_past(&mut self, number: u64) {
        if self
            .written
            .wait_for(|written| *written > number)
            .await
            .is_err()
        {
            // Nobody appends any more.
            std::future::pending::<()>().await;
        }
    }

    /// The records from `first` on, or from the first one that is still there: at most so many, and about so many bytes.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(
        &self,
        first: u64,
        records: usize,
        bytes: usize,
    ) -> io::Result<(u64, Vec<Vec<u8>>)> {
        let written = *self.written.borrow();
        let found = segments(&self.directory)?;
        let after = found.partition_point(|(start, _)| *start <= first);
        let mut batch: Vec<Vec<u8>> = Vec::new();
        let mut begin = None;
        let mut size = 0;
        for (start, path) in &found[after.saturating_sub(1)..] {
            let mut lines = BufReader::new(File::open(path)?);
            let mut number = *start;
            loop {
                let mut line = Vec::new();
                lines.read_until(b'\n', &mut line)?;
                // What is not yet told of may be half a line.
                if line.pop() != Some(b'\n') || number > written {
                    break;
                }
                if number >= first {
                    begin.get_or_insert(number);
                    size += line.len();
                    batch.push(line);
                    if batch.len() >= records || size >= bytes {
                        return Ok((begin.unwrap_or(first), batch));
                    }
                }
                number += 1;
            }
        }
        Ok((begin.unwrap_or(first), batch))
    }

    /// Governance has everything up to here: files with nothing else are taken away.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn trim(&self, number: u64) -> io::Result<()> {
        if number > *self.written.borrow() || number <= self.stored()? {
            return Ok(());
        }
        files::replace(
            &self.directory.join("stored"),
            number.to_string().as_bytes(),
        )?;
        let found = segments(&self.directory)?;
        for pair in found.windows(2) {
            // The next one begins after what is stored.
            if pair[1].0 <= number + 1 {
                fs::remove_file(&pair[0].1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64) -> String {
        format!("{{\"number\":{number},\"fill\":\"{}\"}}", "x".repeat(1000))
    }

    fn numbers(reader: &Reader, first: u64) -> (u64, usize) {
        let (begin, batch) = reader.read(first, 100_000, usize::MAX).expect("read");
        for (number, got) in (begin..).zip(&batch) {
            assert_eq!(String::from_utf8_lossy(got), record(number));
        }
        (begin, batch.len())
    }

    #[test]
    fn records_are_there_until_they_are_stored() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = Spool::open(directory.path(), u64::MAX).expect("open");
        let reader = spool.reader();
        for number in 1..=5000 {
            assert!(spool.append(&record(number)).expect("written"));
        }
        assert_eq!(numbers(&reader, 1), (1, 5000));
        assert_eq!(numbers(&reader, 4000), (4000, 1001));
        assert_eq!(reader.read(7, 10, usize::MAX).expect("read").1.len(), 10);
        assert_eq!(reader.read(7, 10, 1).expect("read").1.len(), 1);

        reader.trim(3000).expect("trimmed");
        let (begin, count) = numbers(&reader, 1);
        assert!(begin > 1 && begin <= 3001, "{begin}");
        assert_eq!(begin + count as u64, 5001);
        // A receipt for what was never written, or an old one, changes nothing.
        reader.trim(6000).expect("ignored");
        reader.trim(10).expect("ignored");
        assert_eq!(reader.stored().expect("read"), 3000);
    }

    #[test]
    fn the_next_daemon_goes_on_after_half_a_line() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = Spool::open(directory.path(), u64::MAX).expect("open");
        let epoch = spool.reader().epoch().to_owned();
        for number in 1..=3 {
            spool.append(&record(number)).expect("written");
        }
        drop(spool);
        let mut torn = open(&segment(directory.path(), 1)).expect("open");
        torn.write_all(b"{\"number\":4,").expect("written");

        let mut spool = Spool::open(directory.path(), u64::MAX).expect("open");
        assert_eq!(spool.reader().epoch(), epoch);
        spool.append(&record(4)).expect("written");
        assert_eq!(numbers(&spool.reader(), 1), (1, 4));
        // Also when everything is stored and gone.
        spool.reader().trim(4).expect("trimmed");
        drop(spool);
        fs::remove_file(segment(directory.path(), 1)).expect("removed");
        let mut spool = Spool::open(directory.path(), u64::MAX).expect("open");
        spool.append(&record(5)).expect("written");
        assert_eq!(numbers(&spool.reader(), 5), (5, 1));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = Spool::open(directory.path(), 2500).expect("open");
        let taken = (1..=5).filter(|number| spool.append(&record(*number)).expect("written"));
        assert_eq!(taken.count(), 3);
        assert_eq!((spool.take_dropped(), spool.take_dropped()), (2, 0));
        assert_eq!(numbers(&spool.reader(), 1), (1, 3));
    }
}
