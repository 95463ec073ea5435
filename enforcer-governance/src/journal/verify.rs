//! What somebody changed in a journal that is not written any more, or in a copy of one.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::line::Read;
use super::{HEAD, TRIMMED, segment};
use crate::files;
use crate::keys::PublicKey;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What there is, the oldest first.
    pub spans: Vec<Span>,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
}

/// The records of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Under which they are numbered.
    pub epoch: String,
    /// The first one's number.
    pub first: u64,
    /// The last one's.
    pub last: u64,
    /// How many checkpoints with a good signature are among them.
    pub checkpoints: u64,
    /// The last of these: who can write the files, but has not the key, could have cut or made up what comes after it.
    pub signed_through: u64,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where.
    pub file: PathBuf,
    /// From 1 on; 0 for the file as a whole.
    pub line: u64,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what } = self;
        match line {
            0 => write!(f, "{}: {what}", file.display()),
            _ => write!(f, "{}:{line}: {what}", file.display()),
        }
    }
}

/// Looks at a journal's directory, or at a file of its lines. Checkpoints count if signed with `key`.
///
/// # Errors
/// If something cannot be read.
pub fn verify(path: &Path, key: &PublicKey) -> io::Result<Report> {
    let is_journal = path.is_dir();
    let files: Vec<PathBuf> = match is_journal {
        true => segment::all(path)?.into_iter().map(|it| it.path).collect(),
        false => vec![path.to_owned()],
    };
    if files.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there are no files of records",
        ));
    }
    let mut looking = Looking::new(key);
    let head = match is_journal {
        true => files::read(&path.join(HEAD))?.and_then(|it| Read::parse(it.trim_ascii_end())),
        false => None,
    };
    for file in &files {
        looking.file.clone_from(file);
        looking.line = 0;
        looking.name = is_journal.then(|| name(file)).flatten();
        let mut lines = BufReader::new(File::open(file)?);
        let mut bytes = Vec::new();
        while lines.read_until(b'\n', &mut bytes)? > 0 {
            looking.line += 1;
            // The last line of a journal that is being written may not be whole yet.
            if bytes.last() == Some(&b'\n') || !is_journal {
                looking.at(bytes.trim_ascii_end());
            }
            bytes.clear();
        }
    }
    looking.line = 0;
    looking.ends(head);
    Ok(looking.report)
}

/// The epoch and first number in a file's name.
fn name(file: &Path) -> Option<(String, u64)> {
    let (epoch, first) = file.file_stem()?.to_str()?.split_once('-')?;
    Some((epoch.to_owned(), first.parse().ok()?))
}

struct Looking<'a> {
    key: &'a PublicKey,
    report: Report,
    /// Of the record before.
    hash: String,
    span: Option<Span>,
    /// What was told to have been removed of this epoch.
    trimmed: u64,
    /// The checkpoints that were met.
    checkpoints: Vec<(u64, String)>,
    file: PathBuf,
    line: u64,
    name: Option<(String, u64)>,
}

impl<'a> Looking<'a> {
    fn new(key: &'a PublicKey) -> Self {
        Self {
            key,
            report: Report::default(),
            hash: String::new(),
            span: None,
            trimmed: 0,
            checkpoints: Vec::new(),
            file: PathBuf::new(),
            line: 0,
            name: None,
        }
    }

    fn fault(&mut self, what: String) {
        self.report.faults.push(Fault {
            file: self.file.clone(),
            line: self.line,
            what,
        });
    }

    fn at(&mut self, line: &[u8]) {
        let Some(read) = Read::parse(line) else {
            return self
                .fault("is no record with `epoch`, `sequence`, `previous` and `hash`".to_owned());
        };
        if !read.is_whole() {
            self.fault(format!(
                "record {} was edited: its hash is another",
                read.sequence
            ));
        }
        if let Some((epoch, first)) = self.name.take()
            && (epoch != read.epoch || first != read.sequence)
        {
            self.fault(format!(
                "begins with record {} of epoch {}, and its name says {first} of {epoch}",
                read.sequence, read.epoch
            ));
        }
        match self.span.take() {
            Some(span) if span.epoch == read.epoch => self.follows(span, &read),
            other => {
                self.span = other;
                self.close();
                self.begins(&read);
            }
        }
        let signed = read.is_signed(self.key);
        if signed == Some(false) {
            self.fault(format!(
                "checkpoint {} is not signed with the key {}",
                read.sequence, self.key
            ));
        }
        if read.kind() == TRIMMED {
            self.trimmed = self.trimmed.max(read.number("through").unwrap_or(0));
        }
        if let Some(span) = &mut self.span {
            span.last = span.last.max(read.sequence);
            if signed == Some(true) {
                span.checkpoints += 1;
                span.signed_through = read.sequence;
                self.checkpoints.push((read.sequence, read.hash.clone()));
            }
        }
        self.hash = read.hash;
    }

    fn begins(&mut self, read: &Read) {
        if read.sequence == 1 && !read.previous.is_empty() {
            self.fault("record 1 says that there was one before it".to_owned());
        }
        self.span = Some(Span {
            epoch: read.epoch.clone(),
            first: read.sequence,
            last: read.sequence,
            ..Span::default()
        });
    }

    fn follows(&mut self, span: Span, read: &Read) {
        let expected = span.last + 1;
        self.span = Some(span);
        if read.sequence > expected {
            let last = read.sequence - 1;
            self.fault(format!("records {expected} to {last} were cut out"));
        } else if read.sequence < expected {
            self.fault(format!(
                "record {} stands where {expected} belongs: the order is another",
                read.sequence
            ));
        } else if read.previous != self.hash {
            self.fault(format!(
                "record {} does not follow the one before it: that was put in the place of another",
                read.sequence
            ));
        }
    }

    /// The records of an epoch end here.
    fn close(&mut self) {
        let Some(span) = self.span.take() else {
            return;
        };
        if span.first > self.trimmed + 1 {
            let through = span.first - 1;
            self.fault(format!(
                "records 1 to {through} of epoch {} are missing, and no record tells that they were removed",
                span.epoch
            ));
        }
        self.trimmed = 0;
        self.report.spans.push(span);
    }

    fn ends(&mut self, head: Option<Read>) {
        let last_epoch = self.span.as_ref().map(|it| it.epoch.clone());
        self.close();
        let Some(head) = head else {
            return;
        };
        if head.is_signed(self.key) != Some(true) || !head.is_whole() {
            self.fault(format!(
                "the last checkpoint, beside it, is not signed with the key {}",
                self.key
            ));
        } else if last_epoch.as_ref() == Some(&head.epoch)
            && !self
                .checkpoints
                .contains(&(head.sequence, head.hash.clone()))
        {
            self.fault(format!(
                "the end was cut: there was a checkpoint {} that is not there",
                head.sequence
            ));
        }
    }
}
