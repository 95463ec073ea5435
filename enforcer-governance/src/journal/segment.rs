//! The files of a journal: each has records of one epoch, and is named by that and the number of its first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// One of the files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub epoch: String,
    /// The number of its first record.
    pub first: u64,
    pub path: PathBuf,
}

impl Segment {
    pub fn new(directory: &Path, epoch: &str, first: u64) -> Self {
        Self {
            epoch: epoch.to_owned(),
            first,
            path: directory.join(format!("{epoch}-{first:020}.jsonl")),
        }
    }

    fn from_path(path: PathBuf) -> Option<Self> {
        let (epoch, first) = path
            .file_name()?
            .to_str()?
            .strip_suffix(".jsonl")?
            .split_once('-')?;
        Some(Self {
            epoch: epoch.to_owned(),
            first: first.parse().ok()?,
            path,
        })
    }

    /// Opens it for the one who appends; it is made if it is not there.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)
    }

    pub fn bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.len())
    }
}

/// All of them, the oldest first.
pub(super) fn all(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(Segment::from_path(entry?.path()));
    }
    found.sort();
    Ok(found)
}

/// Those of one epoch, the oldest first.
pub(super) fn of(directory: &Path, epoch: &str) -> io::Result<Vec<Segment>> {
    let mut found = all(directory)?;
    found.retain(|it| it.epoch == epoch);
    Ok(found)
}

/// The last whole line, and where it ends.
pub(super) fn last_line(file: &mut File) -> io::Result<(Option<Vec<u8>>, u64)> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
        return Ok((None, 0));
    };
    let begin = bytes[..end].iter().rposition(|byte| *byte == b'\n');
    let line = bytes[begin.map_or(0, |it| it + 1)..end].to_vec();
    Ok((Some(line), end as u64 + 1))
}
