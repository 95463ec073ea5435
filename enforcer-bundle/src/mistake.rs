//! What is wrong with a bundle, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many mistakes are told one by one; more than this nobody reads.
const MAX_MISTAKES: usize = 1000;

/// One mistake in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The file, as it was named to [`load`](fn@super::load) or [`parse`](super::parse).
    pub file: PathBuf,
    /// Line in that file, from 1.
    pub line: usize,
    /// Column in that line, in characters, from 1.
    pub column: usize,
    /// Place in the document, such as `entitlements[3].destinations[0].cidr`; empty for the document
    /// as a whole. Indices count from 0 and within the one document.
    pub path: String,
    /// What was got, what was expected, and what to try.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything found wrong with a bundle, sorted by place; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(
                f,
                "error: the bundle has a mistake, nothing of it is applied"
            )?,
            count => write!(
                f,
                "error: the bundle has {count} mistakes, nothing of it is applied"
            )?,
        }
        self.0
            .iter()
            .try_for_each(|mistake| write!(f, "\n{mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// Why a bundle could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file or directory could not be read.
    #[error("cannot read the bundle at {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was read, and found wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

/// A line and a column, both from 1; the column in characters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub const START: Self = Self { line: 1, column: 1 };

    /// Where byte `offset` of `text` stands.
    pub fn of_byte(text: &str, offset: usize) -> Self {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Where something stands, kept for mistakes that only show when everything has been read.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub file: Arc<Path>,
    pub position: Position,
    pub path: String,
}

impl Place {
    /// A place in a file that is outside any field.
    pub fn in_file(file: &Arc<Path>, position: Position) -> Self {
        Self {
            file: file.clone(),
            position,
            path: String::new(),
        }
    }
}

/// Without the path, for "already given at".
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { line, column } = self.position;
        write!(f, "{}:{line}:{column}", self.file.display())
    }
}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(super) struct Report {
    mistakes: Vec<Mistake>,
    omitted: usize,
}

impl Report {
    pub fn add(&mut self, place: &Place, message: impl Into<String>) {
        if self.is_full() {
            return self.omit();
        }
        self.mistakes.push(Mistake {
            file: place.file.to_path_buf(),
            line: place.position.line,
            column: place.position.column,
            path: place.path.clone(),
            message: message.into(),
        });
    }

    /// Whether a further mistake would only be counted, so that its words are not worth finding.
    pub fn is_full(&self) -> bool {
        self.mistakes.len() >= MAX_MISTAKES
    }

    /// Counts a mistake.
    pub fn omit(&mut self) {
        self.omitted += 1;
    }

    /// The value, unless there was a mistake. It may be `None` only after one.
    pub fn settle<T>(mut self, value: Option<T>) -> Result<T, Mistakes> {
        if let (true, Some(value)) = (self.mistakes.is_empty(), value) {
            return Ok(value);
        }
        self.mistakes.sort();
        self.mistakes.dedup();
        if let (1.., Some(last)) = (self.omitted, self.mistakes.last().cloned()) {
            let message = format!("{} more mistakes are not shown", self.omitted);
            self.mistakes.push(Mistake {
                path: String::new(),
                message,
                ..last
            });
        }
        Err(Mistakes(self.mistakes))
    }
}

/// The text in double quotes, safe to print and of bounded length.
pub(super) fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The candidate that `got` is probably meant to be, in words to append to a message; else nothing.
pub(super) fn did_you_mean<'a>(got: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    closest(got, candidates).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

/// The candidate nearest to `got`, if one is near enough to be meant. Case, `_` and `-` count for nothing.
pub(super) fn closest<'a>(
    got: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if got.len() > LONGEST {
        return None;
    }
    let plain = |text: &str| -> Vec<char> {
        text.chars()
            .filter(|c| !matches!(c, '_' | '-'))
            .flat_map(char::to_lowercase)
            .collect()
    };
    let got = plain(got);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (distance(&got, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).min(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many insertions, deletions, replacements and swaps of neighbours make one out of the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
