//! From files to a bundle.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::decode::At;
use super::document::{self, Node};
use super::mistake::{LoadError, Mistakes, Place, Position, Report};
use super::model::Bundle;
use super::parts::{Digest, Parts};
use super::schema::{self, Draft};
use super::validate::validate;

/// Most bytes all files of a bundle may have together.
pub const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Reads the bundle in the file `path`, or in the directory `path` from all its regular files named `*.yaml`
/// and `*.yml`, in the order of their names. Hidden files and other names are left alone.
///
/// # Errors
/// [`LoadError::Io`] if something cannot be read, [`LoadError::Mistakes`] if what was read is not a
/// consistent bundle. Either way nothing of it counts.
pub fn load(path: &Path) -> Result<Bundle, LoadError> {
    read(path, |_| ()).map(|(bundle, ())| bundle)
}

/// The same with its parts, as they are written.
///
/// # Errors
/// As [`load`].
pub fn load_parts(path: &Path) -> Result<(Bundle, Parts), LoadError> {
    read(path, Parts::of)
}

/// The bundle, and what `parts` makes of its documents.
fn read<T>(path: &Path, parts: impl FnOnce(&[Node<'_>]) -> T) -> Result<(Bundle, T), LoadError> {
    let mut report = Report::default();
    let mut draft = Draft::default();
    let mut sources = Vec::new();
    let mut left = MAX_BYTES;
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| LoadError::Io { path, source }
    };
    let files = files(path).map_err(failed(path))?;
    if files.is_empty() {
        let place = Place::in_file(&path.into(), Position::START);
        report.add(
            &place,
            "expected at least one file named *.yaml or *.yml in this directory",
        );
        draft.incomplete = true;
    }
    for file in files {
        let bytes = bytes_of(&file, left).map_err(failed(&file))?;
        match text(&file, bytes, &mut left, &mut report) {
            Some(text) => sources.push((file, text)),
            None => draft.incomplete = true,
        }
    }
    Ok(build(&sources, draft, report, parts)?)
}

/// Reads a bundle from texts that are at hand; the paths only serve to name them in mistakes.
///
/// # Errors
/// All [`Mistakes`] found, several at once; nothing of the bundle counts then.
pub fn parse(sources: &[(PathBuf, String)]) -> Result<Bundle, Mistakes> {
    let nothing_more = |_: &[Node<'_>]| ();
    build(sources, Draft::default(), Report::default(), nothing_more).map(|(bundle, ())| bundle)
}

/// Makes a bundle of JSON documents, which know no lines; the path only serves to name them in mistakes. What it is told from
/// others by is the digest of the texts.
pub(super) fn of_json(
    path: &Path,
    documents: impl Iterator<Item = String>,
) -> Result<Bundle, Mistakes> {
    let file: Arc<Path> = path.into();
    let mut building = Building::default();
    for text in documents {
        if !building.takes(&file, &text) {
            continue;
        }
        match serde_json::from_str::<Node<'_>>(&text) {
            Ok(root) => schema::document(
                At::root(&file, &root),
                &mut building.report,
                &mut building.draft,
            ),
            Err(error) => {
                let place = Place::in_file(&file, Position::START);
                building
                    .report
                    .add(&place, format!("not valid JSON: {error}"));
                building.draft.incomplete = true;
            }
        }
    }
    building.finish(path)
}

/// Adds the sources to what there is, and makes a bundle of it.
fn build<T>(
    sources: &[(PathBuf, String)],
    draft: Draft,
    report: Report,
    parts: impl FnOnce(&[Node<'_>]) -> T,
) -> Result<(Bundle, T), Mistakes> {
    let mut building = Building {
        draft,
        report,
        ..Building::default()
    };
    let mut roots = Vec::new();
    for (path, text) in sources {
        let file: Arc<Path> = path.as_path().into();
        if !building.takes(&file, text) {
            continue;
        }
        let documents = document::read(&file, text, &mut building.report);
        building.draft.incomplete |= !documents.complete;
        for root in &documents.roots {
            schema::document(
                At::root(&file, root),
                &mut building.report,
                &mut building.draft,
            );
        }
        roots.extend(documents.roots);
    }
    let first = sources
        .first()
        .map_or(Path::new("bundle"), |(path, _)| path);
    Ok((building.finish(first)?, parts(&roots)))
}

/// A bundle of which some documents have been read.
struct Building {
    draft: Draft,
    report: Report,
    hash: Sha256,
    /// Bytes it may still have.
    left: u64,
}

impl Default for Building {
    fn default() -> Self {
        Self {
            draft: Draft::default(),
            report: Report::default(),
            hash: Sha256::new(),
            left: MAX_BYTES,
        }
    }
}

impl Building {
    /// Counts a text in, if there is room for it.
    fn takes(&mut self, file: &Arc<Path>, text: &str) -> bool {
        self.hash.update((text.len() as u64).to_le_bytes());
        self.hash.update(text);
        let fits = fits(file, text.len(), &mut self.left, &mut self.report);
        self.draft.incomplete |= !fits;
        fits
    }

    /// What there is as a whole; mistakes that are in none of its lines are said to be in the file `first`.
    fn finish(mut self, first: &Path) -> Result<Bundle, Mistakes> {
        let Digest(digest) = Digest::of_hash(self.hash);
        let start = Place::in_file(&first.into(), Position::START);
        let bundle = validate(self.draft, &start, digest, &mut self.report);
        self.report.settle(bundle)
    }
}

/// Takes `bytes` from what is `left`, or reports that there is not so much.
fn fits(file: &Arc<Path>, bytes: usize, left: &mut u64, report: &mut Report) -> bool {
    if let Some(rest) = left.checked_sub(bytes as u64) {
        *left = rest;
        return true;
    }
    let message = format!(
        "the bundle is larger than {MAX_BYTES} bytes; give each node only what concerns it"
    );
    report.add(&Place::in_file(file, Position::START), message);
    false
}

/// The files of the bundle at `path`, sorted.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        // A name that leads nowhere stays in the list, for the error it then gives.
        if yaml && !hidden && fs::metadata(&file).map_or(true, |metadata| metadata.is_file()) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The content of `file`, or one byte more than `limit`.
fn bytes_of(file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(file: &Path, bytes: Vec<u8>, left: &mut u64, report: &mut Report) -> Option<String> {
    let file = file.into();
    if !fits(&file, bytes.len(), left, report) {
        return None;
    }
    String::from_utf8(bytes)
        .map_err(|error| {
            let end = error.utf8_error().valid_up_to();
            let valid = String::from_utf8_lossy(&error.as_bytes()[..end]);
            let place = Place::in_file(&file, Position::of_byte(&valid, end));
            report.add(&place, "not valid UTF-8; save the file as UTF-8");
        })
        .ok()
}
